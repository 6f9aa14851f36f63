"""The command line. Each command ends by printing where its results are."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from starlab.platform import (
    cluster_commands,
    data_commands,
    explain_commands,
    plan_commands,
    pose_commands,
    result_commands,
    serving_commands,
)

app = typer.Typer(
    name="starlab",
    help="Train, search and compare STAR-transformers (video + skeleton action recognition) on Ray.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Experiment = Annotated[str, typer.Argument(help="Name of a packaged experiment (demo, …) or a path ending in .yaml.")]
Overrides = Annotated[list[str] | None, typer.Argument(help="Dotted overrides: train.epochs=2 model.encoder=FF")]
Runs = Annotated[Path | None, typer.Option(help="Folder of runs. Default: STARLAB_RUNS, else ./runs.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Set aside an earlier run of the same spec and start again.")]


@app.command()
def demo(overrides: Overrides = None, runs: Runs = None, fresh: Fresh = False) -> None:
    """Generate people, train on them, evaluate, record and report: about 5 minutes on two CPU cores."""
    train("demo", overrides, runs, fresh)


@app.command()
def train(
    experiment: Experiment,
    overrides: Overrides = None,
    runs: Runs = None,
    fresh: Fresh = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only print what would run, its cost, and whether it fits.")
    ] = False,
    refit: Annotated[
        bool, typer.Option("--refit", help="Choose the epoch on the validation part, then train on all of train and test that.")
    ] = False,
    extend: Annotated[
        str | None, typer.Option(help="Train this finished run on, to train.epochs counted from its beginning.")
    ] = None,
) -> None:
    """Train an experiment, or continue its run: starlab train demo train.epochs=2"""
    from starlab.experiments.spec import load_spec

    spec = load_spec(experiment, overrides or [])
    if extend is not None and (refit or dry_run):
        raise typer.BadParameter("goes with neither --refit nor --dry-run", param_hint="--extend")
    if dry_run:
        from starlab.platform.dry_run import forecast
        from starlab.platform.errors import UserError

        found = forecast(spec, runs)
        again = ["refit      then once more on train and validation, for the epochs that are best"] if refit else []
        _print([*found.lines, *again])
        if found.problems:
            raise UserError("\n".join(found.problems))
        return
    from starlab.platform.preflight import open_ahead
    from starlab.platform.runs.folder import runs_folder

    opened = None if refit or extend is not None else open_ahead(spec, runs_folder(runs), fresh=fresh, say=_say)
    from starlab.platform.refit import refit as refit_run
    from starlab.platform.summary import result_lines
    from starlab.platform.trainer import train as train_run

    live = sys.stdout.isatty()
    if refit:
        _print(result_lines(refit_run(spec, runs=runs, fresh=fresh, say=_say, live=live)))
    else:
        _print(result_lines(train_run(spec, runs=runs, fresh=fresh, say=_say, live=live, extend=extend, opened=opened)))


@app.command()
def search(experiment: Experiment, overrides: Overrides = None, runs: Runs = None, fresh: Fresh = False) -> None:
    """Search the settings of an experiment, or continue its search: starlab search demo_search search.trials=8"""
    from starlab.experiments.spec import load_search

    spec = load_search(experiment, overrides or [])
    from starlab.platform.search import search as searching
    from starlab.platform.summary import search_lines

    _print(search_lines(searching.search(spec, runs=runs, fresh=fresh, say=_say)))


@app.command()
def ablate(
    experiment: Experiment,
    overrides: Overrides = None,
    runs: Runs = None,
    rows: Annotated[str | None, typer.Option(help="Only these rows, by name: FF/FF,FZ/FB")] = None,
    accept_code: Annotated[
        bool, typer.Option("--accept-code", help="Use cells that another version of the code trained.")
    ] = False,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Set aside cells that another version of the code trained, and train them again.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only print the cells, which of them exist, and what the others cost.")
    ] = False,
) -> None:
    """Run every row of an ablation at every seed, or go on with it: starlab ablate demo_table4 seeds=2 train.epochs=4"""
    from starlab.experiments.ablation import load_ablation, select_rows

    spec = load_ablation(experiment, overrides or [])
    names = [name.strip() for name in rows.split(",")] if rows else []
    select_rows(spec, names)  # a wrong name is refused before heavy imports
    from starlab.platform.ablation_summary import ablation_lines, forecast_lines
    from starlab.platform.search import ablate as ablating

    if dry_run:
        _print(forecast_lines(spec, names, runs))
        return
    result = ablating.ablate(spec, rows=names, runs=runs, accept_code=accept_code, fresh=fresh, say=_say)
    _print(ablation_lines(result))
    if result.failed:
        raise typer.Exit(1)


@app.command()
def evaluate(
    run: Annotated[str, typer.Argument(help="Name of a run, or of an experiment with a single run.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="New location of the data, or other resources: data.store=…")
    ] = None,
    checkpoint: Annotated[str, typer.Option(help="best, last or the step of a checkpoint.")] = "best",
    part: Annotated[str, typer.Option(help="test or validation. Each look at test is counted.")] = "test",
    worse_joints: Annotated[
        bool, typer.Option("--worse-joints", help="Test with moved and with missing joints, and draw it in the report.")
    ] = False,
    runs: Runs = None,
) -> None:
    """Evaluate a checkpoint of a run: starlab evaluate demo-1a2b3c4d --checkpoint last --part validation"""
    from starlab.platform.runs.folder import find_runs, runs_folder

    find_runs(runs_folder(runs), run, _complain)  # reject a wrong name before heavy imports
    if worse_joints:
        if (checkpoint, part) != ("best", "test"):
            raise typer.BadParameter("tests the best checkpoint on the test part only", param_hint="--worse-joints")
        from starlab.platform.worse_joints import evaluate_worse_joints

        _print([f"report     {evaluate_worse_joints(run, overrides=overrides or [], runs=runs, say=_say)}"])
        return
    from starlab.platform.evaluation import evaluate_run
    from starlab.platform.summary import evaluation_lines

    _print(
        evaluation_lines(evaluate_run(run, checkpoint=checkpoint, part=part, overrides=overrides or [], runs=runs, say=_say))
    )


@app.command()
def sync(names: Annotated[list[str], typer.Argument(help="Runs or experiments.")], runs: Runs = None) -> None:
    """Send everything that MLflow does not have yet of these runs. The exit code is 1 if something is left."""
    from starlab.platform.runs.folder import find_runs, runs_folder
    from starlab.platform.runs.lifecycle import close_abandoned
    from starlab.platform.tracking.sender import sync_all

    root = runs_folder(runs)
    closed = close_abandoned(root)  # sent too, because nothing else would send them later
    skipped: list[str] = []
    sync_all([*(folder for name in names for folder in find_runs(root, name, skipped.append)), *closed], _say, skipped)


@app.command()
def ui(runs: Runs = None, port: Annotated[int, typer.Option(help="Port on this machine.")] = 5000) -> None:
    """Serve the MLflow UI for the runs folder until Ctrl-C."""
    from starlab.platform.runs.folder import runs_folder
    from starlab.platform.tracking.server import serve

    serve(runs_folder(runs), port, _say)


@app.command()
def doctor(
    runs: Runs = None,
    cost: Annotated[
        str | None, typer.Option(help="An experiment: count its parameters and FLOPs or, with --cluster, its decode cores.")
    ] = None,
    overrides: Overrides = None,
    cluster: Annotated[bool, typer.Option("--cluster", help="Check every node of a cluster instead, as a job there.")] = False,
    storage: Annotated[list[str] | None, typer.Option(help="Another MLflow server or database to reach. Repeatable.")] = None,
    address: cluster_commands.Address = None,
    insecure: cluster_commands.Insecure = False,
) -> None:
    """Check whether this machine, or a cluster, can train, and what an experiment costs: starlab doctor --cost penn_action"""
    from rich.console import Console
    from rich.table import Table

    from starlab.experiments.spec import load_spec
    from starlab.platform.doctor import cost_rows, examine
    from starlab.platform.runs.folder import runs_folder

    spec = load_spec(cost, overrides or []) if cost else None
    if cluster:
        cluster_commands.examine(spec, storage or [], cost, overrides or [], address=address, insecure=insecure)
        return
    findings = list(examine(runs_folder(runs)))
    for finding in findings:
        _say(f"{'ok     ' if finding.fine else 'PROBLEM'}  {finding.name}: {finding.says}")
    if spec:
        table = Table(
            "part", "parameters", "GFLOP a clip", title=f"{spec.name}, {spec.data.frames} x {spec.data.size} x {spec.data.size}"
        )
        for row in cost_rows(spec):
            table.add_row(*row)
        Console().print(table)
    if not all(finding.fine for finding in findings):
        raise typer.Exit(1)


app.command()(data_commands.prepare)
app.command()(data_commands.verify)
app.command()(plan_commands.plan)
app.command()(result_commands.compare)
app.command()(explain_commands.report)
app.command()(explain_commands.explain)
app.command(context_settings={"ignore_unknown_options": True})(cluster_commands.submit)
app.command()(cluster_commands.jobs)
app.command()(cluster_commands.logs)
app.command()(cluster_commands.stop)
app.command(context_settings={"ignore_unknown_options": True})(cluster_commands.slurm)
app.command(context_settings={"ignore_unknown_options": True})(cluster_commands.kuberay)
app.command()(cluster_commands.on_premise)
app.command()(serving_commands.predict)
app.command()(serving_commands.export)
app.command()(serving_commands.promote)
app.command()(serving_commands.serve)
data_commands.data.command("pose")(pose_commands.pose)
data_commands.data.command("pose-model")(pose_commands.pose_model)
app.add_typer(data_commands.data)


def main() -> None:
    """Run a command. A user's mistake ends with one message and exit code 2, a failed run with exit code 1."""
    debug = "--debug" in sys.argv
    if debug:
        sys.argv.remove("--debug")
    try:
        _open_secrets()
        app()
    except SystemExit as end:
        if end.code == 130:  # typer's exit code for Ctrl-C
            _complain("interrupted; run the same command again to continue where this one stopped")
        raise
    except Exception as error:
        code = _exit_code(error)
        if debug or code is None:
            raise
        _complain(str(error))
        sys.exit(code)


def _open_secrets() -> None:
    if "STARLAB_SECRETS" in os.environ:  # in a submitted job only
        from starlab.platform.cluster.job_secrets import open_secrets

        open_secrets()


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


def _print(lines: Sequence[str]) -> None:
    print("\n".join(["", *lines]), flush=True)


if __name__ == "__main__":
    main()
