"""Conditions between the keys of a space, quantised numbers, start points and budgets of a search."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from starlab.experiments.space import Distribution, in_order
from starlab.experiments.spec import SearchSpec, SpecError, load_search

CONDITIONAL = """
  train.momentum: {float: [0.8, 0.95], step: 0.05, when: {train.optimizer: sgd}}
  train.weight_decay: {choice: [0.0, 0.05], when: {train.optimizer: adamw}}
  train.optimizer: {choice: [sgd, adamw]}
"""


def search(tmp_path: Path, space: str, *overrides: str) -> SearchSpec:
    file = tmp_path / "s.yaml"
    file.write_text(f"base: demo\nspace: {space}\n")
    return load_search(str(file), overrides)


def refusal(tmp_path: Path, space: str, *overrides: str) -> str:
    with pytest.raises(SpecError) as caught:
        search(tmp_path, space, *overrides)
    return str(caught.value)


def test_a_conditional_key_comes_behind_the_key_that_its_condition_names_and_goes_back_to_its_form(tmp_path: Path) -> None:
    spec = search(tmp_path, CONDITIONAL)
    assert list(spec.space) == ["train.optimizer", "train.momentum", "train.weight_decay"]
    form = {"float": [0.8, 0.95], "step": 0.05, "when": {"train.optimizer": "sgd"}}
    assert spec.to_dict()["space"]["train.momentum"] == form
    assert Distribution.from_yaml(form).to_yaml() == form
    several = {"int": [1, 9], "step": 2, "when": {"a": [1, None], "b": "x"}}
    assert Distribution.from_yaml(several).to_yaml() == several


def test_a_key_that_is_off_is_not_part_of_the_point_and_has_the_value_of_the_base(tmp_path: Path) -> None:
    spec = search(tmp_path, CONDITIONAL)
    point = spec.point_of(spec.spec_of({"train.optimizer": "sgd", "train.momentum": 0.85}).to_dict())
    assert point == {"train.optimizer": "sgd", "train.momentum": 0.85}
    assert spec.spec_of(point).train.weight_decay == spec.base.train.weight_decay == 0.05
    assert {"train.optimizer": "adamw", "train.weight_decay": 0.0} in spec.edges()
    assert {"train.optimizer": "sgd", "train.momentum": 0.8} in spec.edges()


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (
            "{train.momentum: {float: [0.8, 0.9], when: {train.optimiser: sgd}}, train.optimizer: {choice: [sgd, adamw]}}",
            "space.train.momentum has a condition on 'train.optimiser', which is not a key of the space; did you mean "
            "'train.optimizer'",
        ),
        (
            "{train.momentum: {float: [0.8, 0.9], when: {train.optimizer: sgd}}}",
            "which is not a key of the space; keys of the space: train.momentum",
        ),
        (
            "{train.lr: {log: [1.0e-4, 1.0e-2]}, train.momentum: {float: [0.8, 0.9], when: {train.lr: 0.001}}}",
            "a range of floats; give that key a step or choices",
        ),
        (
            "{train.optimizer: {choice: [sgd, adamw]}, train.momentum: {float: [0.8, 0.9], when: {train.optimizer: adam}}}",
            "train.optimizer = 'adam', which never holds",
        ),
        ("{train.momentum: {float: [0.8, 0.9], when: {}}}", "write when: {key of the space: value, or [values]}"),
    ],
)
def test_a_condition_that_cannot_hold_is_refused(tmp_path: Path, space: str, message: str) -> None:
    assert message in refusal(tmp_path, space)


def test_a_circle_of_conditions_is_refused_and_named() -> None:
    choice: dict[str, Any] = {"choice": [1, 2]}
    space = {
        "a": Distribution.from_yaml(choice),
        "b": Distribution.from_yaml({**choice, "when": {"d": 1}}),
        "c": Distribution.from_yaml({**choice, "when": {"b": 1}}),
        "d": Distribution.from_yaml({**choice, "when": {"c": 1}}),
    }
    with pytest.raises(ValueError, match="form a circle: b → d → c → b; remove one `when`"):
        in_order(space)
    with pytest.raises(ValueError, match="form a circle: a → a"):
        in_order({"a": Distribution.from_yaml({**choice, "when": {"a": 1}})})


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ({"int": [1, 4], "step": 2}, "steps of 2 do not lead from 1 to 4"),
        ({"float": [0.0, 0.5], "step": 0.15}, "steps of 0.15 do not lead from 0.0 to 0.5"),
        ({"int": [1, 4], "step": 0.5}, "must be above 0 and whole"),
        ({"float": [0, 1], "step": 0}, "must be above 0"),
        ({"log": [1, 10], "step": 1}, "log takes no step"),
        ({"choice": [1, 2], "step": 1}, "choice takes no step"),
        ({"log_int": [0, 8]}, "above 0 for log and log_int"),
    ],
)
def test_a_step_that_does_not_fit_is_refused(form: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=r"step|low") as caught:
        Distribution.from_yaml(form)
    assert message in str(caught.value)


def test_quantised_numbers_have_the_decimals_of_their_step() -> None:
    floats = Distribution.from_yaml({"float": [0.1, 0.4], "step": 0.05})
    assert [floats.value(index) for index in range(floats.size or 0)] == [0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4]
    ints = Distribution.from_yaml({"int": [32, 128], "step": 32})
    assert [ints.value(index) for index in range(ints.size or 0)] == [32, 64, 96, 128]
    assert ints.find(64.0) == 64
    assert Distribution.from_yaml({"log_int": [1, 64]}).size == 64
    for value in (48, True, "x", 256):
        with pytest.raises(ValueError, match="is not in"):
            ints.find(value)


def test_a_search_starts_at_its_base_where_the_space_holds_it(tmp_path: Path) -> None:
    assert search(tmp_path, "{model.layers: {int: [1, 2]}}").start_points == [{"model.layers": 1}]
    assert search(tmp_path, "{model.layers: {int: [2, 3]}}").start_points == []
    given = "search.start=[{model.encoder: FF}, {model.layers: 2}]"
    spec = search(tmp_path, "{model.layers: {int: [1, 2]}, model.encoder: {choice: [FF, FZ]}}", given)
    assert spec.start_points == [{"model.layers": 1, "model.encoder": "FF"}, {"model.layers": 2, "model.encoder": "FZ"}]


@pytest.mark.parametrize(
    ("start", "message"),
    [
        ("[{model.dim: 8}]", "search.start: model.dim is not a key of the space"),
        ("[{model.layers: 7}]", "search.start: model.layers: 7 is not in"),
        ("[{model.layers: 2}]", "search.start: model.encoder, which has the value of the base: 'FZ' is not in"),
    ],
)
def test_a_start_outside_the_space_is_refused(tmp_path: Path, start: str, message: str) -> None:
    space = "{model.layers: {int: [1, 2]}, model.encoder: {choice: [FF, FB]}}"
    assert message in refusal(tmp_path, space, f"search.start={start}")


def test_a_search_without_an_end_two_kinds_of_seeds_and_gpu_hours_without_gpus_are_refused(tmp_path: Path) -> None:
    endless = "{train.lr: {log: [1.0e-4, 1.0e-2]}}"
    assert "nothing ends this search" in refusal(tmp_path, endless, "search.trials=null")
    assert search(tmp_path, "{model.layers: {int: [1, 2]}}", "search.trials=null").search.trials is None
    assert "varies train.seed too" in refusal(tmp_path, "{train.seed: {int: [0, 4]}}", "search.seeds=2")
    assert "resources.gpus_per_worker is 0; use search.hours" in refusal(tmp_path, endless, "search.gpu_hours=2")
    assert search(tmp_path, endless, "search.seeds=3", "train.seed=5").seeds == (5, 6, 7)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("search.hours=0", "search.hours is 0.0; it must be above 0"),
        ("search.seeds=0", "search.seeds is 0; it must be 1 or more"),
        ("search.objectives=[]", "search.objectives is (); it must name one or more"),
        ("search.objectives=[flops, flops]", "name one or more, each once"),
        ("search.early_stopping=median", "search.early_stopping is 'median'"),
    ],
)
def test_a_setting_of_the_search_out_of_its_range_is_refused(tmp_path: Path, override: str, message: str) -> None:
    assert message in refusal(tmp_path, "{model.layers: {int: [1, 2]}}", override)


def test_an_empty_space_is_refused(tmp_path: Path) -> None:
    assert "no 'space', so there is nothing to search" in refusal(tmp_path, "{}")


def test_the_password_of_the_storage_is_not_in_what_is_stored(tmp_path: Path) -> None:
    spec = search(tmp_path, "{model.layers: {int: [1, 2]}}", "search.storage=postgresql+psycopg2://me:pa55word@host/db")
    assert "pa55word" in str(spec.search.storage)
    for text in (str(spec.to_dict()), repr(spec), repr(spec.without_password()), str(spec.without_password().search.storage)):
        assert "pa55word" not in text
