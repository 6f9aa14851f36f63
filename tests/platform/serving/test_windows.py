"""How a video is cut into windows, and a window into clips of people."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from starlab.pipelines.augment import fit
from starlab.pipelines.clip import DecodedClip
from starlab.pipelines.sampling import pick_frames
from starlab.platform.errors import UserError
from starlab.platform.serving import windows
from starlab.platform.serving.recogniser import Recogniser
from starlab.platform.serving.video_input import TimedFrame
from starlab.platform.serving.windows import Window, clips_of, sliding_windows


def timed(count: int, rate: float = 10.0) -> list[TimedFrame]:
    pixels = np.random.default_rng(0).integers(0, 256, (count, 48, 64, 3), dtype=np.uint8)
    return [TimedFrame(number / rate, frame) for number, frame in enumerate(pixels)]


@pytest.mark.parametrize(
    ("frames", "length", "stride", "starts"),
    [
        (10, 4, 2, [0, 2, 4, 6]),
        (11, 4, 2, [0, 2, 4, 6, 7]),  # the last window ends with the video
        (4, 4, 2, [0]),
        (3, 4, 2, [0]),  # shorter than a window
        (10, 4, 9, [0, 6]),  # a stride longer than a window skips frames, but not the last ones
        (7, None, 2, [0]),
        (0, 4, 2, []),
        (1, 1, 1, [0]),
    ],
)
def test_windows_cover_the_video_to_its_end(frames: int, length: int | None, stride: int, starts: list[int]) -> None:
    found = list(sliding_windows(timed(frames), length, stride))
    assert [window.first for window in found] == starts
    assert all(len(window.frames) == min(frames, length or frames) for window in found)
    if found:
        assert found[-1].first + len(found[-1].frames) == frames


def test_a_window_comes_as_soon_as_its_last_frame_has() -> None:
    read = 0

    def frames() -> object:
        nonlocal read
        for frame in timed(20):
            read += 1
            yield frame

    next(sliding_windows(frames(), 4, 2))  # type: ignore[arg-type]
    assert read == 4


def test_a_window_ends_when_its_last_frame_does() -> None:
    [window] = sliding_windows(timed(5), None, 1)
    assert (window.start_seconds, window.end_seconds) == (0.0, 0.5)


@pytest.mark.parametrize(("length", "stride"), [(0, 1), (4, 0)])
def test_a_window_of_no_frames_is_refused(length: int, stride: int) -> None:
    with pytest.raises(ValueError, match="at least 1 frame"):
        list(sliding_windows(timed(3), length, stride))


def test_a_window_that_needs_too_much_memory_is_refused_on_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "MAX_WINDOW_BYTES", 10 * 48 * 64 * 3)
    assert len(list(sliding_windows(timed(30), 10, 5))) == 5
    with pytest.raises(UserError, match=r"a window of 11 frames or more needs above .* GiB of memory: set a shorter one with"):
        list(sliding_windows(timed(30), None, 1))


def test_one_person_is_what_an_evaluation_would_see(recogniser: Recogniser, make: Any) -> None:
    spec, frames, joints = recogniser.spec, timed(20), make.joints(1, 40)
    [clip] = clips_of(Window(10, frames[10:]), joints, spec, "auto")
    picked = 10 + pick_frames(10, spec.data.frames, None)
    shown = DecodedClip([frames[index].pixels for index in picked], joints[picked])
    expected = fit(shown, spec.data.size, spec.data.augmentation(), spec.data.facts().skeleton.mirror, None)
    assert clip.person is None
    np.testing.assert_array_equal(clip.frames, expected[0])
    np.testing.assert_array_equal(clip.joints, expected[1])


def test_more_people_than_the_model_takes_are_a_clip_each_cut_out_of_the_frames(recogniser: Recogniser, make: Any) -> None:
    frames, joints = timed(40), make.joints(2)
    first, second = clips_of(Window(0, frames), joints, recogniser.spec, "auto")
    assert (first.person, second.person) == (0, 1)
    for clip in (first, second):
        places = clip.joints[clip.joints[..., 2] > 0]
        assert ((places[:, :2] > 0) & (places[:, :2] < 1)).all()  # cut out with room around
        assert 0.55 < np.ptp(places[:, :2], axis=0).max() < 0.75
    [together] = clips_of(Window(0, frames), joints, recogniser.spec, "together")
    assert together.person is None


def test_a_person_who_is_hardly_seen_is_no_clip(recogniser: Recogniser, make: Any) -> None:
    joints = make.joints(2)
    joints[:30, 1, :, 2] = 0
    assert [clip.person for clip in clips_of(Window(0, timed(40)), joints, recogniser.spec, "each")] == [0]
    assert clips_of(Window(0, timed(40)), np.zeros_like(joints), recogniser.spec, "each") == []
