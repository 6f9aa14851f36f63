"""Frame-exactness is tested with a barcode: every frame carries its own number in big black and white fields."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from starlab.pipelines.video import decode_video, shrunk_size

WIDTH, HEIGHT, NUM_FRAMES = 160, 96, 72


def barcode(number: int) -> np.ndarray:
    """The number in eight fields above, something that moves below."""
    frame = np.full((HEIGHT, WIDTH, 3), 60, np.uint8)
    for bit in range(8):
        frame[:48, bit * 20 : bit * 20 + 20] = 230 if number >> bit & 1 else 20
    left = 3 * number % 140
    frame[48:, left : left + 20] = 200
    return frame


def number_on(frame: np.ndarray) -> int:
    fields = np.array_split(frame[: len(frame) // 2].mean(axis=(0, 2)), 8)
    return sum((field[len(field) // 4 : -len(field) // 4].mean() > 128) << bit for bit, field in enumerate(fields))


def write_video(path: Path, codec: str, options: dict[str, str], times_ms: list[int] | None = None) -> None:
    with av.open(str(path), "w", container_options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream(codec, rate=30, options=options)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.thread_count = 1
        if times_ms is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for number in range(NUM_FRAMES):
            frame = av.VideoFrame.from_ndarray(barcode(number), format="rgb24")
            if times_ms is not None:
                frame.pts, frame.time_base = times_ms[number], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


EXACT = {"flags": "+bitexact", "x264-params": "mbtree=0"}
"""Equal frames give equal files."""
NTU_LIKE = "h264_b_frames_no_pts.avi"
FILES = (NTU_LIKE, "mpeg4_b_frames.avi", "variable_rate.mp4", "h264.mp4")


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    times = np.cumsum(np.random.default_rng(0).integers(10, 90, NUM_FRAMES)).tolist()
    write_video(folder / FILES[0], "libx264", {"g": "9999", "bf": "3", "sc_threshold": "0", **EXACT})
    write_video(folder / FILES[1], "mpeg4", {"g": "9999", "bf": "2"})
    write_video(folder / FILES[2], "libx264", {"bf": "3", **EXACT}, times)
    write_video(folder / FILES[3], "libx264", {"bf": "3", **EXACT})
    return folder


@pytest.mark.parametrize("name", FILES)
def test_every_frame_is_the_one_that_its_number_says(videos: Path, name: str) -> None:
    decoded = list(decode_video(videos / name, NUM_FRAMES, HEIGHT))
    assert [number for number, _ in decoded] == [number_on(frame) for _, frame in decoded] == list(range(NUM_FRAMES))
    assert {(frame.shape, frame.dtype) for _, frame in decoded} == {((HEIGHT, WIDTH, 3), np.dtype(np.uint8))}


@pytest.mark.parametrize("name", FILES)
@settings(max_examples=10)
@given(wanted=st.sets(st.integers(0, NUM_FRAMES - 1), max_size=16))
def test_any_choice_of_frames_gives_those_frames(videos: Path, name: str, wanted: set[int]) -> None:
    decoded = {number: number_on(frame) for number, frame in decode_video(videos / name, NUM_FRAMES, 48, wanted)}
    assert decoded == {number: number for number in wanted}


def test_the_files_have_what_makes_them_hard(videos: Path) -> None:
    def frames_of(name: str) -> list[av.VideoFrame]:
        with av.open(str(videos / name)) as container:
            return list(container.decode(container.streams.video[0]))

    for name in FILES[:2]:
        assert [frame.key_frame for frame in frames_of(name)].count(True) == 1
    for name in FILES:
        assert 3 in {int(frame.pict_type) for frame in frames_of(name)}, "no B-frame"
    stamps = [frame.pts for frame in frames_of(NTU_LIKE)]
    assert stamps != sorted(stamps), "whoever sorts by these time stamps scrambles the clip"
    gaps = np.diff([frame.pts for frame in frames_of("variable_rate.mp4")])
    assert gaps.min() > 0
    assert gaps.max() > 4 * gaps.min()


def test_shrinking_averages_over_areas_and_keeps_the_aspect(videos: Path) -> None:
    [(_, full)] = decode_video(videos / NTU_LIKE, NUM_FRAMES, HEIGHT, {40})
    [(_, half)] = decode_video(videos / NTU_LIKE, NUM_FRAMES, HEIGHT // 2, {40})
    assert half.shape == (48, 80, 3)
    means = full.reshape(48, 2, 80, 2, 3).mean(axis=(1, 3))
    assert np.abs(half - means).mean() < 1.5


@given(st.integers(16, 2000), st.integers(16, 2000), st.integers(8, 600))
def test_a_size_shrinks_to_the_short_side_and_never_grows(height: int, width: int, short_side_px: int) -> None:
    small = shrunk_size(height, width, short_side_px)
    assert min(small) == min(height, width, short_side_px)
    assert small[0] / small[1] == pytest.approx(height / width, rel=0.5 / min(small) + 1e-9)
    assert shrunk_size(1080, 1920, 256) == (256, 455)


def damaged(data: bytes, kind: str) -> bytes:
    flipped = bytearray(data)
    for place in range(len(data) // 4, len(data) * 3 // 4, 97):
        flipped[place] ^= 0x10
    return {
        "empty": b"",
        "header only": data[:100],
        "first half": data[: len(data) // 2],
        "last bytes missing": data[:-3000],
        "bits flipped": bytes(flipped),
        "html": b"<html><body>404</body></html>" * 50,
        "git lfs pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 987146\n",
        "a list of other files": b"ffconcat version 1.0\nfile other.avi\n",
    }[kind]


KINDS = (
    "empty",
    "header only",
    "first half",
    "last bytes missing",
    "bits flipped",
    "html",
    "git lfs pointer",
    "a list of other files",
)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_an_error_whatever_is_wanted_of_it(videos: Path, tmp_path: Path, name: str, kind: str) -> None:
    path = tmp_path / name
    path.write_bytes(damaged((videos / name).read_bytes(), kind))
    for only in (None, {0}):
        with pytest.raises(ValueError, match=r"\w"):
            list(decode_video(path, NUM_FRAMES, HEIGHT, only))


@settings(max_examples=60)
@given(st.data())
def test_whatever_is_overwritten_a_file_gives_all_of_its_frames_or_an_error(
    videos: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    name = data.draw(st.sampled_from(FILES))
    content = bytearray((videos / name).read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    patch = data.draw(st.binary(min_size=1, max_size=40))
    content[place : place + len(patch)] = patch
    cut = data.draw(st.one_of(st.none(), st.integers(0, len(content))))
    path = tmp_path_factory.mktemp("patched") / name
    path.write_bytes(content[:cut])
    try:
        count = len(list(decode_video(path, NUM_FRAMES, 32, ())))
        assert count == 0, "none was asked for"
        frames = list(decode_video(path, NUM_FRAMES, 32))
    except ValueError:
        return
    assert [number for number, _ in frames] == list(range(NUM_FRAMES))


def test_another_number_of_frames_than_expected_is_an_error_that_gives_both(videos: Path) -> None:
    for expected in (NUM_FRAMES - 1, NUM_FRAMES + 1):
        with pytest.raises(ValueError, match=f"72 frames, {expected} expected"):
            list(decode_video(videos / NTU_LIKE, expected, HEIGHT, {0}))


def test_a_file_that_is_not_there_or_no_video_by_its_name_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        list(decode_video(tmp_path / "none.avi", 1, 32))
    (tmp_path / "clip.m3u8").write_text("#EXTM3U\n")
    with pytest.raises(ValueError, match=r"must end in \.avi or \.mp4"):
        list(decode_video(tmp_path / "clip.m3u8", 1, 32))
    (tmp_path / "folder.avi").mkdir()
    with pytest.raises((ValueError, OSError)):
        list(decode_video(tmp_path / "folder.avi", 1, 32))


def test_a_video_in_another_container_than_its_name_says_is_an_error(videos: Path, tmp_path: Path) -> None:
    (tmp_path / "clip.avi").write_bytes((videos / "h264.mp4").read_bytes())
    with pytest.raises(ValueError, match="not a readable avi video"):
        list(decode_video(tmp_path / "clip.avi", NUM_FRAMES, 32))


def test_a_file_without_a_picture_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "sound.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
    with pytest.raises(ValueError, match="no video stream"):
        list(decode_video(path, 1, 32))


def test_how_many_single_flipped_bits_are_noticed(videos: Path, tmp_path: Path) -> None:
    """Run with -rP for the counts. What is not noticed decodes to as many frames, in some cases with wrong pixels: a video has
    no checksum."""
    rng = np.random.default_rng(0)
    noticed = {}
    for name in FILES:
        content = (videos / name).read_bytes()
        good = [frame for _, frame in decode_video(videos / name, NUM_FRAMES, HEIGHT)]
        counts = {"noticed": 0, "harmless": 0, "wrong pixels": 0}
        for _ in range(60):
            damaged_content = bytearray(content)
            damaged_content[rng.integers(len(content) // 4, len(content) * 3 // 4)] ^= 1 << int(rng.integers(8))
            (tmp_path / name).write_bytes(damaged_content)
            try:
                frames = [frame for _, frame in decode_video(tmp_path / name, NUM_FRAMES, HEIGHT)]
            except ValueError:
                counts["noticed"] += 1
                continue
            assert len(frames) == NUM_FRAMES
            counts["harmless" if np.array_equal(frames, good) else "wrong pixels"] += 1
        print(name, counts)
        noticed[name] = counts["noticed"]
    assert noticed[NTU_LIKE] > 20


LOST_BLOCKS = ("zeroed", "random", "repeated")
POSITIONS = 30


def noisy_video(path: Path, codec: str, options: dict[str, str]) -> list[np.ndarray]:
    """A video of some 150 kB, so that a block of 4 KiB is a part of it; its frames."""
    rng = np.random.default_rng(0)
    background = rng.integers(0, 256, (144, 256, 3), np.uint8)
    with av.open(str(path), "w", container_options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream(codec, rate=30, options=options)
        stream.width, stream.height, stream.pix_fmt = 256, 144, "yuv420p"
        stream.thread_count = 1
        for number in range(40):
            frame = np.roll(background, 3 * number, axis=1) // 2 + rng.integers(0, 30, background.shape, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return [frame for _, frame in decode_video(path, 40, 144)]


def lose(content: bytes, at: int, size: int, kind: str) -> bytes:
    """The content with one block of a file system replaced."""
    if kind == "zeroed":
        block = bytes(size)
    elif kind == "random":
        block = np.random.default_rng(at).bytes(size)
    else:
        block = content[at - size : at]  # the block before it
    return content[:at] + block + content[at + size :]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("h264.avi", "libx264", {"g": "9999", "bf": "2", "crf": "20", **EXACT}),
        ("h264.mp4", "libx264", {"g": "9999", "bf": "2", "crf": "20", **EXACT}),
        ("hevc.mp4", "libx265", {"crf": "22", "x265-params": "log-level=none:pools=none:frame-threads=1"}),
        ("mpeg4.avi", "mpeg4", {"g": "9999", "bf": "2", "b": "900k"}),
    ],
)
def test_what_is_noticed_of_a_lost_block(tmp_path: Path, name: str, codec: str, options: dict[str, str]) -> None:
    """Run with -rP for the table in docs/data.md. In H.264 and HEVC no zeroed block passes that changes a pixel."""
    good = noisy_video(tmp_path / name, codec, options)
    content = (tmp_path / name).read_bytes()
    for kind in LOST_BLOCKS:
        for size in (512, 4096):
            counts = {"noticed": 0, "harmless": 0, "passed": 0}
            for place in range(POSITIONS):
                at = (len(content) * (place + 1) // (POSITIONS + 2)) // 512 * 512
                (tmp_path / name).write_bytes(lose(content, max(at, size), size, kind))
                try:
                    frames = [frame for _, frame in decode_video(tmp_path / name, 40, 144)]
                except ValueError:
                    counts["noticed"] += 1
                    continue
                counts["harmless" if np.array_equal(frames, good) else "passed"] += 1
            print(f"| {name} | {kind} | {size} | {counts['noticed']} | {counts['harmless']} | {counts['passed']} |")
            if kind == "zeroed" and codec != "mpeg4":
                assert counts["passed"] == 0


@pytest.mark.parametrize(("name", "codec"), [("h264.avi", "libx264"), ("h264.mp4", "libx264"), ("hevc.mp4", "libx265")])
def test_a_zeroed_block_inside_a_packet_is_named(tmp_path: Path, name: str, codec: str) -> None:
    noisy_video(tmp_path / name, codec, {"x265-params": "log-level=none"})
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(lose(content, len(content) // 2 // 512 * 512, 512, "zeroed"))
    with pytest.raises(
        ValueError, match=r"run of zeros, which (h264|hevc) never has: a block of the file was lost|it ends after"
    ):
        list(decode_video(tmp_path / name, 40, 144))
