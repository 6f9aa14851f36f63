"""Traces a few steps of rank 0 for `train.profile=true`, as a Chrome trace for Perfetto or chrome://tracing."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.profiler import ProfilerActivity

FIRST, STEPS = 10, 5
"""Number of warm-up steps that are not traced at the start of a process, and number of steps traced."""


class StepProfile:
    """Traces steps `FIRST` to `FIRST + STEPS` of this process. The other steps of the run are not slowed down."""

    def __init__(self, path: Path, wanted: bool) -> None:
        """Prepare a profile.

        Args:
            path: File of the trace, ending in .json.gz.
            wanted: Whether to trace at all.
        """
        self._path, self._wanted, self._seen = path, wanted, 0
        self._profiler: torch.profiler.profile | None = None

    def step(self) -> None:
        """Count a step, and start or end the trace if it is due. Call it after every step."""
        if not self._wanted:
            return
        self._seen += 1
        if self._seen == FIRST:
            activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
            self._profiler = torch.profiler.profile(activities=activities)
            self._profiler.start()
        elif self._profiler and self._seen == FIRST + STEPS:
            self.close()

    def close(self) -> None:
        """Write the steps traced so far, if any."""
        if self._profiler is None:
            return
        profiler, self._profiler, self._wanted = self._profiler, None, False
        profiler.stop()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        profiler.export_chrome_trace(str(self._path))
