"""Where the trials of a search keep their runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from starlab.experiments.spec import SearchSpec, Spec
from starlab.platform.runs.end_request import request_early_end
from starlab.platform.runs.folder import RunFolder

SEED = "train.seed"


@dataclass(frozen=True, slots=True)
class TrialFolders:
    """From a point of the space to the folder of its run. Holds no password: Tune pickles it into the search's folder."""

    search: RunFolder
    spec: SearchSpec
    """Without a password."""
    fingerprint: str
    """Of the data."""

    def at(self, values: Mapping[str, Any]) -> RunFolder:
        """The folder of the trial at this point.

        Raises:
            SpecError: the point is not a valid experiment.
        """
        return RunFolder(self.search.path / "trials" / self.run_id(values))

    def run_id(self, values: Mapping[str, Any]) -> str:
        """The run id of the trial at this point.

        Raises:
            SpecError: as `at`.
        """
        return self.spec.spec_of(values).run_id(self.fingerprint)

    def seeded(self, values: Mapping[str, Any], seed: int) -> dict[str, Any]:
        """The values of a point's run with this seed. A search with one seed leaves `train.seed` to its points and its base."""
        return {**values, SEED: seed} if len(self.spec.seeds) > 1 else dict(values)

    def point(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The point of the run with these values: what `seeded` got."""
        return {key: value for key, value in values.items() if key in self.spec.space}

    def point_id(self, values: Mapping[str, Any]) -> str:
        """A name for the point of the run with these values: the id of its run with the first seed."""
        return self.run_id(self.seeded(self.point(values), self.spec.seeds[0]))

    def place(self, values: Mapping[str, Any]) -> tuple[str, int]:
        """The name of the point, and the seed, of the run with these values."""
        return self.point_id(values), values[SEED] if len(self.spec.seeds) > 1 else self.spec.seeds[0]

    def of_spec(self, spec: Spec) -> RunFolder:
        """The folder of the trial with this spec."""
        return RunFolder(self.search.path / "trials" / spec.run_id(self.fingerprint))

    def ask_to_end(self, values: Mapping[str, Any], reason: str) -> None:
        """Ask the trial at this point to end itself with a result, before its last epoch."""
        request_early_end(self.at(values), reason)
