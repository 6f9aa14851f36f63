"""Settings of MLflow's client for this process."""

from __future__ import annotations

import logging
import os


def fail_fast() -> None:
    """Let MLflow give up after seconds when its server does not answer."""
    # MLflow's own retries block the caller for four minutes; here the loop of the Sender retries.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)  # it logs every table that it creates
