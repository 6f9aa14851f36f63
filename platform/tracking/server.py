"""Serves the MLflow UI for a runs folder: `starlab ui`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from starlab.experiments.sections import TrackingConfig
from starlab.platform.errors import UserError


def serve(runs: Path, port: int, say: Callable[[str], None]) -> None:
    """Serve the MLflow UI for the runs folder on this machine until Ctrl-C.

    Raises:
        UserError: The folder holds no MLflow database, or the server ended with an error.
    """
    if not (runs / "mlflow.db").is_file():
        raise UserError(f"no {runs / 'mlflow.db'}: nothing was recorded there yet; start with: starlab demo, or name --runs")
    say(f"MLflow for {runs} on http://127.0.0.1:{port}; press Ctrl-C to stop")
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", TrackingConfig().address(runs)]
    command += ["--artifacts-destination", str(runs / "mlartifacts"), "--host", "127.0.0.1", "--port", str(port)]
    # The job runners would be eight more processes that are not needed here, and a larger attack surface.
    code = subprocess.call(command, env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"})
    if code not in (0, -signal.SIGINT, -signal.SIGTERM):
        raise UserError(
            f"MLflow's server ended with code {code}; if port {port} is taken, give another: starlab ui --port 5001"
        )
