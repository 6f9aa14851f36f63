"""The last lines of a training: what it reached, and where to look."""

from __future__ import annotations

from starlab.platform.trainer import RunResult


def print_result(result: RunResult) -> None:
    """Print test accuracy, the MLflow run and the command that shows it."""
    metrics = result.metrics
    print()
    for name, recall in result.per_class.items():
        print(f"  {name:<24} {recall:6.1%}")
    print()
    done = "was complete already" if result.was_complete else f"took {result.seconds:.0f} s"
    print(f"test top-1 {metrics['test/top1']:.3f}  mean class {metrics['test/mean_class']:.3f}  (validation {metrics['val/top1']:.3f}); {done}")
    print(f"run        {result.folder}")
    if result.tracking_problem:
        print(f"MLflow     not up to date ({result.tracking_problem}); later: starlab sync {result.run_id}")
    print(f"MLflow     run {result.mlflow_run_id} at {result.tracking_uri}; look at it with: starlab ui")
