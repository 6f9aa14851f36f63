"""What the commands print of joints, and what `starlab prepare --pose` refuses before anything is estimated."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from starlab.pipelines.clip import DataError
from starlab.pipelines.estimated_joints import write_joints
from starlab.platform.errors import UserError
from starlab.platform.pose.clips import VideoFiles
from starlab.platform.pose.joints_file import PoseSettings
from starlab.platform.pose_run import file_health_lines, joints_for_store, run_extraction

SETTINGS = PoseSettings(estimator="mine", skeleton="coco", model="", long_side_px=0, every=1)


def test_a_file_of_another_program_is_looked_at_as_well(tmp_path: Path) -> None:
    joints = np.random.default_rng(0).uniform(0.2, 0.8, (9, 1, 17, 3)).astype(np.float32)
    write_joints(tmp_path / "joints.parquet", [("a", joints), ("nobody", np.zeros((4, 0, 17, 3), np.float32))])
    lines = file_health_lines(tmp_path / "joints.parquet")
    assert lines[0] == "made       by another program"
    assert lines[1] == "joints     2 clips, 13 frames, 0.7 people a frame, at most 1"
    assert "LOOK       nobody was found in 1 clip: nobody" in lines


def test_a_file_that_holds_no_joints_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        file_health_lines(tmp_path / "none.parquet")
    (tmp_path / "text.parquet").write_text("hello")
    with pytest.raises(DataError, match="cannot be read"):
        file_health_lines(tmp_path / "text.parquet")


def test_prepare_estimates_joints_of_ones_own_videos_only_and_not_beside_given_ones(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--pose is for data sets of your own \(custom\); for ntu60 use `starlab data pose"):
        joints_for_store("ntu60", tmp_path, "store", None)
    with pytest.raises(UserError, match="give --pose, or --joints and --skeleton, not both"):
        joints_for_store("custom", tmp_path, "store", "joints.parquet")


def test_a_folder_is_no_file_to_write(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is a folder: name the file to write, e\.g\. .*joints\.parquet"):
        run_extraction(VideoFiles({}), tmp_path, SETTINGS)
