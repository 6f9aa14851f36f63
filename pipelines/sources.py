"""The `data` section of a spec, and how the data set that it names is opened."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from starlab.pipelines.augment import AugmentConfig
from starlab.pipelines.clip import ClipSource, DataError
from starlab.pipelines.custom.description import CustomData
from starlab.pipelines.custom.facts import check_facts, read_facts
from starlab.pipelines.custom.source import split_lines
from starlab.pipelines.datasets import DATASETS, Dataset, Generator, find_dataset
from starlab.pipelines.estimated_joints import ESTIMATOR_SKELETONS, EstimatedJoints, clip_lengths
from starlab.pipelines.generated.bystanders import SyntheticBystandersConfig
from starlab.pipelines.generated.ntu import SyntheticNtuConfig
from starlab.pipelines.generated.penn_action import SyntheticConfig
from starlab.pipelines.ntu_names import Protocol
from starlab.pipelines.schedule import check_weights
from starlab.pipelines.skeletons import NO_JOINTS
from starlab.pipelines.store import StoreSource, is_store


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """The `data` section of a spec."""

    dataset: str
    """Which data set: a name of the table in pipelines/datasets.py."""
    protocol: Protocol | None = None
    """NTU's official split: cross-subject, cross-view (60 only) or cross-setup (120 only); null for the other data sets."""
    store: str | None = None
    """The data set's folder: the authors' files, or a store from `starlab prepare` (which may also be s3://… or another URI).
    A generated data set may leave it out and is then written under the runs folder."""
    source: Literal["auto", "raw", "prepared"] = "auto"
    """What `store` holds: the authors' files or a prepared store; "auto" looks. Not part of the run's identity."""
    limit: int | None = None
    """For a quick try: the largest number of clips of each class in each of train, validation and test; null takes all."""
    estimated_joints: str | None = None
    """A Parquet file of joints from a pose estimator, used instead of the data set's own (docs/data.md has the columns)."""
    estimated_skeleton: Literal["coco", "penn_action", "ntu"] | None = None
    """The skeleton of that file's joints."""
    clamp_confidence: bool = False
    """Clamp the confidences of that file to [0, 1]; some estimators give scores above 1, which are refused otherwise."""
    joint_jitter_px: float = 0.0
    """Standard deviation of noise on x and y of each joint, in pixels of the model's frames: how a less exact estimator would
    do. The noise of a joint in a frame of a clip is always the same."""
    joint_drop: float = 0.0
    """Share of the joints that are missing, by frame, drawn likewise: how an estimator that overlooks joints would do."""
    frames: int = 16
    """Frames drawn from a clip. Zigzag and binary attention (Z, B) split them in two and so need an even number."""
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
    rotation_degrees: float = 0.0
    """Largest angle by which "standard" turns frames and joints together."""
    person_crop: float | None = None
    """Crop every clip to the box of its joints, with this share of it added on each side; null keeps the whole frame."""
    validation_fraction: float = 0.1
    """Share of the official training part that is held out for selection; 0 holds out nothing."""
    train_fraction: float = 1.0
    """Share of the training clips that is used, the same of every class; validation and test stay as they are. A smaller share
    is a subset of a larger one, drawn by `split_seed`."""
    split_seed: int = 0
    """Seed of the validation part. It is not the training seed, so that seeds are compared on the same clips."""
    select: Literal["validation", "last", "test"] = "validation"
    """The part that selects the best checkpoint. "last" selects nothing: the weights of the last step count, and with
    `validation_fraction` 0 all of the training part is trained on. "test" is what some papers did; its results are labelled
    optimistic."""
    oversample: Literal["balanced"] | dict[str, float] | None = None
    """How often training clips are drawn: null draws each once an epoch; "balanced", every class equally often;
    {class: weight}, clips of that class `weight` times as often as the others. The length of an epoch stays."""
    test_views: tuple[int, int] = (1, 1)
    """[temporal, spatial] views of a test clip, whose class probabilities are averaged; [1, 1] is the middle of each segment
    and of the frame. Used for the final test only: the selection of a checkpoint takes one view."""
    test_crop: float = 1.0
    """Share of the frame's width and height that a view shows; 1 is the whole frame, as the paper has it."""
    decode: Literal["cluster", "worker"] = "cluster"
    """Where clips are decoded: in Ray Data tasks on any node with free CPUs, or in threads of the training worker, on its own
    CPUs. The bytes are the same. Not part of the run's identity."""
    cache: str | None = None
    """A folder on each node's own disk that keeps the decoded frames of clips that look the same in every epoch: all clips with
    `augment` none, else those of evaluations. Runs share it. The bytes are the same. Not part of the run's identity."""
    max_unreadable_fraction: float = 0.05
    """The run stops when more of the clips drawn so far than this could not be read."""
    custom: CustomData | None = None
    """What the folder of a data set of your own says of it: classes, skeleton, flip. Read from `store` when it is left out. The
    stored spec of a run has it, so that results can be read without the data."""
    synthetic: SyntheticConfig = SyntheticConfig()
    """Settings of synthetic_penn_action."""
    synthetic_ntu: SyntheticNtuConfig = SyntheticNtuConfig()
    """Settings of synthetic_ntu."""
    synthetic_bystanders: SyntheticBystandersConfig = SyntheticBystandersConfig()
    """Settings of synthetic_bystanders."""

    def __post_init__(self) -> None:
        try:
            facts = find_dataset(self.dataset)
        except DataError as error:
            raise ValueError(f"data.dataset: {error}") from None
        if self.dataset != "custom" and self.custom is not None:
            raise ValueError(f"data.custom is given, but data.dataset is {self.dataset}: remove the key")
        if self.dataset == "custom" and self.custom is None and self.store is not None:
            object.__setattr__(self, "custom", read_facts(self.store))
        facts = self._with_own(facts)
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
        if self.clamp_confidence and self.estimated_joints is None:
            raise ValueError("data.clamp_confidence is true, but there are no data.estimated_joints: remove the key")
        if not 0 <= self.joint_jitter_px < math.inf:
            raise ValueError(f"data.joint_jitter_px is {self.joint_jitter_px}; it must be 0 or more, in pixels")
        if not 0 <= self.joint_drop <= 1:
            raise ValueError(f"data.joint_drop is {self.joint_drop}; it must be a share in [0, 1]")
        if self.frames < 1:
            raise ValueError(f"data.frames is {self.frames}; it must be at least 1")
        if self.size < 16:
            raise ValueError(f"data.size is {self.size} px; the backbone needs at least 16")
        if not 0 <= self.validation_fraction < 1:
            raise ValueError(f"data.validation_fraction is {self.validation_fraction}; it must be in [0, 1)")
        if not 0 < self.train_fraction <= 1:
            raise ValueError(f"data.train_fraction is {self.train_fraction}; it must be in (0, 1], where 1 takes every clip")
        if self.validation_fraction == 0 and self.select == "validation":
            raise ValueError(
                "data.validation_fraction is 0, so data.select: validation has nothing to select by; "
                "give it a fraction, or use data.select=last, which takes the weights of the last step"
            )
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"data.limit is {self.limit}; it must be 1 or more clips of each class, or null for all")
        if self.flip and self.augment == "standard" and facts.sided_classes:
            raise ValueError(
                f"data.flip is true, but {self.dataset} has classes that name a side ({', '.join(facts.sided_classes)}): "
                "mirrored they would be labelled wrong; use data.flip=false"
            )
        if self.flip and self.augment == "standard" and self.custom is not None and not self.custom.may_flip:
            raise ValueError("data.flip is true, but data.yaml says flip: false; use data.flip=false")
        if isinstance(self.oversample, dict):
            check_weights(self.oversample, facts.classes)
        temporal, spatial = self.test_views
        if temporal < 1 or spatial < 1:
            raise ValueError(f"data.test_views is {list(self.test_views)}; it must be [temporal, spatial], each 1 or more")
        if not 0 < self.test_crop <= 1:
            raise ValueError(f"data.test_crop is {self.test_crop}; it must be in (0, 1], where 1 is the whole frame")
        try:
            self.augmentation()
        except ValueError as error:
            raise ValueError(f"data.{error}") from None
        if spatial > 1 and self.test_crop == 1:
            raise ValueError(
                f"data.test_views asks for {spatial} views of the picture, but with data.test_crop 1 all of them are the whole "
                "frame; use e.g. data.test_crop=0.875"
            )
        own = self.dataset == "custom"
        if self.store is None and facts.generator is None:
            raise ValueError(
                f"data.store is missing: name the folder that holds {'your videos' if own else self.dataset}, e.g. "
                f"data.store=data/{'my_videos' if own else self.dataset}"
            )

    def facts(self) -> Dataset:
        """The data set's entry, with the estimator's skeleton where joints are estimated."""
        facts = self._with_own(DATASETS[self.dataset])
        if self.estimated_skeleton is None:
            return facts
        return replace(facts, skeleton=ESTIMATOR_SKELETONS[self.estimated_skeleton])

    def has_joints(self) -> bool:
        """Whether the clips come with joints; without, a model can read pixels alone."""
        return self.facts().skeleton != NO_JOINTS

    def _with_own(self, facts: Dataset) -> Dataset:
        own = self.custom
        if own is None:
            return facts
        kept = replace(facts, classes=own.classes, skeleton=own.skeleton)
        return replace(kept, max_bodies=own.max_bodies, sided_classes=own.sided_classes)

    def augmentation(self) -> AugmentConfig:
        """The settings of a training clip's augmentation."""
        return AugmentConfig(
            mode=self.augment,
            crop_area=self.crop_area,
            crop_aspect=self.crop_aspect,
            flip=self.flip,
            color_jitter=self.color_jitter,
            rotation_degrees=self.rotation_degrees,
            person_crop=self.person_crop,
            test_crop=self.test_crop,
        )


def open_source(config: DataConfig, runs: Path, say: Callable[[str], None] = lambda _: None) -> ClipSource:
    """Index the data set of `config`; a generated one that does not exist yet is written under `runs`/data first.

    `say` receives a line of text for the user before an operation that takes seconds.

    Raises:
        DataError: the folder is missing, empty, not such a data set, or not what `data.source` says.
    """
    source = _open_dataset(config, runs, say)
    for line in source.about if isinstance(source, StoreSource) else split_lines(source):
        say(f"split    {line}")
    if config.custom is not None:
        check_facts(source, config.custom, str(config.store), joints_too=config.estimated_joints is None)
    if config.estimated_joints is None:
        return source
    path, skeleton = Path(config.estimated_joints).expanduser(), config.facts().skeleton
    own = config.dataset == "custom"
    return EstimatedJoints(source, path, skeleton, clamp=config.clamp_confidence, in_digests=own)


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
        raise DataError(f"{config.store} is not a prepared store: the authors' files are read from a local folder only")
    return open_raw(config, Path(config.store), say)


def open_raw(config: DataConfig, root: Path, say: Callable[[str], None] = lambda _: None) -> ClipSource:
    """Index the authors' files; a generated data set that is not there yet is written first.

    Raises:
        DataError: the folder is missing, empty or not such a data set.
    """
    dataset = DATASETS[config.dataset]
    if dataset.generator is not None:
        if not root.exists():
            say(f"data     generating people into {root}")
        dataset.generator.write(root, getattr(config, dataset.generator.section), os.cpu_count() or 1)
    if config.estimated_joints is not None and dataset.open_without_joints is not None:
        return dataset.open_without_joints(root, config.protocol, clip_lengths(Path(config.estimated_joints).expanduser()))
    return dataset.open(root, config.protocol)


def generated_folder(config: DataConfig, runs: Path) -> Path:
    """The folder of a generated data set, whether it was written yet or not."""
    generator = _generator(config)
    text = json.dumps(asdict(getattr(config, generator.section)), sort_keys=True)
    return runs / "data" / f"{generator.folder}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def generated_clips_per_class(config: DataConfig) -> tuple[int, int]:
    """Training and test clips of each class of a generated data set."""
    generator = _generator(config)
    return generator.clips_per_class(getattr(config, generator.section))


def is_generated(config: DataConfig) -> bool:
    """Whether the data set is written by this package where it is missing."""
    return DATASETS[config.dataset].generator is not None


def _generator(config: DataConfig) -> Generator:
    generator = DATASETS[config.dataset].generator
    if generator is None:
        raise ValueError(f"{config.dataset} is not generated")
    return generator
