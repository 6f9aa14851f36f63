"""The stream beside other loaders on the same store: `make bench-data`, or `python tests/benchmarks/bench_peers.py`.

Prints a table of clips per second of processor time and writes the same as JSON; about five minutes on two cores. Each loader
has a process of its own and they take turns, epoch by epoch, so that a disturbance meets them alike; medians over the rounds.
Peers that the project does not use (SPDL, LitData) are installed into a temporary virtual environment, which borrows the
project's packages. `--installed-only` leaves them out.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ray
from peer_clips import make_store

from starlab.platform.cluster.connect import connect

INSTALLED = (
    "starlab_worker",
    "starlab_ray_data",
    "plain",
    "plain_fast_upsampling",
    "jpeg_only",
    "torch_dataloader",
    "torchvision",
)
TO_INSTALL = {"spdl": "spdl", "spdl_decoder": "spdl", "litdata": "litdata"}
"""Loaders that need a package besides the project's."""
PEERS = ("torch_dataloader", "torchvision", "spdl", "spdl_decoder", "litdata")
SAME_PIXELS = ("starlab_worker", "starlab_ray_data", "plain", "torch_dataloader", "spdl", "litdata")
"""Loaders that do the same work to the last bit."""
PLAIN_RATIO, PEER_RATIO = 0.97, 1.05


class Loader:
    """A loader in a process of its own; see peers.py."""

    def __init__(self, name: str, python: str, store: Path, threads: int) -> None:
        self.name = name
        script = Path(__file__).with_name("peers.py")
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  (the process writes to it until `close`)
        self._process = subprocess.Popen(
            [python, str(script), name, str(store), str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        self.pixels = int(self._read("pixels"))

    def epoch(self) -> float:
        """Load an epoch. Returns the seconds of processor time."""
        assert self._process.stdin
        print(file=self._process.stdin, flush=True)
        return self._read("cpu_seconds")

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin
        self._process.stdin.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()

    def _read(self, key: str) -> float:
        assert self._process.stdout
        for line in self._process.stdout:
            if line.startswith(f'{{"{key}"'):
                return float(json.loads(line)[key])
        self._errors.seek(0)
        raise RuntimeError(f"{self.name} ended: {self._errors.read().strip()[-300:]}")


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    loader: str
    clips_per_cpu_second: float
    starlab_over: float
    """Clips per second of processor time of `decode: worker` over this loader's, the median of the rounds."""
    pixels_differ: float
    """How far the mean pixel is from the plain loop's, in levels."""
    target: str = ""
    reached: bool | None = None
    """None where there is no target."""


def install(folder: Path, packages: set[str]) -> str:
    """Make a virtual environment that has the project's packages and these. Returns its Python.

    Raises:
        subprocess.CalledProcessError: they cannot be installed.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = folder / "bin" / "python"
    site = subprocess.run(
        [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    borrowed = dict.fromkeys(path for path in sys.path if path.endswith("site-packages"))
    Path(site, "borrowed.pth").write_text("\n".join(borrowed or [sysconfig.get_path("purelib")]))
    subprocess.run([str(python), "-m", "pip", "install", "--quiet", *sorted(packages)], check=True, stderr=subprocess.DEVNULL)
    return str(python)


def start(names: list[str], store: Path, folder: Path, threads: int) -> tuple[list[Loader], dict[str, str]]:
    """Start the loaders, each of which loads an epoch to warm up. Returns them, and why others are left out."""
    pythons = dict.fromkeys(names, sys.executable)
    left_out: dict[str, str] = {}
    if wanted := {TO_INSTALL[name] for name in names if name in TO_INSTALL}:
        try:
            other = install(folder / "peers", wanted)
            pythons |= {name: other for name in names if name in TO_INSTALL}
        except (OSError, subprocess.CalledProcessError) as error:
            left_out |= {name: f"{TO_INSTALL[name]} could not be installed ({error})" for name in names if name in TO_INSTALL}
    loaders = []
    for name in names:
        if name in left_out:
            continue
        try:
            loaders.append(Loader(name, pythons[name], store, threads))
        except RuntimeError as error:
            left_out[name] = str(error)
    return loaders, left_out


def compare(loaders: list[Loader], clips: int, rounds: int) -> list[Row]:
    """Let the loaders take turns."""
    seconds: dict[str, list[float]] = {loader.name: [] for loader in loaders}
    for _ in range(rounds):
        for loader in loaders:
            seconds[loader.name].append(loader.epoch())
    ours = seconds["starlab_worker"]
    over = {
        name: statistics.median(theirs / own for theirs, own in zip(values, ours, strict=True))
        for name, values in seconds.items()
    }
    best_peer = min((name for name in over if name in PEERS), key=lambda name: over[name], default=None)
    pixels = {loader.name: loader.pixels for loader in loaders}
    count = clips * 16 * 224 * 224 * 3
    rows = []
    for name, values in seconds.items():
        differ = 0.0 if name == "jpeg_only" else (pixels[name] - pixels["plain"]) / count
        if name in SAME_PIXELS and pixels[name] != pixels["plain"]:
            raise RuntimeError(f"{name} gives other pixels than the plain loop: {pixels[name]}, {pixels['plain']}")
        target = PLAIN_RATIO if name == "plain" else PEER_RATIO if name == best_peer else None
        rows.append(
            Row(
                name,
                clips / statistics.median(values),
                over[name],
                differ,
                "" if target is None else f"≥ {target}",
                None if target is None else over[name] >= target,
            )
        )
    return sorted(rows, key=lambda row: -row.clips_per_cpu_second)


def measure(folder: Path, names: list[str], clips: int, frames: int, rounds: int) -> tuple[list[Row], dict[str, str]]:
    """Make a store in `folder` and compare the loaders on it. Returns the rows, and why loaders are left out."""
    started_here = not ray.is_initialized()
    connect(object_store_bytes=500_000_000)
    make_store(folder / "store", clips, frames)
    if started_here:
        ray.shutdown()
    loaders, left_out = start(names, folder / "store", folder, os.cpu_count() or 1)
    try:
        return compare(loaders, clips, rounds), left_out
    finally:
        for loader in loaders:
            loader.close()


def lines(rows: list[Row], left_out: dict[str, str]) -> list[str]:
    """The table."""
    verdict: dict[bool | None, str] = {True: "reached", False: "NOT REACHED", None: ""}
    given = [
        f"{row.loader:<24}{row.clips_per_cpu_second:>8.1f} clips per CPU second   starlab / it {row.starlab_over:5.2f}   "
        f"{row.target:<7} {verdict[row.reached]}"
        for row in rows
    ]
    return [*given, *(f"{name:<24} left out: {why}" for name, why in left_out.items())]


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=384, help="clips of the store, a multiple of 8")
    parser.add_argument("--frames", type=int, default=90, help="frames of a clip")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--installed-only", action="store_true", help="leave out the peers that would have to be installed")
    parser.add_argument("--only", nargs="+", choices=[*INSTALLED, *TO_INSTALL], help="these besides starlab_worker and plain")
    parser.add_argument("--json", type=Path, default=Path("runs/bench_peers.json"), help="where the figures go")
    arguments = parser.parse_args()
    if arguments.clips % 8:
        parser.error(f"--clips is {arguments.clips}; it must be a multiple of 8")
    names: list[str] = [*INSTALLED, *([] if arguments.installed_only else TO_INSTALL)]
    if arguments.only:
        names = list(dict.fromkeys(["starlab_worker", "plain", *arguments.only]))
    machine = f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before"
    print(f"{machine}; {arguments.clips} clips of {arguments.frames} frames\n", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="starlab-peers-"))
    try:
        rows, left_out = measure(folder, names, arguments.clips, arguments.frames, arguments.rounds)
    finally:
        shutil.rmtree(folder)
    print("\n".join(lines(rows, left_out)))
    record: dict[str, Any] = {"machine": machine, "rows": [asdict(row) for row in rows], "left_out": left_out}
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    print(f"\nwritten to {arguments.json}")


if __name__ == "__main__":
    main()
