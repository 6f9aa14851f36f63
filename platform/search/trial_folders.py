"""Where the trials of a search keep their runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from starlab.experiments.spec import SearchSpec
from starlab.platform.runs.end_request import request_early_end
from starlab.platform.runs.folder import RunFolder


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

    def ask_to_end(self, values: Mapping[str, Any], reason: str) -> None:
        """Ask the trial at this point to end itself with a result, before its last epoch."""
        request_early_end(self.at(values), reason)
