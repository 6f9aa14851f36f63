"""A command that is refused answers at once: reading a spec loads none of the heavy libraries."""

import subprocess
import sys


def test_reading_a_spec_loads_neither_torch_nor_ray_nor_mlflow_nor_scipy() -> None:
    code = (
        "import sys; from starlab.experiments.spec import load_spec; load_spec('demo'); "
        "print(*{name.partition('.')[0] for name in sys.modules} & {'torch', 'ray', 'mlflow', 'optuna', 'matplotlib', 'scipy'})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_a_training_is_checked_and_ray_started_before_torch_is_imported_and_its_controller_needs_none() -> None:
    code = (
        "import sys; import starlab.platform.preflight; "
        "import starlab.platform.cluster.controllers, starlab.platform.cluster.network; "
        "print(*{name.partition('.')[0] for name in sys.modules} & {'torch', 'mlflow', 'optuna', 'matplotlib', 'scipy'})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
