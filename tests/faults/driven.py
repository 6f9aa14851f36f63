"""A training in a process of its own that joins a cluster and notes on which clips it trains."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from starlab.platform.runs.events import read_events
from starlab.platform.runs.journal import read_points

LONG = ["train.epochs=50", "train.evaluate_every_epochs=50", "train.checkpoint_every_steps=10", "model.batch_norm=frozen"]
EACH_ONE_CPU = ["data.decode=worker", "resources.cpus_per_worker=0.9"]

DRIVER = """
import json, pathlib, sys, time
from starlab.platform import attempt, group_watch
group_watch.GROW_AFTER_SECONDS = 5.0
log, pause = pathlib.Path(sys.argv.pop(1)), float(sys.argv.pop(1))

def loop(config):
    from starlab.platform.recipe.train_step import TrainStep
    from starlab.platform.worker import train_loop
    original = TrainStep.gradients

    def gradients(self, batch):
        time.sleep(pause)
        line = {"step": self._state.step, "world": self._ranks.world, "rank": self._ranks.rank,
                "positions": batch.positions.tolist(), "clips": batch.clips.tolist()}
        with (log / f"{time.time_ns()}-{self._ranks.rank}.json").open("w") as file:
            json.dump(line, file)
        return original(self, batch)

    TrainStep.gradients = gradients
    train_loop.train_loop(config)

attempt.train_loop = loop
from starlab.platform.cli import main
main()
"""
"""Trains as the command line does; every rank notes the clips of each of its steps in `log`, and each step takes longer."""


class Driven:
    """A training in a process of its own that joins the nodes."""

    def __init__(
        self,
        folder: Path,
        store: Path,
        environment: Mapping[str, str],
        *overrides: str,
        pause: float = 0.0,
        within: tuple[str, ...] = (),
    ) -> None:
        """Start `starlab train demo` with an environment that names the cluster. `within` is a command that runs another."""
        self.runs, self.log = folder / "runs", folder / "log"
        self.log.mkdir(parents=True, exist_ok=True)
        self.out = (folder / "out.txt").open("w+")
        self.process = subprocess.Popen(
            [
                *within,
                sys.executable,
                "-c",
                DRIVER,
                str(self.log),
                str(pause),
                "train",
                "demo",
                *overrides,
                f"data.store={store}",
            ],
            env=os.environ | {"STARLAB_RUNS": str(self.runs), "OMP_NUM_THREADS": "1"} | environment,
            stdout=self.out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    @property
    def folder(self) -> Path:
        [folder] = self.runs.glob("demo-*")
        return folder

    def steps(self) -> int:
        journals = [*self.runs.glob("demo-*/journal.jsonl")]
        return max((p.step for journal in journals for p in read_points(journal) if p.key == "train/loss"), default=0)

    def losses(self) -> dict[int, float]:
        return {p.step: p.value for p in read_points(self.folder / "journal.jsonl") if p.key == "train/loss"}

    def said(self, kind: str) -> list[str]:
        return [event.says for event in read_events(self.folder) if event.kind == kind] if self.steps() else []

    def output(self) -> str:
        self.out.seek(0)
        return self.out.read()

    def until(self, holds: Callable[[], object], seconds: float = 300) -> None:
        deadline = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < deadline, f"the condition was not met in {seconds:g} s:\n{self.output()}"
            assert self.process.poll() is None or holds(), self.output()
            time.sleep(0.2)

    def end(self, seconds: float = 600) -> int:
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            pytest.fail(f"it did not end in {seconds:g} s:\n{self.output()}")

    def sequence(self) -> dict[int, tuple[int, list[int]]]:
        """Of each step, the number of workers that did it last, and its clips in the order of the stream."""
        newest: dict[int, tuple[int, dict[int, int]]] = {}
        for path in sorted(self.log.glob("*.json"), key=lambda path: int(path.name.split("-")[0])):
            try:
                line = json.loads(path.read_text())
            except json.JSONDecodeError:  # a rank was killed while it wrote
                continue
            world, clips = newest.get(line["step"], (line["world"], {}))
            if world != line["world"]:
                world, clips = line["world"], {}
            clips |= dict(zip(line["positions"], line["clips"], strict=True))
            newest[line["step"]] = (world, clips)
        return {step: (world, [clips[at] for at in sorted(clips)]) for step, (world, clips) in newest.items()}
