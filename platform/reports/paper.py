"""The paper's results and recipe as data, and what differs between runs and them.

The paper is "STAR-Transformer: A Spatio-temporal Cross Attention Transformer for Human Action Recognition" (WACV 2023). Every
entry names its table or section.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from starlab.pipelines.datasets import DATASETS
from starlab.platform.errors import UserError
from starlab.platform.reports.results import RunRow
from starlab.platform.reports.statistics import share_explained


@dataclass(frozen=True, kw_only=True, slots=True)
class PaperResult:
    """A top-1 accuracy that the paper reports."""

    source: str
    dataset: str
    protocol: str | None = None
    top1: float
    """In percent."""
    model: Mapping[str, Any] = field(default_factory=lambda: {"encoder": "FZ", "decoder": "FB", "class_tokens": "multi"})
    """What the model must be, by key of `model`."""


def _table4(encoder: str, decoder: str, top1: float) -> PaperResult:
    model = {"encoder": encoder, "decoder": decoder, "class_tokens": "multi"}
    return PaperResult(source="Table 4", dataset="penn_action", top1=top1, model=model)


PAPER_RESULTS = (
    PaperResult(source="Table 1", dataset="penn_action", top1=98.7),
    PaperResult(source="Table 2", dataset="ntu60", protocol="xsub", top1=92.0),
    PaperResult(source="Table 2", dataset="ntu60", protocol="xview", top1=96.5),
    PaperResult(source="Table 2", dataset="ntu120", protocol="xsub", top1=90.3),
    PaperResult(source="Table 2", dataset="ntu120", protocol="xset", top1=92.7),
    PaperResult(
        source="Table 3",
        dataset="penn_action",
        top1=97.3,
        model={"encoder": "FZ", "decoder": "FB", "class_tokens": "single"},
    ),
    _table4("FF", "FF", 96.1),
    _table4("FZ", "FZ", 97.3),
    _table4("FB", "FB", 97.8),
    _table4("FB", "FZ", 97.3),
    _table4("FZ", "FB", 98.7),
)
"""The first entry that fits a run is the one it is compared with. All are for three layers (§4.3)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RecipeEntry:
    """One setting of the paper's recipe."""

    key: str
    """Key of the spec."""
    value: Any
    source: str
    """Section or table of the paper; "not stated" where the paper is silent and the value is the plainest reading."""
    note: str = ""
    """What a reader should know about a difference."""


def _silent(key: str, value: Any, note: str = "") -> RecipeEntry:
    return RecipeEntry(key=key, value=value, source="not stated", note=note)


RECIPE = (
    RecipeEntry(key="data.frames", value=16, source="§3, §4.1"),
    RecipeEntry(key="data.size", value=224, source="§3"),
    RecipeEntry(key="data.estimated_joints", value=None, source="Tables 1, 2", note="the paper has annotated poses"),
    _silent("data.augment", "none", "augmentation usually helps"),
    _silent("data.test_views", [1, 1], "more views of a test clip usually help"),
    _silent("data.test_crop", 1.0),
    _silent("data.validation_fraction", 0.0, "clips that are held out for the selection are missing in training"),
    _silent("data.select", "last", "a checkpoint that is chosen by the test part has an optimistic accuracy"),
    _silent("data.train_fraction", 1.0, "fewer training clips lower the accuracy"),
    _silent("data.limit", None, "fewer clips of each class, in test too"),
    _silent("data.oversample", None),
    RecipeEntry(key="train.epochs", value=300, source="§4.1"),
    _silent("train.stop_after_epochs", None),
    RecipeEntry(
        key="train.global_batch",
        value=16,
        source="§4.1",
        note="batch 4 on each of 4 V100; 4 over all GPUs is the other reading",
    ),
    RecipeEntry(key="train.optimizer", value="sgd", source="§4.1"),
    RecipeEntry(key="train.lr", value=2e-4, source="§4.1"),
    RecipeEntry(key="train.momentum", value=0.9, source="§4.1"),
    _silent("train.lr_scaling", "none"),
    _silent("train.backbone_lr_scale", 1.0),
    _silent("train.weight_decay", 0.0),
    _silent("train.schedule", "constant"),
    _silent("train.warmup_fraction", 0.0),
    _silent("train.clip_norm", None),
    _silent("train.label_smoothing", 0.0),
    _silent("train.mixup", 0.0),
    _silent("train.ema", None),
    RecipeEntry(key="model.modality", value="both", source="Tables 1, 2"),
    RecipeEntry(key="model.backbone", value="mc3_18", source="§3.1, §4.1"),
    RecipeEntry(
        key="model.weights",
        value="kinetics400",
        source="§3.1, §4.1",
        note="weights from random lower the accuracy on small data",
    ),
    _silent("model.pixel_norm", "kinetics"),
    _silent("model.local_layer", "layer2"),
    _silent("model.grid", None),
    _silent("model.frozen_stages", 0),
    _silent("model.sigma_cells", 0.7),
    _silent("model.heatmap_norm", "sum"),
    RecipeEntry(key="model.class_tokens", value="multi", source="Eq. 2-4, Table 3"),
    RecipeEntry(key="model.joint_position", value="index", source="Eq. 3"),
    _silent("model.temporal_position", "none", "without one the transformer cannot see the direction of time"),
    _silent("model.token_norm", False),
    RecipeEntry(key="model.layers", value=3, source="§4.3, Fig. 5"),
    _silent("model.encoder_layers", None),
    _silent("model.decoder_layers", None),
    RecipeEntry(key="model.encoder", value="FZ", source="§3.3, Table 4"),
    RecipeEntry(key="model.decoder", value="FB", source="§3.3, Table 4"),
    RecipeEntry(key="model.norm", value="post", source="Eq. 11-14"),
    RecipeEntry(key="model.group_projections", value="shared", source="§3.2"),
    _silent("model.init", "depth_scaled", "the start of the weights decides whether post-norm trains at all"),
    _silent("model.token_init_std", 0.02),
    _silent("model.dim", 512),
    _silent("model.heads", 8),
    _silent("model.mlp_ratio", 4.0),
    _silent("model.dropout", 0.0),
    _silent("model.drop_path", 0.0),
)
"""The paper's recipe. Where the paper is silent, the value is this project's reading (docs/model.md)."""

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
    workers = int(spec.get("resources.workers", 1))
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
