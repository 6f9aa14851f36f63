"""Ranks on two machines find each other whatever their host names resolve to."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray
import ray.util
from ray.train.torch import config as torch_config

from starlab.platform.cluster import network

RANK = """
import os, sys
import ray.util
import torch
import torch.distributed as dist
from datetime import timedelta
from starlab.platform.cluster.network import use_interface_of_node

rank, address, how = int(sys.argv[1]), sys.argv[2], sys.argv[3]
ray.util.get_node_ip_address = lambda: address
if how == "ours":
    use_interface_of_node()
dist.init_process_group("gloo", "tcp://10.77.0.1:29500", rank=rank, world_size=2, timeout=timedelta(seconds=60))
total = torch.tensor(float(rank + 1))
dist.all_reduce(total)
print("total", total.item())
"""


class Machines:
    """Two network namespaces that are joined by a cable, each with a host name of its own."""

    def __init__(self, folder: Path) -> None:
        self.names = [f"sl{uuid.uuid4().hex[:6]}" for _ in range(2)]
        self._folder = folder
        for name in self.names:
            ip("netns", "add", name)
        ends = [name.replace("sl", "v") for name in self.names]
        ip("link", "add", ends[0], "type", "veth", "peer", "name", ends[1])
        for number, (name, end) in enumerate(zip(self.names, ends, strict=True), start=1):
            ip("link", "set", end, "netns", name)
            ip("-n", name, "addr", "add", f"10.77.0.{number}/24", "dev", end)
            ip("-n", name, "link", "set", end, "up")
            ip("-n", name, "link", "set", "lo", "up")

    def start(self, rank: int, hosts: str, how: str) -> subprocess.Popen[str]:
        """A rank on its machine, called sl-node-RANK, with this /etc/hosts."""
        file = self._folder / f"hosts-{rank}"
        file.write_text(hosts)
        inside = f'mount --bind {file} /etc/hosts && hostname sl-node-{rank} && exec {sys.executable} -c "$0" "$@"'
        command = ["ip", "netns", "exec", self.names[rank], "unshare", "-m", "-u", "sh", "-c", inside]
        environment = {key: value for key, value in os.environ.items() if "SOCKET_IFNAME" not in key}
        arguments = [str(rank), f"10.77.0.{rank + 1}", how]
        return subprocess.Popen(
            [*command, RANK, *arguments], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def remove(self) -> None:
        for name in self.names:
            ip("netns", "del", name)


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Machines]:
    if os.getuid() != 0 or not all(map(shutil.which, ("ip", "unshare", "mount", "hostname"))):
        pytest.skip("network namespaces need root, iproute2 and util-linux")
    try:
        found = Machines(tmp_path)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"this machine makes no network namespaces: {error.stderr!r}")
    yield found
    found.remove()


def run_ranks(machines: Machines, hosts: tuple[str, str], how: str) -> list[tuple[int, str]]:
    ranks = [machines.start(rank, hosts[rank], how) for rank in range(2)]
    try:
        said = [rank.communicate(timeout=170)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    return [(rank.returncode, text) for rank, text in zip(ranks, said, strict=True)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "hosts",
    [
        ("127.0.0.1 localhost\n",) * 2,
        ("127.0.0.1 localhost\n10.77.0.1 sl-node-0\n", "127.0.0.1 localhost\n127.0.1.1 sl-node-1\n"),
        ("127.0.1.1 sl-node-0\n", "127.0.1.1 sl-node-1\n"),
    ],
    ids=["names that do not resolve", "127.0.1.1 on one of them", "127.0.1.1 on both"],
)
def test_two_machines_add_their_numbers_whatever_their_names_resolve_to(machines: Machines, hosts: tuple[str, str]) -> None:
    assert [(code, "total 3.0" in text) for code, text in run_ranks(machines, hosts, "ours")] == [(0, True)] * 2


def test_the_interface_is_the_one_that_has_the_nodes_address() -> None:
    assert network.find_interface("127.0.0.1") == "lo"
    assert network.find_interface("203.0.113.1") is None


def test_gloo_and_nccl_get_the_interface_unless_the_user_has_set_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "127.0.0.1")
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "ib0")
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    network.use_interface_of_node()
    assert (os.environ["GLOO_SOCKET_IFNAME"], os.environ["NCCL_SOCKET_IFNAME"]) == ("lo", "ib0")


def test_every_worker_gets_it_and_torch_before_the_port_is_chosen_and_the_process_group_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done: list[str] = []
    made: list[tuple[object, ...]] = []

    class Group:
        def __len__(self) -> int:
            return 2

        def get_resources_per_worker(self) -> dict[str, float]:
            return {"CPU": 1.0, "GPU": 1.0}

        def execute(self, function: Callable[[], None]) -> None:
            for _ in range(2):
                function()

        def execute_single(self, rank: int, *_: object) -> tuple[str, int]:
            assert rank == 0
            done.append("the port")
            return "203.0.113.1", 29500

        def execute_single_async(self, rank: int, function: Callable[..., None], *arguments: object) -> None:
            function(*arguments)

    def make(*arguments: object) -> None:
        done.append("the process group")
        made.append((*arguments, os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]))

    config = network.NodeAddressTorchConfig(timeout_s=60)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setattr(network, "use_interface_of_node", lambda: done.append("use_interface_of_node"))
    monkeypatch.setattr(torch_config, "_set_torch_distributed_env_vars", lambda: None)
    monkeypatch.setattr(torch_config, "_setup_torch_process_group", make)
    monkeypatch.setattr(ray, "get", lambda found: found)
    config.backend_cls().on_start(Group(), config)
    assert done == ["use_interface_of_node"] * 2 + ["the port"] + ["the process group"] * 2
    assert made == [("nccl", rank, 2, "env://", 60, "203.0.113.1", "29500") for rank in range(2)]
    assert config.timeout_s == 60
