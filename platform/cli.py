"""The command line: a few verbs, each ends by saying where its results are."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    name="starlab",
    help="Train, search and compare STAR-transformers (video + skeleton action recognition) on Ray.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Experiment = Annotated[str, typer.Argument(help="A packaged experiment (demo, …) or a path that ends in .yaml.")]
Overrides = Annotated[list[str] | None, typer.Argument(help="Dotted overrides: train.epochs=2 model.encoder=FF")]
Runs = Annotated[Path | None, typer.Option(help="Folder of runs; else STARLAB_RUNS, else ./runs.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Set an earlier run of the same spec aside and start anew.")]


@app.command()
def train(experiment: Experiment, overrides: Overrides = None, runs: Runs = None, fresh: Fresh = False) -> None:
    """Train an experiment, or go on with its run."""
    from starlab.experiments.spec import load_spec
    from starlab.platform import trainer
    from starlab.platform.summary import print_result

    spec = load_spec(experiment, overrides or [])
    print_result(trainer.train(spec, runs=runs, fresh=fresh, say=_say))


@app.command()
def demo(overrides: Overrides = None, runs: Runs = None, fresh: Fresh = False) -> None:
    """Generate people, train the STAR model on them, evaluate, record, report: about 5 minutes on two CPU cores."""
    train("demo", overrides, runs, fresh)


def main() -> None:
    """Entry point: runs a verb; a user's mistake ends with exit code 2 and one message, a failed run with 1."""
    debug = "--debug" in sys.argv
    if debug:
        sys.argv.remove("--debug")
    try:
        app()
    except KeyboardInterrupt:
        _complain("interrupted; the same command goes on from the newest checkpoint")
        sys.exit(130)
    except Exception as error:
        code = _exit_code(error)
        if debug or code is None:
            raise
        _complain(str(error))
        sys.exit(code)


def _exit_code(error: Exception) -> int | None:
    from starlab.experiments.catalog import SpecError
    from starlab.pipelines.clip import DataError
    from starlab.platform.errors import StarlabError

    if isinstance(error, StarlabError):
        return error.exit_code
    return 2 if isinstance(error, SpecError | DataError) else None


def _complain(message: str) -> None:
    print(f"starlab: {message}", file=sys.stderr)


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    main()
