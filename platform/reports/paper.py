"""What differs between runs and the paper, and how much of the gap the noise of the seeds explains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from starlab.pipelines.datasets import DATASETS
from starlab.platform.errors import UserError
from starlab.platform.reports.paper_numbers import CITED_RESULTS, PAPER_RESULTS, RECIPE, PaperResult
from starlab.platform.reports.results import RunRow
from starlab.platform.reports.statistics import share_explained

_CLIPS_PER_WORKER = 4
"""Clips of a batch-norm's batch in the paper: 4 on each of 4 GPUs (§4.1)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Departure:
    """One difference between a run and the paper."""

    what: str
    ours: str
    paper: str
    source: str
    note: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class PaperGap:
    """How runs of one row relate to the paper."""

    result: PaperResult | None
    """The paper's result that they repeat; None if the paper has none."""
    by_seed: tuple[float, ...]
    """Test top-1 of each run, in percent."""
    departures: tuple[Departure, ...]
    """What differs from the recipe that the paper states, then from what it leaves open."""
    sentences: tuple[str, ...]
    """The gap, and how much of it the noise of the seeds explains."""


def paper_result(spec: Mapping[str, Any]) -> PaperResult | None:
    """Return the paper's result for a spec, by dotted key. None if the paper has no result for it."""
    depths = {spec.get(f"model.{part}_layers") or spec.get("model.layers") for part in ("encoder", "decoder")}
    for result in PAPER_RESULTS:
        same_data = spec.get("data.dataset") == result.dataset and spec.get("data.protocol") == result.protocol
        same_model = all(spec.get(f"model.{key}") == value for key, value in result.model.items())
        if same_data and same_model and depths == {3} and spec.get("model.modality", "both") == "both":
            return result
    return None


def explain_gap(runs: Sequence[RunRow]) -> PaperGap:
    """Compare the runs of one row, which differ in their seed only, with the paper.

    Raises:
        UserError: There are no runs.
    """
    if not runs:
        raise UserError("there are no runs to compare with the paper")
    spec = runs[0].spec
    result = paper_result(spec)
    by_seed = tuple(100 * run.test["top1"] for run in runs if "top1" in run.test)
    return PaperGap(
        result=result,
        by_seed=by_seed,
        departures=tuple(_departures(runs, result)),
        sentences=tuple(_noise(result, by_seed, str(spec.get("data.dataset")))),
    )


def paper_lines(name: str, gap: PaperGap) -> list[str]:
    """Return the lines of text that show a gap: its sentences, then a line per difference."""
    lines = [f"{name} and the paper", *(f"  {sentence}" for sentence in gap.sentences)]
    for title, silent in (("differs from what the paper states", False), ("differs where the paper is silent", True)):
        found = [one for one in gap.departures if (one.source == "not stated") == silent]
        lines.append(f"{title}:" if found else f"{title}: nothing")
        width = max((len(one.what) for one in found), default=0)
        for one in found:
            note = f"; {one.note}" if one.note else ""
            source = "" if silent else f" ({one.source})"
            lines.append(f"  {one.what:<{width}}  {one.ours}, paper {one.paper}{source}{note}")
    if gap.result is not None:
        same = (gap.result.dataset, gap.result.protocol)
        others = [f"{one.method} {one.top1:.1f}" for one in CITED_RESULTS if (one.dataset, one.protocol) == same]
        lines.append(f"other methods on these data, as the paper cites them: {', '.join(others)}")
    return lines


def _departures(runs: Sequence[RunRow], result: PaperResult | None) -> list[Departure]:
    spec = runs[0].spec
    fixed = {f"model.{key}": value for key, value in result.model.items()} if result else {}
    stated: list[Departure] = []
    silent: list[Departure] = []
    for entry in RECIPE:
        expected = fixed.get(entry.key, entry.value)
        ours = spec.get(entry.key, expected)
        if ours != expected and not (isinstance(ours, tuple) and list(ours) == expected):
            found = Departure(what=entry.key, ours=_text(ours), paper=_text(expected), source=entry.source, note=entry.note)
            (silent if entry.source == "not stated" else stated).append(found)
    return [*_about_data(runs), *stated, *_about_batch_norm(spec), *_about_seeds(runs), *silent]


def _about_data(runs: Sequence[RunRow]) -> list[Departure]:
    spec, run = runs[0].spec, runs[0]
    name = str(spec.get("data.dataset"))
    if not any(result.dataset == name for result in PAPER_RESULTS):
        return [Departure(what="data.dataset", ours=name, paper="penn_action, ntu60, ntu120", source="§4.1")]
    official = DATASETS[name].official_counts.get(spec.get("data.protocol"))
    if official is None or run.test_clips is None or run.test_clips == official[1]:
        return []
    note = f"{run.unreadable} could not be read; results on other clips cannot be compared with published ones"
    return [
        Departure(what="test clips", ours=f"{run.test_clips:,}", paper=f"{official[1]:,}", source="official split", note=note)
    ]


def _about_batch_norm(spec: Mapping[str, Any]) -> list[Departure]:
    kind = spec.get("model.batch_norm", "train")
    workers = int(spec.get("resources.workers", spec.get("resources.workers.max", 1)))
    clips = int(spec.get("train.global_batch", 16)) / workers
    if kind == "train":
        clips /= int(spec.get("train.accumulate", 1))
    if kind == "train" and clips == _CLIPS_PER_WORKER:
        return []
    ours = "the stored statistics (frozen)" if kind == "frozen" else f"statistics of {clips:g} clips ({kind})"
    return [
        Departure(
            what="batch norm",
            ours=ours,
            paper=f"statistics of {_CLIPS_PER_WORKER} clips, of one GPU",
            source="§4.1",
            note="model.batch_norm, train.global_batch, resources.workers and train.accumulate decide it",
        )
    ]


def _about_seeds(runs: Sequence[RunRow]) -> list[Departure]:
    seeds = len({run.seed for run in runs})
    note = "the paper gives one number without a spread; it may be the best of several runs"
    return [Departure(what="seeds", ours=str(seeds), paper="1", source="not stated", note=note)]


def _noise(result: PaperResult | None, by_seed: Sequence[float], dataset: str) -> list[str]:
    if not by_seed:
        return ["no run was tested, so there is no accuracy to compare"]
    mean, seeds = float(np.mean(by_seed)), len(by_seed)
    ours = f"{mean:.2f} % over {seeds} seeds" if seeds > 1 else f"{mean:.2f} % at one seed"
    if result is None:
        return [f"test top-1 is {ours}. The paper has no result for this model on {dataset}, so only the recipe is compared."]
    gap = result.top1 - mean
    direction = "below" if gap > 0 else "above"
    text = [f"test top-1 is {ours}, {abs(gap):.2f} points {direction} the paper's {result.top1:.1f} % ({result.source})."]
    explained = share_explained(gap, by_seed)
    if explained is None:
        why = "one seed does not show" if seeds == 1 else "seeds with one and the same accuracy do not show"
        return [*text, f"{why} how much of that is noise of the seed: run at least 3 seeds (train.seed=1, train.seed=2)."]
    half, p_value = explained
    verdict = (
        f"does not explain the gap alone (p = {p_value:.3f}): look at the differences below"
        if p_value <= 0.05
        else f"could explain the whole gap (p = {p_value:.2f})"
    )
    sd = float(np.std(by_seed, ddof=1))
    return [
        *text,
        f"one more run of this recipe falls within {mean:.2f} ± {half:.2f} % in 95 of 100 cases (standard deviation over seeds "
        f"{sd:.2f} points), so seed noise {verdict}.",
    ]


def _text(value: Any) -> str:
    return "none" if value is None else str(value)
