"""What listens while a submitted training runs, what answers without the token, and gRPC over TLS (docs/security.md)."""

from __future__ import annotations

import ast
import http.client
import ipaddress
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import psutil
import pytest
from ray.job_submission import JobSubmissionClient
from tiny import TINY

from starlab.platform import cli
from starlab.platform.cluster.jobs import stop_job
from starlab.platform.package import ROOMS

if TYPE_CHECKING:
    from conftest import Head

ROOT = Path(__file__).resolve().parents[3]
SMALL = [*TINY, "train.log_every_steps=1"]
# One call of each of Ray's services; PushTask runs code, GetAllNodeInfo names the cluster's machines.
CALLS = {
    "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo": "GCS",
    "/ray.rpc.NodeManagerService/GetSystemConfig": "raylet",
    "/ray.rpc.ObjectManagerService/Push": "object manager",
    "/ray.rpc.CoreWorkerService/PushTask": "worker",
    "/ray.rpc.ReporterService/GetTraceback": "agent",
    "/ray.rpc.RayletDriver/Init": "Ray client",
}


def submit_quietly(head: Head, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(head.token_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(sys, "argv", ["starlab", "submit", "--address", head.dashboard, *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0


@contextmanager
def training(head: Head, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two ranks that train for as long as the context lasts."""
    long = ["train.epochs=100000", "train.evaluate_every_epochs=100000", "resources.workers=2", "resources.cpus_per_worker=0.5"]
    submit_quietly(head, monkeypatch, "--no-wait", "--id", "listens", "--", "train", "demo", *SMALL, *long)
    client = JobSubmissionClient(head.dashboard, headers={"Authorization": f"Bearer {head.token}"})
    deadline = time.monotonic() + 250
    while "train    step" not in (log := client.get_job_logs("listens")):
        assert time.monotonic() < deadline, log
        time.sleep(0.5)
    try:
        yield
    finally:
        stop_job("listens", address=head.dashboard)


def listening(processes: list[psutil.Process]) -> dict[int, tuple[set[str], str]]:
    """Addresses and the process's name by port."""
    found: dict[int, tuple[set[str], str]] = {}
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            for one in process.net_connections("inet"):
                if one.status == psutil.CONN_LISTEN:
                    found.setdefault(one.laddr.port, (set(), process.name()))[0].add(one.laddr.ip.removeprefix("::ffff:"))
    return found


def http_status(host: str, port: int) -> int | None:
    """What a request without a token gets; None from a server that does not speak HTTP/1."""
    connection = http.client.HTTPConnection(host, port, timeout=3)
    try:
        connection.request("GET", "/api/jobs/")
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def grpc_answers(host: str, port: int) -> dict[str, grpc.StatusCode]:
    """What calls without a token get from the services that the port has; empty where it does not speak gRPC."""
    answers = {}
    with grpc.insecure_channel(f"{host}:{port}") as channel:
        for method, service in CALLS.items():
            try:
                channel.unary_unary(method)(b"", timeout=3)
                answers[service] = grpc.StatusCode.OK
            except grpc.RpcError as error:
                code = error.code()
                if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                    return {}
                if code is not grpc.StatusCode.UNIMPLEMENTED:
                    answers[service] = code
    return answers


@pytest.mark.longer
def test_while_a_training_runs_only_torchs_own_ports_answer_without_the_token(
    ray_head: Head, monkeypatch: pytest.MonkeyPatch, family_of: Callable[[Head], list[psutil.Process]]
) -> None:
    judged: dict[str, set[str]] = {}
    with training(ray_head, monkeypatch):
        for port, (addresses, name) in sorted(listening(family_of(ray_head)).items()):
            host = next((ip for ip in sorted(addresses) if not ipaddress.ip_address(ip).is_unspecified), "127.0.0.1")
            if (status := http_status(host, port)) is not None:
                assert status == 401, f"{name} on port {port} answers HTTP {status} without a token"
                judged.setdefault("HTTP", set()).add(name)
                continue
            answers = grpc_answers(host, port)
            assert set(answers.values()) <= {grpc.StatusCode.UNAUTHENTICATED}, f"{name} on port {port}: {answers}"
            for service in answers or {"torch"}:
                judged.setdefault(service, set()).add(name)
    services = set(judged) - {"torch"}
    assert services == {"HTTP", *CALLS.values()}, judged
    # TCPStore and Gloo: the ranks' own processes, and no other ones.
    assert all(name.startswith("ray::") and "Agent" not in name for name in judged.get("torch", set())), judged


@pytest.mark.longer
def test_a_submitted_training_ends_well_where_rays_grpc_is_encrypted(tls_head: Head, monkeypatch: pytest.MonkeyPatch) -> None:
    submit_quietly(tls_head, monkeypatch, "--", "train", "demo", *SMALL, "train.epochs=1")
    assert list((tls_head.folder / "runs-of-the-cluster").glob("demo-*/result.json"))
    host, port = tls_head.gcs.split(":")
    assert grpc_answers(host, int(port)) == {}  # nothing is said to who does not speak TLS


def calls_in(path: Path) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def test_nothing_pickled_is_loaded() -> None:
    forbidden = ("pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal")
    for path in (path for room in ROOMS for path in (ROOT / room).rglob("*.py")):
        tree = ast.parse(path.read_text())
        imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        # pickles.py reads plain data alone: tests/pipelines/custom/test_annotations.py feeds it what wants more.
        allowed = {"pickle"} if path.name == "pickles.py" else set()
        assert not {name for name in imported if name.split(".")[0] in forbidden} - allowed, path
        for name, call in calls_in(path):
            assert name not in ("pickle.load", "pickle.loads"), path
            options = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
            if name == "torch.load":
                assert options.get("weights_only") == "True", path
            if name.endswith(("np.load", "numpy.load")):
                assert options.get("allow_pickle", "False") == "False", path
            if name in ("yaml.load", "yaml.load_all"):
                assert options.get("Loader", "").startswith("_Strict"), path
            # These unpickle what a tracking server or a search's folder holds.
            assert not name.endswith(("Tuner.restore", "pyfunc.load_model", "pytorch.load_model")), path
