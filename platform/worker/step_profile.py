"""`train.profile=true`: a few steps of rank 0 as a Chrome trace, which chrome://tracing and Perfetto show."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.profiler import ProfilerActivity

FIRST, STEPS = 10, 5
"""Steps left out at the start of a process (they warm up kernels and the stream), and steps traced."""


class StepProfile:
    """Traces steps `FIRST` to `FIRST + STEPS` of this process; the rest of the run pays nothing."""

    def __init__(self, path: Path, wanted: bool) -> None:
        """`path` of the trace, ending in .json.gz."""
        self._path, self._wanted, self._seen = path, wanted, 0
        self._profiler: torch.profiler.profile | None = None

    def step(self) -> None:
        """Call after every step."""
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
        """Write what was traced; also of a run that ends before all steps were."""
        if self._profiler is None:
            return
        profiler, self._profiler, self._wanted = self._profiler, None, False
        profiler.stop()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        profiler.export_chrome_trace(str(self._path))
