#!/bin/bash
# Starts Ray on a machine of your own. Copy it to each machine, with the same ~/.ray/auth_token on all, and run
#   STARLAB_RUNS=/shared/runs bash on_premise.sh head                 # on one machine
#   STARLAB_RUNS=/shared/runs bash on_premise.sh worker HEAD_ADDRESS  # on every other one
# The Python that has starlab must come first on PATH: jobs start as `python`. More arguments go to `ray start`.
# It stays in the foreground, as a service manager wants it; Ctrl-C ends Ray on this machine and nothing else.
set -euo pipefail

role="${1:-}"
token="${RAY_AUTH_TOKEN_PATH:-$HOME/.ray/auth_token}"
fail() {
  echo "on_premise.sh: $1" >&2
  exit 2
}
[[ "$role" = head || ( "$role" = worker && -n "${2:-}" ) ]] || fail "say: head, or: worker HEAD_ADDRESS"
[ -d "${STARLAB_RUNS:-}" ] || fail "STARLAB_RUNS must name the runs folder that all machines share; it is '${STARLAB_RUNS:-}'"
[ -s "$token" ] || fail "no token in $token: make one with 'ray get-auth-token --generate' and copy it to every machine"
[ -z "$(find -L "$token" -perm /077)" ] || fail "others can read $token: chmod 600 $token"
python -c 'import starlab.platform.cli' || fail "the first python on PATH ($(command -v python)) has no starlab"

export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$token" RAY_USAGE_STATS_ENABLED=0
export RAY_enable_metrics_collection=false AUTOSCALER_METRIC_PORT=-1 DASHBOARD_METRIC_PORT=-1  # they ask for no token
export RAY_idle_worker_killing_time_threshold_ms=60000  # decode tasks start in the processes of earlier ones; Ray ends idle ones after a second
export RAY_grpc_client_keepalive_timeout_ms=15000  # after a cut of the network nodes find each other again in seconds
if [ "$role" = head ]; then
  shift
  exec ray start --head --block --port="${STARLAB_PORT:-6379}" --dashboard-host=127.0.0.1 --disable-usage-stats "$@"
fi
address="$2"
shift 2
exec ray start --block --address="$address:${STARLAB_PORT:-6379}" --disable-usage-stats "$@"
