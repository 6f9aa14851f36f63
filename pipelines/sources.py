"""Which data sets there are, what is known of each without reading it, and how one is opened."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from starlab.pipelines.augment import AugmentConfig
from starlab.pipelines.clip import ClipSource, DataError
from starlab.pipelines.penn_action import PENN_ACTION_CLASSES, PennActionSource
from starlab.pipelines.skeletons import PENN_ACTION, Skeleton
from starlab.pipelines.synthetic import SYNTHETIC_CLASSES, SyntheticConfig, write_penn_action


@dataclass(frozen=True, slots=True)
class DatasetFacts:
    """What a model must know of a data set."""

    classes: tuple[str, ...]
    skeleton: Skeleton
    max_bodies: int


DATASETS = {
    "penn_action": DatasetFacts(PENN_ACTION_CLASSES, PENN_ACTION, max_bodies=1),
    "synthetic_penn_action": DatasetFacts(SYNTHETIC_CLASSES, PENN_ACTION, max_bodies=1),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """The `data` section of a spec."""

    dataset: Literal["penn_action", "synthetic_penn_action"]
    """Which data set."""
    store: str | None = None
    """Its folder, as its authors ship it. The synthetic one may leave it out: it is generated under the runs folder."""
    frames: int = 16
    """Frames drawn from a clip; even, because zigzag and binary attention halve them (NOTES, "what odd/even splits")."""
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
    """Mirror half of the clips, swapping left and right joints; wrong where a class names a side."""
    color_jitter: float = 0.0
    """Largest relative change of brightness and contrast."""
    validation_fraction: float = 0.1
    """Share of the official training part that serves every selection; 0 leaves none."""
    split_seed: int = 0
    """Draws the validation part; not the training seed, so that seeds are compared on the same clips."""
    select: Literal["validation", "test"] = "validation"
    """What picks the best checkpoint. "test" is how some papers did it: labelled optimistic everywhere."""
    decode: Literal["cluster"] = "cluster"
    """Where clips are decoded: in Ray Data tasks, on any node with free CPUs."""
    max_unreadable_fraction: float = 0.05
    """The run stops when more of the clips drawn so far than this could not be read."""
    synthetic: SyntheticConfig = SyntheticConfig()
    """What is generated; only for the synthetic data set."""

    def __post_init__(self) -> None:
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
        if self.store is None and self.dataset != "synthetic_penn_action":
            raise ValueError(
                f"data.store is missing: name the folder that holds {self.dataset}, e.g. data.store=data/{self.dataset}"
            )

    def augmentation(self) -> AugmentConfig:
        """The settings of a training clip's augmentation."""
        return AugmentConfig(
            mode=self.augment,
            crop_area=self.crop_area,
            crop_aspect=self.crop_aspect,
            flip=self.flip,
            color_jitter=self.color_jitter,
        )


def open_source(config: DataConfig, runs: Path, say: Callable[[str], None] = lambda _: None) -> ClipSource:
    """Index the data set of `config`; a synthetic one that is not there yet is generated under `runs`/data first.

    `say` is given a line for the user before something that takes seconds.

    Raises:
        DataError: the folder is missing, empty or not such a data set.
    """
    facts = DATASETS[config.dataset]
    if config.dataset == "synthetic_penn_action":
        root = Path(config.store) if config.store else generated_folder(config, runs)
        if not root.exists():
            say(f"data     generating people into {root}")
        write_penn_action(root, config.synthetic, workers=os.cpu_count() or 1)
        return PennActionSource(root, classes=facts.classes)
    if config.store is None:
        raise DataError(f"data.store is missing: name the folder that holds {config.dataset}")
    return PennActionSource(Path(config.store), classes=facts.classes)


def generated_folder(config: DataConfig, runs: Path) -> Path:
    """Where the synthetic data set of `config` is, or would be, generated."""
    return runs / "data" / f"synthetic-{_digest(config.synthetic)}"


def _digest(config: SyntheticConfig) -> str:
    text = json.dumps(asdict(config), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]
