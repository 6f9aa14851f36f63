"""What the storage of a search bears: a thousand trials under way at once, as on a large cluster.

    .venv/bin/python tests/benchmarks/bench_many_trials.py                                  # SQLite in the search's folder
    .venv/bin/python tests/benchmarks/bench_many_trials.py --storage postgresql+psycopg2://…

Simulated: nothing trains. The driver's own ledger proposes every trial, then stores each epoch of all of them in turn, then
each result, as one driver does with any number of trials. Prints the milliseconds of a call, at the first and the last
tenth of the trials. Nothing here is a test: a busy machine moves every figure.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from starlab.experiments.spec import load_search
from starlab.platform.runs.folder import RunFolder
from starlab.platform.search.ledger import Ledger
from starlab.platform.search.objectives import Outcome, objectives_of
from starlab.platform.search.proposal import Proposal
from starlab.platform.search.trial_folders import TrialFolders

EPOCHS = 8


def milliseconds(calls: Sequence[Callable[[], object]]) -> list[float]:
    """Make the calls one after another. Returns the time of each."""
    times = []
    for call in calls:
        began = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - began))
    return times


def say(what: str, times: Sequence[float]) -> None:
    """Print the means of the first and the last tenth, and the sum."""
    tenth = max(1, len(times) // 10)
    first, last = sum(times[:tenth]) / tenth, sum(times[-tenth:]) / tenth
    print(
        f"{what:<10} {len(times):>6} calls  {first:7.2f} ms, at the end {last:7.2f} ms  {sum(times) / 1e3:6.1f} s in all",
        flush=True,
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--storage", help="address of the database; default: SQLite in the search's folder")
    options = parser.parse_args()
    stored = [f"search.storage={options.storage}"] if options.storage else []
    spec = load_search("demo_search", [f"search.trials={options.trials}", *stored])
    with tempfile.TemporaryDirectory() as name:
        folder = RunFolder(Path(name) / f"search-{time.time():.0f}")
        folder.path.mkdir()
        ledger = Ledger(TrialFolders(folder, spec, "f"), spec.search, objectives_of(spec))
        proposals: list[Proposal] = []

        def propose() -> None:
            proposal = ledger.propose()
            assert proposal is not None
            proposals.append(proposal)

        say("propose", milliseconds([propose] * options.trials))
        reports = [
            lambda one=one, epoch=epoch: ledger.report(one, epoch, epoch + one.number / 1e4)
            for epoch in range(1, EPOCHS + 1)
            for one in proposals
        ]
        say("report", milliseconds(reports))
        finish = [
            lambda one=one: ledger.finish(one, Outcome(values={"val/top1": one.number / 1e4}, epochs=EPOCHS))
            for one in proposals
        ]
        say("finish", milliseconds(finish))
        found = len(ledger.trials())
        print(f"{found} of {options.trials} trials are stored as finished")


if __name__ == "__main__":
    main()
