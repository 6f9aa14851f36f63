"""By which code and device a run was made: also on a cluster, and after it went on under other code."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch

from starlab.platform import package
from starlab.platform.runs import provenance
from starlab.platform.runs.events import read_events
from starlab.platform.runs.folder import RunFolder
from starlab.platform.runs.jsonl import read_lines
from starlab.platform.runs.provenance import DEVICE, FILE, note_device, note_start
from starlab.platform.runs.records import RunInfo


def entries(folder: RunFolder) -> list[dict[str, str]]:
    return [line["tags"] for line, _ in read_lines(folder.path / FILE)]


def test_a_start_under_other_code_or_libraries_is_appended_and_announced_and_one_under_the_same_is_not(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    first = {"starlab.code": "abc", "starlab.version.torch": "2.14.0", "starlab.git_commit": "c0ffee"}
    for tags in (first, first, first | {"starlab.code": "def"}, first | {"starlab.code": "def"}, first):
        note_start(folder, tags)
    assert entries(folder) == [first, {"starlab.code": "def"}, {"starlab.code": "abc"}]
    assert [(event.kind, event.says) for event in read_events(tmp_path)] == [
        ("changed", "the run goes on with code abc → def; see provenance.jsonl"),
        ("changed", "the run goes on with code def → abc; see provenance.jsonl"),
    ]


def test_the_device_of_a_run_is_the_one_that_trains_and_not_the_drivers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder(tmp_path)
    tags = {DEVICE: "8 x the driver's CPU", "starlab.code": "abc"}
    named = {"run_id": "r", "key": "k", "experiment": "e", "mlflow_experiment": "e", "tracking_uri": "u", "runs": "/r"}
    folder.write(RunInfo(**named, status="RUNNING", tags=tags))  # type: ignore[arg-type]
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla V100")
    note_device(folder, 4, torch.device("cuda:0"))
    assert folder.info.tags == {DEVICE: "4 x Tesla V100", "starlab.code": "abc"}
    monkeypatch.setattr(provenance, "device_name", lambda: "2 x a CPU")
    note_device(folder, 2, torch.device("cpu"))
    assert folder.info.tags[DEVICE] == "2 x a CPU"
    assert entries(folder) == [{DEVICE: "4 x Tesla V100"}, {DEVICE: "2 x a CPU"}]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A small checkout with one commit."""
    root = tmp_path / "checkout"
    (root / "models").mkdir(parents=True)
    (root / "pyproject.toml").touch()
    (root / "models" / "a.py").write_text("1")
    git(root, "init", "-q")
    git(root, "add", "-A")
    git(root, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "one")
    return root


def git(root: Path, *words: str) -> str:
    return subprocess.run(["git", "-C", str(root), *words], check=True, capture_output=True, text=True).stdout.strip()


@pytest.mark.parametrize("edited", [False, True])
def test_commit_and_dirty_flag_travel_with_the_copy_for_a_cluster(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, edited: bool
) -> None:
    if edited:
        (checkout / "models" / "a.py").write_text("2")
    monkeypatch.setattr(package, "package_root", lambda: checkout)
    copy = tmp_path / "job"
    copy.mkdir()
    package.copy_package(copy)
    expected = (git(checkout, "rev-parse", "HEAD"), str(edited).lower())
    assert package.source_commit(checkout) == expected
    assert package.source_commit(copy / "starlab") == expected


def test_a_package_that_is_installed_has_no_commit(tmp_path: Path) -> None:
    assert package.source_commit(tmp_path / "site-packages" / "starlab") == (None, "unknown")
