"""Brings the ledger's proposals to Ray Tune, and the trials' results to the ledger."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ray.tune.search import Searcher

from starlab.platform.search.ledger import Ledger
from starlab.platform.search.objectives import Outcome
from starlab.platform.search.proposal import Proposal
from starlab.platform.search.trial import FAILED, METRIC, OUTCOME


class Proposer(Searcher):
    """A Tune searcher without a state of its own: Tune's snapshots of it are empty, and the ledger is on disk."""

    def __init__(self, ledger: Ledger, room: Callable[[], int], say: Callable[[str], None]) -> None:
        """Propose while fewer than `room()` runs are under way. `say` gets a line when the space is used up."""
        super().__init__(metric=METRIC, mode="max")
        self._ledger, self._room, self._say = ledger, room, say
        self._under_way: dict[str, Proposal] = {}
        self.ending = False
        """Set to true, it proposes nothing more."""

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Propose a run, nothing for the moment, or that there are no more."""
        if not self.ending and len(self._under_way) >= self._room():
            return None
        proposal = None if self.ending else self._ledger.propose(lambda line: self._say(f"skipped  {line}"))
        if proposal is None:
            if not self.ending and not self._ledger.is_spent:
                self._say("search   every point of the space has been tried")
            return str(Searcher.FINISHED)
        self._under_way[trial_id] = proposal
        return proposal.values

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Store a run's value after an epoch."""
        if "epoch" in result:
            self._ledger.report(self._under_way[trial_id], result["epoch"], result[METRIC])

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Store what a run reached, or why it failed. One that was asked to end has neither: it is proposed again."""
        proposal, result = self._under_way.pop(trial_id), result or {}
        if error or FAILED in result:
            self._ledger.fail(proposal, result.get(FAILED, "its process failed"))
        elif OUTCOME in result:
            self._ledger.finish(proposal, Outcome.parse(result[OUTCOME]))
        else:
            self._ledger.pause(proposal)

    def save(self, checkpoint_path: str) -> None:
        """Save nothing: see the class."""

    def restore(self, checkpoint_path: str) -> None:
        """Restore nothing: see the class."""

    def __reduce__(self) -> tuple[type[object], tuple[()]]:
        return object, ()
