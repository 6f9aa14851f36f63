"""The command line as a user meets it: mistakes are named and mended, results are said where they are."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from starlab.platform import cli

SMALL = [
    "data.synthetic.train_clips_per_class=6",
    "data.synthetic.test_clips_per_class=3",
    "data.synthetic.size_px=48",
    "data.frames=4",
    "data.size=24",
    "model.dim=16",
    "model.heads=2",
    "train.epochs=1",
]


def starlab(*arguments: str, runs: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "starlab.platform.cli", *arguments, "--runs", str(runs)]
    return subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)


@pytest.fixture
def half_there(tmp_path: Path) -> Path:
    (tmp_path / "half" / "labels").mkdir(parents=True)
    return tmp_path / "half"


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    (tmp_path / "empty" / "labels").mkdir(parents=True)
    (tmp_path / "empty" / "frames").mkdir()
    return tmp_path / "empty"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "demos"], "unknown experiment 'demos'; did you mean 'demo'"),
        (["train", "demo", "train.epoch=3"], "unknown key 'train.epoch'; did you mean 'train.epochs'?"),
        (["train", "demo", "train.epochs=many"], "train.epochs is 'many'; it must be a valid number"),
        (["train", "demo", "data.frames=15"], "data.frames is 15; it must be even"),
        (["train", "penn_action", "model.weights=none", "data.store={tmp}/nowhere"], "{tmp}/nowhere"),
        (["train", "penn_action", "model.weights=none", "data.store={tmp}/empty"], "{tmp}/empty/labels"),
        (["train", "penn_action", "model.weights=none", "data.store={tmp}/half"], "{tmp}/half/frames"),
        (["train", "penn_action", "model.weights_path={tmp}/mc3_18-0badf00d.pth"], "download"),
        (["search", "demo"], "nothing to search"),
        (["search", "demo_search", "space.model.layer={{int: [1, 2]}}"], "unknown key"),
        (["compare", "nothing"], "no run or experiment 'nothing'"),
        (["sync", "nothing"], "no run or experiment 'nothing'"),
        (["ui"], "nothing was recorded there yet"),
    ],
)
@pytest.mark.usefixtures("half_there", "empty")
def test_a_mistake_ends_with_code_2_a_message_and_nothing_written(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(tmp_path.rglob("*"))
    words = [word.format(tmp=tmp_path) for word in arguments]
    monkeypatch.setattr(sys, "argv", ["starlab", *words, "--runs", str(tmp_path / "runs")])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr()
    assert ended.value.code == 2
    assert message.format(tmp=tmp_path) in said.err
    assert "Traceback" not in said.err + said.out
    assert sorted(tmp_path.rglob("*")) == before


def test_a_mistake_in_a_process_of_its_own_ends_with_code_2_and_one_line(tmp_path: Path) -> None:
    ended = starlab("train", "demo", "model.layer=3", runs=tmp_path / "runs")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == "starlab: demo.yaml: unknown key 'model.layer'; did you mean 'model.layers'?\n"
    assert not (tmp_path / "runs").exists()


def test_the_demo_in_small_ends_by_naming_the_accuracy_the_mlflow_run_and_how_to_look_at_it(tmp_path: Path) -> None:
    first = starlab("demo", *SMALL, runs=tmp_path)
    assert first.returncode == 0, first.stderr
    *_, accuracy, run, mlflow, look = first.stdout.strip().splitlines()
    assert re.match(r"test top-1 \d\.\d{3}, mean class", accuracy)
    assert str(tmp_path / "demo-") in run
    assert re.search(r"MLflow +run [0-9a-f]{32} in sqlite:", mlflow)
    assert look.endswith(f"starlab ui --runs {tmp_path}")
    for action in ("squat_then_wave", "knees_up_behind_panel"):
        assert action in first.stdout
    assert "epoch   1/1" in first.stdout

    again = starlab("demo", *SMALL, runs=tmp_path)
    assert again.returncode == 0
    assert "complete already" in again.stdout
    assert accuracy.split("  (")[0] in again.stdout

    table = starlab("compare", "demo", runs=tmp_path)
    assert table.returncode == 0
    assert Path(run.split()[1]).name in table.stdout
    assert f"{100 * float(accuracy.split()[2].rstrip(',')):.1f}" in table.stdout
