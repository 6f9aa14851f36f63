"""The page of the service in headless Chromium: a video is uploaded, and its timeline appears. Skipped without Chromium."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import threading
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import uvicorn
from fastapi.responses import FileResponse, HTMLResponse
from numpy.typing import NDArray

from starlab.platform.serving.limits import Limits
from starlab.platform.serving.recogniser import Recogniser
from starlab.platform.serving.service import make_app
from starlab.platform.serving.windows import Clip

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("multipart") is None, reason="needs the extra: pip install 'starlab[serve]'"),
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed; Debian: apt-get install chromium"),
]
PROBE = """<script>addEventListener("load", async () => {
  const put = async (id, name) => {
    const files = new DataTransfer();
    files.items.add(new File([await (await fetch(`/files/${name}`)).blob()], name));
    document.getElementById(id).files = files.files;
  };
  await put("video", "VIDEO"); await put("joints", "joints.parquet");
  document.getElementById("form").requestSubmit();
  const wait = setInterval(() => {
    const says = document.getElementById("says"), player = document.getElementById("player");
    const done = !document.getElementById("stage").hidden && player.readyState >= 1;
    if (!done && !says.classList.contains("problem")) return;
    clearInterval(wait);
    if (done) { player.currentTime = 1.0; move(); }
    document.body.dataset.bars = document.querySelectorAll(".bar").length;
    document.body.dataset.rows = document.querySelectorAll(".row").length;
    document.body.dataset.says = says.textContent;
    document.body.dataset.length = player.duration;
    document.body.dataset.cursor = document.getElementById("cursor").style.left;
    document.body.dataset.now = document.querySelectorAll("#now span").length;
  }, 50);
});</script>"""


class Local:
    def __init__(self, recogniser: Recogniser) -> None:
        self._recogniser = recogniser

    async def logits(self, clip: Clip) -> NDArray[np.float32]:
        return self._recogniser.logits(clip.frames[None], clip.joints[None])[0]


def shown(recogniser: Recogniser, folder: Path, video: str, profile: Path) -> dict[str, str]:
    """What the page's own script found after it sent the video."""
    app = make_app(recogniser, Local(recogniser), Limits())
    page = next(route.endpoint for route in app.routes if getattr(route, "path", "") == "/")

    @app.get("/probe", response_class=HTMLResponse)
    def probe() -> str:
        return page() + PROBE.replace("VIDEO", video)

    @app.get("/files/{name}")
    def file(name: str) -> FileResponse:
        return FileResponse(folder / name)

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    try:
        command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}"]
        command += ["--virtual-time-budget=20000", "--dump-dom", f"http://127.0.0.1:{port}/probe"]
        dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    finally:
        server.should_exit = True
        thread.join()
    return dict(re.findall(r'data-(\w+)="([^"]*)"', dom))


def test_the_timeline_of_each_person_appears_over_the_video(recogniser: Recogniser, videos: Path, tmp_path: Path) -> None:
    found = shown(recogniser, videos, "two.mp4", tmp_path)
    assert found["says"] == "40 frames, 1.9 s" or found["says"] == "40 frames, 2.0 s"
    assert found["rows"] == "2"
    assert int(found["bars"]) >= 2
    assert float(found["length"]) == pytest.approx(2.0, abs=0.1)
    assert found["now"] == "2"
    assert float(found["cursor"].rstrip("%")) == pytest.approx(50, abs=5)


def test_a_refusal_is_shown(recogniser: Recogniser, videos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "bad.mp4").write_bytes(b"garbage" * 100)
    shutil.copy(videos / "joints.parquet", folder)
    found = shown(recogniser, folder, "bad.mp4", tmp_path / "profile")
    assert found["says"].startswith("bad.mp4 cannot be read as a video")
    assert found["bars"] == "0"
