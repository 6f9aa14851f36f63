"""The data are opened while Ray starts."""

import threading
from pathlib import Path

import pytest

from starlab.experiments.spec import load_spec
from starlab.pipelines.clip import DataError
from starlab.platform import preflight
from starlab.platform.cluster.connect import Cluster
from starlab.platform.errors import UserError

REMOTE = Cluster(local=False, nodes=2, cpus=4.0, gpus=0.0, accelerators=())
SMALL = ["data.synthetic.train_clips_per_class=2", "data.synthetic.test_clips_per_class=1", "data.synthetic.size_px=32"]


def test_ray_does_not_start_for_data_that_are_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "connect", lambda: pytest.fail("Ray would start"))
    monkeypatch.setattr(preflight, "_REFUSAL_SECONDS", 60.0)  # on a busy machine a missing folder may take longer to find
    spec = load_spec("penn_action", [f"data.store={tmp_path / 'nothing'}"])
    with pytest.raises(DataError, match="nothing"):
        preflight.open_data_while_ray_starts(spec, tmp_path, print)


def test_ray_starts_before_the_data_are_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, connected, open_data = load_spec("demo", SMALL), threading.Event(), preflight.open_data

    def open_once_connected(*arguments: object) -> object:
        assert connected.wait(60)
        return open_data(*arguments)  # type: ignore[arg-type]

    def connect() -> Cluster:
        connected.set()
        return REMOTE

    monkeypatch.setattr(preflight, "open_data", open_once_connected)
    monkeypatch.setattr(preflight, "connect", connect)
    _, parts = preflight.open_data_while_ray_starts(spec, tmp_path, lambda _: None)
    assert len(parts.test) == 10


def test_a_cluster_that_cannot_be_joined_is_an_error_whatever_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def connect() -> Cluster:
        raise UserError("no Ray cluster there")

    monkeypatch.setattr(preflight, "open_data", lambda *_: threading.Event().wait())
    monkeypatch.setattr(preflight, "connect", connect)
    with pytest.raises(UserError, match="no Ray cluster there"):
        preflight.open_data_while_ray_starts(load_spec("demo", SMALL), tmp_path, lambda _: None)
