from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from starlab.pipelines.generated.kinect import FIRST_BODY_ID, SensedBody, encode_skeleton
from starlab.pipelines.ntu_skeletons import (
    Body,
    SkeletonFile,
    drop_ghosts,
    pack_tracks,
    parse_skeleton,
    read_num_frames,
)

ABOUT = "0 1 1 1 1 0 0.01 0.02 2"


def joint_lines(x: float = 0.5, state: int = 2) -> list[str]:
    """25 joints at (x, joint / 10, 3) metres, (960 + joint, 540 + joint) colour pixels."""
    return [f"{x} {joint / 10} 3 100 100 {960 + joint} {540 + joint} 1 0 0 0 {state}" for joint in range(25)]


def text(frames: list[list[tuple[str, list[str]]]], newline: str = "\r\n") -> bytes:
    """A file in which each frame has bodies (id, joint lines)."""
    lines = [str(len(frames))]
    for bodies in frames:
        lines.append(str(len(bodies)))
        for body_id, joints in bodies:
            lines += [f"{body_id} {ABOUT}", "25", *joints]
    return (newline.join(lines) + newline).encode()


def body(body_id: str, frames: list[int], height: float = 1.7, width: float = 0.5, motion: float = 0.1) -> Body:
    """A body of a given shape that sways sideways by `motion` metres."""
    number = len(frames)
    places = np.zeros((number, 25, 3), np.float32)
    places[..., 0] = np.linspace(0, width, 25) + motion * np.sin(np.arange(number))[:, None]
    places[..., 1] = np.linspace(0, height, 25)
    places[..., 2] = 3
    joints = np.concatenate([places[..., :2] / 4, np.ones((number, 25, 1))], axis=-1).astype(np.float32)
    return Body(body_id, np.array(frames), joints, places)


@pytest.mark.parametrize("newline", ["\r\n", "\n"])
def test_joints_are_fractions_of_the_colour_picture_and_metres(newline: str) -> None:
    found = parse_skeleton(text([[("72057594037931101", joint_lines())]], newline))
    assert found.num_frames == 1
    [one] = found.bodies
    assert one.frames.tolist() == [0]
    np.testing.assert_allclose(one.joints[0, 3], [963 / 1920, 543 / 1080, 1], rtol=1e-6)
    np.testing.assert_allclose(one.joints_3d[0, 3], [0.5, 0.3, 3], rtol=1e-6)
    assert one.joints.dtype == one.joints_3d.dtype == np.float32


def test_body_ids_that_a_float_would_merge_stay_apart() -> None:
    ids = ["72057594037931101", "72057594037931102", "72057594037931103", "72057594037931104"]
    assert len({float(body_id) for body_id in ids}) < 4
    found = parse_skeleton(text([[(body_id, joint_lines()) for body_id in ids]]))
    assert [one.body_id for one in found.bodies] == ids


def test_frames_without_a_body_keep_their_index() -> None:
    frames = [[], [("7", joint_lines(0.1))], [], [("7", joint_lines(0.4)), ("8", joint_lines())], []]
    found = parse_skeleton(text(frames))
    assert found.num_frames == 5
    assert {one.body_id: one.frames.tolist() for one in found.bodies} == {"7": [1, 3], "8": [3]}
    joints, joints_3d = pack_tracks(parse_skeleton(text([[], [("7", joint_lines())], []])), 2)
    assert joints[..., 2].any(axis=(1, 2)).tolist() == [False, True, False]
    assert joints_3d.any(axis=(1, 2, 3)).tolist() == [False, True, False]


@pytest.mark.parametrize(("state", "confidence"), [(0, 0.0), (1, 0.5), (2, 1.0)])
def test_the_tracking_state_is_the_confidence(state: int, confidence: float) -> None:
    [one] = parse_skeleton(text([[("7", joint_lines(state=state))]])).bodies
    assert (one.joints[..., 2] == confidence).all()
    assert one.joints.any() == one.joints_3d.any() == (confidence > 0)


@pytest.mark.parametrize("place", [0, 2, 5, 6])
@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e300", "NaN", "-1.#IND"])
def test_a_joint_that_is_nowhere_counts_as_not_seen_and_the_others_stay(place: int, value: str) -> None:
    lines = joint_lines()
    values = lines[4].split()
    values[place] = value
    lines[4] = " ".join(values)
    [one] = parse_skeleton(text([[("7", lines)]])).bodies
    assert one.joints[0, 4].tolist() == [0, 0, 0] == one.joints_3d[0, 4].tolist()
    assert (np.delete(one.joints[0], 4, axis=0)[:, 2] == 1).all()


GOOD = text([[("7", joint_lines())], [("7", joint_lines()), ("8", joint_lines())]])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "first line must be the number of frames"),
        (b"2", "first line must be the number of frames"),
        (b"<html>\r\n", "first line must be the number of frames, is b'<html>'"),
        (b"-3\r\n", "first line"),
        (b"0\r\n", "0 frames"),
        (GOOD[: len(GOOD) // 3], "line .* must be"),
        (GOOD[:-400], "must be"),
        (GOOD.replace(b"2\r\n", b"3\r\n", 1), r"number of bodies in frame 2, 0 to 6, is b'' \(the file ends here\)"),
        (GOOD.replace(b"2\r\n", b"1\r\n", 1), "goes on after its 1 frames"),
        (GOOD.replace(b"\r\n25\r\n", b"\r\n24\r\n", 1), "number of joints, 25 to 25, is b'24'"),
        (GOOD.replace(b"2\r\n1\r\n", b"2\r\n9\r\n", 1), "number of bodies in frame 0, 0 to 6, is b'9'"),
        (GOOD.replace(b" 1 0 0 0 2", b" 1 0 0 0", 1), "joint's 12 values"),
        (GOOD.replace(b" 1 0 0 0 2", b" 1 0 0 0 7", 1), "tracking state"),
        (GOOD.replace(b" 1 0 0 0 2", b" 1 0 0 0 nan", 1), "tracking state"),
        (GOOD.replace(b"0.5 0.0 3", b"0.5 0,0 3", 1), "line 5: b'0,0' is no number"),
        (GOOD.replace(b"7 0 1", b"7.2e16 0 1", 1), "body's id"),
        (text([[("7", joint_lines()), ("7", joint_lines())]]), "body 7 is twice in frame 0"),
    ],
)
def test_text_that_does_not_follow_the_format_is_an_error_that_says_where(data: bytes, message: str) -> None:
    assert data != GOOD
    with pytest.raises(ValueError, match=message):
        parse_skeleton(data)


@settings(max_examples=60)
@given(st.data())
def test_whatever_is_cut_or_overwritten_the_result_has_all_frames_or_is_an_error(data: st.DataObject) -> None:
    content = bytearray(GOOD)
    place = data.draw(st.integers(0, len(content) - 1))
    patch = data.draw(st.binary(max_size=10))
    content[place : place + len(patch)] = patch
    cut = data.draw(st.one_of(st.none(), st.integers(0, len(content))))
    try:
        found = parse_skeleton(bytes(content[:cut]))
    except ValueError:
        return
    assert found.num_frames == 2
    for one in found.bodies:
        assert np.isfinite(one.joints).all()
        assert np.isfinite(one.joints_3d).all()


def test_the_length_is_known_from_the_first_line() -> None:
    assert read_num_frames(b"103\r\n1\r\n7205") == 103
    with pytest.raises(ValueError, match="first line"):
        read_num_frames(b"103")


def test_one_body_is_kept_however_it_looks() -> None:
    chair = body("7", [0, 1], height=0.2, width=1.0)
    assert drop_ghosts((chair,)) == (chair,)


def test_a_body_of_eleven_frames_is_dropped_and_one_of_twelve_stays() -> None:
    person, brief, longer = body("7", list(range(40))), body("8", list(range(11))), body("9", list(range(12)))
    assert [one.body_id for one in drop_ghosts((person, brief, longer))] == ["7", "9"]


def test_a_body_that_is_wider_than_high_in_most_of_its_frames_is_dropped() -> None:
    person, chair = body("7", list(range(40))), body("8", list(range(40)), height=0.5)
    assert chair.flat_share() == 1.0
    assert [one.body_id for one in drop_ghosts((chair, person))] == ["7"]
    # The limit is 0.69754: 27 of 40 flat frames are fewer, 28 more.
    for flat, kept in ((27, True), (28, False)):
        places = np.concatenate([chair.joints_3d[:flat], person.joints_3d[flat:]])
        mixed = Body("9", chair.frames, chair.joints, places)
        assert (len(drop_ghosts((person, mixed))) == 2) == kept


def test_the_rules_never_leave_nobody() -> None:
    briefs = (body("7", [0, 1]), body("8", [0, 1, 2]), body("9", [4]))
    assert [one.body_id for one in drop_ghosts(briefs)] == ["8"]
    chairs = (body("7", list(range(20)), height=0.3), body("8", list(range(20)), height=0.3, motion=0.4))
    assert [one.body_id for one in drop_ghosts(chairs)] == ["8"]


def test_joints_that_were_not_seen_do_not_make_a_person_wide() -> None:
    person = body("7", list(range(20)))
    hidden = person.joints_3d.copy()
    hidden[:, 3] = 0
    joints = person.joints.copy()
    joints[:, 3] = 0
    hidden[:, :, 0] += np.where(joints[..., 2] > 0, np.float32(5), np.float32(0))
    assert Body("7", person.frames, joints, hidden).flat_share() == 0.0
    assert Body("7", person.frames, joints, hidden).motion() < 2 * person.motion()


def test_the_liveliest_come_first_and_a_third_person_is_left_out() -> None:
    frames = list(range(30))
    bodies = (body("7", frames, motion=0.1), body("8", frames, motion=0.3), body("9", frames, motion=0.2))
    joints, _ = pack_tracks(SkeletonFile(30, bodies), 2)
    np.testing.assert_array_equal(joints[:, 0], bodies[1].joints)
    np.testing.assert_array_equal(joints[:, 1], bodies[2].joints)


def test_somebody_who_comes_back_under_a_new_id_goes_on_in_the_same_track() -> None:
    before, after = body("7", list(range(20)), motion=0.3), body("8", list(range(26, 50)), motion=0.2)
    joints, _ = pack_tracks(SkeletonFile(50, (before, after)), 2)
    assert not joints[:, 1].any()
    np.testing.assert_array_equal(joints[:20, 0], before.joints)
    np.testing.assert_array_equal(joints[26:, 0], after.joints)
    assert not joints[20:26].any()


@settings(max_examples=40)
@given(st.data())
def test_whoever_is_packed_stays_in_the_frames_in_which_it_was_seen(data: st.DataObject) -> None:
    num_frames = data.draw(st.integers(1, 40))
    spans = data.draw(st.lists(st.tuples(st.integers(0, num_frames - 1), st.integers(1, num_frames)), max_size=6))
    bodies = tuple(
        body(str(number), list(range(start, min(start + length, num_frames))), motion=0.01 * number)
        for number, (start, length) in enumerate(spans)
    )
    joints, joints_3d = pack_tracks(SkeletonFile(num_frames, bodies), 2)
    assert joints.shape == joints_3d.shape == (num_frames, 2, 25, 3)
    kept = drop_ghosts(bodies)
    assert (len(kept) == 0) == (len(bodies) == 0)
    for frame in range(num_frames):
        here = [one.joints[one.frames.tolist().index(frame)] for one in kept if frame in one.frames]
        seen = [track for track in joints[frame] if track[:, 2].any()]
        assert len(seen) <= len(here)
        assert all(any(np.array_equal(track, one) for one in here) for track in seen)
        assert len(seen) == min(len(here), 2) or len(kept) > 2


def test_what_the_generator_writes_is_what_is_read() -> None:
    rng = np.random.default_rng(0)
    frames = np.array([1, 2, 5])
    color, places = rng.uniform(0, 1000, (3, 25, 2)), rng.uniform(1, 4, (3, 25, 3))
    states = rng.integers(1, 3, (3, 25))
    found = parse_skeleton(encode_skeleton([SensedBody(FIRST_BODY_ID, frames, color, places, states)], 7))
    assert found.num_frames == 7
    [one] = found.bodies
    assert one.body_id == str(FIRST_BODY_ID)
    assert one.frames.tolist() == frames.tolist()
    np.testing.assert_allclose(one.joints[..., :2], color / [1920, 1080], rtol=1e-5)
    np.testing.assert_allclose(one.joints_3d, places, rtol=1e-5)
    np.testing.assert_array_equal(one.joints[..., 2], states / 2)


def person(pieces: list[range], x_m: float, motions: list[float], first_id: int) -> list[Body]:
    """Somebody at one place whom the sensor gives a new id for each piece, and who moves more in one than in another."""
    found = []
    for number, (piece, motion) in enumerate(zip(pieces, motions, strict=True)):
        one = body(str(first_id + number), list(piece), motion=motion)
        one.joints_3d[..., 0] += x_m
        one.joints[..., 0] += x_m / 4
        found.append(one)
    return found


def where(joints_3d: np.ndarray, track: int) -> set[float]:
    """Around which places (in metres, to a metre) a track is, over the frames in which it is seen."""
    seen = joints_3d[joints_3d[:, track].any(axis=(1, 2)), track]
    return {float(np.round(x)) for x in seen[..., 0].mean(axis=1) - 0.25}


def test_two_people_who_are_renamed_at_different_moments_keep_a_track_each_and_lose_no_frame() -> None:
    """Packed by motion alone, the second half of one of them was left out and the other one changed tracks."""
    first = person([range(41), range(50, 101)], 0.0, [0.4, 0.1], 10)
    second = person([range(61), range(61, 101)], 2.0, [0.05, 0.3], 20)
    joints, joints_3d = pack_tracks(SkeletonFile(101, (first[0], second[0], first[1], second[1])), 2)
    seen = joints[..., 2].any(axis=2)
    assert np.flatnonzero(~seen[:, 0]).tolist() == list(range(41, 50))
    assert seen[:, 1].all()
    assert (where(joints_3d, 0), where(joints_3d, 1)) == ({0.0}, {2.0})  # the one who moves more comes first


def test_two_people_lost_at_the_same_time_come_back_to_their_own_tracks_by_their_places() -> None:
    for swapped in (False, True):
        first, second = (person([range(20), range(30, 60)], x, [motion] * 2, 7) for x, motion in ((0.0, 0.3), (2.0, 0.1)))
        bodies = [first[0], second[0], *((second[1], first[1]) if swapped else (first[1], second[1]))]
        named = tuple(Body(str(number), one.frames, one.joints, one.joints_3d) for number, one in enumerate(bodies))
        _, joints_3d = pack_tracks(SkeletonFile(60, named), 2)
        assert (where(joints_3d, 0), where(joints_3d, 1)) == ({0.0}, {2.0})


def test_a_body_that_appears_far_from_where_another_ended_starts_a_track_of_its_own() -> None:
    one, other = person([range(20)], 0.0, [0.3], 1), person([range(25, 60)], 3.0, [0.1], 2)
    _, joints_3d = pack_tracks(SkeletonFile(60, (*one, *other)), 2)
    assert (where(joints_3d, 0), where(joints_3d, 1)) == ({0.0}, {3.0})


@given(st.data())
def test_where_never_more_than_two_are_there_nobody_loses_a_frame_whatever_the_sensor_calls_them(data: st.DataObject) -> None:
    bodies: list[Body] = []
    for number, x_m in enumerate((0.0, 2.0)):
        cuts = sorted(data.draw(st.sets(st.integers(20, 80), max_size=2)))
        pieces = [range(low, high) for low, high in zip([0, *cuts], [*cuts, 101], strict=True) if high - low > 11]
        motions = data.draw(st.lists(st.floats(0.01, 0.4), min_size=len(pieces), max_size=len(pieces)))
        bodies += person(pieces, x_m, motions, 100 * number)
    order = data.draw(st.permutations(bodies))
    joints, joints_3d = pack_tracks(SkeletonFile(101, tuple(order)), 2)
    assert (joints[..., 2] > 0).sum() == sum((one.joints[..., 2] > 0).sum() for one in bodies)
    assert sorted([where(joints_3d, 0), where(joints_3d, 1)], key=min) == [{0.0}, {2.0}]
