"""The commands that draw results: report, explain."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from starlab.platform.runs.folder import RunFolder

Runs = Annotated[Path | None, typer.Option(help="Folder of runs. Default: STARLAB_RUNS, else ./runs.")]


def report(
    name: Annotated[str, typer.Argument(help="Name of a run, a search or an ablation.")],
    pdf: Annotated[bool, typer.Option("--pdf", help="Also write Figures 1, 5 and 6 as PDF files for print.")] = False,
    runs: Runs = None,
) -> None:
    """Write one HTML file about a run, a search or an ablation: starlab report demo_table4-1a2b3c4d"""
    from starlab.platform.reports.report import report as write_report
    from starlab.platform.runs.folder import find_run, runs_folder

    folder = find_run(runs_folder(runs), name, _complain)
    path = write_report(folder, _complain)
    if pdf:
        from starlab.platform.reports.print_figures import write_print_figures

        written, left_out = write_print_figures(folder, _complain)
        for figure in written:
            print(f"figure   {figure}")
        for reason in left_out:
            print(f"left out {reason}")
    _send(folder)
    print(f"report   {path}: {path.stat().st_size / 1000:.0f} kB, nothing else is needed to read it", flush=True)


def explain(
    run: Annotated[str, typer.Argument(help="Name of a run, or of an experiment with a single run.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="New location of the data: data.store=…")] = None,
    clip: Annotated[str | None, typer.Option(help="Id of the test clip to draw. Default: the most typical one.")] = None,
    embedding: Annotated[bool, typer.Option("--embedding", help="Also project all clips to two dimensions (Fig. 1).")] = False,
    checkpoint: Annotated[str, typer.Option(help="best, last or the step of a checkpoint.")] = "best",
    clips: Annotated[int | None, typer.Option(min=1, help="Most clips to average over. Default: all of the test part.")] = None,
    untrained: Annotated[int, typer.Option(help="Untrained models of the same wiring to compare with. 0: none.")] = 5,
    runs: Runs = None,
) -> None:
    """Measure which frames and joints a run looks at (Fig. 6): starlab explain demo-1a2b3c4d --embedding"""
    from starlab.platform.runs.folder import RunFolder, find_runs, runs_folder

    find_runs(runs_folder(runs), run, _complain)  # reject a wrong name before heavy imports
    from starlab.platform.explain import explain_run
    from starlab.platform.reports.attention import MODEL, verdict
    from starlab.platform.reports.untrained import against_untrained

    found = explain_run(
        run,
        clip=clip,
        embedding=embedding,
        checkpoint=checkpoint,
        most_clips=clips,
        untrained=untrained,
        overrides=overrides or [],
        runs=runs,
        say=lambda line: print(line, flush=True),
    )
    print()
    for focus in found.focuses:
        values = [estimate.mean for estimate in focus.frames]
        name = "model" if focus.pattern == MODEL else focus.pattern
        print(f"{name:<7} {_bars(values)}  {min(values):.1%} to {max(values):.1%} a frame")
        print(f"        {verdict(focus)[1]}")
        if found.untrained:
            print(f"        {against_untrained(focus, found.untrained)}")
    if found.unreadable:
        print(f"skipped {found.unreadable} clips that cannot be read")
    print(f"clip    {found.clip.clip_id} ({found.clip.true}): its frames, joints and importance are drawn")
    if found.embedding:
        methods, clips_ = " and ".join(found.embedding.points), len(found.embedding.clip_ids)
        print(f"points  {clips_} {found.embedding.part} clips by {methods}; 2 components have {found.embedding.explained:.0%}")
    print(f"files   {found.folder}\nlook    starlab report {found.run_id}", flush=True)
    _send(RunFolder(found.folder.parent.parent))


def _bars(values: list[float]) -> str:
    """Draw values as a line of blocks, from 0 up."""
    top = max(values) or 1.0
    return "".join("▁▂▃▄▅▆▇█"[min(7, int(8 * value / top))] for value in values)


def _send(folder: RunFolder) -> None:
    """Send new artifacts to MLflow, if the run is there."""
    from starlab.platform.runs.records import MlflowState

    if folder.read(MlflowState) is None:
        return
    from starlab.platform.tracking.sender import Sender

    sender = Sender(folder)
    sender.send_now()
    if sender.problem:
        _complain(f"MLflow is not up to date ({sender.problem}); later: starlab sync {folder.path.name}")


def _complain(message: str) -> None:
    print(f"starlab: {message}", file=sys.stderr)
