"""Training of a model that finds the joints: what the step minimises, over accumulation and ranks, and how near joints are."""

import dataclasses
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from starlab.experiments.sections import TrainConfig
from starlab.models.star import StarConfig, StarTransformer
from starlab.pipelines.batch import Batch
from starlab.platform.recipe.joint_error import joint_hits
from starlab.platform.recipe.metrics import Evaluation
from starlab.platform.recipe.ranks import Ranks
from starlab.platform.recipe.train_step import TrainStep
from starlab.platform.recipe.training_state import TrainingState

CPU = torch.device("cpu")
MODEL = StarConfig(
    num_classes=4,
    num_joints=3,
    max_bodies=2,
    frames=2,
    backbone="mc3_tiny",
    layers=1,
    dim=16,
    heads=2,
    batch_norm="frozen",
    pose="learned",
)
ALONE = Ranks(0, 1)
CONFIG = TrainConfig(global_batch=4, optimizer="sgd", lr=0.1, precision="fp32")


def batch(clips: int = 4) -> Batch:
    dice = np.random.default_rng(0)
    joints = dice.random((clips, 2, 2, 3, 3), dtype=np.float32)
    joints[::2, :, 1, :, 2] = 0
    return Batch(
        frames=dice.integers(0, 255, (clips, 2, 32, 32, 3), dtype=np.uint8),
        joints=joints,
        labels=dice.integers(0, 4, clips),
        clips=np.arange(clips),
        positions=np.arange(clips),
        unreadable=(),
    )


def trained(
    config: TrainConfig, ranks: Ranks = ALONE, steps: int = 2, share: slice = slice(None), turn_labels: int = 0
) -> dict[str, torch.Tensor]:
    """The weights after some steps; each clip has the label of the clip `turn_labels` places before it."""
    torch.manual_seed(0)
    state = TrainingState(StarTransformer(MODEL).double(), config, CPU, "fp32")
    step = TrainStep(state, config, ranks, CPU, schedule_steps=10)
    for _ in range(steps):
        given = batch()
        step.gradients(dataclasses.replace(given, labels=np.roll(given.labels, turn_labels)).take(share))
        assert not step.apply()
    return state.model.state_dict()


def largest_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], prefix: str = "") -> float:
    return max(float((one[name] - other[name]).abs().max()) for name in one if name.startswith(prefix))


def test_an_accumulated_step_equals_a_whole_step() -> None:
    whole, parts = trained(CONFIG), trained(dataclasses.replace(CONFIG, accumulate=2))
    assert largest_difference(whole, parts) < 1e-9


def test_a_weight_of_zero_leaves_the_head_to_the_actions_and_forced_joints_leave_it_alone() -> None:
    torch.manual_seed(0)
    start = StarTransformer(MODEL).double().state_dict()
    forced = dataclasses.replace(CONFIG, pose_loss_weight=0.0, pose_teacher_forcing=1.0)
    assert largest_difference(start, trained(forced), "pose.") == 0
    assert largest_difference(start, trained(dataclasses.replace(forced, pose_teacher_forcing=0.0)), "pose.maps") > 0
    assert largest_difference(start, trained(dataclasses.replace(forced, pose_loss_weight=1.0)), "pose.maps") > 0


def test_without_the_loss_of_the_actions_the_labels_do_not_count_and_the_layers_behind_the_joints_stay() -> None:
    torch.manual_seed(0)
    start = StarTransformer(MODEL).double().state_dict()
    config = dataclasses.replace(CONFIG, action_loss_weight=0.0, weight_decay=0.0, accumulate=2)
    joints_alone = trained(config)
    assert largest_difference(joints_alone, trained(config, turn_labels=1)) == 0
    assert largest_difference(start, joints_alone, "pose.maps") > 0
    assert largest_difference(start, joints_alone, "backbone.layer1") > 0
    assert largest_difference(start, joints_alone, "head.") == 0
    actions_too = dataclasses.replace(config, action_loss_weight=0.5)
    assert largest_difference(trained(actions_too), trained(actions_too, turn_labels=1)) > 0
    assert largest_difference(start, trained(actions_too), "head.") > 0


def test_the_loss_of_the_pose_falls_and_the_curve_shows_the_loss_of_the_actions_alone() -> None:
    torch.manual_seed(0)
    config = dataclasses.replace(CONFIG, optimizer="adamw", lr=1e-2, pose_loss_weight=5.0)
    state = TrainingState(StarTransformer(MODEL), config, CPU, "fp32")
    step = TrainStep(state, config, Ranks(0, 1), CPU, schedule_steps=10)
    model = state.model
    assert isinstance(model, StarTransformer)

    def pose_loss() -> float:
        given = batch()
        inputs = torch.from_numpy(given.frames), torch.from_numpy(given.joints), None, torch.zeros(4, dtype=torch.bool)
        return float(model.forward_taught(*inputs)[1].detach().mean())

    before = pose_loss()
    first = step.gradients(batch()).totals()
    assert first.mean_loss < 2.5  # about ln 4, without the pose's share of five times several nats
    step.apply()
    for _ in range(15):
        step.gradients(batch())
        step.apply()
    assert pose_loss() < 0.7 * before


def train_as_rank(rank: int, folder: Path) -> None:
    """Train with a share of the clips, 1 or 3 of 4, and keep the weights."""
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=2, timeout=timedelta(seconds=120))
    state = trained(CONFIG, Ranks(rank, 2), share=slice(0, 1) if rank == 0 else slice(1, 4))
    torch.save(state, folder / f"{rank}.pt")
    dist.destroy_process_group()


def test_two_ranks_with_uneven_shares_make_the_step_of_one(tmp_path: Path) -> None:
    ranks = [subprocess.Popen([sys.executable, __file__, str(rank), str(tmp_path)]) for rank in range(2)]
    assert [rank.wait(timeout=300) for rank in ranks] == [0, 0]
    states = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    assert largest_difference(*states) == 0
    assert largest_difference(states[0], trained(CONFIG)) < 1e-9


def test_a_joint_counts_as_found_within_a_share_of_its_persons_box() -> None:
    joints = torch.zeros(1, 1, 2, 3, 3)
    joints[0, 0, 0] = torch.tensor([[0.2, 0.1, 1], [0.3, 0.5, 1], [0.9, 0.9, 0]])  # a box of 0.4; the third is not annotated
    found = joints.clone()
    found[..., 2] = 1
    assert joint_hits(found, joints).tolist() == [[2, 2, 2]]
    found[0, 0, 0, 0, 0] += 0.06  # 0.15 of the box
    assert joint_hits(found, joints).tolist() == [[1, 2, 2]]
    found[0, 0, 0, 1, 1] += 0.1
    assert joint_hits(found, joints).tolist() == [[0, 1, 2]]
    found[0, 0, 0, :, 2] = 0  # the model does not see this body
    assert joint_hits(found, joints).tolist() == [[0, 0, 2]]
    joints[0, 0, 0, 1, 2] = 0  # a single joint has no box
    assert joint_hits(found, joints).tolist() == [[0, 0, 0]]


def test_an_evaluation_reports_the_joint_error_of_a_model_that_finds_joints_only() -> None:
    labels, logits = np.array([0, 1]), np.eye(2, dtype=np.float32)
    hits = np.array([[1, 2, 4], [3, 4, 4]], np.float32)
    found = Evaluation(np.arange(2), labels, logits, (), hits).metrics()
    assert found["pck_0.1"] == pytest.approx(0.5)
    assert found["pck_0.2"] == pytest.approx(0.75)
    assert "pck_0.1" not in Evaluation(np.arange(2), labels, logits, ()).metrics()
    assert "pck_0.1" not in Evaluation(np.arange(2), labels, logits, (), 0 * hits).metrics()


if __name__ == "__main__":  # one rank of the test with two
    train_as_rank(int(sys.argv[1]), Path(sys.argv[2]))
