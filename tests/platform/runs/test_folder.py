"""Tests the place of a run's checkpoints: fixed when the run is created, and not shared with another run."""

import dataclasses
from pathlib import Path

import pytest

from starlab.experiments.spec import Spec, load_spec
from starlab.pipelines.clip import ClipSource
from starlab.pipelines.generated.penn_action import write_penn_action
from starlab.platform.errors import UserError
from starlab.platform.preflight import open_data
from starlab.platform.runs.folder import RunFolder, find_runs
from starlab.platform.runs.lifecycle import open_run


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> tuple[Spec, ClipSource]:
    root = tmp_path_factory.mktemp("people")
    small = ["train_clips_per_class=3", "test_clips_per_class=2", "size_px=32"]
    spec = load_spec("demo", [f"data.store={root / 'people'}", *(f"data.synthetic.{value}" for value in small)])
    write_penn_action(root / "people", spec.data.synthetic, workers=1)
    return spec, open_data(spec, root, lambda _: None)[0]


def opened(people: tuple[Spec, ClipSource], runs: Path, checkpoints: str | None) -> RunFolder:
    spec, source = people
    spec = dataclasses.replace(spec, resources=dataclasses.replace(spec.resources, checkpoints=checkpoints))
    folder = RunFolder(runs / "demo-1")
    open_run(folder, spec, source, runs, parent=None)
    return folder


def test_a_continued_run_keeps_the_place_of_its_checkpoints_and_refuses_another(
    people: tuple[Spec, ClipSource], tmp_path: Path
) -> None:
    place = str(opened(people, tmp_path, f"file://{tmp_path}/bucket").stored_checkpoints)
    assert place.startswith(f"file://{tmp_path}/bucket/demo-1-")
    assert str(opened(people, tmp_path, None).stored_checkpoints) == place
    assert str(opened(people, tmp_path, f"file://{tmp_path}/bucket").stored_checkpoints) == place
    with pytest.raises(UserError, match=r"keeps its checkpoints in file://.*--fresh"):
        opened(people, tmp_path, "elsewhere")
    assert str(RunFolder(tmp_path / "demo-1").stored_checkpoints) == place


def test_runs_of_the_same_name_have_separate_folders_of_checkpoints(people: tuple[Spec, ClipSource], tmp_path: Path) -> None:
    bucket = f"file://{tmp_path}/bucket"
    first = opened(people, tmp_path / "a", bucket)
    elsewhere = opened(people, tmp_path / "b", bucket)
    kept = RunFolder(first.set_aside())
    fresh = opened(people, tmp_path / "a", bucket)
    assert find_runs(tmp_path / "a", "demo", print) == [
        fresh
    ]  # the name of the experiment does not select a run that was set aside
    assert find_runs(tmp_path / "a", kept.path.name, print) == [kept]
    places = {str(folder.stored_checkpoints) for folder in (kept, elsewhere, fresh)}
    assert len(places) == 3


def test_a_relative_folder_for_checkpoints_is_stored_as_an_absolute_path(
    people: tuple[Spec, ClipSource], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = opened(people, tmp_path / "runs", "kept")
    monkeypatch.chdir("/")
    assert str(folder.stored_checkpoints).startswith(f"{tmp_path}/kept/demo-1-")


def test_an_address_that_cannot_be_opened_is_refused_before_the_run_is_recorded(
    people: tuple[Spec, ClipSource], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"resources.checkpoints is 's4://bucket/x', which cannot be opened"):
        opened(people, tmp_path, "s4://bucket/x")
    assert not (tmp_path / "demo-1" / "run.json").exists()


def test_a_trial_is_found_by_its_name(people: tuple[Spec, ClipSource], tmp_path: Path) -> None:
    trial = opened(people, tmp_path / "demo_search-1" / "trials", None)
    assert find_runs(tmp_path, "demo-1", print) == [trial]
