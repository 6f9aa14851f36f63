"""The commands that read results: compare."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from starlab.platform.runs.folder import RunFolder

Form = Annotated[
    str | None, typer.Option("--format", help="terminal, markdown, latex, csv, json. Default: by --output's ending.")
]
Rope = Annotated[
    float | None,
    typer.Option(help="Points below which a difference is none in practice. Default: 0.5; 0: every difference counts."),
]
Fuse = Annotated[
    list[str] | None,
    typer.Option(help="Rows, with commas between them, whose class probabilities are averaged as a further row. Repeatable."),
]
Paper = Annotated[bool, typer.Option("--paper", help="What differs from the paper's recipe, and what seed noise explains.")]


def compare(
    names: Annotated[
        list[str] | None, typer.Argument(help="Runs, searches, ablations, or experiments (all of their runs).")
    ] = None,
    metric: Annotated[
        str | None, typer.Option(help="top1, top5, mean_class or loss. Default: the ablation's, else top1.")
    ] = None,
    by: Annotated[
        list[str] | None, typer.Option(help="Key of the spec whose values make the rows: --by model.layers. Repeatable.")
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="Row, or run, to compare with. Default: the ablation's reference, else the first row.")
    ] = None,
    rope: Rope = None,
    fuse: Fuse = None,
    form: Form = None,
    output: Annotated[Path | None, typer.Option(help="File to write instead of printing.")] = None,
    paper: Paper = False,
    mlflow: Annotated[str | None, typer.Option(help="Also runs of a tracking server, by a filter: \"tags.team = 'a'\"")] = None,
    uri: Annotated[str | None, typer.Option(help="Tracking server of --mlflow. Default: that of the runs folder.")] = None,
    runs: Annotated[Path | None, typer.Option(help="Folder of runs. Default: STARLAB_RUNS, else ./runs.")] = None,
) -> None:
    """Compare runs over seeds and test clips, with a verdict on each difference: starlab compare table4 --output table4.md"""
    from starlab.platform.errors import UserError
    from starlab.platform.reports.compare import compare as compare_results
    from starlab.platform.reports.formats import ENDINGS, FORMATS, render
    from starlab.platform.reports.fusion import with_fusion
    from starlab.platform.reports.results import read_results
    from starlab.platform.runs.folder import find_runs, runs_folder

    if not names and mlflow is None:
        raise UserError("name at least one run, search, ablation or experiment, or give a filter with --mlflow")
    chosen = form or (ENDINGS.get(output.suffix) if output else "terminal")
    if chosen not in FORMATS:
        what = f"--format {form} is not a format" if form else f"the ending of {output} names no format"
        raise UserError(f"{what}; choose one with --format: {', '.join(FORMATS)}")
    root = runs_folder(runs)
    folders = [folder for name in names or [] for folder in find_runs(root, name, _complain)]
    with tempfile.TemporaryDirectory(prefix="starlab-compare-") as temporary:
        if mlflow is not None:
            from starlab.platform.tracking.downloads import download_runs

            folders += download_runs(mlflow, root, Path(temporary), uri=uri, complain=_complain)
        if paper:
            _write(_paper_text(folders, root, by or []), output)
            return
        results = read_results(folders, _complain)
        for number, rows in enumerate(fuse or []):
            results = with_fusion(results, rows.split(","), Path(temporary) / f"fusion-{number}")
        comparison = compare_results(results, metric=metric, by=by or [], base=base, rope=rope)
        terminal = chosen == "terminal" and output is None and sys.stdout.isatty()
        _write(render(comparison, chosen, width=shutil.get_terminal_size().columns if terminal else None), output)
    for note in comparison.notes:
        if note.startswith("warning") and chosen not in ("terminal", "markdown", "latex"):
            _complain(note)  # these formats hold no notes that a reader would see


def _paper_text(folders: list[RunFolder], root: Path, by: list[str]) -> str:
    """Say for each row of these runs what differs from the paper. A single run brings the other seeds of its spec with it."""
    from starlab.platform.errors import UserError
    from starlab.platform.reports.grouping import group_runs
    from starlab.platform.reports.paper import explain_gap, paper_lines
    from starlab.platform.reports.results import read_results
    from starlab.platform.runs.folder import find_runs

    asked = {folder.path for folder in folders}
    if len(folders) == 1:
        single = folders[0]
        others = find_runs(root, single.info.experiment, lambda _: None) if single.path.parent == root else []
        folders = [*folders, *(folder for folder in others if folder.path not in asked)]
    results = read_results(folders, _complain, costs=False)
    lines, grouping = [], group_runs(results, by)
    if grouping.open_keys:
        left = ", ".join(grouping.open_keys)
        raise UserError(
            f"--paper is about the seeds of one spec, and --by leaves {left} open; name these keys too, or leave it out"
        )
    for group in grouping.groups:
        replicates = list(group.replicates.values())
        ours = any(run.folder in asked or (run.group and root / run.group in asked) for run in replicates)
        if ours:
            lines += [*paper_lines(group.name, explain_gap(replicates)), ""]
    return "\n".join(lines)


def _write(text: str, output: Path | None) -> None:
    if output is None:
        print(text, end="" if text.endswith("\n") else "\n", flush=True)
        return
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(text)
    print(f"written  {output}", flush=True)


def _complain(message: str) -> None:
    print(f"starlab: {message}", file=sys.stderr)
