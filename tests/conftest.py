"""What several rooms' tests share: one local Ray, a small generated data set, an MLflow server, a PostgreSQL database."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
import torch
from hypothesis import settings

from starlab.pipelines.generated.ntu import SyntheticNtuConfig, write_ntu
from starlab.pipelines.generated.penn_action import SYNTHETIC_CLASSES, SyntheticConfig, write_penn_action
from starlab.pipelines.penn_action import PennActionSource
from starlab.platform.cluster.connect import Cluster, connect
from starlab.platform.tracking.server import SERVER_SETTINGS

# No deadline: a test says nothing about the load of the machine that it runs on.
settings.register_profile("starlab", deadline=None)
settings.load_profile("starlab")

SMALL = SyntheticConfig(train_subjects=3, test_subjects=2, train_clips_per_class=6, test_clips_per_class=3, size_px=64)
"""60 training and 30 test clips."""

SMALL_NTU = SyntheticNtuConfig(train_performers=2, test_performers=1, cameras=2, height_px=90, min_frames=40, max_frames=44)
"""36 clips of 160×90 and one without a body."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the files that use Ray first: `pytest -n` hands out whole files, and a long one at the end would run alone."""
    starts_ray = {"local_ray", "ray_head"}
    long = {item.path for item in items if starts_ray & set(getattr(item, "fixturenames", ()))}
    items.sort(key=lambda item: item.path not in long)


@pytest.fixture(scope="session", autouse=True)
def share_of_the_cores() -> None:
    """Divides the cores between the processes of `pytest -n`.

    With more threads than cores, OpenMP's threads wait for each other in busy loops: the model's tests took twice the
    processor time.
    """
    processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    torch.set_num_threads(max(1, torch.get_num_threads() // processes))


@pytest.fixture(scope="session")
def local_ray() -> Iterator[Cluster]:
    """Four logical CPUs in this process's own cluster."""
    ray.shutdown()
    yield connect(num_cpus=4, object_store_bytes=200_000_000)
    ray.shutdown()


@pytest.fixture(scope="session")
def small_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generated Penn Action folder; read only."""
    root = tmp_path_factory.mktemp("data") / "small"
    write_penn_action(root, SMALL, workers=1)
    return root


@pytest.fixture(scope="session")
def small_source(small_folder: Path) -> PennActionSource:
    return PennActionSource(small_folder, classes=SYNTHETIC_CLASSES)


@pytest.fixture(scope="session")
def ntu_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generated NTU RGB+D folder; read only."""
    root = tmp_path_factory.mktemp("data") / "ntu"
    write_ntu(root, SMALL_NTU, workers=1)
    return root


class TrackingServer:
    """A real `mlflow server` on a port and in a folder of its own; killed, stopped and started again as a test wants."""

    def __init__(self, folder: Path, store: str | None = None, pythonpath: str = "") -> None:
        """`store` is the address of its database; None takes an SQLite file in `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.database = folder / "server.db"
        self._folder, self._store = folder, store or f"sqlite:///{self.database}"
        self._environment = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
        self._environment |= {"PYTHONPATH": pythonpath, **SERVER_SETTINGS}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", self._store, "--workers", "1"]
        command += ["--artifacts-destination", str(self._folder / "artifacts"), "--port", str(self.port)]
        with (self._folder / "server.log").open("a") as log:
            self._process = subprocess.Popen(
                command, cwd=self._folder, env=self._environment, stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + 180
        while not self._answers():
            if time.monotonic() > deadline or self._process.poll() is not None:
                raise RuntimeError(f"the MLflow server did not start:\n{(self._folder / 'server.log').read_text()[-3000:]}")
            time.sleep(0.2)

    def signal(self, number: signal.Signals) -> None:
        """To the server and the workers that it started."""
        assert self._process is not None
        os.killpg(self._process.pid, number)

    def kill(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self.signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=5):
                return True
        except OSError:
            return False


@pytest.fixture(scope="session")
def tracking_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrackingServer]:
    """One over SQLite; whoever kills it starts it again."""
    server = TrackingServer(tmp_path_factory.mktemp("mlflow-server"))
    try:
        server.start()
        yield server
    finally:
        server.kill()


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """Address of a PostgreSQL database of our own, and what PYTHONPATH an MLflow server needs for it."""
    binaries = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not binaries:
        pytest.skip("PostgreSQL is not installed (Debian: postgresql)")
    driver = _psycopg2(tmp_path_factory)
    if driver is None:
        pytest.skip("psycopg2, which MLflow needs for PostgreSQL, is not installed (Debian: python3-psycopg2)")
    prefix: list[str] = []
    if os.getuid() == 0:  # PostgreSQL refuses to run as root
        if shutil.which("runuser") is None:
            pytest.skip("PostgreSQL refuses to run as root, and there is no runuser")
        prefix = ["runuser", "-u", "postgres", "--"]
    folder = Path(tempfile.mkdtemp(prefix="pg", dir="/tmp"))  # short: a socket lies in it
    tools = binaries[-1].parent
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    if prefix:
        shutil.chown(folder, "postgres")
    try:
        make = [str(tools / "initdb"), "-D", str(folder / "data"), "-U", "starlab", "--auth=trust", "--no-sync"]
        subprocess.run([*prefix, *make], cwd=folder, check=True, capture_output=True)
        options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        control = [*prefix, str(tools / "pg_ctl"), "-D", str(folder / "data"), "-w"]
        start = [*control, "-l", str(folder / "log"), "-o", options, "start"]
        subprocess.run(start, cwd=folder, check=True, stdout=subprocess.DEVNULL)  # its children would keep a pipe open
        try:
            yield f"postgresql+psycopg2://starlab@127.0.0.1:{port}/postgres", driver
        finally:
            subprocess.run([*control, "-m", "immediate", "stop"], cwd=folder, check=True, capture_output=True)
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def postgres_server(postgres: tuple[str, str], tmp_path: Path) -> Iterator[TrackingServer]:
    """An MLflow server over that database."""
    server = TrackingServer(tmp_path / "mlflow-server", *postgres)
    try:
        server.start()
        yield server
    finally:
        server.kill()


def _psycopg2(tmp_path_factory: pytest.TempPathFactory) -> str | None:
    """ "" where this environment has it; else a folder with Debian's, where that fits this Python; None without any."""
    if importlib.util.find_spec("psycopg2"):
        return ""
    debian = Path("/usr/lib/python3/dist-packages/psycopg2")
    if not list(debian.glob(f"_psycopg.cpython-{sys.version_info.major}{sys.version_info.minor}-*.so")):
        return None
    alone = tmp_path_factory.mktemp("psycopg2")  # of that folder nothing else should be found
    (alone / "psycopg2").symlink_to(debian)
    return str(alone)
