"""Examines every node of a connected cluster before a run does: `starlab doctor --cluster`."""

from __future__ import annotations

import secrets
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ray

from starlab.experiments.credentials import without_password
from starlab.experiments.spec import Spec
from starlab.platform.cluster.node_checks import (
    NodeReport,
    describe_node,
    missing_marks,
    reach,
    tell_time,
    write_mark,
)
from starlab.platform.cluster_speed import Check, Level, all_reduce, decoding, name_of, object_store, on, on_each

PACKAGES = ("ray", "torch", "torchvision", "mlflow", "optuna", "pyarrow", "av")
"""Packages whose versions must agree on all nodes."""
_SHARED_SECONDS = 70.0
"""How long a file may take to appear on other nodes: NFS keeps what it knows of a folder for up to a minute."""


def examine_cluster(spec: Spec | None, runs: Path, storages: Sequence[str]) -> Iterator[Check]:
    """Check every node of the connected cluster, and what they share.

    Args:
        spec: count decode cores and gradients for it; None leaves these out.
        runs: the runs folder, which all nodes must share.
        storages: addresses of an MLflow server or of databases that every node must reach.
    """
    nodes = [node for node in ray.nodes() if node["Alive"]]
    reports: dict[str, NodeReport] = {}
    for node in nodes:
        try:
            reports[node["NodeID"]] = on(node, describe_node, PACKAGES)
        except Exception as error:  # whatever keeps the node from answering is the finding
            says = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            yield Check(
                "error", name_of(node), f"it runs no task ({says})", "look at its raylet.err, or take it out of the cluster"
            )
    alive = [node for node in nodes if node["NodeID"] in reports]
    if not alive:
        return
    found = list(reports.values())
    yield from _versions(found)
    for node in alive:
        yield from _node(reports[node["NodeID"]], node)
    yield _clocks(alive)
    yield _shared_folder(alive, runs)
    for address in storages:
        yield _storage(alive, address)
    yield object_store(alive)
    yield all_reduce(alive, spec)
    if spec is not None:
        yield decoding(alive, spec, runs)


def _versions(reports: Sequence[NodeReport]) -> Iterator[Check]:
    names = ("Python", *PACKAGES, "starlab's code")
    differing = {name: Counter(report.versions[name] for report in reports) for name in names}
    wrong = {name: counts for name, counts in differing.items() if len(counts) > 1 or "none" in counts}
    for name, counts in wrong.items():
        shown = ", ".join(f"{version} on {number} nodes" for version, number in counts.most_common())
        yield Check("error", "versions", f"{name}: {shown}", "install requirements.lock on every node, and restart Ray there")
    if not wrong:
        first = reports[0].versions
        shown = ", ".join(f"{name} {first[name]}" for name in ("Python", "ray", "torch", "mlflow", "optuna"))
        yield Check("ok", "versions", f"{shown}, the same on {len(reports)} nodes")


def _node(report: NodeReport, node: dict[str, Any]) -> Iterator[Check]:
    name = name_of(node)
    for problem in report.gpu_problems:
        yield Check("error", f"{name}: GPU", problem, "install the build of PyTorch for this GPU")
    given = node["Resources"].get("GPU", 0.0)
    if given > report.gpus:
        yield Check(
            "error",
            f"{name}: GPU",
            f"Ray counts {given:g} GPUs and PyTorch sees {report.gpus}",
            "check nvidia-smi there, and start the container with --gpus all",
        )
    elif not report.gpu_problems:
        cpus = node["Resources"].get("CPU", 0.0)
        level: Level = "warning" if cpus > report.cpus else "ok"
        fix = f"start Ray with --num-cpus={report.cpus}" if level == "warning" else ""
        yield Check(level, name, f"{report.gpus} GPUs, {cpus:g} CPUs for Ray, {report.cpus} cores", fix)
    disk, memory = report.disk_free_bytes / 1e9, report.shared_memory_free_bytes / 1e9
    if disk < 20:
        level = "error" if disk < 5 else "warning"
        yield Check(
            level, f"{name}: disk", f"{disk:.1f} GB free for Ray's files", "free some, or name another: ray start --temp-dir"
        )
    if memory < 1:
        yield Check("error", f"{name}: shared memory", f"{memory:.1f} GB free in /dev/shm", "give the container --shm-size=8g")
    lower = {key.lower(): value for key, value in report.proxies.items()}
    spared = {entry.strip() for entry in lower.pop("no_proxy", "").split(",")}
    if lower and report.address not in spared and "*" not in spared:
        yield Check(
            "warning",
            f"{name}: proxy",
            f"{', '.join(sorted(lower))} is set, and no_proxy does not name {report.address}",
            "add the nodes' addresses to no_proxy, as gRPC obeys the proxy too",
        )


def _clocks(nodes: Sequence[dict[str, Any]]) -> Check:
    offsets: list[tuple[float, str]] = []
    for node in nodes:
        tries = []
        for _ in range(3):  # the quickest answer is the most exact
            before = time.time()
            theirs = on(node, tell_time)
            after = time.time()
            tries.append((after - before, theirs - (before + after) / 2))
        offsets.append((min(tries)[1], name_of(node)))
    spread = max(offsets)[0] - min(offsets)[0]
    if spread > 2:
        worst = max(offsets, key=lambda found: abs(found[0]))[1]
        return Check("warning", "clocks", f"they differ by {spread:.1f} s; {worst} most", "run chrony or ntpd on every node")
    return Check("ok", "clocks", f"within {max(spread, 0.1):.1f} s")


def _shared_folder(nodes: Sequence[dict[str, Any]], runs: Path) -> Check:
    folder = str(runs / f".doctor-{secrets.token_hex(4)}")
    marks = [f"node-{index}" for index in range(len(nodes))]
    fix = f"mount the same file system on every node as {runs}, writable by the user that runs Ray"
    try:
        for node, mark in zip(nodes, marks, strict=True):
            if problem := on(node, write_mark, folder, mark):
                return Check("error", "runs folder", f"{name_of(node)} cannot write to {runs}: {problem}", fix)
        began = time.monotonic()
        for node in nodes:
            seconds = max(_SHARED_SECONDS - (time.monotonic() - began), 1.0)
            if missing := on(node, missing_marks, folder, marks, seconds):
                writers = ", ".join(name_of(nodes[marks.index(mark)]) for mark in missing)
                return Check("error", "runs folder", f"{name_of(node)} does not see in {runs} what {writers} wrote", fix)
        waited = time.monotonic() - began
    finally:
        on_each(nodes, shutil.rmtree, folder, True)  # a folder that is not shared is on each of them
    free = shutil.disk_usage(runs).free / 1e9
    if free < 20:
        return Check(
            "warning", "runs folder", f"{runs}: {free:.1f} GB free", "free some; a checkpoint that does not fit ends a run"
        )
    seen = f"written on each node and read on every other, the last after {waited:.1f} s"
    return Check("ok", "runs folder", f"{runs}, {free:.0f} GB free; {seen}")


def _storage(nodes: Sequence[dict[str, Any]], address: str) -> Check:
    shown = without_password(address)
    if address.startswith("sqlite:"):
        if len(nodes) == 1:
            return Check("ok", "storage", f"{shown}, on the only node")
        return Check(
            "warning",
            "storage",
            f"{shown} is a file, and several nodes would write to it over the network",
            "let an MLflow server or PostgreSQL own the database (docs/cluster.md)",
        )
    problems = [(name, result) for name, result in on_each(nodes, reach, address) if result is not None]
    if problems:
        name, problem = problems[0]
        more = f" and {len(problems) - 1} more nodes" if len(problems) > 1 else ""
        return Check(
            "error",
            "storage",
            f"{name}{more} cannot reach {shown}: {problem}",
            "open the network to it, or correct the address",
        )
    return Check("ok", "storage", f"{shown} answers every node")
