"""Exceptions that the command line turns into exit codes: 2 for a user's mistake, 1 for a run that failed.

A message says what is wrong, where, and how to fix it. `DataError` and `SpecError` of lower rooms are users' mistakes too;
`cli.py` maps them to exit code 2.
"""

from __future__ import annotations


class StarlabError(Exception):
    """A failure that the command line reports without a traceback."""

    exit_code = 1


class UserError(StarlabError):
    """A mistake that the user can fix: a wrong name, a missing folder, a cluster that does not answer."""

    exit_code = 2


class RunFailedError(StarlabError):
    """A run started and did not finish. Its progress is kept."""


class StopRunError(Exception):
    """Stops a run that would fail the same way if it trained again. Raised on every rank at the same step."""
