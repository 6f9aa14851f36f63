"""The ways to a cluster beside `ray up`: which machines cluster.yaml starts, Slurm, Kubernetes, machines of one's own."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import psutil
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.utils import ResourceRequestUtil
from ray.core.generated.autoscaler_pb2 import ResourceRequestByCount
from tiny import TINY

from starlab.experiments.catalog import SpecError
from starlab.platform.cluster.kuberay import manifest
from starlab.platform.cluster.slurm import BatchJob, send_script, write_script
from starlab.platform.errors import UserError

ROOT = Path(__file__).resolve().parents[3]
PACKAGED = ROOT / "platform" / "cluster"


def started_by_ray(demand: dict[str, float], count: int, unavailable: tuple[str, ...] = ()) -> dict[str, int]:
    """The machines of cluster.yaml that Ray's autoscaler v2 would start for so many times a demand."""
    config = AutoscalingConfig(prepare_config(yaml.safe_load((ROOT / "cluster.yaml").read_text())), skip_content_hash=True)
    request = SchedulingRequest(
        disable_launch_config_check=True,
        node_type_configs=config.get_node_type_configs(),
        max_num_nodes=config.get_max_num_nodes(),
        resource_requests=[ResourceRequestByCount(request=ResourceRequestUtil.make(demand), count=count)],
        cloud_resource_availabilities=dict.fromkeys(unavailable, 0.0),
        recoverable_resource_availabilities=dict.fromkeys(unavailable, 0.0),  # just after AWS had none
    )
    reply = ResourceDemandScheduler(MagicMock()).schedule(request)
    assert reply.infeasible_resource_requests == []
    return {launch.instance_type: launch.count for launch in reply.to_launch}


WORKER = {"CPU": 4.0, "GPU": 1.0, "accelerator_type:V100": 0.001}


def test_gpus_come_from_spot_machines_and_where_aws_has_none_from_ordinary_ones() -> None:
    assert started_by_ray(WORKER, 8) == {"v100_spot": 2}
    assert started_by_ray(WORKER, 8, unavailable=("v100_spot",)) == {"v100_on_demand": 2}
    config = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    assert "-e RAY_enable_autoscaler_v2=1" in config["docker"]["run_options"]


def test_decoding_alone_starts_no_gpu() -> None:
    assert started_by_ray({"CPU": 1.0}, 40) == {"decode": 2}


def test_the_batch_script_has_what_slurm_needs_to_start_stop_and_requeue_it(tmp_path: Path) -> None:
    job = BatchJob(
        arguments=["train", "demo", "data.store=my data", "train.epochs=2"],
        runs=tmp_path / "runs",
        nodes=3,
        gpus_per_node=4,
        time="12:00:00",
        options=["--partition=gpu"],
    )
    script = write_script(job)
    assert script == write_script(job)
    head = script.read_text().partition("\n\n")[0].splitlines()
    assert head[0] == "#!/bin/bash"
    options = [line.removeprefix("#SBATCH ") for line in head[1:]]
    assert {"--nodes=3", "--exclusive", "--requeue", "--gpus-per-node=4", "--time=12:00:00", "--partition=gpu"} <= set(options)
    assert "--signal=B:USR1@120" in options
    subprocess.run(["bash", "-n", str(script)], check=True)
    command = re.search(r"^COMMAND=\((.*)\)$", script.read_text(), flags=re.M)
    assert command is not None
    assert shlex.split(command[1])[3:] == ["train", "demo", f"data.store={Path.cwd()}/my data", "train.epochs=2"]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"arguments": ["train", "dmo"]}, SpecError, "did you mean 'demo'"),
        ({"arguments": ["ui", "x"]}, UserError, "not a command that can be submitted"),
        (
            {"arguments": ["train", "demo", "tracking.uri=http://me:hunter2@host"]},
            UserError,
            "the script would contain the password",
        ),
        ({"options": ["partition=gpu"]}, UserError, "write an option of sbatch"),
        ({"options": ["--partition=gpu\nrm -rf /"]}, UserError, "write an option of sbatch"),
        ({"nodes": 0}, UserError, "must be 1 or more"),
    ],
)
def test_a_batch_job_that_cannot_work_is_refused(
    options: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message) as refused:
        write_script(BatchJob(**{"arguments": ["train", "demo"], "runs": tmp_path} | options))
    assert "hunter2" not in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_the_script_goes_to_sbatch_and_its_refusal_is_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "job.sh"
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="no sbatch on this machine"):
        send_script(script)
    sbatch = tmp_path / "sbatch"
    sbatch.write_text('#!/bin/bash\n[ "$1" = --parsable ] && [ -z "${RAY_ADDRESS:-}" ] && echo "4711;cluster"')
    sbatch.chmod(0o755)
    monkeypatch.setenv("RAY_ADDRESS", "elsewhere:1")
    assert send_script(script) == "4711"
    sbatch.write_text("#!/bin/bash\necho 'Invalid partition' >&2; exit 1")
    with pytest.raises(UserError, match=r"refuses .*job\.sh: Invalid partition"):
        send_script(script)


def can_have_own_processes() -> bool:
    command = ["unshare", "-pfm", "--mount-proc", "--kill-child", "true"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


class FakeSlurm:
    """What a batch job finds on its node, and commands of Slurm's that do what a single node needs."""

    def __init__(self, folder: Path, number: int) -> None:
        self.calls = folder / "calls"
        self.number = number
        tools = folder / "tools"
        tools.mkdir()
        self._write(tools / "srun", 'while [[ "$1" = --* ]]; do shift; done\nexec "$@"')
        self._write(tools / "scontrol", f'echo "$@" >> {shlex.quote(str(self.calls))}')
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "STARLAB_"))}
        self.environment = kept | {
            "PATH": f"{tools}:{os.environ['PATH']}",
            "HOME": str(folder),
            "SLURM_JOB_ID": str(number),
            "SLURM_JOB_NUM_NODES": "1",
            "SLURM_CPUS_ON_NODE": "4",
            "STARLAB_HEAD_IP": "127.0.0.1",
        }

    @staticmethod
    def _write(path: Path, body: str) -> None:
        path.write_text(f"#!/bin/bash\n{body}\n")
        path.chmod(0o755)

    def start(self, script: Path, log: Path) -> subprocess.Popen[bytes]:
        # Processes of its own: `ray stop`, with which symmetric-run ends, must not see the Rays of other tests.
        command = ["unshare", "-pfm", "--mount-proc", "--kill-child", "bash", str(script)]
        with log.open("w") as output:
            return subprocess.Popen(command, env=self.environment, stdout=output, stderr=output)


@pytest.mark.longer
@pytest.mark.skipif(not can_have_own_processes(), reason="needs process namespaces (root): ray stop would end other Rays")
def test_the_batch_script_trains_is_warned_queues_itself_again_and_goes_on(tmp_path: Path) -> None:
    runs, log = tmp_path / "runs", tmp_path / "log"
    # Before the warning thousands of epochs are left, and after it the run has only to load its checkpoint to be asked again.
    long = ["train", "demo", *TINY, "train.epochs=3000", "train.evaluate_every_epochs=3000", "train.log_every_steps=1"]
    slurm = FakeSlurm(tmp_path, number=80_000 + os.getpid() % 1000)
    script = write_script(BatchJob(arguments=long, runs=runs))
    for attempt in range(2):
        batch = slurm.start(script, log)
        try:
            wait_for(lambda: "train    step" in log.read_text(), batch, log)
            job_folder = runs / "slurm" / str(slurm.number)
            assert oct((job_folder / "token").stat().st_mode & 0o777) == "0o600"
            [shell] = [one for one in psutil.Process(batch.pid).children() if one.name() == "bash"]
            shell.send_signal(signal.SIGUSR1)
            assert batch.wait(timeout=200) == 143, log.read_text()
        finally:
            batch.kill()
            batch.wait()
        text = log.read_text()
        assert re.search(r"the driver got SIGTERM; the checkpoint of step \d+ is complete", text), text
        assert ("continues from its newest checkpoint" in text) is (attempt == 1)
        assert not job_folder.exists()
        assert not Path(f"/tmp/ray-{slurm.number}").exists()
    assert slurm.calls.read_text().splitlines() == [f"requeue {slurm.number}"] * 2


@pytest.mark.longer
@pytest.mark.skipif(not can_have_own_processes(), reason="needs process namespaces (root): ray stop would end other Rays")
def test_a_batch_job_whose_ray_does_not_start_fails(tmp_path: Path) -> None:
    slurm = FakeSlurm(tmp_path, number=81_000 + os.getpid() % 1000)
    slurm.environment["SLURM_CPUS_ON_NODE"] = "-1"
    batch = slurm.start(write_script(BatchJob(arguments=["train", "demo"], runs=tmp_path / "runs")), tmp_path / "log")
    assert batch.wait(timeout=200) == 1
    assert "Ray did not start, so the command never ran" in (tmp_path / "log").read_text()
    assert not slurm.calls.exists()


def wait_for(holds: Any, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 250
    while not holds():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.3)


# Fields of KubeRay's API reference (docs/reference/api.md of v1.5.1) and of the Kubernetes types that it refers to.
RAY_JOB = {
    "entrypoint": str,
    "submissionMode": str,
    "backoffLimit": int,
    "shutdownAfterJobFinishes": bool,
    "ttlSecondsAfterFinished": int,
    "activeDeadlineSeconds": int,
    "rayClusterSpec": dict,
}
RAY_CLUSTER = {
    "rayVersion": str,
    "authOptions": dict,
    "enableInTreeAutoscaling": bool,
    "autoscalerOptions": dict,
    "headGroupSpec": dict,
    "workerGroupSpecs": list,
}
GROUP = {"rayStartParams": dict, "template": dict}
WORKER_GROUP = GROUP | {"groupName": str, "replicas": int, "minReplicas": int, "maxReplicas": int}
POD = {"containers": list, "volumes": list, "nodeSelector": dict, "tolerations": list, "terminationGracePeriodSeconds": int}
CONTAINER = {"name": str, "image": str, "env": list, "envFrom": list, "resources": dict, "volumeMounts": list}


def check_fields(given: dict[str, Any], documented: dict[str, type]) -> None:
    for name, value in given.items():
        assert isinstance(value, documented[name]), name


def test_the_manifest_has_documented_fields_a_token_and_the_command() -> None:
    arguments = ["train", "penn_action", "data.store=/mnt/starlab/Penn Action", "train.epochs=3"]
    job = yaml.safe_load(manifest(arguments, image="registry.example/starlab:1", claim="starlab-runs"))
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    assert re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,45}[a-z0-9])?", job["metadata"]["name"])  # KubeRay's limit is 47
    spec = job["spec"]
    check_fields(spec, RAY_JOB)
    assert shlex.split(spec["entrypoint"])[3:] == arguments
    cluster = spec["rayClusterSpec"]
    check_fields(cluster, RAY_CLUSTER)
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["rayVersion"] == __import__("ray").__version__
    check_fields(cluster["headGroupSpec"], GROUP)
    groups = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    assert set(groups) == {"v100", "decode"}
    for group in (cluster["headGroupSpec"], *groups.values()):
        check_fields(group, WORKER_GROUP)
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        pod = group["template"]["spec"]
        check_fields(pod, POD)
        [container] = pod["containers"]
        check_fields(container, CONTAINER)
        assert container["image"] == "registry.example/starlab:1"
        assert all(isinstance(entry["value"], str) for entry in container["env"])
        mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert set(mounted) == {volume["name"] for volume in pod["volumes"]}
        assert mounted["starlab"] == "/mnt/starlab"
        assert {"/dev/shm"} < set(mounted.values())
    assert groups["v100"]["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 4
    assert "nvidia" not in str(groups["decode"])
    assert not re.search(r"\b(NAME|COMMAND|IMAGE|CLAIM|RAY_VERSION)\b", str(job))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "demo", "tracking.uri=http://me:hunter2@host"], "put it into the Secret"),
        (["evaluate", "mine.yaml"], "a file of this machine is not in the cluster"),
    ],
)
def test_a_manifest_takes_no_password_and_no_file_of_this_machine(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        manifest(arguments, image="x", claim="y")


def on_premise(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": f"{folder}:{Path(sys.executable).parent}:/usr/bin:/bin", "HOME": str(folder)} | variables
    return subprocess.run(
        ["bash", str(PACKAGED / "on_premise.sh"), *arguments], env=environment, capture_output=True, text=True, check=False
    )


def test_a_machine_of_ones_own_starts_with_a_token_and_without_open_metrics(tmp_path: Path) -> None:
    ray = tmp_path / "ray"
    ray.write_text('#!/bin/bash\necho "$@" "$RAY_AUTH_MODE" "$RAY_enable_metrics_collection"')
    ray.chmod(0o755)
    runs = {"STARLAB_RUNS": str(tmp_path)}
    assert "say: head, or: worker HEAD_ADDRESS" in on_premise(tmp_path, "worker", **runs).stderr
    assert "STARLAB_RUNS must name the runs folder" in on_premise(tmp_path, "head").stderr
    assert "no token in" in on_premise(tmp_path, "head", **runs).stderr
    token = tmp_path / ".ray" / "auth_token"
    token.parent.mkdir()
    token.write_text("secret")
    token.chmod(0o644)
    assert f"others can read {token}: chmod 600" in on_premise(tmp_path, "head", **runs).stderr
    token.chmod(0o600)
    head = on_premise(tmp_path, "head", "--num-cpus=0", **runs)
    assert head.stdout.split() == (
        [
            "start",
            "--head",
            "--block",
            "--port=6379",
            "--dashboard-host=127.0.0.1",
            "--disable-usage-stats",
            "--num-cpus=0",
            "token",
            "false",
        ]
    ), head.stderr
    worker = on_premise(tmp_path, "worker", "10.0.0.1", **runs)
    assert worker.stdout.split() == ["start", "--block", "--address=10.0.0.1:6379", "--disable-usage-stats", "token", "false"]


DEPLOYMENTS = ["cluster.yaml", *(f"platform/cluster/{name}" for name in ("on_premise.sh", "slurm.sh", "kuberay.yaml"))]


@pytest.mark.parametrize("file", DEPLOYMENTS)
def test_every_way_to_a_cluster_lets_nodes_find_each_other_again_after_a_cut_of_the_network(file: str) -> None:
    assert re.search(r"RAY_grpc_client_keepalive_timeout_ms(=|, value: \")15000", (ROOT / file).read_text())


@pytest.mark.parametrize("file", DEPLOYMENTS)
def test_every_way_to_a_cluster_keeps_idle_decode_processes_for_a_minute_as_a_local_one_does(file: str) -> None:
    assert re.search(r"RAY_idle_worker_killing_time_threshold_ms(=|, value: \")60000", (ROOT / file).read_text())
