"""What the command line turns into an exit code: 2 for a user's mistake, 1 for a run that failed.

A message says what is wrong, where, and how to mend it. `DataError`, `SpecError` and the configs' `ValueError`s of the
lower rooms are users' mistakes too (`cli.py` maps them).
"""

from __future__ import annotations


class StarlabError(Exception):
    """A failure that the command line reports without a traceback."""

    exit_code = 1


class UserError(StarlabError):
    """The user can mend it: a wrong name, a missing folder, a cluster that is not there."""

    exit_code = 2


class RunFailedError(StarlabError):
    """A run started and did not finish; what it had reached is kept."""


class StopRunError(Exception):
    """Inside a run: training again would end the same way, so it stops; raised on every rank at the same step."""
