"""Closes runs whose driver died, in their folders and in MLflow."""

from __future__ import annotations

import threading
from pathlib import Path

from starlab.platform.runs.folder import RunFolder
from starlab.platform.runs.lifecycle import close_abandoned
from starlab.platform.tracking.sender import Sender


def close_abandoned_everywhere(runs: Path) -> list[RunFolder]:
    """Close the runs that `close_abandoned` finds, and return them. A background thread updates MLflow.

    `starlab sync` later sends what the thread could not send.
    """
    closed = close_abandoned(runs)
    if closed:
        threading.Thread(target=_update_mlflow, args=(closed,), name="starlab-abandoned", daemon=True).start()
    return closed


def _update_mlflow(closed: list[RunFolder]) -> None:
    for folder in closed:
        if folder.info.status == "KILLED":  # it may have been resumed in the meantime
            Sender(folder).send_now()
