"""`starlab doctor --cluster`: what it finds on nodes that are as they should be, and on nodes that are not."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import ray
from ray.cluster_utils import Cluster

from starlab.experiments.spec import load_spec
from starlab.platform import cli, cluster_doctor
from starlab.platform.cluster.node_checks import NodeReport, missing_marks, reach, write_mark
from starlab.platform.cluster_doctor import examine_cluster
from starlab.platform.cluster_speed import Check

if TYPE_CHECKING:
    from conftest import Head

VERSIONS = dict.fromkeys(("Python", *cluster_doctor.PACKAGES, "starlab's code"), "1.0")


def report(**different: Any) -> NodeReport:
    same: dict[str, Any] = {
        "host": "one",
        "address": "10.0.0.1",
        "versions": VERSIONS,
        "gpu_problems": [],
        "gpus": 4,
        "cpus": 32,
        "disk_free_bytes": 10**12,
        "shared_memory_free_bytes": 10**11,
        "proxies": {},
    }
    return NodeReport(**same | different)


def node(**resources: float) -> dict[str, Any]:
    return {"NodeManagerHostname": "one", "NodeManagerAddress": "10.0.0.1", "Resources": {"CPU": 32.0, "GPU": 4.0} | resources}


def test_another_version_on_one_node_and_a_missing_package_are_errors() -> None:
    [check] = cluster_doctor._versions([report(), report()])
    assert check.level == "ok"
    [check] = cluster_doctor._versions([report(), report(), report(versions=VERSIONS | {"torch": "2.0"})])
    assert (check.level, check.says) == ("error", "torch: 1.0 on 2 nodes, 2.0 on 1 nodes")
    [check] = cluster_doctor._versions([report(versions=VERSIONS | {"av": "none"})])
    assert (check.level, check.says) == ("error", "av: none on 1 nodes")


@pytest.mark.parametrize(
    ("different", "resources", "level", "says"),
    [
        ({}, {}, "ok", "4 GPUs, 32 CPUs for Ray, 32 cores"),
        ({"gpu_problems": ["a V100 is sm_70"]}, {}, "error", "a V100 is sm_70"),
        ({"gpus": 0}, {}, "error", "Ray counts 4 GPUs and PyTorch sees 0"),
        ({"cpus": 8}, {}, "warning", "4 GPUs, 32 CPUs for Ray, 8 cores"),
        ({"disk_free_bytes": 10**9}, {}, "error", "1.0 GB free for Ray's files"),
        ({"disk_free_bytes": 10**10}, {}, "warning", "10.0 GB free for Ray's files"),
        ({"shared_memory_free_bytes": 64_000_000}, {}, "error", "0.1 GB free in /dev/shm"),
        ({"proxies": {"HTTP_PROXY": "http://p", "no_proxy": "localhost"}}, {}, "warning", "no_proxy does not name 10.0.0.1"),
        ({"proxies": {"HTTP_PROXY": "http://p", "no_proxy": "localhost, 10.0.0.1"}}, {}, "ok", "4 GPUs"),
    ],
)
def test_a_node_is_judged_by_what_it_reports(
    different: dict[str, Any], resources: dict[str, float], level: str, says: str
) -> None:
    checks = list(cluster_doctor._node(report(**different), node(**resources)))
    [found] = [check for check in checks if says in check.says]
    assert found.level == level
    assert bool(found.fix) is (level != "ok")


def test_a_mark_that_a_node_does_not_see_is_named(tmp_path: Path) -> None:
    assert write_mark(str(tmp_path / "new"), "node-0") is None
    assert missing_marks(str(tmp_path / "new"), ["node-0", "node-1"], 0.3) == ["node-1"]
    (tmp_path / "file").write_text("")
    assert write_mark(str(tmp_path / "file"), "node-0") is not None


def test_a_server_is_reached_or_the_reason_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert reach(f"postgresql+psycopg2://me@127.0.0.1:{port}/db") is None
    assert "refused" in str(reach(f"postgresql://127.0.0.1:{port}/db"))
    assert "refused" in str(reach(f"http://me:secret@127.0.0.1:{port}"))
    assert reach("http://no-such-host.invalid:1") is not None


@pytest.fixture
def two_nodes() -> Iterator[None]:
    """Two nodes of a Ray of its own on this machine."""
    ray.shutdown()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "object_store_memory": 150_000_000})
    cluster.add_node(num_cpus=2, object_store_memory=150_000_000)
    ray.init(address=cluster.address, log_to_driver=False)
    yield
    ray.shutdown()
    cluster.shutdown()


@pytest.mark.longer
def test_two_nodes_are_examined_and_every_line_is_ok_or_names_its_fix(two_nodes: None, tmp_path: Path) -> None:
    overrides = ["data.synthetic.train_clips_per_class=2", "data.synthetic.test_clips_per_class=1", "data.synthetic.size_px=48"]
    spec = load_spec("demo", overrides)
    checks = list(examine_cluster(spec, tmp_path, [f"sqlite:///{tmp_path}/mlflow.db", "http://127.0.0.1:1"]))
    by_name: dict[str, list[Check]] = {}
    for check in checks:
        by_name.setdefault(check.name, []).append(check)
        assert check.level == "ok" or check.fix, check
    assert by_name["versions"][0].level == "ok"
    assert by_name["clocks"][0].level == "ok"
    assert "written on each node and read on every other" in by_name["runs folder"][0].says
    assert list(tmp_path.glob(".doctor-*")) == []
    assert [check.level for check in by_name["storage"]] == ["warning", "error"]
    assert "1 more nodes cannot reach http://127.0.0.1:1" in by_name["storage"][1].says
    assert (by_name["object store"][0].level, by_name["all-reduce"][0].level) == ("warning", "ok")
    assert "Gloo between 2 nodes" in by_name["all-reduce"][0].says
    assert "gradients of demo" in by_name["all-reduce"][0].says
    assert "of one core; 4 CPUs decode at most" in by_name["decoding"][0].says


@pytest.mark.longer
def test_the_command_examines_a_cluster_as_a_job_of_it(
    ray_head: Head, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(ray_head.token_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    (ray_head.folder / "runs-of-the-cluster").mkdir(exist_ok=True)
    monkeypatch.setattr(sys, "argv", ["starlab", "doctor", "--cluster", "--address", ray_head.dashboard])
    with pytest.raises(SystemExit):
        cli.main()
    log = capsys.readouterr().out
    assert "ok       versions: Python 3." in log, log
    assert "all-reduce: one node computes" in log
