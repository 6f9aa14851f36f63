"""A list says what it means, or an error names its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from starlab.pipelines.clip import DataError
from starlab.pipelines.custom.listing import LIST, is_custom, read_clips


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("a.mp4", "b.mp4", "c.mp4", "walk/a.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "pictures").mkdir()
    return tmp_path


def write_list(root: Path, *lines: str) -> None:
    (root / LIST).write_text("\n".join(lines) + "\n")


def test_a_list_gives_path_label_split_subject_part_name_and_length(root: Path) -> None:
    write_list(
        root,
        "path,label,split,subject,start,end,clip_id,frames,remark",
        "a.mp4,sit,train,ann,1:02.5,70,first,12,anything",
        " b.mp4 , stand ,Test,bob,,,,,",
        "c.mp4,sit,val,,3,,,,",
    )
    clips = {clip.path: clip for clip in read_clips(root)}
    first = clips["a.mp4"]
    assert (first.clip_id, first.label, first.split, first.subject, first.frames) == ("first", "sit", "train", "ann", 12)
    assert (first.cut.start_seconds, first.cut.end_seconds) == (62.5, 70)
    assert (clips["b.mp4"].split, clips["b.mp4"].label, clips["b.mp4"].clip_id, clips["b.mp4"].cut.is_whole) == (
        "test",
        "stand",
        "b",
        True,
    )
    assert (clips["c.mp4"].split, clips["c.mp4"].clip_id) == ("validation", "c_3-")


def test_clips_of_equal_file_names_are_told_apart_by_their_folders(root: Path) -> None:
    write_list(root, "path,label", "a.mp4,sit", "walk/a.mp4,stand")
    assert [clip.clip_id for clip in read_clips(root)] == ["a", "walk__a"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["path,label", "a.mp4,sit", "x.mp4,stand"], r"line 3: there is no .*x\.mp4; paths are relative to"),
        (["path,label", "a.mp4,sit", "b.mp4,Sit ", "c.mp4,stand"], "spelt in two ways: 'sit' .1 clips. and 'Sit' .1 clips."),
        (["path,label", "a.mp4,sit down", "b.mp4,sit_down", "c.mp4,stand"], "spelt in two ways: 'sit down'.*'sit_down'"),
        (
            ["path,label,split", "a.mp4,sit,train", "b.mp4,stand,test", "a.mp4,sit,test"],
            "lines 2 and 4: a.mp4 is in two splits",
        ),
        (
            ["path,label,split,start,end", "a.mp4,sit,train,0,5", "b.mp4,stand,test,,", "a.mp4,sit,test,4,9"],
            "lines 2 and 4: a.mp4 is in two splits, train and test",
        ),
        (
            ["path,label,split,clip_id", "a.mp4,sit,train,x", "b.mp4,stand,test,x"],
            "lines 2 and 3: clip_id 'x' is given twice in two splits",
        ),
        (["path,label", "a.mp4,sit", "a.mp4,sit", "b.mp4,stand"], "lines 2 and 3: a.mp4 is listed twice"),
        (["path,label,start,end", "a.mp4,sit,5,5", "b.mp4,stand,,"], "line 2: start is 5, which is not before end, 5"),
        (["path,label,start,end", "a.mp4,sit,7,2.5", "b.mp4,stand,,"], "line 2: start is 7, which is not before end, 2.5"),
        (["path,label,start", "a.mp4,sit,soon", "b.mp4,stand,"], "line 2: start is 'soon'; it must be seconds"),
        (["path,label,start", "a.mp4,sit,-3", "b.mp4,stand,"], "line 2: start is '-3'"),
        (["path,label,start", "pictures,sit,3", "b.mp4,stand,"], "pictures is a folder of pictures, which has no start"),
        (["path,label,split", "a.mp4,sit,train", "b.mp4,stand,holdout"], "line 3: split is 'holdout'; it must be train,"),
        (["path,label,split", "a.mp4,sit,train", "b.mp4,stand,"], "line 3: no split, but other lines have one"),
        (["path,label", "a.mp4,", "b.mp4,stand"], "line 2: no label"),
        (["path,label", "a.mp4", "b.mp4,stand"], "line 2: it does not have as many values"),
        (["path,label", "a.mp4,sit,3", "b.mp4,stand"], "line 2: it does not have as many values"),
        (["path,labels", "a.mp4,sit"], "unknown column 'labels'; did you mean 'label'"),
        (["path;label", "a.mp4;sit"], "no column 'path' .columns are separated by commas.|did you mean"),
        (["file,label", "a.mp4,sit"], "no column 'path'"),
        (["path,label,frames", "a.mp4,sit,many", "b.mp4,stand,"], "line 2: frames is 'many'"),
        (["path,label,clip_id", "a.mp4,sit,x/y", "b.mp4,stand,"], "clip_id is 'x/y'; it must have no slash"),
        (["path,label", "a.mp4,sit", "b.mp4,sit"], "1 class .'sit'.; give 2 or more"),
        (["path,label"], "lists no clip"),
        (["path,label", "clips.csv,sit", "b.mp4,stand"], "clips.csv is neither a folder of pictures nor a video"),
    ],
)
def test_a_mistake_in_a_list_is_an_error_that_names_it(root: Path, lines: list[str], message: str) -> None:
    write_list(root, *lines)
    with pytest.raises(DataError, match=message):
        read_clips(root)


def test_the_number_of_missing_files_is_said(root: Path) -> None:
    write_list(root, "path,label", "x.mp4,sit", "y.mp4,stand", "a.mp4,sit")
    with pytest.raises(DataError, match=r"line 2: there is no .*x\.mp4 \(2 of 3 clips are missing\)"):
        read_clips(root)


def test_two_parts_of_one_video_may_be_in_two_splits_where_they_do_not_overlap(root: Path) -> None:
    write_list(root, "path,label,split,start,end", "a.mp4,sit,train,0,5", "a.mp4,stand,test,5,9")
    assert [clip.clip_id for clip in read_clips(root)] == ["a_0-5", "a_5-9"]


def test_one_folder_per_class_needs_no_list_and_folders_of_pictures_are_clips(tmp_path: Path) -> None:
    for name in ("sit/a.mov", "sit/deep/b.webm", "stand/x/1.jpg", "stand/x/2.jpg", "stand/.c.mp4", "sit/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert is_custom(tmp_path)
    clips = read_clips(tmp_path)
    assert [(clip.path, clip.label, clip.split) for clip in clips] == [
        ("sit/a.mov", "sit", None),
        ("sit/deep/b.webm", "sit", None),
        ("stand/x", "stand", None),
    ]


@pytest.mark.parametrize(
    ("folders", "splits"),
    [
        (("train", "test"), {"train", "test"}),
        (("train", "val"), {"train", "test"}),
        (("Train", "val", "test"), {"train", "validation", "test"}),
    ],
)
def test_folders_that_are_called_train_and_test_are_the_splits(
    tmp_path: Path, folders: tuple[str, ...], splits: set[str]
) -> None:
    for folder in folders:
        for label in ("sit", "stand"):
            path = tmp_path / folder / label / f"{folder}.mp4"
            path.parent.mkdir(parents=True)
            path.write_bytes(b"")
    clips = read_clips(tmp_path)
    assert {clip.split for clip in clips} == splits
    assert {clip.label for clip in clips} == {"sit", "stand"}


def test_a_folder_without_any_video_says_what_to_do(tmp_path: Path) -> None:
    assert not is_custom(tmp_path)
    with pytest.raises(DataError, match=r"no folder per class with videos .*starlab data init"):
        read_clips(tmp_path)
    with pytest.raises(DataError, match="no folder at"):
        read_clips(tmp_path / "nowhere")
