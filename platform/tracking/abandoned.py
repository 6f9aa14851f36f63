"""Tells MLflow about runs whose driver died: it could not do so itself."""

from __future__ import annotations

import threading
from pathlib import Path

from starlab.platform.runs.folder import RunFolder
from starlab.platform.runs.lifecycle import close_abandoned
from starlab.platform.tracking.sender import Sender


def close_abandoned_everywhere(runs: Path) -> list[RunFolder]:
    """Close the runs that `close_abandoned` finds. MLflow learns it from a thread that nothing waits for.

    What the thread cannot send, `starlab sync` sends later.
    """
    closed = close_abandoned(runs)
    if closed:
        threading.Thread(target=_tell, args=(closed,), name="starlab-abandoned", daemon=True).start()
    return closed


def _tell(closed: list[RunFolder]) -> None:
    for folder in closed:
        if folder.info.status == "KILLED":  # it may have been taken up again meanwhile
            Sender(folder).send_now()
