import io
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from starlab.pipelines.decode import MAX_JUNK_BYTES, decode_jpeg, jpeg_size
from starlab.pipelines.penn_action import PennActionSource


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


def segments(data: bytes) -> list[bytes]:
    """The parts of a JPEG: SOI, each segment of the header, and the rest."""
    parts, at = [data[:2]], 2
    while data[at + 1] != 0xDA:
        after = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        parts.append(data[at:after])
        at = after
    return [*parts, data[at:]]


PROGRESSIVE = io.BytesIO()
Image.fromarray(picture(60, 90)).save(PROGRESSIVE, "JPEG", quality=90, progressive=True)
PLAIN = {"baseline": simplejpeg.encode_jpeg(picture(60, 90), quality=90), "progressive": PROGRESSIVE.getvalue()}
JUNK = bytes(range(1, 120))


def with_junk() -> dict[str, tuple[str, bytes]]:
    cases = {}
    for kind, data in PLAIN.items():
        parts = segments(data)
        for place in range(1, len(parts)):
            for name, junk in (("text", JUNK), ("zeros", bytes(7)), ("fill", b"\xff\xff\xff")):
                cases[f"{kind}, {name} before segment {place}"] = kind, b"".join([*parts[:place], junk, *parts[place:]])
        cases |= {
            f"{kind}, before": (kind, JUNK + data),
            f"{kind}, a mark of the byte order before": (kind, b"\xef\xbb\xbf\r\n" + data),
            f"{kind}, as much as is allowed before": (kind, b"x" * MAX_JUNK_BYTES + data),
            f"{kind}, after": (kind, data + JUNK),
            f"{kind}, a second picture after": (kind, data + data),
            f"{kind}, zeros after": (kind, data + bytes(1000)),
            f"{kind}, everywhere": (kind, JUNK + JUNK.join(parts) + JUNK),
            f"{kind}, an unknown version of JFIF": (kind, data.replace(b"JFIF\0\1\1", b"JFIF\0\x09\x07")),
        }
    return cases


@pytest.mark.parametrize(("kind", "data"), with_junk().values(), ids=with_junk())
def test_what_does_not_belong_into_a_jpeg_is_passed_over(kind: str, data: bytes) -> None:
    expected = decode_jpeg(PLAIN[kind], 60)
    assert (decode_jpeg(data, 60) == expected).all()
    assert (decode_jpeg(memoryview(data), 60) == expected).all()
    assert jpeg_size(data) == (60, 90)


@pytest.mark.parametrize("before", [b"", JUNK])
@pytest.mark.parametrize("kind", PLAIN)
def test_no_jpeg_that_is_cut_short_is_read_with_junk_or_without(kind: str, before: bytes) -> None:
    for end in range(0, len(PLAIN[kind]), 7):
        with pytest.raises(ValueError, match=r"."):
            decode_jpeg(before + PLAIN[kind][:end], 60)


@pytest.mark.parametrize("before", [b"II*\0", b"%PDF-1.4", b"....ftypheic", b"x" * (MAX_JUNK_BYTES + 1)])
def test_a_preview_inside_of_another_file_is_no_picture(before: bytes) -> None:
    with pytest.raises(ValueError, match="does not begin like one"):
        decode_jpeg(before + JPEG, 60)


def with_exif(data: bytes, tiff: bytes) -> bytes:
    return data[:2] + b"\xff\xe1" + struct.pack(">H", 8 + len(tiff)) + b"Exif\0\0" + tiff + data[2:]


def tiff(order: str, *entries: tuple[int, int, int]) -> bytes:
    """A directory of (tag, kind, value): kind 3 has 16 bits, 4 has 32."""
    head = {"<": b"II", ">": b"MM"}[order] + struct.pack(f"{order}HIH", 42, 8, len(entries))
    values = [
        struct.pack(f"{order}I", value) if kind == 4 else struct.pack(f"{order}HH", value, 0) for _, kind, value in entries
    ]
    return head + b"".join(
        struct.pack(f"{order}HHI", tag, kind, 1) + value for (tag, kind, _), value in zip(entries, values, strict=True)
    )


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("order", ["<", ">"])
def test_a_picture_is_turned_upright_as_its_exif_orientation_says(order: str, orientation: int) -> None:
    data = with_exif(PLAIN["baseline"], tiff(order, (0x0100, 4, 90), (0x0112, 3, orientation)))
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    frame = decode_jpeg(data, 60)
    assert jpeg_size(data) == frame.shape[:2] == expected.shape[:2]
    assert np.abs(frame.astype(int) - expected).mean() < 2
    small = decode_jpeg(data, 30)
    assert min(small.shape[:2]) < 60
    assert np.abs(small.astype(int) - cv2.resize(frame, small.shape[1::-1], interpolation=cv2.INTER_AREA)).mean() < 4
    assert (decode_jpeg(data[:2] + JUNK + data[2:], 60) == frame).all()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"II",
        b"II*\0\xff\xff\xff\xff",
        tiff("<", (0x0112, 3, 0)),
        tiff("<", (0x0112, 3, 9)),
        tiff(">", (0x0112, 2, 6))[:-3],
    ],
)
def test_an_exif_segment_without_a_sensible_orientation_turns_nothing(content: bytes) -> None:
    assert (decode_jpeg(with_exif(PLAIN["baseline"], content), 60) == decode_jpeg(PLAIN["baseline"], 60)).all()


def test_the_joints_of_a_turned_frame_are_those_of_the_upright_picture(small_folder: Path, tmp_path: Path) -> None:
    import shutil

    for folder in ("labels", "frames"):
        (tmp_path / folder).mkdir()
    shutil.copy(small_folder / "labels/0001.mat", tmp_path / "labels")
    shutil.copytree(small_folder / "frames/0001", tmp_path / "frames/0001")
    from starlab.pipelines.generated.penn_action import SYNTHETIC_CLASSES

    before = PennActionSource(tmp_path, SYNTHETIC_CLASSES)
    upright = before.read(before.clips[0], [4], 64)
    path = tmp_path / "frames/0001/000005.jpg"
    lying = np.rot90(simplejpeg.decode_jpeg(path.read_bytes()), 1).copy()  # as a camera that was turned stores it
    path.write_bytes(with_exif(simplejpeg.encode_jpeg(lying, quality=98), tiff("<", (0x0112, 3, 6))))
    source = PennActionSource(tmp_path, SYNTHETIC_CLASSES)
    turned = source.read(source.clips[0], [4], 64)
    assert (turned.joints == upright.joints).all()
    assert np.abs(turned.frames[0].astype(int) - upright.frames[0]).mean() < 2
    assert len(source.encode(source.clips[0], 64).jpegs) == source.clips[0].num_frames
