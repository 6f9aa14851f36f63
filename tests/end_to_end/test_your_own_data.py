"""The page "Your own data in ten minutes" is run word by word."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import av
import pytest

from starlab.pipelines.generated.penn_action import SyntheticConfig, draw_clip

PAGE = Path(__file__).parents[2] / "docs" / "your_own_data.md"
CLASSES = {"clap": "raise_left_then_right", "jump": "squat_then_wave", "wave": "swing_red_ball"}
"""What people do in the folder of each class."""


def commands() -> list[str]:
    blocks = re.findall(r"^```sh\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line]


def write_videos(root: Path, clips_per_class: int) -> None:
    for label, action in CLASSES.items():
        (root / label).mkdir(parents=True)
        for number in range(clips_per_class):
            frames = draw_clip(
                SyntheticConfig(size_px=64, min_frames=30, max_frames=36), action, "train", number, number
            ).render()
            with av.open(str(root / label / f"{number:02d}.mp4"), "w") as container:
                stream = container.add_stream("libx264", rate=25)
                stream.width = stream.height = 64
                stream.pix_fmt, stream.thread_count = "yuv420p", 1
                for frame in frames:
                    container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
                container.mux(stream.encode())


def test_the_page_has_each_step_once() -> None:
    verbs = [" ".join(re.findall(r"^starlab (\w+(?: (?:init|stats|show))?)", line)) for line in commands()]
    assert verbs == ["data init", "prepare", "verify", "data stats", "data show", "train", "train", "evaluate", "report"]


@pytest.mark.longer
def test_the_page_leads_from_a_folder_of_videos_to_a_recogniser(tmp_path: Path) -> None:
    write_videos(tmp_path / "my_videos", clips_per_class=5)
    environment = dict(os.environ) | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    environment.pop("STARLAB_RUNS", None)
    said = []
    for command in commands():
        done = subprocess.run(
            command, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=280, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        said.append(done.stdout)
    assert "15 of 15 videos can be read" in said[0]
    assert "15 clips, " in said[1]
    assert "Clips of one person or one place may be on both sides" in said[1]
    [run] = (tmp_path / "runs").glob("my_videos-*")
    result = json.loads((run / "result.json").read_text())
    assert result["test"]["top1"] > 1 / 3, "better than chance on three clips"
    assert (tmp_path / "clip.png").is_file()
    assert list(run.rglob("report.html"))
