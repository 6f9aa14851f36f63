"""The authors' lists of file names are no part of this project, so the rules are tested on names made here: every combination
of setups, cameras, performers and replications, whether or not it was filmed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from starlab.pipelines.ntu_names import (
    NTU60_CLASSES,
    NTU60_SETUPS,
    NTU120_CLASSES,
    NTU120_SETUPS,
    XSUB60_TRAIN,
    XSUB120_TRAIN,
    NtuName,
    names_in,
    parse_name,
)

NUMBERS = st.integers(0, 999)


@given(st.builds(NtuName, NUMBERS, NUMBERS, NUMBERS, NUMBERS, NUMBERS))
def test_a_name_reads_back_as_it_was_written(name: NtuName) -> None:
    assert parse_name(str(name)) == name


def test_a_name_has_its_parts_in_the_authors_order() -> None:
    assert parse_name("S001C002P003R002A013") == NtuName(setup=1, camera=2, performer=3, replication=2, action=13)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "S001C002P003R002A13",
        "S001C002P003R002A0130",
        "s001c002p003r002a013",
        "S001C002P003R002A013_rgb",
        "S００１C002P003R002A013",
    ],
)
def test_what_is_no_name_is_an_error_that_shows_the_form(text: str) -> None:
    with pytest.raises(ValueError, match="S001C002P003R002A013"):
        parse_name(text)


def test_the_lists_of_training_performers_have_the_published_sizes() -> None:
    assert len(XSUB60_TRAIN) == 20
    assert max(XSUB60_TRAIN) <= 40
    assert len(XSUB120_TRAIN) == 53
    assert max(XSUB120_TRAIN) <= 106
    assert {performer for performer in XSUB120_TRAIN if performer <= 40} == XSUB60_TRAIN, "one list serves both"


def test_the_splits_count_as_their_rules_say_on_a_full_grid_of_made_up_names() -> None:
    grid = [
        NtuName(setup, camera, performer, replication, 1)
        for setup in NTU120_SETUPS
        for camera in (1, 2, 3)
        for performer in range(1, 107)
        for replication in (1, 2)
    ]
    count = {protocol: sum(name.split(protocol) == "train" for name in grid) for protocol in ("xsub", "xview", "xset")}
    assert len(grid) == 32 * 3 * 106 * 2
    assert count == {"xsub": len(grid) // 2, "xview": len(grid) * 2 // 3, "xset": len(grid) // 2}


@pytest.mark.parametrize(
    ("name", "sides"),
    [
        ("S001C001P001R001A001", ("train", "test", "test")),
        ("S002C002P003R002A060", ("test", "train", "train")),
        ("S017C003P038R001A050", ("train", "train", "test")),
        ("S032C001P106R002A120", ("test", "test", "train")),
        ("S018C002P103R001A061", ("train", "train", "train")),
    ],
)
def test_a_clip_lies_on_the_side_that_its_performer_camera_and_setup_say(name: str, sides: tuple[str, str, str]) -> None:
    parsed = parse_name(name)
    assert (parsed.split("xsub"), parsed.split("xview"), parsed.split("xset")) == sides


def test_every_class_carries_its_number_once() -> None:
    assert [int(name[1:4]) for name in NTU120_CLASSES] == list(range(1, 121))
    assert NTU120_CLASSES[:60] == NTU60_CLASSES
    assert len(set(NTU120_CLASSES)) == 120
    assert (NTU60_SETUPS[-1], NTU120_SETUPS[-1]) == (17, 32)


def test_a_list_of_names_may_have_a_preface_and_endings() -> None:
    text = (
        "302 of the captured samples in S001C002P005R002A008 …\r\n\r\nS001C002P005R002A008\r\nS001C002P006R001A008.skeleton\n"
    )
    assert names_in(text) == {"S001C002P005R002A008", "S001C002P006R001A008"}
