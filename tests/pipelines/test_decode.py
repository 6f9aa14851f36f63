import cv2
import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st

from starlab.pipelines.decode import decode_jpeg


def picture(height: int, width: int) -> np.ndarray:
    """Smooth, with something to see in every corner."""
    rows, columns = np.mgrid[0:height, 0:width]
    channels = [rows * 255 / height, columns * 255 / width, 128 + 90 * np.sin(rows / 17) * np.cos(columns / 23)]
    return np.stack(channels, axis=-1).astype(np.uint8)


JPEG = simplejpeg.encode_jpeg(picture(360, 480), quality=90)


def test_pixels_come_back_as_rgb_at_full_size_when_shrinking_would_not_pay():
    frame = decode_jpeg(JPEG, min_side_px=256)
    assert frame.shape == (360, 480, 3)
    assert frame.dtype == np.uint8
    assert np.abs(frame.astype(int) - picture(360, 480)).mean() < 2


def test_a_picture_smaller_than_asked_for_is_not_enlarged():
    assert decode_jpeg(simplejpeg.encode_jpeg(picture(40, 60)), min_side_px=224).shape == (40, 60, 3)


def test_a_gray_jpeg_becomes_rgb():
    gray = simplejpeg.encode_jpeg(picture(48, 64)[:, :, :1].copy(), colorspace="GRAY", colorsubsampling="Gray")
    frame = decode_jpeg(gray, min_side_px=48)
    assert frame.shape == (48, 64, 3)
    assert (frame[..., 0] == frame[..., 2]).all()


@settings(max_examples=40)
@given(st.integers(1, 400))
def test_a_shrunk_decode_keeps_the_short_side_asked_for_and_the_picture(min_side_px):
    frame = decode_jpeg(JPEG, min_side_px)
    height, width = frame.shape[:2]
    assert height >= min(min_side_px, 360)
    assert width / height == pytest.approx(480 / 360, rel=0.03)
    assert height == 360 or height <= 360 / 1.6 + 1, "a shrink that saves no time"
    expected = cv2.resize(picture(360, 480), (width, height), interpolation=cv2.INTER_AREA)
    assert np.abs(frame.astype(int) - expected).mean() < 3


@pytest.mark.parametrize(
    "damage",
    [
        lambda _: b"",
        lambda _: b"<html>404 Not Found</html>",
        lambda _: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 7\n",
        lambda data: data[:100],
        lambda data: data[: len(data) // 2],
        lambda data: data[:-40],
        lambda data: data[: len(data) // 2] + bytes(byte ^ 0x10 for byte in data[len(data) // 2 :]),
    ],
    ids=["empty", "web page", "pointer", "header only", "half", "tail missing", "flipped bits"],
)
@pytest.mark.parametrize("min_side_px", [20, 360])
def test_damaged_bytes_are_an_error(damage, min_side_px):
    with pytest.raises(ValueError, match=r"."):
        decode_jpeg(damage(JPEG), min_side_px)
