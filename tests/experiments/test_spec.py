import json
import re
from pathlib import Path

import pytest

from starlab.experiments.ablation import load_ablation
from starlab.experiments.catalog import describe, experiment_names
from starlab.experiments.spec import SpecError, load_search, load_spec, spec_from_dict
from starlab.pipelines.sources import DATASETS


@pytest.mark.parametrize("name", experiment_names())
def test_every_packaged_experiment_loads_and_says_what_it_is_for(name: str) -> None:
    assert len(describe(name)) > 20
    try:
        spec = load_spec(name)
    except SpecError as error:
        loaded = load_ablation(name) if "makes it an ablation" in str(error) else load_search(name)
        assert loaded.base.name == name
    else:
        assert spec.name == name


def test_a_resolved_spec_is_enough_to_read_it_again() -> None:
    spec = load_spec("demo", ["train.epochs=2", "data.store=somewhere"])
    assert spec_from_dict(json.loads(json.dumps(spec.to_dict())), "stored") == spec


def test_what_the_data_fix_need_not_be_said_and_cannot_be_contradicted() -> None:
    spec = load_spec("demo")
    assert (spec.model.num_classes, spec.model.num_joints, spec.model.frames) == (10, 13, 16)
    assert load_spec("demo", ["data.frames=8"]).model.frames == 8
    with pytest.raises(SpecError, match=r"model.num_classes is 3, but the data fix it at 10"):
        load_spec("demo", ["model.num_classes=3"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epoch=2", "unknown key 'train.epoch'; did you mean 'train.epochs'?"),
        ("model.layer=2", "unknown key 'model.layer'; did you mean 'model.layers'?"),
        ("trian.lr=1", "unknown key 'trian'; did you mean 'train'?"),
        ("data.synthetic.sed=1", "unknown key 'data.synthetic.sed'; did you mean 'data.synthetic.seed'?"),
        ("train.zzz=1", "known keys: epochs"),
        ("train.epochs=two", "train.epochs is 'two'; it must be a valid number"),
        ("train.global_batch=8.5", "train.global_batch is 8.5; it must be a valid integer"),
        ("train.global_batch=true", "train.global_batch is True; it must be a valid integer"),
        ("train.optimizer=adam", "train.optimizer is 'adam'; it must be 'sgd' or 'adamw'"),
        ("train.lr=-1", "train.lr is -1"),
        ("train=3", "'train' must be a mapping of keys"),
        ("data.frames=15", "data.frames is 15; it must be even"),
        ("model.encoder=FQ", "model.encoder is 'FQ'"),
        ("resources.workers=9", "resources.workers is 9, above train.global_batch, 8"),
        ("data.validation_fraction=0", "nothing to select by"),
        ("data.dataset=penn_action", "data.store is missing"),
        ("data.flip=true", "has classes that name a side (raise_left_then_right, raise_right_then_left)"),
        ("data.limit=0", "data.limit is 0"),
        ("data.decode=gpu", "data.decode is 'gpu'; it must be 'cluster' or 'worker'"),
        ("data.source=cooked", "data.source is 'cooked'; it must be 'auto', 'raw' or 'prepared'"),
        ("data.test_views=[0, 1]", "data.test_views is [0, 1]; it must be [temporal, spatial], each 1 or more"),
        ("data.test_views=[2, 3]", "use e.g. data.test_crop=0.875"),
        ("data.test_crop=1.5", "data.test_crop is 1.5"),
        ("data.person_crop=-0.1", "data.person_crop must be in [0, 1], or null, got -0.1"),
        ("data.rotation_degrees=200", "data.rotation_degrees must be in [0, 180], got 200"),
        ("data.crop_area=[0.9, 0.5]", "data.crop_area must be two ascending fractions in (0, 1], got (0.9, 0.5)"),
        ("train.cutmix=-1", "train.cutmix is -1"),
        ("data.oversample={swing_red_bal: 2}", "names 'swing_red_bal', which is no class of the data set; did you mean"),
        ("data.oversample={swing_red_ball: 0}", "data.oversample.swing_red_ball is 0"),
        ("data.oversample=evenly", "data.oversample is 'evenly'; it must be 'balanced'"),
        ("name=../../etc", "name is '../../etc'"),
        ("train.lr", "write section.key=value"),
        ("train.lr=[", "not valid YAML"),
    ],
)
def test_a_bad_override_is_an_error_that_names_the_key_the_value_and_the_fix(override: str, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        load_spec("demo", [override])
    assert message in str(caught.value)


def test_an_unknown_experiment_is_an_error_with_the_nearest_name() -> None:
    with pytest.raises(SpecError, match="unknown experiment 'dmo'; did you mean 'demo'"):
        load_spec("dmo")
    with pytest.raises(SpecError, match="no file nowhere"):
        load_spec("nowhere.yaml")


def test_numbers_are_read_as_people_write_them(tmp_path: Path) -> None:
    assert load_spec("demo", ["train.lr=1e-3"]).train.lr == 1e-3
    assert load_spec("demo", ["train.lr=2"]).train.lr == 2.0
    assert load_spec("demo", ["resources.accelerator=no"]).resources.accelerator == "no"
    assert load_spec("demo", ["train.clip_norm=null"]).train.clip_norm is None


def test_a_key_given_twice_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "twice.yaml"
    file.write_text("base: demo\ntrain: {lr: 1.0, lr: 2.0}\n")
    with pytest.raises(SpecError, match="key 'lr' is given twice"):
        load_spec(str(file))


def test_a_file_with_a_base_lays_its_keys_over_it(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("base: demo\ntrain: {epochs: 1}\n")
    spec = load_spec(str(file), ["train.seed=5"])
    assert (spec.name, spec.train.epochs, spec.train.seed, spec.train.lr) == ("mine", 1, 5, load_spec("demo").train.lr)


def test_the_run_id_changes_with_what_is_computed_and_with_nothing_else() -> None:
    def run_id(*overrides: str, fingerprint: str = "f") -> str:
        return load_spec("demo", overrides).run_id(fingerprint)

    assert run_id() == run_id("resources.workers=1", "tracking.uri=http://elsewhere", "data.store=there")
    assert run_id() == run_id("data.decode=worker", "data.source=raw")
    different = [run_id(), run_id("train.seed=1"), run_id("model.layers=2"), run_id("data.size=64"), run_id(fingerprint="g")]
    assert len(set(different)) == 5
    assert run_id().startswith("demo-")
    assert len(run_id()) == len("demo-") + 8


def test_a_search_reads_its_base_and_its_space_and_builds_the_spec_of_a_point() -> None:
    search = load_search("demo_search", ["search.trials=9", "train.epochs=1"])
    assert (search.search.trials, search.base.train.epochs) == (9, 1)
    spec = search.spec_of({"model.layers": 2, "model.encoder": "FB"})
    assert (spec.model.layers, spec.model.encoder, spec.name) == (2, "FB", "demo_search")


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ("{model.layer: {int: [1, 2]}}", "unknown key 'model.layer'"),
        ("{model.layers: {int: [1, 99]}}", "space.model.layers reaches 99"),
        ("{model.layers: [1, 2]}", "write {int: [low, high]}"),
        ("{model.layers: {uniform: [1, 2]}}", "write {int: [low, high]}"),
        ("{train.lr: {log: [0, 1]}}", "low must be below high"),
        ("{model.encoder: {choice: [FF, FX]}}", "space.model.encoder reaches 'FX'"),
        ("{}", "nothing to search"),
    ],
)
def test_a_bad_space_is_refused_before_any_trial(tmp_path: Path, space: str, message: str) -> None:
    file = tmp_path / "s.yaml"
    file.write_text(f"base: demo\nspace: {space}\n")
    with pytest.raises(SpecError) as caught:
        load_search(str(file))
    assert message in str(caught.value)


def test_a_search_and_an_experiment_are_told_apart() -> None:
    with pytest.raises(SpecError, match="starlab search demo_search"):
        load_spec("demo_search")
    with pytest.raises(SpecError, match="starlab train demo"):
        load_search("demo")


def test_the_papers_recipe_scales_no_rate_and_averages_no_weights_and_the_modern_one_does() -> None:
    paper, modern = load_spec("penn_action").train, load_spec("penn_action_modern").train
    assert (paper.optimizer, paper.lr, paper.momentum, paper.epochs, paper.global_batch) == ("sgd", 2e-4, 0.9, 300, 16)
    assert (paper.lr_scaling, paper.ema, paper.mixup, paper.label_smoothing, paper.clip_norm) == ("none", None, 0, 0, None)
    assert (modern.optimizer, modern.lr_scaling, modern.ema, modern.mixup, modern.schedule) == (
        "adamw",
        "linear",
        0.999,
        0,
        "cosine",
    )
    assert (
        load_spec("penn_action_modern", ["model.weights=none"]).model == load_spec("penn_action", ["model.weights=none"]).model
    )


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.batch_norm=sync"], "needs GPUs, and resources.gpus_per_worker is 0; use model.batch_norm=frozen"),
        (["train.accumulate=5"], "train.accumulate is 5, but a worker has only 4 clips per step"),
        (["train.ema=1.0"], "train.ema is 1.0; it must be above 0 and below 1, or null"),
        (["train.on_bad_loss=ignore"], "train.on_bad_loss is 'ignore'"),
        (["resources.checkpoints=s3://me:key@bucket/x"], "keys belong in the environment"),
        (["resources.stuck_after_seconds=0"], "resources.stuck_after_seconds is 0"),
    ],
)
def test_a_recipe_that_cannot_be_run_is_refused_with_the_way_out(overrides: list[str], message: str) -> None:
    with pytest.raises(SpecError) as caught:
        load_spec("demo", overrides)
    assert message in str(caught.value)


def test_every_class_whose_name_holds_a_side_is_declared_as_one_that_a_flip_would_mislabel() -> None:
    for name, facts in DATASETS.items():
        sided = tuple(label for label in facts.classes if {"left", "right"} & set(re.split(r"[^a-z]+", label.lower())))
        assert facts.sided_classes == sided, name


def test_a_flip_is_fine_where_no_class_names_a_side() -> None:
    overrides = ["data.dataset=penn_action", "data.store=there", "data.flip=true", "data.oversample={bowl: 2.5}"]
    spec = load_spec("demo", overrides)
    assert spec.data.oversample == {"bowl": 2.5}
    assert spec_from_dict(spec.to_dict(), "stored") == spec
    assert load_spec("demo", ["data.oversample=balanced", "data.test_views=[5, 1]"]).data.test_views == (5, 1)


def test_a_number_of_workers_may_be_a_range_which_is_stored_and_no_part_of_the_runs_identity() -> None:
    spec = load_spec("demo", ["resources.workers={min: 2, max: 8}"])
    assert (spec.resources.min_workers, spec.resources.max_workers) == (2, 8)
    assert spec_from_dict(spec.to_dict(), "demo") == spec
    assert spec.run_id("x") == load_spec("demo", ["resources.workers=2"]).run_id("x")
    fixed = load_spec("demo", ["resources.workers=3"]).resources
    assert (fixed.min_workers, fixed.max_workers) == (3, 3)


@pytest.mark.parametrize(
    ("workers", "message"),
    [
        ("{min: 3, max: 2}", "resources.workers.max is 2; it must be at least resources.workers.min, 3"),
        ("{min: 0, max: 2}", "resources.workers.min is 0; it must be 1 or more"),
        ("{min: 2, mox: 3}", "unknown key 'resources.workers.mox'; did you mean 'resources.workers.max'"),
        ("{min: 2}", "resources.workers.max is missing"),
        ("{min: a, max: 3}", "resources.workers.min is 'a'; it must be a valid integer"),
        ("two", "resources.workers is 'two'; it must be a valid integer"),
        ("{min: 2, max: 9}", "resources.workers is 9, above train.global_batch, 8"),
    ],
)
def test_a_wrong_range_of_workers_is_named(workers: str, message: str) -> None:
    with pytest.raises(SpecError, match=re.escape(message)):
        load_spec("demo", [f"resources.workers={workers}"])
