"""`starlab ui`: MLflow's page over the runs folder."""

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
    """Serve MLflow's page over the runs folder on this machine until Ctrl-C.

    Raises:
        UserError: nothing was recorded there.
    """
    if not (runs / "mlflow.db").is_file():
        raise UserError(f"no {runs / 'mlflow.db'}: nothing was recorded there yet; start with: starlab demo, or name --runs")
    say(f"MLflow on http://127.0.0.1:{port} over {runs}; Ctrl-C ends it")
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", TrackingConfig().address(runs)]
    command += ["--artifacts-destination", str(runs / "mlartifacts"), "--host", "127.0.0.1", "--port", str(port)]
    # Its job runners are eight more processes that nobody here needs, and one more way in.
    code = subprocess.call(command, env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"})
    if code not in (0, -signal.SIGINT, -signal.SIGTERM):
        raise UserError(
            f"MLflow's server ended with code {code}; if port {port} is taken, give another: starlab ui --port 5001"
        )
