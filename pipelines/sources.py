"""Which data sets there are, what is known of each without reading it, and how one is opened."""

from __future__ import annotations

import difflib
import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from starlab.pipelines.augment import AugmentConfig
from starlab.pipelines.clip import ClipSource, DataError
from starlab.pipelines.estimated_joints import ESTIMATOR_SKELETONS, EstimatedJoints
from starlab.pipelines.generated.ntu import SYNTHETIC_NTU_CLASSES, SyntheticNtuConfig, write_ntu
from starlab.pipelines.generated.penn_action import SYNTHETIC_CLASSES, SyntheticConfig, write_penn_action
from starlab.pipelines.ntu import NtuSource
from starlab.pipelines.ntu_names import NTU60_CLASSES, NTU60_SETUPS, NTU120_CLASSES, NTU120_SETUPS, Protocol
from starlab.pipelines.penn_action import PENN_ACTION_CLASSES, PennActionSource
from starlab.pipelines.skeletons import NTU, PENN_ACTION, Skeleton
from starlab.pipelines.store import StoreSource, is_store


@dataclass(frozen=True, slots=True)
class DatasetFacts:
    """What a model must know of a data set."""

    classes: tuple[str, ...]
    skeleton: Skeleton
    max_bodies: int
    sided_classes: tuple[str, ...] = ()
    """Those that left or right tells apart: a mirrored clip would carry the wrong label."""
    protocols: tuple[Protocol, ...] = ()
    """The official splits to choose from; empty where there is one only."""


DATASETS = {
    "penn_action": DatasetFacts(PENN_ACTION_CLASSES, PENN_ACTION, max_bodies=1),
    "synthetic_penn_action": DatasetFacts(
        SYNTHETIC_CLASSES, PENN_ACTION, max_bodies=1, sided_classes=("raise_left_then_right", "raise_right_then_left")
    ),
    "ntu60": DatasetFacts(NTU60_CLASSES, NTU, max_bodies=2, protocols=("xsub", "xview")),
    "ntu120": DatasetFacts(NTU120_CLASSES, NTU, max_bodies=2, protocols=("xsub", "xset")),
    "synthetic_ntu": DatasetFacts(
        SYNTHETIC_NTU_CLASSES,
        NTU,
        max_bodies=2,
        sided_classes=("A951_left_waves_then_right", "A952_right_waves_then_left"),
        protocols=("xsub", "xview", "xset"),
    ),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """The `data` section of a spec."""

    dataset: Literal["penn_action", "ntu60", "ntu120", "synthetic_penn_action", "synthetic_ntu"]
    """Which data set."""
    protocol: Protocol | None = None
    """NTU's official split: cross-subject, cross-view (60 only) or cross-setup (120 only); null for the other data sets."""
    store: str | None = None
    """Its folder: as its authors ship it, or as `starlab prepare` made it (then also s3://… and the like). A synthetic one
    may leave it out: it is generated under the runs folder."""
    source: Literal["auto", "raw", "prepared"] = "auto"
    """What lies in `store`: the authors' files, or a prepared store; "auto" looks. No part of the run's identity."""
    limit: int | None = None
    """For a quick try: at most so many clips of each class in each of train, validation and test; null takes all."""
    estimated_joints: str | None = None
    """A Parquet file of joints from a pose estimator, used instead of the data set's own (docs/data.md has the columns)."""
    estimated_skeleton: Literal["coco", "penn_action", "ntu"] | None = None
    """Whose joints that file holds."""
    frames: int = 16
    """Frames drawn from a clip; even, because zigzag and binary attention halve them."""
    size: int = 224
    """Side of the square frames the model sees, in pixels."""
    augment: Literal["none", "standard"] = "none"
    """How training clips vary. "none" is the paper: uniform frames, plain resize. "standard" draws a frame per segment,
    a random-resized-crop, a flip and colour jitter, by the four settings below."""
    crop_area: tuple[float, float] = (0.56, 1.0)
    """Share of the frame's area that a crop keeps."""
    crop_aspect: tuple[float, float] = (0.75, 4 / 3)
    """Width over height of a crop."""
    flip: bool = False
    """Mirror half of the clips, swapping left and right joints; refused where a class names a side."""
    color_jitter: float = 0.0
    """Largest relative change of brightness and contrast."""
    validation_fraction: float = 0.1
    """Share of the official training part that serves every selection; 0 leaves none."""
    split_seed: int = 0
    """Draws the validation part; not the training seed, so that seeds are compared on the same clips."""
    select: Literal["validation", "test"] = "validation"
    """What picks the best checkpoint. "test" is how some papers did it: labelled optimistic everywhere."""
    oversample: Literal["balanced"] | dict[str, float] | None = None
    """How often training clips are drawn: null, each once an epoch; "balanced", every class equally often; {class: weight},
    clips of that class so many times as often as the others. An epoch stays as long as it is."""
    test_views: tuple[int, int] = (1, 1)
    """[temporal, spatial] views of a test clip, whose class probabilities are averaged; the middle of each segment and the
    middle of the frame for [1, 1]. Only for the last look: the selection of a checkpoint takes one view."""
    test_crop: float = 1.0
    """Share of the frame's width and height that a view shows; 1 is the whole frame, as the paper has it."""
    decode: Literal["cluster", "worker"] = "cluster"
    """Where clips are decoded, to the same bytes: in Ray Data tasks on any node with free CPUs, or in threads of the training
    worker, on its own CPUs. No part of the run's identity."""
    max_unreadable_fraction: float = 0.05
    """The run stops when more of the clips drawn so far than this could not be read."""
    synthetic: SyntheticConfig = SyntheticConfig()
    """What is generated; only for synthetic_penn_action."""
    synthetic_ntu: SyntheticNtuConfig = SyntheticNtuConfig()
    """The same for synthetic_ntu."""

    def __post_init__(self) -> None:
        facts = DATASETS[self.dataset]
        protocols = facts.protocols
        if protocols and self.protocol not in protocols:
            raise ValueError(f"data.protocol is {self.protocol}; {self.dataset} is split by one of: {', '.join(protocols)}")
        if self.protocol is not None and not protocols:
            raise ValueError(f"data.protocol is {self.protocol}, but {self.dataset} has one official split: remove the key")
        if (self.estimated_joints is None) != (self.estimated_skeleton is None):
            raise ValueError(
                f"data.estimated_joints is {self.estimated_joints} and data.estimated_skeleton {self.estimated_skeleton}: "
                f"give both, the file and whose joints it holds ({', '.join(ESTIMATOR_SKELETONS)}), or neither"
            )
        if self.frames < 2 or self.frames % 2:
            raise ValueError(
                f"data.frames is {self.frames}; it must be even and at least 2, because zigzag and binary attention "
                f"split the frames into two halves: use {max(2, self.frames + self.frames % 2)}"
            )
        if self.size < 16:
            raise ValueError(f"data.size is {self.size} px; the backbone needs at least 16")
        if not 0 <= self.validation_fraction < 1:
            raise ValueError(f"data.validation_fraction is {self.validation_fraction}; it must be in [0, 1)")
        if self.validation_fraction == 0 and self.select == "validation":
            raise ValueError(
                "data.validation_fraction is 0, so data.select: validation has nothing to select by; "
                "give it a fraction, or say data.select=test and call the result optimistic"
            )
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"data.limit is {self.limit}; it must be 1 or more clips of each class, or null for all")
        if self.flip and self.augment == "standard" and facts.sided_classes:
            raise ValueError(
                f"data.flip is true, but {self.dataset} has classes that name a side ({', '.join(facts.sided_classes)}): "
                "mirrored they would be labelled wrong; use data.flip=false"
            )
        if isinstance(self.oversample, dict):
            _check_weights(self.oversample, facts.classes)
        temporal, spatial = self.test_views
        if temporal < 1 or spatial < 1:
            raise ValueError(f"data.test_views is {list(self.test_views)}; it must be [temporal, spatial], each 1 or more")
        if not 0 < self.test_crop <= 1:
            raise ValueError(f"data.test_crop is {self.test_crop}; it must be in (0, 1], where 1 is the whole frame")
        if spatial > 1 and self.test_crop == 1:
            raise ValueError(
                f"data.test_views asks for {spatial} views of the picture, but with data.test_crop 1 all of them are the whole "
                "frame; use e.g. data.test_crop=0.875"
            )
        if self.store is None and not self.dataset.startswith("synthetic_"):
            raise ValueError(
                f"data.store is missing: name the folder that holds {self.dataset}, e.g. data.store=data/{self.dataset}"
            )

    def facts(self) -> DatasetFacts:
        """What a model must know of this data: the data set's facts, with the estimator's skeleton where there is one."""
        facts = DATASETS[self.dataset]
        if self.estimated_skeleton is None:
            return facts
        return replace(facts, skeleton=ESTIMATOR_SKELETONS[self.estimated_skeleton])

    def augmentation(self) -> AugmentConfig:
        """The settings of a training clip's augmentation."""
        return AugmentConfig(
            mode=self.augment,
            crop_area=self.crop_area,
            crop_aspect=self.crop_aspect,
            flip=self.flip,
            color_jitter=self.color_jitter,
            test_crop=self.test_crop,
        )


def open_source(config: DataConfig, runs: Path, say: Callable[[str], None] = lambda _: None) -> ClipSource:
    """Index the data set of `config`; a synthetic one that is not there yet is generated under `runs`/data first.

    `say` is given a line for the user before something that takes seconds.

    Raises:
        DataError: the folder is missing, empty, not such a data set, or not what `data.source` says.
    """
    source = _open_dataset(config, runs, say)
    if config.estimated_joints is None:
        return source
    return EstimatedJoints(source, Path(config.estimated_joints), config.facts().skeleton)


def _open_dataset(config: DataConfig, runs: Path, say: Callable[[str], None]) -> ClipSource:
    if config.store is None:
        return open_raw(config, generated_folder(config, runs), say)
    prepared = is_store(config.store)
    if config.source == "prepared" or (config.source == "auto" and prepared):
        store = StoreSource(config.store, config.protocol)
        if store.manifest["dataset"] != config.dataset:
            raise DataError(
                f"{config.store} was prepared from {store.manifest['dataset']}, but data.dataset is {config.dataset}: "
                "change one of them"
            )
        return store
    if prepared:
        raise DataError(f"data.source is raw, but {config.store} is a prepared store: use data.source=auto")
    if "://" in config.store:
        raise DataError(f"{config.store} is no prepared store: the authors' files are read from a local folder only")
    return open_raw(config, Path(config.store), say)


def open_raw(config: DataConfig, root: Path, say: Callable[[str], None] = lambda _: None) -> ClipSource:
    """Index the authors' files; a synthetic data set that is not there yet is generated.

    Raises:
        DataError: the folder is missing, empty or not such a data set.
    """
    if config.dataset.startswith("synthetic_"):
        if not root.exists():
            say(f"data     generating people into {root}")
        if config.dataset == "synthetic_ntu":
            write_ntu(root, config.synthetic_ntu, workers=os.cpu_count() or 1)
        else:
            write_penn_action(root, config.synthetic, workers=os.cpu_count() or 1)
    return _open_files(config.dataset, root, config.protocol)


def open_authors_files(dataset: str, root: Path) -> ClipSource:
    """Index the authors' files in a folder that is there, for `starlab prepare`.

    Where there are several official splits, the clips carry the first one; `data.protocol` decides anew when they are read.

    Raises:
        DataError: no such data set, or no such folder.
    """
    if dataset not in DATASETS:
        near = difflib.get_close_matches(dataset, DATASETS, n=1, cutoff=0.5)
        hint = f"did you mean '{near[0].replace('_', '-')}'? " if near else ""
        raise DataError(f"unknown data set '{dataset}'; {hint}Known: {', '.join(name.replace('_', '-') for name in DATASETS)}")
    if not root.is_dir():
        raise DataError(f"no folder at {root}: name the one that holds the files of {dataset}")
    protocols = DATASETS[dataset].protocols
    return _open_files(dataset, root, protocols[0] if protocols else None)


def _open_files(dataset: str, root: Path, protocol: Protocol | None) -> ClipSource:
    classes = DATASETS[dataset].classes
    if protocol is None:
        return PennActionSource(root, classes=classes)
    return NtuSource(root, protocol, classes=classes, setups=NTU60_SETUPS if dataset == "ntu60" else NTU120_SETUPS)


def _check_weights(weights: dict[str, float], classes: tuple[str, ...]) -> None:
    for name, weight in weights.items():
        if name not in classes:
            near = difflib.get_close_matches(name, classes, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"its classes: {', '.join(classes)}"
            raise ValueError(f"data.oversample names '{name}', which is no class of the data set; {hint}")
        if not 0 < weight <= 1000:
            raise ValueError(f"data.oversample.{name} is {weight}; it must be above 0 and at most 1000")


def generated_folder(config: DataConfig, runs: Path) -> Path:
    """Where the synthetic data set of `config` is, or would be, generated."""
    settings = config.synthetic_ntu if config.dataset == "synthetic_ntu" else config.synthetic
    kind = config.dataset.removesuffix("_penn_action").replace("_", "-")
    return runs / "data" / f"{kind}-{_digest(settings)}"


def _digest(config: SyntheticConfig | SyntheticNtuConfig) -> str:
    text = json.dumps(asdict(config), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]
