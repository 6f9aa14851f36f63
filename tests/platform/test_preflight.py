"""The data are opened while Ray starts."""

import threading
from pathlib import Path

import pytest

from starlab.experiments.spec import load_spec, spec_from_dict
from starlab.pipelines.clip import DataError
from starlab.platform import preflight
from starlab.platform.cluster import controllers
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
    ahead: list[bool] = []
    monkeypatch.setattr(preflight, "connect", connect)
    monkeypatch.setattr(controllers, "start_ahead", lambda *, streams: ahead.append(streams))
    _, parts = preflight.open_data_while_ray_starts(spec, tmp_path, lambda _: None)
    assert len(parts.test) == 10
    assert ahead == [True]


def test_the_trainer_is_imported_once_the_data_are_open_and_a_mistake_in_that_is_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    def imports() -> None:
        done.append("imports")
        raise ImportError("a library is broken")

    monkeypatch.setattr(preflight, "open_data", lambda *_: done.append("data"))
    monkeypatch.setattr(preflight, "connect", lambda: REMOTE)
    monkeypatch.setattr(controllers, "start_ahead", lambda *, streams: None)
    with pytest.raises(ImportError, match="a library is broken"):
        preflight.open_data_while_ray_starts(load_spec("demo", SMALL), tmp_path, print, then=imports)
    assert done == ["data", "imports"]


def test_nothing_is_opened_ahead_for_a_run_that_starts_from_other_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "open_data_while_ray_starts", lambda *_, **__: pytest.fail("Ray would start"))
    spec = load_spec("demo", [*SMALL, "train.init_from=another"])
    assert preflight.open_ahead(spec, tmp_path, fresh=False, say=print) is None


def test_a_cluster_that_cannot_be_joined_is_an_error_whatever_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def connect() -> Cluster:
        raise UserError("no Ray cluster there")

    monkeypatch.setattr(preflight, "open_data", lambda *_: threading.Event().wait())
    monkeypatch.setattr(preflight, "connect", connect)
    with pytest.raises(UserError, match="no Ray cluster there"):
        preflight.open_data_while_ray_starts(load_spec("demo", SMALL), tmp_path, lambda _: None)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["model.pose=learned", "train.cutmix=1"], "use train.cutmix=0"),
        (["model.pose=learned", "data.person_crop=0"], "use data.person_crop=null"),
        (["data.joint_drop=0.5", "data.person_crop=0.25"], "crops to the joints before"),
    ],
)
def test_a_model_is_not_told_joints_that_it_must_do_without_but_a_stored_run_of_it_can_be_read(
    overrides: list[str], said: str
) -> None:
    spec = load_spec("demo", overrides)
    assert spec_from_dict(spec.to_dict(), "stored") == spec
    with pytest.raises(UserError, match=said):
        preflight.check_spec(spec)


LEARNED = ("model.pose=learned", "train.action_loss_weight=0")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["train.action_loss_weight=0.5"], "train.action_loss_weight is 0.5, but model.pose is 'annotated'"),
        ([*LEARNED, "data.select=last", "train.pose_loss_weight=0"], "nothing would be learned"),
        ([*LEARNED, "data.select=validation"], "use data.select=last"),
    ],
)
def test_losses_by_which_nothing_would_be_learned_or_chosen_are_refused(overrides: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        preflight.check_losses(load_spec("demo", overrides))


def test_the_joints_may_be_learned_without_the_actions_and_beside_them() -> None:
    for overrides in ([*LEARNED, "data.select=last"], ["model.pose=learned", "train.action_loss_weight=0.5"], []):
        preflight.check_losses(load_spec("demo", overrides))
