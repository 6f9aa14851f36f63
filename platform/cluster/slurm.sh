# What a batch job does: one Ray cluster over its nodes, for one starlab command. `starlab slurm` writes the lines above:
# the options for sbatch, PYTHON_BIN (the folder of the Python that has starlab), STARLAB_RUNS and COMMAND.
set -euo pipefail
umask 077

# Everything of this job's own: token, temporary folder, ports. The folder with the token is on the file system that all
# nodes share. Sockets are in the temporary folder, so its path is short.
job_folder="$STARLAB_RUNS/slurm/$SLURM_JOB_ID"
temporary="/tmp/ray-$SLURM_JOB_ID"
first_port=$((20000 + SLURM_JOB_ID % 2000 * 10))
head_address="${STARLAB_HEAD_IP:-$(hostname -I | cut -d' ' -f1)}"  # set STARLAB_HEAD_IP where the first interface is wrong
mkdir -p "$job_folder"
trap 'rm -rf "$job_folder"' EXIT
export PATH="$PYTHON_BIN:$PATH" STARLAB_RUNS
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$job_folder/token"
python -c 'import secrets; print(secrets.token_hex(32))' > "$RAY_AUTH_TOKEN_PATH"

export RAY_ADDRESS="$head_address:$first_port"  # the command joins this cluster
export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT="${RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT:-300}"
export RAY_USAGE_STATS_ENABLED=0
export RAY_enable_metrics_collection=false AUTOSCALER_METRIC_PORT=-1 DASHBOARD_METRIC_PORT=-1  # they ask for no token
export RAY_idle_worker_killing_time_threshold_ms=60000  # decode tasks start in the processes of earlier ones; Ray ends idle ones after a second
export RAY_grpc_client_keepalive_timeout_ms=15000  # after a cut of the network nodes find each other again in seconds

start_options=(
  --temp-dir="$temporary" --num-cpus="$SLURM_CPUS_ON_NODE" --disable-usage-stats
  --dashboard-host=127.0.0.1 --dashboard-port=$((first_port + 1))
  --dashboard-agent-listen-port=$((first_port + 2)) --dashboard-agent-grpc-port=$((first_port + 3))
  --runtime-env-agent-port=$((first_port + 4)) --ray-client-server-port=$((first_port + 5))
  --node-manager-port=$((first_port + 6)) --object-manager-port=$((first_port + 7))
  --min-worker-port=0 --max-worker-port=0
)

# USR1: Slurm warns this shell before it ends the job (--signal), which is then queued again. TERM: the user ends the job
# (scancel --batch --signal=TERM). The command, and it alone, gets SIGTERM: it writes its checkpoint and ends, while Ray is
# still there.
queue_again=""
ask_to_end() {
  kill -TERM "$(cat "$job_folder/driver.pid")" 2>/dev/null || true
}
trap 'queue_again=yes; ask_to_end' USR1
trap ask_to_end TERM

# `ray stop`, with which symmetric-run ends, stops every Ray of this user on a node: hence --exclusive above.
srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 \
  --cpus-per-task="$SLURM_CPUS_ON_NODE" --cpu-bind=none --kill-on-bad-exit=0 --wait=120 \
  bash -c 'temporary=$1; shift; "$@"; code=$?; rm -rf "$temporary"; exit $code' node "$temporary" \
  ray symmetric-run --address="$RAY_ADDRESS" --min-nodes="$SLURM_JOB_NUM_NODES" "${start_options[@]}" \
  -- bash -c 'echo $$ > "$1"; shift; exec "$@"' driver "$job_folder/driver.pid" "${COMMAND[@]}" &
step=$!

code=0
while true; do  # a signal ends `wait`, not the step
  wait "$step" && code=0 || code=$?
  kill -0 "$step" 2>/dev/null || break
done

if [ "$code" = 0 ] && [ ! -e "$job_folder/driver.pid" ]; then
  echo "starlab: Ray did not start, so the command never ran; the lines above say why" >&2
  exit 1  # symmetric-run itself ends with 0 then
fi
# 143: the command was asked to end and its checkpoint is written. The same job goes on when it gets nodes again.
if [ -n "$queue_again" ] && [ "$code" = 143 ]; then
  echo "starlab: job $SLURM_JOB_ID ended early and is queued again; it goes on from its checkpoint"
  scontrol requeue "$SLURM_JOB_ID" || true
fi
exit "$code"
