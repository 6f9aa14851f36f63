"""What every client of an MLflow server needs: the import, short time-outs, and a clear line for a refused host."""

from __future__ import annotations

import logging
import os
import shlex
from urllib.parse import urlsplit


def load_mlflow() -> None:
    """Import MLflow. Call it before a part of MLflow is imported, wherever another thread may be importing it as well.

    `from mlflow.models import Model` holds the part's lock and waits for that of the package, whose import in the other thread
    waits for the part. Python then lets one of them see half of a module. The package alone can be waited for.
    """
    import mlflow  # noqa: F401


def fail_fast() -> None:
    """Let MLflow give up after seconds when its server does not answer."""
    # MLflow's own retries block the caller for four minutes; here the loop of the Sender retries.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)  # it logs every table that it creates


def host_refused(uri: str) -> str:
    """Say why a server answers 403, and how to start it so that it does not."""
    host = urlsplit(uri).netloc.rpartition("@")[2]
    return (
        f"the MLflow server at {uri} answers 403, because it does not accept requests for the host {host}; start it with: "
        f"mlflow server --allowed-hosts {shlex.quote(f'localhost:*,127.0.0.1:*,{host}')}"
    )
