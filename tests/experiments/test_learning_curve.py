"""The ablations over the share of train: rows are named after their share, have equal numbers of steps, and one remedy each."""

import re

import pytest

from starlab.experiments.ablation import AblationSpec, load_ablation
from starlab.experiments.spec import flatten

LENGTH = {"train.checkpoint_every_epochs", "data.train_fraction", "train.epochs", "train.evaluate_every_epochs"}


@pytest.fixture(params=["demo_learning_curve", "learning_curve"])
def spec(request: pytest.FixtureRequest) -> AblationSpec:
    return load_ablation(request.param)


def test_every_row_is_named_after_its_share_and_has_as_many_steps_as_the_others(spec: AblationSpec) -> None:
    steps = set()
    for row in spec.rows:
        cell = spec.spec_of(row, 0)
        share = re.match(r"(\d+) %: ", row.name)
        assert share is not None
        assert cell.data.train_fraction == int(share[1]) / 100
        assert cell.train.epochs % cell.train.evaluate_every_epochs == 0
        steps.add(round(cell.data.train_fraction * cell.train.epochs, 6))
    assert len(steps) == 1


def test_plain_rows_differ_in_the_share_alone_and_the_other_rows_in_their_remedy(spec: AblationSpec) -> None:
    plain = flatten(spec.spec_of(spec.rows[0], 0).to_dict())
    for row in spec.rows[1:]:
        cell = flatten(spec.spec_of(row, 0).to_dict())
        remedy = {key for key in cell if cell[key] != plain[key]} - LENGTH
        assert bool(remedy) != row.name.endswith(": plain"), row.name


def test_the_curve_is_plain_and_augmented_at_10_25_50_and_100_percent(spec: AblationSpec) -> None:
    for recipe in ("plain", "augmentation"):
        assert {row.name for row in spec.rows} >= {f"{percent} %: {recipe}" for percent in (10, 25, 50, 100)}


def test_the_plain_recipe_uses_no_label_of_the_validation_part(spec: AblationSpec) -> None:
    assert spec.base.data.select == "last"
    assert spec.base.data.augment == "none"
