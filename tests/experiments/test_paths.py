"""Paths are made absolute where they are typed."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

from starlab.experiments.paths import absolute, resolve_overrides
from starlab.experiments.sections import TrackingConfig
from starlab.experiments.spec import load_spec, override_spec


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("data", "here/data"), ("../data", "data"), ("~/data", "home/data"), ("/data", None), ("s3://bucket/data", None)],
)
def test_a_path_means_the_place_where_it_was_typed(here: Path, typed: str, meant: str | None) -> None:
    expected = str(here / meant) if meant else typed
    assert absolute(typed) == expected
    spec = load_spec("demo", [f"data.store={typed}", f"resources.checkpoints={typed}"])
    assert (spec.data.store, spec.resources.checkpoints) == (expected, expected)
    assert override_spec(load_spec("demo"), [f"data.store={typed}"], ["data.store"], "run").data.store == expected
    assert resolve_overrides(["train", f"data.store={typed}"]) == ["train", f"data.store={expected}"]


def test_a_path_in_a_file_and_no_path_at_all(here: Path) -> None:
    Path("mine.yaml").write_text("base: demo\ndata: {store: ~/people}")
    assert load_spec("mine.yaml").data.store == str(here / "home" / "people")
    assert load_spec("demo").data.store is None
    assert load_spec("demo", ["data.store=null"]).data.store is None
    assert resolve_overrides(["data.store=null", "model.dim=8", "x"]) == ["data.store=null", "model.dim=8", "x"]


@pytest.mark.parametrize("name", ["runs", "my runs", "o?d%20 #ä", "100%"])
def test_a_folder_of_runs_holds_its_own_database_whatever_its_name(here: Path, name: str) -> None:
    database = here / name / "mlflow.db"
    assert make_url(TrackingConfig().address(here / name)).database == str(database)
    if name == "my runs":  # an address that worked before stays the same: runs are found by it
        assert TrackingConfig().address(here / name) == f"sqlite:///{database}"
