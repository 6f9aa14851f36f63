"""Ray nodes that are as separate as machines: own network, processes, mounts and host name each, over one shared file system.

A node's power can be cut: its processes die without a last packet, so that no other node learns of it. Its network can be cut
too, as if the cable were pulled, or made slow: its processes go on. Needs root.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil

FAST_HEALTH_CHECKS = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "5",
}


AS_NFS = "attr_timeout=3,entry_timeout=30,negative_timeout=30"
"""For how many seconds a node keeps what it knows of a file, of a name, and of a name that does not exist. Options of bindfs.

NFS's own defaults are 3 to 60 and, for folders, 30 to 60.
"""


def can_separate() -> bool:
    """Whether this process may make network namespaces."""
    if os.geteuid() != 0 or not (shutil.which("ip") and shutil.which("unshare")):
        return False
    name = f"sl{os.getpid()}t"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False).returncode == 0
    if made:
        subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
    return made


class SeparateNodes:
    """A head without CPUs, and worker nodes, each in namespaces of its own on one bridge."""

    def __init__(self, folder: Path, environment: dict[str, str] | None = None, cached: Path | None = None) -> None:
        """Start the head.

        Args:
            folder: Ray's own files and the logs of the nodes.
            environment: for every process on the nodes.
            cached: A folder that each node sees through caches of its own, as NFS has them. Needs bindfs.
        """
        self._cached = cached
        self._folder, self._tag = folder, f"{os.getpid() % 10000}"
        self._net = f"10.{80 + os.getpid() % 100}.{os.getpid() // 100 % 250}"
        self._bridge = f"slb{self._tag}"
        self.environment = (
            os.environ | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16)} | (environment or {})
        )
        """For every process that joins the nodes."""
        self.environment.pop("RAY_ADDRESS", None)
        self._shells: dict[str, subprocess.Popen[bytes]] = {}
        self.address = f"{self._net}.1:6399"
        _ip("link", "add", self._bridge, "type", "bridge")
        _ip("link", "set", self._bridge, "up")
        try:
            self.start_head()
        except BaseException:
            self.close()
            raise

    def start_head(self) -> None:
        """Start the head; after its power was cut, a new one with the same address."""
        self.start("head", 1, "--head", "--port=6399", "--num-cpus=0", "--include-dashboard=false")
        self.until_alive(1)

    def add(self, name: str, number: int, cpus: int = 1, *options: str) -> None:
        """Start a worker node. `number` is the last part of its address, 2 or more."""
        alive = self._alive()
        self.start(name, number, f"--address={self.address}", f"--num-cpus={cpus}", *options)
        self.until_alive(alive + 1)

    def start(self, name: str, number: int, *options: str) -> None:
        """Start Ray in namespaces of its own without waiting for it. When it ends it is started again, as a service does."""
        space, address = self._space(name), f"{self._net}.{number}"
        link, peer = f"sl{self._tag}{name[:5]}", f"sp{self._tag}{name[:5]}"
        _ip("netns", "add", space)
        _ip("link", "add", link, "type", "veth", "peer", "name", peer)
        _ip("link", "set", peer, "netns", space)
        _ip("link", "set", link, "master", self._bridge, "up")
        _ip("-n", space, "link", "set", peer, "name", "eth0")
        _ip("-n", space, "addr", "add", f"{address}/24", "dev", "eth0")
        _ip("-n", space, "link", "set", "eth0", "up")
        _ip("-n", space, "link", "set", "lo", "up")
        temp = self._folder / f"ray-{name}-{time.time():.0f}"
        temp.mkdir(parents=True)
        ray = Path(sys.executable).parent / "ray"
        command = [str(ray), "start", *options, f"--node-ip-address={address}", "--object-store-memory=100000000", "--block"]
        # An own /tmp/ray and /dev/shm, because all nodes use the same names there.
        cache = f"bindfs -o {AS_NFS} {self._cached} {self._cached} || exit 1; " if self._cached else ""
        script = (
            f"hostname {name}; {cache}mkdir -p /tmp/ray; mount --bind {temp} /tmp/ray; "
            f"mount -t tmpfs -o size=256m tmpfs /dev/shm; while true; do {' '.join(command)}; sleep 2; done"
        )
        self._shells[name] = subprocess.Popen(
            ["ip", "netns", "exec", space, "unshare", "-pfmu", "--kill-child", "--mount-proc", "bash", "-c", script],
            env=self.environment,
            stdout=(self._folder / f"{name}.log").open("ab"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def enter(self, name: str = "head") -> list[str]:
        """The command that runs another command on a node."""
        shell, own = psutil.Process(self._shells[name].pid), _pid_namespace(os.getpid())
        for _ in range(100):
            for process in shell.children(recursive=True):
                if _pid_namespace(process.pid) not in (own, ""):
                    return ["nsenter", "-t", str(process.pid), "-n", "-p", "-m", "-u", "--"]
            time.sleep(0.1)
        raise TimeoutError(f"node {name} did not start; see {self._folder / f'{name}.log'}")

    def cut_power(self, name: str) -> None:
        """End a node without a last packet, and remove it."""
        _ip("link", "set", f"sl{self._tag}{name[:5]}", "down")
        shell = self._shells.pop(name)
        family = [*psutil.Process(shell.pid).children(recursive=True), psutil.Process(shell.pid)]
        for process in family:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        shell.wait()
        psutil.wait_procs(family, timeout=30)
        _ip("netns", "del", self._space(name))
        subprocess.run(["ip", "link", "del", f"sl{self._tag}{name[:5]}"], capture_output=True, check=False)

    def cut_network(self, name: str) -> None:
        """Unplug a node: no packet reaches it or leaves it any more."""
        _ip("link", "set", f"sl{self._tag}{name[:5]}", "nomaster")

    def heal_network(self, name: str) -> None:
        """Plug a node in again."""
        _ip("link", "set", f"sl{self._tag}{name[:5]}", "master", self._bridge)

    def slow_network(self, name: str, megabits: float) -> None:
        """Let a node receive and send so many megabits a second; more waits for up to 0.4 s and is then lost."""
        tbf = ("root", "tbf", "rate", f"{megabits}mbit", "burst", "16kb", "latency", "400ms")
        _run("tc", "qdisc", "replace", "dev", f"sl{self._tag}{name[:5]}", *tbf)
        _run("tc", "-n", self._space(name), "qdisc", "replace", "dev", "eth0", *tbf)

    def fast_network(self, name: str) -> None:
        """Undo `slow_network`."""
        _run("tc", "qdisc", "del", "dev", f"sl{self._tag}{name[:5]}", "root")
        _run("tc", "-n", self._space(name), "qdisc", "del", "dev", "eth0", "root")

    def until_alive(self, nodes: int) -> None:
        """Wait until Ray counts so many nodes, the head included."""
        deadline = time.monotonic() + 240
        while self._alive() < nodes:
            if time.monotonic() > deadline:
                raise TimeoutError(f"no {nodes} nodes in 240 s; see {self._folder}")

    def close(self) -> None:
        """End all nodes and remove their networks."""
        for name in [*self._shells]:
            self.cut_power(name)
        _ip("link", "del", self._bridge)

    def _space(self, name: str) -> str:
        return f"sl{self._tag}{name}"

    def _alive(self) -> int:
        code = (
            f"import ray; ray.init(address='{self.address}', log_to_driver=False, logging_level='ERROR'); "
            "print('alive', sum(node['Alive'] for node in ray.nodes()))"
        )
        said = subprocess.run(
            [*self.enter(), sys.executable, "-c", code],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        return next((int(line.split()[1]) for line in said.stdout.splitlines() if line.startswith("alive")), 0)


def _ip(*words: str) -> None:
    _run("ip", *words)


def _run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)


def _pid_namespace(pid: int) -> str:
    try:
        return str(Path(f"/proc/{pid}/ns/pid").readlink())
    except OSError:
        return ""
