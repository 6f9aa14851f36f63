from __future__ import annotations

import functools
import hashlib
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import simplejpeg

from starlab.pipelines.clip import DataError
from starlab.pipelines.generated.folder import MARKER
from starlab.pipelines.generated.ntu import (
    SYNTHETIC_NTU_CLASSES,
    SyntheticNtuConfig,
    _write_clips,
    draw_clip,
    write_ntu,
)
from starlab.pipelines.ntu import MISSING_LISTS, NtuSource
from starlab.pipelines.ntu_names import NTU120_CLASSES, NTU120_SETUPS, names_in, parse_name
from starlab.pipelines.ntu_skeletons import drop_ghosts, pack_tracks, parse_skeleton

CONFIG = SyntheticNtuConfig(train_performers=2, test_performers=1, cameras=2, height_px=90, min_frames=40, max_frames=44)
NAME = parse_name("S001C001P001R001A901")


def skeletons_of(folder: Path) -> dict[str, bytes]:
    return {path.stem: path.read_bytes() for path in sorted((folder / "nturgb+d_skeletons").iterdir())}


def test_every_name_and_class_is_marked_as_generated(ntu_folder: Path) -> None:
    assert len(SYNTHETIC_NTU_CLASSES) == 6
    assert all(int(name[1:4]) >= 901 for name in SYNTHETIC_NTU_CLASSES)
    assert not {name[5:] for name in SYNTHETIC_NTU_CLASSES} & {name[5:] for name in NTU120_CLASSES}
    files = [path for folder in ("nturgb+d_rgb", "nturgb+d_skeletons") for path in (ntu_folder / folder).iterdir()]
    assert len(files) == 2 * 37
    assert all(parse_name(path.name[:20]).action >= 901 for path in files)
    assert "no person was filmed" in (ntu_folder / MARKER).read_text()


def test_the_videos_are_what_ntus_are(ntu_folder: Path) -> None:
    for path in sorted((ntu_folder / "nturgb+d_rgb").iterdir())[::5]:
        with av.open(str(path)) as container:
            assert container.format.name == "avi"
            assert "SYNTHETIC" in container.metadata["title"]
            stream = container.streams.video[0]
            frames = list(container.decode(stream))
            assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
            assert (stream.average_rate, stream.frames) == (30, len(frames))
        assert [frame.key_frame for frame in frames].count(True) == 1
        assert 3 in {int(frame.pict_type) for frame in frames}, "no B-frame"
        stamps = [frame.pts for frame in frames]
        assert stamps != sorted(stamps), "as in the real files, the time stamps are those of the coded order"


def test_in_full_size_raw_frames_and_prepared_ones_are_the_same_within_jpegs_error(tmp_path: Path) -> None:
    """Run with -rP for the costs."""
    config = SyntheticNtuConfig()
    assert (config.height_px, config.width_px, len(config.names())) == (1080, 1920, 181)

    def processor_seconds(work: Callable[[], object]) -> float:
        began = time.process_time()
        work()
        return time.process_time() - began

    writing = {}
    for height_px in (90, 1080):
        (tmp_path / str(height_px)).mkdir()
        write = functools.partial(_write_clips, replace(config, height_px=height_px), tmp_path / str(height_px), range(1))
        writing[height_px] = processor_seconds(write)
    source = NtuSource(tmp_path / "1080", "xsub", SYNTHETIC_NTU_CLASSES, NTU120_SETUPS)
    [row] = source.clips
    raw = source.read(row, range(row.num_frames), min_side_px=224)
    assert raw.frames[0].shape == (256, 455, 3)
    sixteen = [row.num_frames * (2 * segment + 1) // 32 for segment in range(16)]
    reading = processor_seconds(lambda: source.read(row, sixteen, min_side_px=224))
    noise = []
    for jpeg, frame in zip(source.encode(row, short_side_px=256).jpegs, raw.frames, strict=True):
        error = simplejpeg.decode_jpeg(jpeg).astype(float) - frame
        noise.append(10 * np.log10(255**2 / (error**2).mean()))
    print(
        f"{row.num_frames} frames: {writing[1080]:.1f} s to write at 1080 lines, {writing[90]:.1f} s at 90; "
        f"{reading:.2f} s to read 16 frames at 1080; a prepared frame is within {min(noise):.0f} dB of the raw one"
    )
    assert min(noise) > 35


def test_the_skeleton_files_have_the_form_and_the_quirks_of_real_ones(ntu_folder: Path) -> None:
    with_gap = with_ghost = with_flicker = nobody = 0
    for text in skeletons_of(ntu_folder).values():
        assert text.count(b"\r\n") == text.count(b"\n")
        found = parse_skeleton(text)
        assert all(len(body.body_id) == 17 for body in found.bodies)
        covered = {frame for body in found.bodies for frame in body.frames.tolist()}
        nobody += not covered
        with_gap += bool(covered) and len(covered) < found.num_frames
        with_flicker += any(len(body.frames) == 9 for body in found.bodies)
        with_ghost += any(body.flat_share() > 0.9 for body in found.bodies)
        heights_m = [float(np.ptp(body.joints_3d[..., 1], axis=1).max()) for body in drop_ghosts(found.bodies)]
        assert all(1.2 < height_m < 2.5 for height_m in heights_m), "a chair was kept"
    assert nobody == 1
    assert min(with_gap, with_ghost, with_flicker) >= 6


def test_the_one_clip_without_a_skeleton_is_on_the_list(ntu_folder: Path) -> None:
    [name] = names_in((ntu_folder / MISSING_LISTS[1]).read_text())
    assert parse_skeleton(skeletons_of(ntu_folder)[name]).bodies == ()


def test_no_mistake_of_the_sensor_gives_a_class_away() -> None:
    """Each class has the same mistakes, performance by performance and camera by camera."""

    def mistakes(action: int) -> list[tuple[bool, int]]:
        found = []
        for index, name in enumerate(CONFIG.names()[:-1]):
            if name.action == action:
                bodies = draw_clip(CONFIG, name, index // CONFIG.cameras).bodies
                people = 2 if action >= 950 else 1
                gap = len({frame for body in bodies for frame in body.frames.tolist()}) < CONFIG.min_frames
                found.append((gap, len(bodies) - people * (1 + gap)))
        return found

    one, *others = (mistakes(int(name[1:4])) for name in SYNTHETIC_NTU_CLASSES)
    assert len(set(one)) > 2
    assert all(other == one for other in others)


def test_people_are_renamed_at_different_moments_and_stay_in_their_tracks() -> None:
    """The sensor's two bodies of one person become one track, whatever happens to the other person."""
    ways = set()
    for index, name in enumerate(CONFIG.names()[:-1]):
        if name.action < 950:
            continue
        clip = draw_clip(CONFIG, name, index // CONFIG.cameras)
        people = [body for body in clip.bodies if len(body.frames) > 11 and body.states.max() == 2]  # chairs are guessed
        ends = {int(body.frames[-1]) for body in people} - {clip.num_frames - 1}
        ways.add((len(people), len(ends)))
        joints, _ = pack_tracks(parse_skeleton(clip.skeleton_file()), 2)
        for track in range(2):
            places = joints[:, track][joints[:, track, 0, 2] > 0][:, 0, 0]
            assert np.abs(np.diff(places)).max() < 0.08, "the track jumps to the other person"
    assert ways == {(2, 0), (3, 1), (4, 2)}, "nobody is renamed, one is, both are at moments of their own"


@pytest.mark.parametrize(("forward", "backward"), [(901, 902), (951, 952)])
@pytest.mark.parametrize("draw", range(4))
def test_the_classes_of_an_order_pair_are_each_other_played_backwards_to_the_last_bit(
    forward: int, backward: int, draw: int
) -> None:
    one, other = (draw_clip(CONFIG, replace(NAME, action=action), draw) for action in (forward, backward))
    np.testing.assert_array_equal(list(other.render()), list(one.render())[::-1])
    assert one.num_frames == other.num_frames
    last = one.num_frames - 1

    def by_frame(clip) -> list[list[bytes]]:
        here: list[list[bytes]] = [[] for _ in range(clip.num_frames)]
        for body in clip.bodies:
            for place, frame in enumerate(body.frames):
                here[frame].append(
                    body.color_px[place].tobytes() + body.places_m[place].tobytes() + body.states[place].tobytes()
                )
        return [sorted(bodies) for bodies in here]

    assert by_frame(other) == [by_frame(one)[last - frame] for frame in range(one.num_frames)]


def test_all_cameras_see_one_performance_from_places_of_their_own() -> None:
    clips = [draw_clip(CONFIG, replace(NAME, camera=camera), draw=3) for camera in (1, 2)]
    assert clips[0].num_frames == clips[1].num_frames
    heads = [clip.figures[0].joints_px[:, 0] for clip in clips]
    assert not np.allclose(*heads, atol=1)
    height = [np.ptp(head[:, 1]) / clip.figures[0].look.height_px for head, clip in zip(heads, clips, strict=True)]
    assert height[0] == pytest.approx(height[1], abs=0.03)


def digest(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_equal_settings_give_equal_bytes_and_another_seed_others(ntu_folder: Path, tmp_path: Path) -> None:
    names = CONFIG.names()
    for folder, config in (("again", CONFIG), ("other", replace(CONFIG, seed=1))):
        (tmp_path / folder).mkdir()
        _write_clips(config, tmp_path / folder, range(3))
    again, other, whole = digest(tmp_path / "again"), digest(tmp_path / "other"), digest(ntu_folder)
    assert len(again) == 6
    assert again == {path: whole[path] for path in again}
    assert all(other[path] != again[path] for path in again)
    assert f"nturgb+d_rgb/{names[0]}_rgb.avi" in again


def test_a_complete_folder_is_kept_and_one_with_other_settings_is_never_overwritten(ntu_folder: Path) -> None:
    before = digest(ntu_folder)
    write_ntu(ntu_folder, CONFIG, workers=1)
    with pytest.raises(DataError, match="generated with other settings"):
        write_ntu(ntu_folder, replace(CONFIG, seed=7), workers=1)
    assert digest(ntu_folder) == before


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"train_performers": 21}, r"train_performers must be in \[1, 20\]"),
        ({"test_performers": 0}, r"test_performers must be in \[1, 20\]"),
        ({"cameras": 4}, r"cameras must be in \[1, 3\]"),
        ({"height_px": 100}, "multiple of 18"),
        ({"height_px": 2160}, "multiple of 18"),
        ({"min_frames": 20}, "min_frames must be in"),
        ({"min_frames": 61}, "min_frames must be in"),
        ({"seed": -1}, "seed must be 0 or more"),
    ],
)
def test_a_setting_outside_its_limits_is_an_error_that_names_it(changed: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SyntheticNtuConfig(**changed)
