"""JPEG bytes to RGB pixels."""

from __future__ import annotations

import numpy as np
import simplejpeg
from numpy.typing import NDArray

SMALLEST_USEFUL_SHRINK = 1.6
"""The smallest factor worth shrinking by. A JPEG decoder can leave out high frequencies and return N/8 of the size, which saves
time from 8/5 = 1.6 on; a smaller shrink (7/8, 6/8) is slower than decoding everything."""

NO_SHRINK = 2**16
"""A `min_side_px` that no JPEG exceeds, so that nothing is shrunk."""


def decode_jpeg(data: bytes | memoryview, min_side_px: int) -> NDArray[np.uint8]:
    """Decode one JPEG to uint8 (H, W, 3), RGB.

    The picture comes back smaller than it was stored, by N/8 with N ≤ 5, where its short side then still measures
    `min_side_px` or more; else at full size, which may be below `min_side_px` when the file is.

    Raises:
        ValueError: the bytes are not a JPEG, are cut short or are damaged, even where a lenient decoder would go on.
    """
    height, width, _, _ = simplejpeg.decode_jpeg_header(data)
    shrink = min(height, width) >= SMALLEST_USEFUL_SHRINK * min_side_px
    min_side = max(1, min_side_px) if shrink else 0
    # Not simplejpeg's fast transforms: a tenth less time for a tenth more error (measured on photographs at quality 90).
    frame: NDArray[np.uint8] = simplejpeg.decode_jpeg(data, "RGB", min_height=min_side, min_width=min_side, strict=True)
    return frame
