"""Golden: the run ids of the packaged experiments. A run that changes its id is trained again and not found by `compare`.

A new key of a spec must leave them as they are at its default. If an id changes on purpose, CHANGELOG.md says so.
"""

import pytest

from starlab.experiments.catalog import experiment_names
from starlab.experiments.spec import load_search, load_spec

RUN_IDS = {
    "demo": "demo-90145d15",
    "ntu120_xset": "ntu120_xset-50805495",
    "ntu120_xsub": "ntu120_xsub-1ae0c211",
    "ntu60_xsub": "ntu60_xsub-64c48e76",
    "ntu60_xview": "ntu60_xview-a052f0c0",
    "penn_action": "penn_action-0ddb5635",
    "penn_action_modern": "penn_action_modern-2de6467d",
}


@pytest.mark.parametrize("name", sorted(RUN_IDS))
def test_a_packaged_experiment_keeps_its_run_id(name: str) -> None:
    assert load_spec(name).run_id("x") == RUN_IDS[name]


def test_the_base_of_a_packaged_search_keeps_its_run_id() -> None:
    assert load_search("demo_search").base.run_id("x") == "demo_search-be511174"


def test_every_packaged_experiment_stands_here() -> None:
    assert {*RUN_IDS, "demo_search"} == set(experiment_names())
