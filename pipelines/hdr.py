"""High dynamic range to an ordinary picture: what a screen of 100 nits shows of a PQ or HLG frame.

Sources: SMPTE ST 2084 (PQ), ITU-R BT.2100 (HLG and its system gamma at 1000 nits), BT.2020 and BT.709 (primaries), BT.2408
(203 nits are the white of ordinary pictures).
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

PQ, HLG = 16, 18
"""Numbers of the two transfer functions, as a stream names them (ITU-T H.273, table 3)."""
WHITE_NITS = 203.0
PEAK_NITS = 1000.0
_BT2020_TO_BT709 = np.array(
    [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]],
    np.float32,
)
"""BT.2087, annex 2."""


def tone_map(frame: NDArray[np.uint16], transfer: int) -> NDArray[np.uint8]:
    """Map an HDR frame to an ordinary one.

    Light up to the white of ordinary pictures keeps its place; what is brighter is compressed, by its brightest channel so
    that no hue changes.

    Args:
        frame: (H, W, 3), RGB with BT.2020 primaries, as stored (not linear), 16 bits.
        transfer: `PQ` or `HLG`.

    Returns:
        uint8 (H, W, 3), RGB with BT.709 primaries.
    """
    light = _light(transfer)[frame]
    if transfer == HLG:  # the system's gamma, 1.2 at 1000 nits, acts on luminance
        luminance = light @ np.array([0.2627, 0.6780, 0.0593], np.float32)
        light *= np.power(np.maximum(luminance, 1e-6), 0.2)[..., None]
        light *= PEAK_NITS / WHITE_NITS
    light = np.maximum(light @ _BT2020_TO_BT709.T, 0)
    brightest = light.max(axis=-1, keepdims=True)
    light *= _compressed(brightest) / np.maximum(brightest, 1e-6)
    picture: NDArray[np.uint8] = _encoded()[np.rint(np.clip(light, 0, 1) * 4095).astype(np.uint16)]
    return picture


def _compressed(light: NDArray[np.float32]) -> NDArray[np.float32]:
    """Light in units of white: a straight line up to `knee`, then a curve that reaches 1 at the peak."""
    knee, peak = np.float32(0.6), np.float32(PEAK_NITS / WHITE_NITS)
    above = np.clip((light - knee) / (peak - knee), 0, 1)
    slope = (peak - knee) / (1 - knee)
    # Reaches 1 at above = 1 and has slope 1 at the knee, where it meets the line.
    curve = above * slope / (1 + above * (slope - 1))
    return np.where(light <= knee, light, knee + (1 - knee) * curve)


@cache
def _light(transfer: int) -> NDArray[np.float32]:
    """Linear light of each 16-bit value: PQ in units of ordinary white, HLG as a share of the scene's peak."""
    value = np.linspace(0, 1, 65536)
    if transfer == PQ:
        m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128
        root = np.power(value, 1 / m2)
        nits = 10_000 * np.power(np.maximum(root - c1, 0) / (c2 - c3 * root), 1 / m1)
        return (nits / WHITE_NITS).astype(np.float32)
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    return np.where(value <= 0.5, value**2 / 3, (np.exp((value - c) / a) + b) / 12).astype(np.float32)


@cache
def _encoded() -> NDArray[np.uint8]:
    """8-bit values of 4096 steps of linear light (the sRGB curve, as screens show BT.709)."""
    light = np.linspace(0, 1, 4096)
    curve = np.where(light <= 0.0031308, 12.92 * light, 1.055 * np.power(light, 1 / 2.4) - 0.055)
    levels: NDArray[np.uint8] = np.rint(255 * curve).astype(np.uint8)
    return levels
