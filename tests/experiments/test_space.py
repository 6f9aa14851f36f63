import pytest

from starlab.experiments.space import Distribution
from starlab.experiments.spec import SpecError, load_search


@pytest.mark.parametrize(
    "form", [{"int": [1, 4]}, {"float": [0, 0.5]}, {"log": [1e-4, 1]}, {"choice": ["FF", None, [5, 1], 2]}]
)
def test_a_distribution_goes_back_to_the_form_that_it_was_read_from(form: dict[str, list[object]]) -> None:
    assert Distribution.from_yaml(form).to_yaml() == form
    assert list(Distribution.from_yaml(form).edges) == next(iter(form.values()))


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ({"uniform": [1, 2]}, "write {int: [low, high]}"),
        ({"int": [1, 2], "log": [1, 2]}, "write {int: [low, high]}"),
        ([1, 2], "write {int: [low, high]}"),
        ({"choice": []}, "write {int: [low, high]}"),
        ({"int": [1, 2, 3]}, "write {int: [low, high]}"),
        ({"int": [1, 2.5]}, "whole for int"),
        ({"int": [False, True]}, "low must be below high"),
        ({"float": [2, 2]}, "low must be below high"),
        ({"log": [0, 1]}, "above 0 for log"),
        ({"log": ["a", "b"]}, "low must be below high"),
    ],
)
def test_another_form_is_refused_with_the_right_one(form: object, message: str) -> None:
    with pytest.raises(ValueError, match="low") as caught:
        Distribution.from_yaml(form)
    assert message in str(caught.value)


def test_a_search_holds_distributions_and_stores_the_form_of_its_file() -> None:
    search = load_search("demo_search")
    assert search.space["model.layers"] == Distribution("int", (1, 2))
    assert search.to_dict()["space"] == {
        "model.layers": {"int": [1, 2]},
        "model.encoder": {"choice": ["FF", "FZ", "FB"]},
        "model.decoder": {"choice": ["FF", "FZ", "FB"]},
        "train.lr": {"log": [5e-4, 2e-3]},
    }
    with pytest.raises(SpecError, match=r"space.train.lr is \[1, 2\]; write \{int: \[low, high\]\}"):
        load_search("demo_search", ["space.train.lr=[1, 2]"])
