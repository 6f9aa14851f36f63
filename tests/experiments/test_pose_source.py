"""`model.pose`: which specs are refused, and what a resolved spec says of the joints."""

import pytest

from starlab.experiments.ablation import load_ablation
from starlab.experiments.spec import SpecError, load_spec, spec_from_dict

FILE = ["data.estimated_joints=joints.parquet", "data.estimated_skeleton=penn_action"]


def test_the_resolved_spec_says_whose_joints_are_given() -> None:
    assert load_spec("demo").model.pose == "annotated"
    estimated = load_spec("demo", FILE)
    assert estimated.model.pose == "estimated"
    assert load_spec("demo", [*FILE, "model.pose=estimated"]) == estimated
    assert load_spec("demo", [*FILE, "model.pose=learned"]).model.pose == "learned"  # it learns from the estimator
    stored = estimated.to_dict()
    del stored["model"]["pose"]  # as a run of an earlier version stored it
    assert spec_from_dict(stored, "a run") == estimated
    assert spec_from_dict(stored, "a run").run_id("x") == estimated.run_id("x")


def test_the_sources_of_joints_are_different_runs_and_the_default_is_the_run_it_was() -> None:
    ids = {load_spec("demo", [f"model.pose={pose}"]).run_id("x") for pose in ("annotated", "learned")}
    assert len(ids) == 2
    assert load_spec("demo", ["data.joint_drop=0.1"]).run_id("x") not in ids
    assert load_spec("demo", ["data.joint_jitter_px=0", "data.joint_drop=0", "train.pose_loss_weight=1"]).run_id("x") in ids


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["model.pose=estimated"], "name their file with data.estimated_joints"),
        (["model.pose=learned", "model.modality=rgb"], "needs modality 'both'"),
        (["model.pose=learned", "train.mixup=0.2"], "use train.mixup=0"),
        (["model.pose=guessed"], "model.pose"),
        (["train.pose_loss_weight=-1"], "train.pose_loss_weight is -1.0; it must be 0 or more"),
        (["train.pose_teacher_forcing=2"], r"train.pose_teacher_forcing is 2.0; it must be in \[0, 1\]"),
        (["data.joint_jitter_px=-1"], "data.joint_jitter_px is -1.0; it must be 0 or more"),
        (["data.joint_drop=1.5"], r"data.joint_drop is 1.5; it must be a share in \[0, 1\]"),
    ],
)
def test_a_source_of_joints_that_cannot_be_is_refused_with_the_way_out(overrides: list[str], said: str) -> None:
    with pytest.raises(SpecError, match=said):
        load_spec("demo", overrides)


def test_the_ablation_compares_four_sources_on_data_that_needs_joints() -> None:
    spec = load_ablation("demo_pose_source")
    cells = [spec.spec_of(row, 0) for row in spec.rows]
    assert {(cell.data.dataset, cell.data.synthetic_bystanders.bystanders) for cell in cells} == {("synthetic_bystanders", 2)}
    assert 100 not in spec.seeds  # the seed at which the settings were chosen
    assert [(cell.model.pose, cell.model.modality, cell.data.joint_drop > 0) for cell in cells] == [
        ("annotated", "both", False),
        ("learned", "both", False),
        ("learned", "both", False),
        ("annotated", "both", True),
        ("annotated", "rgb", False),
    ]
