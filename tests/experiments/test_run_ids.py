"""Golden: the run ids of the packaged experiments. A run that changes its id is trained again and not found by `compare`.

A new key of a spec must leave them as they are at its default. If an id changes on purpose, CHANGELOG.md says so.
"""

import pytest

from starlab.experiments.ablation import load_ablation
from starlab.experiments.catalog import experiment_names
from starlab.experiments.spec import SpecError, load_search, load_spec

RUN_IDS = {
    "demo": "demo-51d0d706",
    "demo_pretrain_joints": "demo_pretrain_joints-0f23df8e",
    "ntu120_xset": "ntu120_xset-6f83a616",
    "ntu120_xsub": "ntu120_xsub-56163fac",
    "ntu60_strong": "ntu60_strong-bfa24af7",
    "ntu60_xsub": "ntu60_xsub-ddca17e1",
    "ntu60_xview": "ntu60_xview-1913d367",
    "penn_action": "penn_action-c38ee06a",
    "penn_action_fast": "penn_action_fast-98a83cde",
    "penn_action_modern": "penn_action_modern-2b94b91f",
}
SEARCH_IDS = {"demo_search": "demo_search-98c26dfe", "search_depth_and_pairing": "search_depth_and_pairing-411395f8"}
"""Run ids of the base of each search."""
ROW_IDS = {
    "demo_figure5": "8c1c323e 62facf3a b142eb6f 79aa6fac",
    "demo_learning_curve": "d8177aa8 a7c25df0 cbc03bd9 24433e2f 94cf81a9 02358baa 9509ef9e f344fd5a 9e85b2e8 1ad31a85 89504d8e "
    "2029f094 acadb976 b71d282f a45707a9 68f6bed7 069dddba",
    "demo_modalities": "8c1c323e dd4bcc63 87fbebee",
    "demo_pose_source": "ab510523 3971a8b5 bcf34776 3d4c86b3 94a9bd28",
    "demo_pretrained": "d8177aa8 32c4c387 03c397c0 a7c25df0 acc8a5b4",  # rows from joints: before the digest is known
    "demo_table3": "97bea7b8 8c1c323e",
    "demo_table4": "4b176b97 0e901abb 5ac2e8ff 537eb223 8c1c323e",
    "demo_temporal": "3a092ea9 8c1c323e",
    "figure1": "87c84a84 c38ee06a",
    "figure5": "58d914f5 1cf31922 c38ee06a fa36110d 8e388e78 47ff0e04",
    "figure6": "5473cea2 572fe222 fcfb7b11",
    "learning_curve": "b3baaf5e 3d141ee8 37c8c026 1e849fd5 1a7dc8e5 2e3b3c65 077a51bb 03ea75f8 72406668 3a4769e9 63815ae8 "
    "93447579 3a7dc1ac 8abdb87b 10b086b6 efdb33ab 740e7edf 20a6b892",
    "table1": "c38ee06a 8e5a8406",
    "table2": "ddca17e1 1913d367 56163fac 6f83a616",
    "table3": "87c84a84 c38ee06a",
    "table4": "5473cea2 572fe222 fcfb7b11 188edb4e c38ee06a",
}
"""Identities of the rows of each ablation at seed 0."""


@pytest.mark.parametrize("name", sorted(RUN_IDS))
def test_a_packaged_experiment_keeps_its_run_id(name: str) -> None:
    assert load_spec(name).run_id("x") == RUN_IDS[name]


@pytest.mark.parametrize("name", sorted(SEARCH_IDS))
def test_the_base_of_a_packaged_search_keeps_its_run_id(name: str) -> None:
    assert load_search(name).base.run_id("x") == SEARCH_IDS[name]


@pytest.mark.parametrize("name", sorted(ROW_IDS))
def test_the_rows_of_a_packaged_ablation_keep_their_run_ids(name: str) -> None:
    spec = load_ablation(name)
    assert " ".join(spec.spec_of(row, 0).run_id("x")[-8:] for row in spec.rows) == ROW_IDS[name]


def test_every_packaged_experiment_stands_here() -> None:
    assert {*RUN_IDS, *ROW_IDS, *SEARCH_IDS} == set(experiment_names())


def test_a_share_of_train_is_a_run_of_its_own_and_all_of_it_is_not() -> None:
    assert load_spec("demo", ["data.train_fraction=1.0"]).run_id("x") == RUN_IDS["demo"]
    assert load_spec("demo", ["data.train_fraction=0.5"]).run_id("x") != RUN_IDS["demo"]
    with pytest.raises(SpecError, match=r"data.train_fraction is 0.0; it must be in \(0, 1\]"):
        load_spec("demo", ["data.train_fraction=0.0"])
