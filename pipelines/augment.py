"""Decoded frames and their joints, cropped, flipped and resized together to what the model takes.

Letters: T frames, H W pixels, M bodies, N joints.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from starlab.pipelines.clip import DecodedClip
from starlab.pipelines.sampling import MIDDLE, View

CROP_ATTEMPTS = 10
LEAST_BOX = 0.2
"""Smallest side of a person's box over the frame's shorter side, so that a single joint is not enlarged to a picture."""
LINEAR_SHRINK, LINEAR_SHRINK_OF_A_SIDE = 2.6, 2.25
"""Linear interpolation reads 2 × 2 pixels, so a picture may shrink by about 2 a side before it leaves any out. Averaging over
areas costs seven times as much (0.75 against 0.10 ms for 456×256 → 224², 54 dB apart): it is worth it beyond these factors."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AugmentConfig:
    """What may change about a training clip. One draw holds for all frames of the clip."""

    mode: Literal["none", "standard"] = "none"
    """"none": the whole frame, resized (the paper's recipe; the fields below then have no effect). "standard": crop,
    flip and jitter as set below."""
    crop_area: tuple[float, float] = (0.56, 1.0)
    """Area of the crop as a fraction of the frame's, drawn uniformly between these."""
    crop_aspect: tuple[float, float] = (3 / 4, 4 / 3)
    """Width over height of the crop in units of the frame's own, drawn log-uniformly between these. Relative, because
    evaluation squeezes the whole frame to a square: 1 is the aspect that it sees."""
    flip: bool = False
    """Mirror half of the clips. Leave it off where left or right tells classes apart."""
    color_jitter: float = 0.0
    """Strength s in [0, 1): brightness and contrast are each multiplied by a draw from [1 − s, 1 + s]."""
    rotation_degrees: float = 0.0
    """Largest angle by which the picture and its joints are turned together, drawn uniformly on both sides of 0. Pixels beyond
    the picture's edge repeat it."""
    test_crop: float = 1.0
    """Share of the frame's width and height that a view shows when nothing is drawn; 1 is the whole frame."""
    person_crop: float | None = None
    """Crop to the people first, in training and in evaluation: the box of all joints seen in the clip, wider and higher by this
    share of it on each side, and square where the frame allows. Everything else then happens within this box. None, or a clip
    without joints, keeps the whole frame. (As PoseC3D does, arXiv:2104.13586, 2022.)"""

    def __post_init__(self) -> None:
        if self.mode not in ("none", "standard"):
            raise ValueError(f"mode must be none or standard, got {self.mode!r}")
        low, high = self.crop_area
        if not 0 < low <= high <= 1:
            raise ValueError(f"crop_area must be two ascending fractions in (0, 1], got {self.crop_area}")
        low, high = self.crop_aspect
        if not (0 < low <= high and low <= 1 <= high):
            raise ValueError(f"crop_aspect must be two ascending ratios around 1, got {self.crop_aspect}")
        if not 0 <= self.color_jitter < 1:
            raise ValueError(f"color_jitter must be in [0, 1), got {self.color_jitter}")
        if not 0 <= self.rotation_degrees <= 180:
            raise ValueError(f"rotation_degrees must be in [0, 180], got {self.rotation_degrees}")
        if self.person_crop is not None and not 0 <= self.person_crop <= 1:
            raise ValueError(f"person_crop must be in [0, 1], or null, got {self.person_crop}")
        if not 0 < self.test_crop <= 1:
            raise ValueError(f"test_crop must be in (0, 1], got {self.test_crop}")


def fit(
    clip: DecodedClip,
    size_px: int,
    config: AugmentConfig,
    mirror: tuple[int, ...],
    rng: np.random.Generator | None,
    view: View = MIDDLE,
    out: NDArray[np.uint8] | None = None,
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Resize a clip to a square of `size_px`; its joints move exactly with the pixels.

    Args:
        clip: T frames of one size and their joints.
        size_px: Side of the frames returned.
        config: What may vary.
        mirror: The skeleton's left/right partners (`Skeleton.mirror`), for the flip.
        rng: The generator to draw from; None (evaluation) shows a window of `config.test_crop` and ignores the other settings.
        view: Which window, where there are several.
        out: The array to write the frames to, of the shape returned; None makes a new one.

    Returns:
        Frames, uint8 (T, size_px, size_px, 3), RGB; and joints, float32 (T, M, N, 3), x and y as fractions of these
        frames. A joint that fell outside has confidence 0.
    """
    height, width = clip.frames[0].shape[:2]
    augment = rng if config.mode == "standard" else None
    box = (0, 0, width, height) if config.person_crop is None else person_box(clip.joints, width, height, config.person_crop)
    left, top, crop_width, crop_height = box
    if augment is not None:
        left, top, crop_width, crop_height = _inside(box, _draw_crop(box[2], box[3], config, augment))
    elif rng is None:
        left, top, crop_width, crop_height = _inside(box, _test_window(box[2], box[3], config.test_crop, view))
    flip = augment is not None and config.flip and bool(augment.random() < 0.5)

    interpolation = _interpolation(crop_width / size_px, crop_height / size_px)
    frames = np.empty((len(clip.frames), size_px, size_px, 3), np.uint8) if out is None else out
    for target, frame in zip(frames, clip.frames, strict=True):
        crop = frame[top : top + crop_height, left : left + crop_width]
        cv2.resize(crop, (size_px, size_px), dst=target, interpolation=interpolation)
        if flip:
            target[:] = target[:, ::-1].copy()
    if augment is not None and config.color_jitter > 0:
        _jitter_colors(frames, config.color_jitter, augment)

    joints = clip.joints.astype(np.float32, copy=True)
    joints[..., 0] = (joints[..., 0] * width - left) / crop_width
    joints[..., 1] = (joints[..., 1] * height - top) / crop_height
    if flip:
        # Fractions count from the frame's edge, so 1 − x is the mirror of pixel centres (W − 1 − column).
        joints = joints[:, :, list(mirror)]
        joints[..., 0] = 1 - joints[..., 0]
    if augment is not None and config.rotation_degrees > 0:
        _rotate(frames, joints, float(augment.uniform(-config.rotation_degrees, config.rotation_degrees)))
    inside = ((joints[..., :2] >= 0) & (joints[..., :2] < 1)).all(axis=-1)
    joints[..., 2] *= inside
    return frames, joints


def person_box(joints: NDArray[np.float32], width: int, height: int, margin: float) -> tuple[int, int, int, int]:
    """Compute the box of all people in a clip.

    Args:
        joints: (T, M, N, 3), as in `DecodedClip`.
        width: Of the frames, in pixels.
        height: Of the frames, in pixels.
        margin: Share of the box's width and height that is added on each side.

    Returns:
        Left, top, width and height in whole pixels, inside the frame. The shorter side grows until the box is square or reaches
        across the frame. Each side is at least `LEAST_BOX` of the frame's shorter side. The whole frame if no joint is seen.
    """
    seen = (joints[..., 2] > 0) & ((joints[..., :2] >= 0) & (joints[..., :2] < 1)).all(axis=-1)
    if not seen.any():
        return 0, 0, width, height
    places = joints[seen][:, :2] * (width, height)
    low, high = places.min(axis=0), places.max(axis=0)
    side = max(LEAST_BOX * min(width, height), (1 + 2 * margin) * float((high - low).max()))
    across, down = min(width, math.ceil(side)), min(height, math.ceil(side))
    middle_x, middle_y = (low + high) / 2
    left = min(max(0, round(middle_x - across / 2)), width - across)
    top = min(max(0, round(middle_y - down / 2)), height - down)
    return left, top, across, down


def _inside(box: tuple[int, int, int, int], window: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    """A window of a box, in pixels of the frame."""
    return box[0] + window[0], box[1] + window[1], window[2], window[3]


def _rotate(frames: NDArray[np.uint8], joints: NDArray[np.float32], degrees: float) -> None:
    """Turn square frames and their joints about the middle, in place."""
    middle = (frames.shape[1] - 1) / 2  # between pixel centres, so at the fraction 0.5
    turn = cv2.getRotationMatrix2D((middle, middle), degrees, 1)
    for frame in frames:
        frame[:] = cv2.warpAffine(frame, turn, frame.shape[:2], flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    joints[..., :2] = (joints[..., :2] - 0.5) @ turn[:, :2].T.astype(np.float32) + 0.5


def _draw_crop(width: int, height: int, config: AugmentConfig, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Left, top, width, height in whole pixels; the whole frame where ten draws of area and aspect do not fit."""
    for _ in range(CROP_ATTEMPTS):
        area = rng.uniform(*config.crop_area)
        aspect = math.exp(rng.uniform(math.log(config.crop_aspect[0]), math.log(config.crop_aspect[1])))
        across, down = math.sqrt(area * aspect), math.sqrt(area / aspect)
        if across <= 1 and down <= 1:
            crop_width, crop_height = max(1, round(across * width)), max(1, round(down * height))
            left = int(rng.integers(width - crop_width + 1))
            top = int(rng.integers(height - crop_height + 1))
            return left, top, crop_width, crop_height
    return 0, 0, width, height


def _interpolation(across: float, down: float) -> int:
    """OpenCV's way to shrink by these factors (below 1: enlarge) at the least cost that leaves no pixel out."""
    if min(across, down) < 1:  # averaging would degrade to nearest neighbours
        return int(cv2.INTER_LINEAR)
    slight = across * down <= LINEAR_SHRINK and max(across, down) <= LINEAR_SHRINK_OF_A_SIDE
    return int(cv2.INTER_LINEAR if slight else cv2.INTER_AREA)


def _test_window(width: int, height: int, share: float, view: View) -> tuple[int, int, int, int]:
    """Left, top, width, height in whole pixels of a window of the frame's own shape; the middle one, or one of several in a row
    along the longer side, from its one end to its other."""
    window_width, window_height = max(1, round(share * width)), max(1, round(share * height))
    left, top = (width - window_width) // 2, (height - window_height) // 2
    if view.places > 1 and width >= height:
        left = (width - window_width) * view.place // (view.places - 1)
    elif view.places > 1:
        top = (height - window_height) * view.place // (view.places - 1)
    return left, top, window_width, window_height


def _jitter_colors(frames: NDArray[np.uint8], strength: float, rng: np.random.Generator) -> None:
    """One brightness and one contrast factor for the whole clip, in place; contrast turns around the clip's mean level."""
    brightness, contrast = rng.uniform(1 - strength, 1 + strength, size=2)
    pixels = frames.reshape(len(frames), -1, 3)
    mean = sum(cv2.sumElems(pixels)) / pixels.size  # the sums are whole numbers, so this is the mean to the last bit
    levels = (np.arange(256) - mean) * contrast + mean
    table = np.clip(np.rint(levels * brightness), 0, 255).astype(np.uint8)
    cv2.LUT(pixels, table, dst=pixels)
