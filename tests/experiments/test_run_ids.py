"""Golden: the run ids of the packaged experiments. A run that changes its id is trained again and not found by `compare`.

A new key of a spec must leave them as they are at its default. If an id changes on purpose, CHANGELOG.md says so.
"""

import pytest

from starlab.experiments.catalog import experiment_names
from starlab.experiments.spec import load_search, load_spec

RUN_IDS = {
    "demo": "demo-51d0d706",
    "ntu120_xset": "ntu120_xset-6f83a616",
    "ntu120_xsub": "ntu120_xsub-56163fac",
    "ntu60_xsub": "ntu60_xsub-ddca17e1",
    "ntu60_xview": "ntu60_xview-1913d367",
    "penn_action": "penn_action-c38ee06a",
    "penn_action_modern": "penn_action_modern-2b94b91f",
}


@pytest.mark.parametrize("name", sorted(RUN_IDS))
def test_a_packaged_experiment_keeps_its_run_id(name: str) -> None:
    assert load_spec(name).run_id("x") == RUN_IDS[name]


def test_the_base_of_a_packaged_search_keeps_its_run_id() -> None:
    assert load_search("demo_search").base.run_id("x") == "demo_search-758a4615"


def test_every_packaged_experiment_stands_here() -> None:
    assert {*RUN_IDS, "demo_search"} == set(experiment_names())
