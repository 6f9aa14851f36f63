"""What the model and its training step reach on one GPU: `make bench-gpu`, or `python tests/benchmarks/bench_gpu.py`.

Needs PyTorch, NumPy and einops. starlab is the checkout that this file belongs to, installed or not. Every part
has a share of the minutes, and what it leaves goes to the parts after it. The file of figures is written after every row.
With `--quick`, a small model shows on a CPU that the script works; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpu.report import Part
    from gpu.setup import Bench

ROOT = Path(__file__).resolve().parents[2]
NEEDED = ("torch", "numpy", "einops")


def missing_packages() -> list[str]:
    """Packages that are needed and not installed."""
    return [name for name in NEEDED if name not in sys.modules and importlib.util.find_spec(name) is None]


def import_from_checkout() -> None:
    """Make `starlab` the package of this checkout: its sub-packages are the checkout's folders."""
    package = types.ModuleType("starlab")
    package.__path__ = [str(ROOT)]
    sys.modules.setdefault("starlab", package)


def parts_of(bench: Bench, wanted: Sequence[str]) -> list[Part]:
    """The parts in their order. Shares are those of a GPU, where the two longest parts mostly compile."""
    from gpu.batch_norm import batch_norm_rows
    from gpu.correctness import correctness_rows
    from gpu.gains import gain_rows
    from gpu.report import Part
    from gpu.shipped import shipped_rows
    from gpu.trace import profile_rows
    from gpu.training import card_rows, training_rows

    parts = [
        Part("card", 0.04, lambda: card_rows(bench)),
        Part("correctness", 0.16, lambda: correctness_rows(bench)),
        Part("shipped", 0.25, lambda: shipped_rows(bench)),
        Part("gains", 0.33, lambda: gain_rows(bench)),
        Part("batch-norm", 0.04, lambda: batch_norm_rows(bench)),
        Part("training", 0.13, lambda: training_rows(bench)),
        Part("profile", 0.05, lambda: profile_rows(bench)),
    ]
    return [part for part in parts if part.name in wanted] if wanted else parts


def device_facts(device: Any) -> dict[str, object]:
    """What the JSON says about the machine."""
    import torch

    facts: dict[str, object] = {
        "torch": torch.__version__,
        "python": sys.version.split()[0],
        "threads": torch.get_num_threads(),
    }
    if device.type != "cuda":
        return {"device": "CPU", **facts}
    properties = torch.cuda.get_device_properties(device)
    return {
        "device": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        **facts,
    }


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, write. Returns the exit status: 0 where every part was done, 1 otherwise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=9.0, help="for everything (default 9)")
    parser.add_argument("--out", type=Path, default=Path("runs/bench_gpu.json"), help="where the figures go")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu only with --quick")
    parser.add_argument("--only", nargs="+", default=(), metavar="PART", help="parts to measure (default all)")
    parser.add_argument(
        "--improvements", nargs="+", default=(), metavar="WORDS", help="only those with one of these in their names"
    )
    parser.add_argument("--quick", action="store_true", help="a small model: shows that the script works, measures nothing")
    options = parser.parse_args(arguments)
    if missing := missing_packages():
        print(f"missing: {', '.join(missing)}; install them with: python -m pip install {' '.join(missing)}", file=sys.stderr)
        return 2
    import_from_checkout()
    import torch
    import torch._dynamo  # torch imports it late, and the end of a part's time must not cut that import in half
    from gpu.report import Report, run_parts
    from gpu.setup import PAPER, QUICK, Bench
    from gpu.summary import figures, print_tables

    if options.device == "cpu" and not options.quick:
        print("the paper's model takes hours on a CPU; add --quick", file=sys.stderr)
        return 2
    if options.device == "cuda" and not torch.cuda.is_available():
        print("torch sees no GPU; use --quick --device cpu to try the script without one", file=sys.stderr)
        return 2
    if options.device == "cpu":
        torch.set_num_threads(1)
    bench = Bench(torch.device(options.device), QUICK if options.quick else PAPER, tuple(options.improvements))
    facts = device_facts(bench.device)
    started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    head = {**facts, "started": started, "minutes": options.minutes, "quick": options.quick}
    report = Report(options.out, head)
    print(", ".join(f"{name} {value}" for name, value in head.items()), flush=True)
    run_parts(parts_of(bench, options.only), report, 60 * options.minutes)
    report.summary = figures(report)
    report.write()
    print_tables(report, targets=bench.on_gpu and not options.quick)
    print(f"\nwritten to {options.out}")
    return 0 if all(part["status"] == "done" for part in report.parts.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
