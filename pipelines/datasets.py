"""The table of data sets. A new data set is its reader and one entry here."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from starlab.pipelines.clip import ClipRow, ClipSource, DataError
from starlab.pipelines.custom.source import CustomSource, open_custom
from starlab.pipelines.generated.bystanders import BYSTANDER_CLASSES, SyntheticBystandersConfig, write_bystanders
from starlab.pipelines.generated.ntu import SYNTHETIC_NTU_CLASSES, SyntheticNtuConfig, write_ntu
from starlab.pipelines.generated.penn_action import SYNTHETIC_CLASSES, SyntheticConfig, write_penn_action
from starlab.pipelines.ntu import NtuSource
from starlab.pipelines.ntu_names import NTU60_CLASSES, NTU60_SETUPS, NTU120_CLASSES, NTU120_SETUPS, Protocol
from starlab.pipelines.penn_action import PENN_ACTION_CLASSES, PennActionSource
from starlab.pipelines.skeletons import COCO, NO_JOINTS, NTU, PENN_ACTION, Skeleton


@dataclass(frozen=True, kw_only=True, slots=True)
class Generator:
    """How a generated data set comes to be."""

    section: str
    """The key of a spec's `data` section that holds its settings."""
    folder: str
    """What its folder's name begins with; a digest of the settings follows."""
    write: Callable[[Path, Any, int], None]
    """Writes it: folder, settings, number of processes. Keeps a folder that was written with equal settings."""
    clips_per_class: Callable[[Any], tuple[int, int]]
    """Training and test clips of each class, from the settings."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Dataset:
    """What is known of a data set before a file of it is read, and how its files are opened."""

    classes: tuple[str, ...]
    """Empty for a data set of one's own, whose folder says them (`DataConfig.facts`)."""
    skeleton: Skeleton
    max_bodies: int
    open: Callable[[Path, Protocol | None], ClipSource]
    """Indexes the authors' files: folder, official split (None where there is only one)."""
    sided_classes: tuple[str, ...] = ()
    """Classes that differ in left and right only: a mirrored clip would carry the wrong label."""
    protocols: tuple[Protocol, ...] = ()
    """The official splits to choose from; empty where there is only one."""
    official_counts: Mapping[Protocol | None, tuple[int, int]] = field(default_factory=dict)
    """Training and test clips by official split, as published; empty where nobody published any."""
    open_without_joints: Callable[[Path, Protocol | None, Mapping[str, int]], ClipSource] | None = None
    """As `open`, where joints come from elsewhere: also the number of frames of each clip. None where `open` serves."""
    generator: Generator | None = None
    """None for a data set that somebody filmed."""


def _open_penn_action(classes: tuple[str, ...], root: Path, _: Protocol | None) -> ClipSource:
    return PennActionSource(root, classes=classes)


def _open_ntu(
    classes: tuple[str, ...],
    setups: range,
    root: Path,
    protocol: Protocol | None,
    lengths: Mapping[str, int] | None = None,
) -> ClipSource:
    return NtuSource(root, protocol or "xsub", classes=classes, setups=setups, lengths=lengths)


def _open_custom(root: Path, _: Protocol | None) -> ClipSource:
    return open_custom(root)


def _open_custom_frames(root: Path, _: Protocol | None, lengths: Mapping[str, int]) -> ClipSource:
    return CustomSource(root, lengths=lengths)


def _penn_action_clips(settings: SyntheticConfig | SyntheticBystandersConfig) -> tuple[int, int]:
    return settings.train_clips_per_class, settings.test_clips_per_class


def _ntu_clips(settings: SyntheticNtuConfig) -> tuple[int, int]:
    return settings.train_performers * settings.cameras, settings.test_performers * settings.cameras


DATASETS = {
    "penn_action": Dataset(
        classes=PENN_ACTION_CLASSES,
        skeleton=PENN_ACTION,
        max_bodies=1,
        open=partial(_open_penn_action, PENN_ACTION_CLASSES),
        official_counts={None: (1258, 1068)},
    ),
    "ntu60": Dataset(
        classes=NTU60_CLASSES,
        skeleton=NTU,
        max_bodies=2,
        open=partial(_open_ntu, NTU60_CLASSES, NTU60_SETUPS),
        open_without_joints=partial(_open_ntu, NTU60_CLASSES, NTU60_SETUPS),
        protocols=("xsub", "xview"),
        official_counts={"xsub": (40_091, 16_487), "xview": (37_646, 18_932)},
    ),
    "ntu120": Dataset(
        classes=NTU120_CLASSES,
        skeleton=NTU,
        max_bodies=2,
        open=partial(_open_ntu, NTU120_CLASSES, NTU120_SETUPS),
        open_without_joints=partial(_open_ntu, NTU120_CLASSES, NTU120_SETUPS),
        protocols=("xsub", "xset"),
        official_counts={"xsub": (63_026, 50_919), "xset": (54_468, 59_477)},
    ),
    "custom": Dataset(
        classes=(),
        skeleton=NO_JOINTS,
        max_bodies=1,
        open=_open_custom,
        open_without_joints=_open_custom_frames,
    ),
    "synthetic_penn_action": Dataset(
        classes=SYNTHETIC_CLASSES,
        skeleton=PENN_ACTION,
        max_bodies=1,
        open=partial(_open_penn_action, SYNTHETIC_CLASSES),
        sided_classes=("raise_left_then_right", "raise_right_then_left"),
        generator=Generator(
            section="synthetic", folder="synthetic", write=write_penn_action, clips_per_class=_penn_action_clips
        ),
    ),
    "synthetic_bystanders": Dataset(
        classes=BYSTANDER_CLASSES,
        skeleton=PENN_ACTION,
        max_bodies=1,
        open=partial(_open_penn_action, BYSTANDER_CLASSES),
        generator=Generator(
            section="synthetic_bystanders",
            folder="synthetic-bystanders",
            write=write_bystanders,
            clips_per_class=_penn_action_clips,
        ),
    ),
    "synthetic_ntu": Dataset(
        classes=SYNTHETIC_NTU_CLASSES,
        skeleton=NTU,
        max_bodies=2,
        open=partial(_open_ntu, SYNTHETIC_NTU_CLASSES, NTU120_SETUPS),
        open_without_joints=partial(_open_ntu, SYNTHETIC_NTU_CLASSES, NTU120_SETUPS),
        sided_classes=("A951_left_waves_then_right", "A952_right_waves_then_left"),
        protocols=("xsub", "xview", "xset"),
        generator=Generator(section="synthetic_ntu", folder="synthetic-ntu", write=write_ntu, clips_per_class=_ntu_clips),
    ),
}
"""By the name that a spec gives as `data.dataset`; `starlab prepare` writes it with hyphens."""


def find_dataset(name: str, separator: str = "_") -> Dataset:
    """The entry of that name.

    Args:
        name: As in the table.
        separator: Between the words of the names that the error message gives.

    Raises:
        DataError: no such entry; the message gives the nearest name.
    """
    if name in DATASETS:
        return DATASETS[name]
    near = difflib.get_close_matches(name, DATASETS, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0].replace('_', separator)}'? " if near else ""
    raise DataError(f"unknown data set '{name}'; {hint}Known: {', '.join(known.replace('_', separator) for known in DATASETS)}")


def open_authors_files(dataset: str, root: Path) -> ClipSource:
    """Index the authors' files in an existing folder, for `starlab prepare`.

    Where there are several official splits, the clips carry the first one; `data.protocol` decides again when they are read.

    Raises:
        DataError: no such data set, or no such folder.
    """
    found = find_dataset(dataset, separator="-")
    if not root.is_dir():
        raise DataError(f"no folder at {root}: name the one that holds the files of {dataset}")
    return found.open(root, found.protocols[0] if found.protocols else None)


def not_official(name: str, protocol: Protocol | None, clips: Iterable[ClipRow]) -> str | None:
    """As `differs_from_official`, of a data set's usable clips."""
    if find_dataset(name).official_counts.get(protocol) is None:
        return None
    splits = Counter(clip.split for clip in clips)
    return differs_from_official(name, protocol, splits["train"], splits["test"])


def differs_from_official(name: str, protocol: Protocol | None, train: int, test: int) -> str | None:
    """A line that compares the clips found with the official counts; None where they agree or nobody published any.

    Args:
        name: The data set.
        protocol: Its official split.
        train: Usable clips of the official training part, validation included.
        test: Usable clips of the test part.
    """
    official = find_dataset(name).official_counts.get(protocol)
    if official is None or official == (train, test):
        return None
    split = f" by {protocol}" if protocol else ""
    return (
        f"{train:,} train and {test:,} test clips where {name}{split} officially has {official[0]:,} and {official[1]:,}: is "
        "the download complete? Results on other clips cannot be compared with published ones"
    )


def find_skeleton(name: str) -> Skeleton:
    """The skeleton of that name among the data sets'.

    Raises:
        DataError: no data set has it.
    """
    skeletons = {dataset.skeleton.name: dataset.skeleton for dataset in DATASETS.values()} | {COCO.name: COCO}
    if name not in skeletons:
        raise DataError(f"unknown skeleton '{name}'; the data sets have: {', '.join(skeletons)}")
    return skeletons[name]
