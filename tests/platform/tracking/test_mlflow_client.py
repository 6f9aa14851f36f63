"""What every client of MLflow does first."""

from __future__ import annotations

import subprocess
import sys

import pytest

TWO_THREADS = """
import sys, threading, time
from starlab.experiments.spec import load_spec
from starlab.platform.serving.registry import _signature

spec, errors = load_spec("demo"), []

def send():
    try:
        from mlflow import MlflowClient
    except Exception as error:
        errors.append(repr(error))

sender = threading.Thread(target=send)
sender.start()
time.sleep(float(sys.argv[1]))
_signature(spec, 10)
sender.join()
print(errors)
"""
"""The sender's thread imports MLflow while the driver's writes the model, as at the end of a short training."""


@pytest.mark.slow
@pytest.mark.parametrize("later", [0.05, 0.4])
def test_a_model_can_be_written_while_the_sender_imports_mlflow(later: float) -> None:
    command = [sys.executable, "-c", TWO_THREADS, str(later)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
