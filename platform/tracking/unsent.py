"""Sends what the runs of a search or an ablation could not send themselves."""

from __future__ import annotations

from starlab.platform.runs.folder import RunFolder
from starlab.platform.tracking.sender import Sender, is_sent


def send_rest_of_trials(parent: RunFolder) -> str | None:
    """Send what the trials of a search, or the cells of an ablation, could not send while the server was away.

    Returns why something is left, or None.
    """
    for trial in parent.trials():
        if not is_sent(trial):
            sender = Sender(trial)
            sender.send_now()
            if sender.problem:
                return sender.problem
    return None
