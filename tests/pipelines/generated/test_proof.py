"""Linear probes: what tells the two classes of each pair of generated people apart, and what does not.

`.venv/bin/python -m pytest tests/pipelines/generated/test_proof.py -rP -k table` prints the table of docs/data.md.

A probe is a ridge classifier on the labelled joints or on shrunken pixels. It is fitted on clips of the training
subjects and scored on clips of other people, enough of them (600 for a pair's joints, 400 for its pixels) that a
coin stays below 0.60 by four standard deviations.
"""

from functools import cache

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from starlab.pipelines.generated.penn_action import (
    JOINT_CLASSES,
    ORDER_CLASSES,
    PIXEL_CLASSES,
    SYNTHETIC_CLASSES,
    SyntheticClip,
    SyntheticConfig,
    draw_clip,
)
from starlab.pipelines.sampling import pick_frames

Floats = NDArray[np.float64]
CONFIG = SyntheticConfig()
CLIPS = {"train": 400, "test": 300}
"""Per class; and of these rendered:"""
RENDERED_CLIPS = {"train": 200, "test": 200}
AT_MOST, AT_LEAST = 0.60, 0.95

ORDER_PAIRS = tuple(zip(ORDER_CLASSES[::2], ORDER_CLASSES[1::2], strict=True))
MODALITY_PAIRS = (PIXEL_CLASSES, JOINT_CLASSES)
CHANCE = [
    *(
        (pair, probe)
        for pair in ORDER_PAIRS
        for probe in (
            "joints, any order",
            "joints, first frame",
            "joints, last frame",
            "pixels, first frame",
            "pixels, last frame",
        )
    ),
    (PIXEL_CLASSES, "joints, any order"),
    (PIXEL_CLASSES, "joints, in order"),
    (JOINT_CLASSES, "pixels, any order"),
    (JOINT_CLASSES, "pixels, in order"),
]
CLEAR = [
    *((pair, "joints, in order") for pair in ORDER_PAIRS),
    (PIXEL_CLASSES, "pixels, any order"),
    (JOINT_CLASSES, "joints, any order"),
    (JOINT_CLASSES, "pixels at the joints"),
]


@pytest.mark.parametrize(("pair", "probe"), CHANCE)
def test_what_a_pair_has_in_common_tells_its_classes_apart_no_better_than_a_coin(pair, probe):
    assert accuracy(pair, probe) <= AT_MOST


@pytest.mark.parametrize(("pair", "probe"), CLEAR)
def test_what_a_pair_is_about_tells_its_classes_apart(pair, probe):
    assert accuracy(pair, probe) >= AT_LEAST


@pytest.mark.parametrize("pair", ORDER_PAIRS)
def test_a_probe_of_one_frame_notices_clips_that_start_within_an_action(pair):
    assert accuracy(pair, "joints, a fifth into the clip") >= AT_LEAST


def test_table():
    """Not a gate: prints every accuracy, for docs/data.md."""
    pairs = {"order": ORDER_PAIRS, "pixels": (PIXEL_CLASSES,), "joints": (JOINT_CLASSES,)}
    print("\n| pair | differs in | probe | accuracy | gate |\n| --- | --- | --- | --- | --- |")
    for respect, members in pairs.items():
        for pair in members:
            for gates, gate in ((CHANCE, f"≤ {AT_MOST:.2f}"), (CLEAR, f"≥ {AT_LEAST:.2f}")):
                for probe in [probe for gated, probe in gates if gated == pair]:
                    figure = accuracy(pair, probe)
                    print(f"| {pair[0]} / {pair[1]} | {respect} | {probe} | {figure:.3f} | {gate} |")
                    assert 0 <= figure <= 1


@cache
def accuracy(pair: tuple[str, str], probe: str) -> float:
    """Of a ridge classifier, on the test subjects."""
    train, test = (np.concatenate([features(action, split)[probe] for action in pair]) for split in ("train", "test"))
    train_signs, test_signs = (np.repeat([-1.0, 1.0], len(part) // 2) for part in (train, test))
    mean, scale = train.mean(axis=0), train.std(axis=0) + 1e-9
    train, test = (train - mean) / scale, (test - mean) / scale
    # The dual form: most probes have more features than clips.
    weights = train.T @ np.linalg.solve(train @ train.T + train.shape[1] * np.eye(len(train)), train_signs)
    return float(((test @ weights > 0) == (test_signs > 0)).mean())


@cache
def features(action: str, split: str) -> dict[str, Floats]:
    """(clips, features) of every probe, from fresh and independent draws: no two clips share random numbers."""
    first = (1 + SYNTHETIC_CLASSES.index(action)) * 100_000 + (50_000 if split == "test" else 0)
    clips = [draw_clip(CONFIG, action, split, number, draw=first + number) for number in range(CLIPS[split])]
    rows = [joint_features(clip) for clip in clips]
    rendered = [pixel_features(clip) for clip in clips[: RENDERED_CLIPS[split]]]
    return {probe: np.array([row[probe] for row in part]) for part in (rows, rendered) for probe in part[0]}


def joint_features(clip: SyntheticClip) -> dict[str, Floats]:
    """x, y and visibility as the reader returns them: 0 where not visible."""
    seen = clip.visible[..., None].astype(np.float64)
    joints = np.concatenate([(clip.labelled_px - 0.5) / clip.size_px * seen, seen], axis=-1).reshape(len(seen), -1)
    return {
        "joints, any order": statistics(joints),
        "joints, in order": joints[pick_frames(len(joints), 16, None)].ravel(),
        "joints, first frame": joints[0],
        "joints, last frame": joints[-1],
        "joints, a fifth into the clip": joints[len(joints) // 5],
    }


def pixel_features(clip: SyntheticClip) -> dict[str, Floats]:
    """RGB at 12 × 12; of whole clips, eight frames."""
    last = len(clip.visible) - 1
    if clip.action in ORDER_CLASSES:  # the rest is equal by construction: test_penn_action.py
        first_frame, last_frame = clip.render([0, last])
        return {"pixels, first frame": shrunk(first_frame).ravel(), "pixels, last frame": shrunk(last_frame).ravel()}
    numbers = pick_frames(last + 1, 8, None)
    frames = np.stack([shrunk(frame) for frame in clip.render(numbers.tolist())])
    cells = (clip.joints_px[numbers] / clip.size_px * 12).astype(int).clip(0, 11)
    at_joints = frames[np.arange(8)[:, None], cells[..., 1], cells[..., 0]]
    return {
        "pixels, any order": statistics(frames.reshape(8, -1)),
        "pixels, in order": frames.ravel(),
        "pixels at the joints": statistics(at_joints.reshape(8, -1)),
    }


def shrunk(frame: NDArray[np.uint8]) -> Floats:
    return cv2.resize(frame, (12, 12), interpolation=cv2.INTER_AREA).astype(np.float64)


def statistics(values: Floats) -> Floats:
    """Of each column over time; the last is the mean absolute step, which a reversal leaves as it is."""
    last = len(values) - 1
    quantiles = np.sort(values, axis=0)[[0, last // 10, last // 4, last // 2, last - last // 4, last - last // 10, last]]
    pieces = [values.mean(axis=0), values.std(axis=0), *quantiles]
    return np.concatenate([*pieces, np.abs(np.diff(values, axis=0)).mean(axis=0)])
