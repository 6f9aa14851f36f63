"""A model that finds the joints by itself: heat maps, their loss, the order of bodies, and the two passes."""

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from starlab.models.heatmaps import CellGrid, joint_heatmaps
from starlab.models.memory import activation_bytes
from starlab.models.pose_head import FoundPose, enlarge, left_to_right, pose_losses
from starlab.models.star import StarConfig, StarTransformer, load_state

TINY = StarConfig(
    num_classes=3,
    num_joints=4,
    frames=4,
    backbone="mc3_tiny",
    layers=1,
    dim=8,
    heads=2,
    pose="learned",
    token_norm=True,
    joint_position="index_xy",
)
TWO = dataclasses.replace(TINY, max_bodies=2)
GRID = CellGrid((8, 8), (32, 32), 4)


def batch(config: StarConfig, clips: int = 2, seed: int = 0) -> tuple[Tensor, Tensor]:
    dice = torch.Generator().manual_seed(seed)
    frames = torch.randint(0, 256, (clips, config.frames, 32, 32, 3), dtype=torch.uint8, generator=dice)
    return frames, torch.rand(clips, config.frames, config.max_bodies, config.num_joints, 3, generator=dice)


def seen(joints: Tensor, sigma_cells: float = 0.7) -> FoundPose:
    """A head that gives exactly the Gaussians around some joints."""
    maps = joint_heatmaps(joints.flatten(2, 3), GRID, sigma_cells)
    return FoundPose(maps.clamp(min=1e-30).log(), None)


def test_the_soft_heat_maps_are_distributions_and_a_perfect_one_gives_its_joint_back() -> None:
    model = StarTransformer(TINY).eval()
    frames, _ = batch(TINY)
    *_, found, _ = model._find(frames)
    torch.testing.assert_close(found.log_maps.exp().sum((-2, -1)), torch.ones(2, 4, 4))
    inside = torch.rand(2, 4, 1, 4, 3) * 0.5 + 0.2
    back = seen(inside).joints(GRID, 4, torch.ones(2, 1, dtype=torch.bool))
    torch.testing.assert_close(back[..., :2], inside[..., :2], atol=2e-3, rtol=0)
    assert (back[..., 2] > 0).all()


def test_the_loss_is_zero_for_the_gaussian_of_equation_1_and_grows_with_the_distance() -> None:
    joints = torch.full((1, 4, 1, 4, 3), 0.4)
    assert pose_losses(seen(joints), joints, GRID, 0.7).item() == pytest.approx(0, abs=1e-5)
    near, far = joints.clone(), joints.clone()
    near[..., 0] += 0.1
    far[..., 0] += 0.3
    losses = [pose_losses(seen(moved), joints, GRID, 0.7).item() for moved in (near, far)]
    assert 0.1 < losses[0] < losses[1]
    uniform = FoundPose(torch.full((1, 4, 4, 8, 8), -math.log(64)), None)
    assert 0 < pose_losses(uniform, joints, GRID, 0.7).item() < math.log(64)


def test_joints_and_bodies_that_are_not_annotated_do_not_count_in_the_loss() -> None:
    model = StarTransformer(TWO).train()
    frames, joints = batch(TWO)
    joints[0, :, :, 1, 2] = 0
    joints[1, :, 1, :, 2] = 0
    forced = torch.zeros(2, dtype=torch.bool)
    before = model.forward_taught(frames, joints, None, forced)[1]
    moved = joints.clone()
    moved[0, :, :, 1, :2] = 7.0  # a placeholder outside of the frame
    moved[1, :, 1, :, :2] = 0.9
    torch.testing.assert_close(model.forward_taught(frames, moved, None, forced)[1], before)
    nobody = joints.clone()
    nobody[..., 2] = 0
    logits, losses = model.forward_taught(frames, nobody, None, forced)
    (logits.sum() + losses.sum()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_a_body_is_found_in_the_order_from_left_to_right_whatever_the_order_of_the_annotations() -> None:
    _, joints = batch(TWO)
    joints[..., 0, :, 0] = 0.2 + 0.01 * torch.rand(2, 4, 4)
    joints[..., 1, :, 0] = 0.7
    torch.testing.assert_close(left_to_right(joints.flip(2)), joints)
    joints[0, :, 0, :, 2] = 0  # the left body of the first clip is not there
    ordered = left_to_right(joints)
    torch.testing.assert_close(ordered[0], joints[0].flip(1))
    torch.testing.assert_close(ordered[1], joints[1])
    model, (frames, _) = StarTransformer(TWO).train(), batch(TWO)
    passes = [model.forward_taught(frames, given, None, torch.ones(2, dtype=torch.bool)) for given in (joints, joints.flip(2))]
    torch.testing.assert_close(passes[0], passes[1])


def test_it_recognises_from_frames_alone_and_given_joints_change_nothing() -> None:
    for config in (TINY, TWO):
        model = StarTransformer(config).eval()
        frames, joints = batch(config)
        logits = model(frames)
        assert logits.shape == (2, 3)
        assert torch.equal(logits, model(frames, joints, ((2, (0,)),)))
        again, found = model.forward_with_joints(frames)
        assert torch.equal(again, logits)
        assert found.shape == joints.shape
        assert ((found[..., :2] >= 0) & (found[..., :2] <= 1)).all()


def test_every_parameter_of_the_head_gets_a_gradient_from_the_actions_alone() -> None:
    model = StarTransformer(TINY).train()
    frames, joints = batch(TINY, clips=4)
    logits, _ = model.forward_taught(frames, joints, None, torch.zeros(4, dtype=torch.bool))
    (logits * torch.randn(4, 3)).sum().backward()
    assert model.pose is not None
    for name, parameter in model.pose.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_with_forced_joints_it_computes_what_a_model_of_annotated_joints_computes() -> None:
    torch.manual_seed(0)
    learned = StarTransformer(TINY).eval()
    annotated = StarTransformer(dataclasses.replace(TINY, pose="annotated")).eval()
    annotated.load_state_dict({name: value for name, value in learned.state_dict().items() if not name.startswith("pose.")})
    frames, joints = batch(TINY)
    joints[:, :, :, 2, 2] = 0
    forced, _ = learned.forward_taught(frames, joints, None, torch.ones(2, dtype=torch.bool))
    torch.testing.assert_close(forced, annotated(frames, joints))


def test_bodies_known_outside_the_device_give_the_same_logits_in_training() -> None:
    model = StarTransformer(dataclasses.replace(TWO, batch_norm="frozen")).train()
    frames, joints = batch(TWO, clips=3)
    joints[0, :, 0, :, 2] = 0  # the first clip has the second body only
    joints[1, :, 1, :, 2] = 0
    forced = torch.tensor([True, False, False])
    masked = model.forward_taught(frames, joints, None, forced)
    left_out = model.forward_taught(frames, joints, ((1, (1,)), (1, (0,)), (1, (0, 1))), forced)
    torch.testing.assert_close(masked, left_out)


def test_a_map_is_enlarged_as_interpolate_enlarges_it() -> None:
    maps = torch.randn(2, 3, 4, 2, 3)
    expected = torch.nn.functional.interpolate(maps, size=(4, 7, 6), mode="trilinear")
    torch.testing.assert_close(enlarge(maps, 7, 6), expected)


def test_an_annotated_model_refuses_to_find_joints_and_a_learned_one_to_leave_pixels_or_joints_out() -> None:
    annotated = StarTransformer(dataclasses.replace(TINY, pose="annotated"))
    frames, joints = batch(TINY)
    with pytest.raises(ValueError, match="only a model with 'learned' finds joints"):
        annotated.forward_with_joints(frames)
    with pytest.raises(TypeError, match="joints are missing"):
        annotated(frames)
    with pytest.raises(ValueError, match=r"frames have T \(axis 1\) = 3"):
        StarTransformer(TINY)(frames[:, :3])
    for change in ({"modality": "rgb"}, {"modality": "pose"}, {"heatmap_norm": "peak"}):
        with pytest.raises(ValueError, match=r"StarConfig\.pose is 'learned'; it needs"):
            dataclasses.replace(TINY, **change)  # type: ignore[arg-type]
    with pytest.raises(
        ValueError, match=r"StarConfig.pose: the state dict was made with annotated or estimated, this model has learned"
    ):
        load_state(StarTransformer(TINY), annotated.state_dict())
    assert joints.shape[-1] == 3


def test_an_estimated_pose_is_the_same_model_as_an_annotated_one() -> None:
    torch.manual_seed(0)
    annotated = StarTransformer(dataclasses.replace(TINY, pose="annotated")).eval()
    torch.manual_seed(0)
    estimated = StarTransformer(dataclasses.replace(TINY, pose="estimated")).eval()
    assert torch.equal(annotated(*batch(TINY)), estimated(*batch(TINY)))


@pytest.mark.parametrize("config", [TINY, TWO], ids=["one body", "two bodies"])
def test_its_memory_and_its_export_work_without_joints(config: StarConfig) -> None:
    assert activation_bytes(config, 1, 32) > 0
    model = StarTransformer(config).eval()
    frames, _ = batch(config)
    program = torch.export.export(model, (frames,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
    more, _ = batch(config, clips=3, seed=1)
    torch.testing.assert_close(program.module()(more), model(more), rtol=1e-4, atol=1e-5)
