"""Brings the ledger's proposals to Ray Tune, and the trials' results to the ledger."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ray.tune.search import Searcher

from starlab.platform.search.ledger import Ledger
from starlab.platform.search.trial import EPOCHS, FAILED, METRIC


class Proposer(Searcher):
    """A Tune searcher without a state of its own: Tune's snapshots of it are empty, and the ledger is on disk."""

    def __init__(self, ledger: Ledger, say: Callable[[str], None]) -> None:
        """`say` gets a line when the space is used up."""
        super().__init__(metric=METRIC, mode="max")
        self._ledger, self._say = ledger, say
        self._numbers: dict[str, int] = {}
        self.ending = False
        """Set to true, it proposes nothing more."""

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        """Propose a new point, or that there are no more."""
        proposal = None if self.ending else self._ledger.propose(lambda line: self._say(f"skipped  {line}"))
        if proposal is None:
            if not self.ending:
                self._say("search   every point of the space has been tried")
            return str(Searcher.FINISHED)
        self._numbers[trial_id], values = proposal
        return values

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Store a trial's value after an epoch."""
        if "epoch" in result:
            self._ledger.report(self._numbers[trial_id], result["epoch"], result[METRIC])

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Store a trial's final value, or why it failed. One that was asked to end has neither: it is proposed again."""
        number, result = self._numbers.pop(trial_id), result or {}
        if error or FAILED in result:
            self._ledger.fail(number, result.get(FAILED, "its process failed"))
        elif EPOCHS in result:
            self._ledger.finish(number, result[METRIC], result[EPOCHS])

    def save(self, checkpoint_path: str) -> None:
        """Save nothing: see the class."""

    def restore(self, checkpoint_path: str) -> None:
        """Restore nothing: see the class."""

    def __reduce__(self) -> tuple[type[object], tuple[()]]:
        return object, ()
