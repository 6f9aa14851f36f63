"""A run that starts from another model: what is taken, what begins new, what counts for its identity, what is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from starlab.experiments.ablation import Row, load_ablation
from starlab.experiments.spec import Spec, SpecError, load_spec, spec_from_dict
from starlab.models.star import StarTransformer
from starlab.platform.errors import UserError
from starlab.platform.evaluation import evaluate_run
from starlab.platform.recipe.optimizer import make_optimizer
from starlab.platform.runs.folder import SPEC, RunFolder
from starlab.platform.runs.records import InitialWeights, Result
from starlab.platform.serving.initial_weights import digest_of, initial_lines, place_initial_weights, with_digest, with_digests
from starlab.platform.serving.promotion import promote
from starlab.platform.serving.recogniser import locate, locate_recogniser
from starlab.platform.serving.registry import load_model
from starlab.platform.summary import evaluation_lines, result_lines
from starlab.platform.trainer import RunResult, train
from starlab.platform.worker.initial_weights import copy_weights


def small_model(**changes: object) -> StarTransformer:
    config = load_spec("demo", ["model.dim=16", "model.heads=2", "data.frames=4"]).model
    return StarTransformer(dataclasses.replace(config, **changes))


def spec_from(path: Path | str, *overrides: str) -> Spec:
    return load_spec("demo", ["model.dim=16", "model.heads=2", "data.frames=4", f"train.init_from={path}", *overrides])


def test_what_fits_is_taken_and_the_head_and_the_joints_positions_begin_new(tmp_path: Path) -> None:
    other = small_model(num_classes=7, num_joints=25, max_bodies=2)
    save_file(other.state_dict(), tmp_path / "ntu.safetensors")
    spec = with_digest(spec_from(tmp_path / "ntu.safetensors"), tmp_path)
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    record = place_initial_weights(folder, spec, tmp_path)
    assert record is not None
    assert set(record.new) == {"head.3.weight", "head.3.bias", "tokens.joint_tokens.pos"}
    assert record.new["tokens.joint_tokens.pos"] == "(25, 16) there, (13, 16) here"
    assert record.unused == ("tokens.joint_tokens.body",)
    assert folder.read(InitialWeights) == record
    lines = "\n".join(initial_lines(record, 0.1))
    assert f"{len(record.taken)} of {len(record.taken) + 3} weights from" in lines
    assert "at 0.1 times the learning rate" in lines
    assert "new: head.3.weight ((7, 16) there, (10, 16) here)" in lines
    model = small_model()
    begun = {name: value.clone() for name, value in model.state_dict().items()}
    taken = copy_weights(model, folder.path / "initial.safetensors", frozenset(record.taken), freeze=False)
    for name, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[name] if name in taken else begun[name]), name


def test_the_identity_follows_the_weights_and_not_their_name(tmp_path: Path) -> None:
    one, other = small_model().state_dict(), small_model().state_dict()
    for name, state in (("a", one), ("b", one), ("c", other)):
        save_file(state, tmp_path / f"{name}.safetensors")
    a, b, c = (with_digest(spec_from(tmp_path / f"{name}.safetensors"), tmp_path) for name in "abc")
    assert a.train.init_digest == digest_of(one)
    assert a.run_id("x") == b.run_id("x") != c.run_id("x")
    scratch = dataclasses.replace(a, train=dataclasses.replace(a.train, init_from=None, init_digest=None))
    assert scratch.run_id("x") != a.run_id("x")
    assert spec_from("a.safetensors").run_id("x") != scratch.run_id("x")  # also before the digest is known


def test_weights_that_changed_under_the_same_name_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(small_model().state_dict(), path)
    spec = with_digest(spec_from(path), tmp_path)
    save_file(small_model().state_dict(), path)
    (tmp_path / "run").mkdir()
    with pytest.raises(UserError, match=r"whose weights have the digest .* but train.init_digest is"):
        place_initial_weights(RunFolder(tmp_path / "run"), spec, tmp_path)


def test_a_run_that_has_its_weights_needs_their_origin_no_more(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(small_model().state_dict(), path)
    spec = with_digest(spec_from(path), tmp_path)
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    first = place_initial_weights(folder, spec, tmp_path)
    path.unlink()
    assert place_initial_weights(folder, spec, tmp_path) == first
    assert with_digest(spec, tmp_path) == spec


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("nowhere.safetensors", "train.init_from is .*nowhere.safetensors, which cannot be read as safetensors"),
        ("no-such-run", "train.init_from is 'no-such-run': no run or experiment 'no-such-run'"),
        ("demo_pretrain_joints", r"has no run under .* yet; train it first: starlab train demo_pretrain_joints$"),
        ("demo_temporal", r"no run or experiment 'demo_temporal' .* start one with: starlab demo$"),
    ],
)
def test_a_model_that_does_not_exist_is_refused(tmp_path: Path, name: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        with_digest(spec_from(name), tmp_path)


def test_an_ablation_knows_the_digests_of_the_models_that_its_base_and_its_rows_start_from(tmp_path: Path) -> None:
    digests = {}
    for name in ("base", "row"):
        state = small_model().state_dict()
        save_file(state, tmp_path / f"{name}.safetensors")
        digests[name] = digest_of(state)
    read = load_ablation("demo_temporal", ["data.select=last", f"train.init_from={tmp_path / 'base.safetensors'}"])
    own = {"train.init_from": str(tmp_path / "row.safetensors")}
    rows = (Row(name="of the base"), Row(name="its own", set=own), Row(name="none", set={"train.init_from": None}))
    filled = with_digests(dataclasses.replace(read, rows=rows), tmp_path)
    found = [filled.spec_of(row, 0).train.init_digest for row in filled.rows]
    assert found == [digests["base"], digests["row"], None]
    (tmp_path / "row.safetensors").unlink()
    assert with_digests(filled, tmp_path) == filled  # which a digest in the file is enough for


def test_an_ablation_goes_on_with_the_digest_that_it_stored_when_the_model_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "row.safetensors"
    save_file(small_model().state_dict(), path)
    read = load_ablation("demo_temporal")
    rows = (Row(name="none"), Row(name="started", set={"train.init_from": str(path)}))
    spec = dataclasses.replace(read, rows=rows, reference="none")
    filled = with_digests(spec, tmp_path)
    path.unlink()
    with pytest.raises(UserError, match=r"cannot be read .*; a row can name another model, in a copy of the experiment's file"):
        with_digests(spec, tmp_path)
    for number, stored in enumerate((filled.to_dict(), filled.base.to_dict())):
        (tmp_path / f"demo_temporal-{number}").mkdir()
        (tmp_path / f"demo_temporal-{number}" / SPEC).write_text(json.dumps(stored))
    assert with_digests(spec, tmp_path) == filled


def test_rows_that_start_from_the_same_weights_by_two_names_are_refused(tmp_path: Path) -> None:
    rows = []
    state = small_model().state_dict()
    for name in ("one", "other"):
        save_file(state, tmp_path / f"{name}.safetensors")
        rows.append(Row(name=name, set={"train.init_from": str(tmp_path / f"{name}.safetensors")}))
    spec = dataclasses.replace(load_ablation("demo_temporal"), rows=tuple(rows), reference="one")
    with pytest.raises(UserError, match=r"rows 'one' and 'other' start from the same weights"):
        with_digests(spec, tmp_path)


def test_a_file_that_is_not_safetensors_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "pickle.safetensors"
    path.write_bytes(b"\x80\x04cos\nsystem\n" + bytes(100))
    with pytest.raises(UserError, match=r"cannot be read as safetensors"):
        with_digest(spec_from(path), tmp_path)


def test_a_model_without_any_weight_that_fits_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"something": torch.zeros(3)}, path)
    (tmp_path / "run").mkdir()
    with pytest.raises(UserError, match=r"no weight of train.init_from=.* fits this model"):
        place_initial_weights(RunFolder(tmp_path / "run"), with_digest(spec_from(path), tmp_path), tmp_path)


def test_a_rate_without_a_model_is_refused() -> None:
    with pytest.raises(SpecError, match=r"train.init_from is None; it must name a model where"):
        load_spec("demo", ["train.init_lr_scale=0.1"])


def test_what_was_taken_learns_at_its_own_rate(tmp_path: Path) -> None:
    model = small_model()
    taken = frozenset(name for name in model.state_dict() if not name.startswith("head.3"))
    config = dataclasses.replace(spec_from("x", "train.init_lr_scale=0.1", "train.backbone_lr_scale=0.5").train)
    groups = make_optimizer(model, config, taken).param_groups
    scale = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    named = dict(model.named_parameters())
    assert len(scale) == len(named)
    assert scale[id(named["head.3.weight"])] == 1
    assert scale[id(named["head.1.weight"])] == 0.1
    backbone = [scale[id(parameter)] for name, parameter in named.items() if name.startswith("backbone.")]
    assert backbone == pytest.approx([0.05] * len(backbone))


def test_freezing_everything_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "same.safetensors"
    save_file(small_model().state_dict(), path)
    (tmp_path / "run").mkdir()
    spec = with_digest(spec_from(path, "train.init_lr_scale=0"), tmp_path)
    with pytest.raises(UserError, match=r"train.init_lr_scale is 0 and all weights come from .*: nothing would be trained"):
        place_initial_weights(RunFolder(tmp_path / "run"), spec, tmp_path)


@pytest.mark.slow
def test_a_run_starts_from_a_finished_one_and_frozen_weights_stay(run: RunResult, runs: Path) -> None:
    spec = spec_from_dict(RunFolder(run.folder).read_json(SPEC), "run")
    frozen = dataclasses.replace(spec.train, init_from=run.run_id, init_lr_scale=0.0, epochs=1)
    said: list[str] = []
    started = train(
        dataclasses.replace(spec, model=dataclasses.replace(spec.model, layers=2), train=frozen), runs=runs, say=said.append
    )
    record = RunFolder(started.folder).require(InitialWeights)
    origin, after = load_model(str(run.folder)).state_dict(), load_model(str(started.folder)).state_dict()
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    parameters = [name for name in record.taken if not name.endswith(statistics)]
    assert parameters
    assert all(torch.equal(origin[name], after[name]) for name in parameters)
    assert {name.partition(".")[0] for name in record.new} == {"encoder", "decoder"}
    assert any("weights from" in line and "frozen" in line for line in said)
    assert record.digest == digest_of(origin)


@pytest.mark.slow
def test_a_run_starts_from_one_that_learned_the_joints_alone(run: RunResult, runs: Path) -> None:
    spec = spec_from_dict(RunFolder(run.folder).read_json(SPEC), "run")
    joints = dataclasses.replace(
        spec,
        name="joints",
        data=dataclasses.replace(spec.data, select="last"),
        model=dataclasses.replace(spec.model, pose="learned"),
        train=dataclasses.replace(spec.train, action_loss_weight=0.0, epochs=1),
    )
    learned = train(joints, runs=runs)
    said = "\n".join(result_lines(learned))
    assert (
        f"actions    not learned (train.action_loss_weight is 0); start another run from it: train.init_from={learned.run_id}"
        in said
    )
    assert "joints     found" in said
    assert "top-1" not in said
    assert RunFolder(learned.folder).require(Result).calibration is None
    assert locate("joints", runs).name == learned.run_id
    for refused in (lambda: locate_recogniser("joints", runs), lambda: promote("joints", "best", runs)):
        with pytest.raises(UserError, match=rf"{learned.run_id} learned no actions .* train.init_from={learned.run_id}"):
            refused()
    evaluated = "\n".join(evaluation_lines(evaluate_run("joints", part="validation", runs=runs)))
    assert "actions    not learned (train.action_loss_weight is 0): these accuracies are those of guessing" in evaluated
    started = train(dataclasses.replace(spec, train=dataclasses.replace(spec.train, init_from="joints", epochs=1)), runs=runs)
    record = RunFolder(started.folder).require(InitialWeights)
    assert record.new == {}
    assert {name.partition(".")[0] for name in record.unused} == {"pose"}
    assert "test top-1" in "\n".join(result_lines(started))
