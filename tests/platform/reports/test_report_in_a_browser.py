"""The page of a report in headless Chromium: pictures in four settings, and print. Skipped where there is no Chromium."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import cv2
import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed; Debian: apt-get install chromium"),
]
PROBE = """<script>addEventListener("load", () => {
  const button = document.querySelector("table.sortable th.number button"), table = button.closest("table");
  const column = button.closest("th").cellIndex, values = () => [...table.tBodies[0].rows].map(
    (row) => row.cells[column].dataset.value ?? "").filter((value) => value !== "").map(Number);
  button.click(); const up = values(); button.click(); const down = values();
  const sorted = up.every((value, i) => !i || up[i - 1] <= value) && down.every((value, i) => !i || down[i - 1] >= value);
  document.body.dataset.probe = [document.documentElement.scrollWidth, innerWidth, sorted].join(" ");
});</script>"""


def chromium(profile: Path, *arguments: str) -> str:
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={profile}"]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=120, check=True)
    return done.stdout


@pytest.mark.parametrize("kind", ["run", "search", "ablation"])
def test_no_width_scrolls_sideways_and_heads_sort(kind: str, reports: dict[str, Path], tmp_path: Path) -> None:
    page = reports[kind].read_text()
    for width in (1440, 390):
        # A window of Chromium is at least 500 pixels wide, so the narrow page is shown in a frame.
        inner = tmp_path / f"{width}.html"
        inner.write_text(page.replace("</body>", f"{PROBE}</body>"))
        outer = tmp_path / f"frame-{width}.html"
        outer.write_text(
            f'<iframe id="f" src="{inner.name}" style="border:0;width:{width}px;height:3000px"></iframe><script>'
            'addEventListener("load", () => setTimeout(() => document.body.dataset.probe = '
            'document.getElementById("f").contentDocument.body.dataset.probe, 200))</script>'
        )
        options = ("--allow-file-access-from-files", "--virtual-time-budget=3000", "--window-size=1500,3000")
        shown = chromium(tmp_path / "profile", *options, "--dump-dom", outer.as_uri())
        found = re.search(r'data-probe="(\d+) (\d+) (\w+)"', shown)
        assert found, shown[-500:]
        assert int(found[1]) <= int(found[2]) == width
        assert found[3] == "true"


def test_a_dark_setting_gives_a_dark_page(reports: dict[str, Path], tmp_path: Path) -> None:
    brightness = {}
    for name, options in (("light", ()), ("dark", ("--blink-settings=preferredColorScheme=0",))):
        picture = tmp_path / f"{name}.png"
        size = "--window-size=1440,2000"
        chromium(tmp_path / "profile", *options, size, f"--screenshot={picture}", reports["ablation"].as_uri())
        brightness[name] = cv2.imread(os.fspath(picture)).mean()
    assert brightness["light"] > 200
    assert brightness["dark"] < 80


def test_it_prints(reports: dict[str, Path], tmp_path: Path) -> None:
    target = tmp_path / "page.pdf"
    chromium(tmp_path / "profile", f"--print-to-pdf={target}", reports["ablation"].as_uri())
    assert target.read_bytes().startswith(b"%PDF")
    assert 10_000 < target.stat().st_size < 3_000_000
