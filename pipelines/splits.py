"""The three parts of a data set: train, validation and test."""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from starlab.pipelines.clip import ClipRow, DataError


@dataclass(frozen=True, kw_only=True, slots=True)
class Parts:
    """Positions in the sequence of rows that was split, ascending; together they hold every row once."""

    train: tuple[int, ...]
    validation: tuple[int, ...]
    test: tuple[int, ...]


def split_rows(rows: Sequence[ClipRow], validation_fraction: float, seed: int) -> Parts:
    """Draw a validation part from the official training clips; the official test clips stay as they are.

    The draw moves whole groups (all clips of a subject, or one clip where no subject is named), so no subject is on both
    sides. Groups are visited in the order of a hash of (seed, name), which does not depend on the order of the rows,
    the platform or any library's random generator; a group moves when that brings the classes, taken together, closer
    to `validation_fraction` and leaves every class at least one training clip. A class is given one validation clip
    where it can spare one, however small the fraction.

    Where some clips are "validation" officially, these are the part and nothing is drawn; with `validation_fraction` 0 they are
    trained on.

    Raises:
        ValueError: `validation_fraction` is outside [0, 1).
        DataError: no group is small enough to be moved.
    """
    if not 0 <= validation_fraction < 1:
        raise ValueError(f"validation_fraction must be in [0, 1), got {validation_fraction}")
    rows = tuple(rows)  # a store makes a row whenever one is used
    test = tuple(index for index, row in enumerate(rows) if row.split == "test")
    train = [index for index, row in enumerate(rows) if row.split != "test"]
    if validation_fraction == 0 or not train:
        return Parts(train=tuple(train), validation=(), test=test)
    official = tuple(index for index in train if rows[index].split == "validation")
    if official:
        return Parts(train=tuple(index for index in train if rows[index].split == "train"), validation=official, test=test)

    groups: defaultdict[str, list[int]] = defaultdict(list)
    for index in train:
        row = rows[index]
        groups[f"clip {row.clip_id}" if row.subject is None else f"subject {row.subject}"].append(index)

    left = Counter(rows[index].label for index in train)
    missing = {label: max(1.0, validation_fraction * count) for label, count in left.items()}
    validation: list[int] = []
    for name in sorted(groups, key=lambda name: (_hash(seed, name), name)):
        moved = Counter(rows[index].label for index in groups[name])
        closer = sum(abs(missing[label] - count) - abs(missing[label]) for label, count in moved.items()) < 0
        if closer and all(left[label] > count for label, count in moved.items()):
            validation += groups[name]
            for label, count in moved.items():
                missing[label] -= count
                left[label] -= count
    if not validation:
        smallest = min(len(indices) for indices in groups.values())
        raise DataError(
            f"no validation part can be drawn: {len(train)} training clips in {len(groups)} groups (subjects, or clips "
            f"without a subject), the smallest of {smallest} clips, do not give validation_fraction "
            f"{validation_fraction} and leave every class a training clip. Raise validation_fraction, or set it to 0"
        )
    held_out = set(validation)
    return Parts(
        train=tuple(index for index in train if index not in held_out),
        validation=tuple(sorted(validation)),
        test=test,
    )


def thin_train(parts: Parts, rows: Sequence[ClipRow], fraction: float, seed: int) -> Parts:
    """Keep a share of the training clips, for a curve of accuracy over the amount of data; validation and test stay.

    The same share of every class is kept, rounded, at least one clip: the first in the order of a hash of (seed, name). So a
    smaller fraction keeps a subset of the clips of a larger one.

    Raises:
        ValueError: `fraction` is outside (0, 1].
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"train_fraction must be in (0, 1], got {fraction}")
    if fraction == 1:
        return parts
    rows = tuple(rows)
    sizes = Counter(rows[index].label for index in parts.train)
    train = _first_of_each_class(
        parts.train, rows, {label: max(1, math.floor(fraction * size + 0.5)) for label, size in sizes.items()}, seed
    )
    return replace(parts, train=train)


def limit_parts(parts: Parts, rows: Sequence[ClipRow], limit: int | None, seed: int) -> Parts:
    """Keep at most `limit` clips of each class in each part, the first in the order of a hash of (seed, name)."""
    if limit is None:
        return parts

    rows = tuple(rows)
    most = dict.fromkeys({row.label for row in rows}, limit)
    train, validation, test = (
        _first_of_each_class(part, rows, most, seed) for part in (parts.train, parts.validation, parts.test)
    )
    return Parts(train=train, validation=validation, test=test)


def _first_of_each_class(
    indices: tuple[int, ...], rows: Sequence[ClipRow], most: Mapping[int, int], seed: int
) -> tuple[int, ...]:
    kept: defaultdict[int, list[int]] = defaultdict(list)
    for index in sorted(indices, key=lambda index: _hash(seed, rows[index].clip_id)):
        label = rows[index].label
        if len(kept[label]) < most[label]:
            kept[label].append(index)
    return tuple(sorted(index for indices in kept.values() for index in indices))


def _hash(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"{seed}/{name}".encode()).digest()
