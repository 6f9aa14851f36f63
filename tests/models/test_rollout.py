"""Attention rollout (Fig. 6) against explicit products of T·S × T·S matrices."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from starlab.models.attention import SpatioTemporalAttention
from starlab.models.rollout import frame_importance
from starlab.models.star import StarConfig, StarTransformer

CONFIG = StarConfig(num_classes=3, num_joints=4, frames=4, backbone="mc3_tiny", layers=2, dim=8, heads=2, token_init_std=0.5)


def batch(config: StarConfig) -> tuple[Tensor, Tensor]:
    frames = torch.randint(0, 256, (2, config.frames, 32, 32, 3), dtype=torch.uint8)
    return frames, torch.rand(2, config.frames, config.max_bodies, config.num_joints, 3)


def weight_matrix(attention: SpatioTemporalAttention, tokens: Tensor, mask: Tensor | None) -> Tensor:
    """(B, T·S, T·S): the softmax over the keys allowed to each query, averaged over the heads."""
    _, frames, size, dim = tokens.shape
    assert isinstance(attention.qkv, torch.nn.Linear)
    q, k, _ = attention.qkv(tokens.flatten(1, 2)).chunk(3, -1)
    q, k = (part.unflatten(-1, (attention.heads, -1)).transpose(1, 2) for part in (q, k))
    frame = torch.arange(frames * size) // size
    group = {"F": 0 * frame, "Z": frame % 2, "B": (frame >= frames // 2).long()}[attention.pattern]
    allowed = (group[:, None] != group) if attention.pattern != "F" else torch.ones_like(group[:, None] == group)
    if mask is not None:
        allowed = allowed & mask.flatten(1)[:, None, None, :]
    scores = (q @ k.transpose(-1, -2)) / (dim // attention.heads) ** 0.5
    return torch.as_tensor(scores.masked_fill(~allowed, -torch.inf).softmax(-1).mean(1))


def explicit_rollout(model: StarTransformer, frames: Tensor, joints: Tensor) -> Tensor:
    model.eval()
    assert model.backbone is not None
    z = model.tokens(*model.backbone(frames), joints, (32, 32))
    x, length = z.tokens, z.tokens.shape[1] * z.tokens.shape[2]
    joint = torch.eye(length).expand(2, length, length)
    for layer in (*model.encoder, *model.decoder):
        for attention, norm in zip(layer.attentions, layer.attention_norms, strict=True):
            tokens = norm(x) if layer.pre else x
            weights = weight_matrix(attention, tokens, z.key_mask)
            step = weights + torch.eye(length)
            joint = (step / step.sum(-1, keepdim=True)) @ joint
            branch = attention(tokens, z.key_mask)
            x = x + branch if layer.pre else norm(x + branch)
        x = x + layer.mlp(layer.mlp_norm(x)) if layer.pre else layer.mlp_norm(x + layer.mlp(x))
    size = z.tokens.shape[2]
    rows = [frame * size + row for frame in range(z.tokens.shape[1]) for row in z.class_rows]
    return torch.as_tensor(joint[:, rows].mean(1).unflatten(-1, (-1, size)).sum(-1))


@pytest.mark.parametrize(
    "options",
    [
        {"encoder": "FF", "decoder": "FF"},
        {"encoder": "FZ", "decoder": "FB"},
        {"encoder": "FB", "decoder": "FZ"},
        {"encoder": "ZB", "decoder": "B"},
        {"norm": "pre", "class_tokens": "single"},
        {"max_bodies": 2},
    ],
    ids=str,
)
def test_frame_importance_equals_the_product_of_explicit_matrices(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    config = dataclasses.replace(CONFIG, **options)
    model = StarTransformer(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))  # sharp attention, so that frames differ
        frames, joints = batch(config)
        joints[0, :, -1, :, 2] = 0
        expected = explicit_rollout(model, frames, joints)
    importance = frame_importance(model, frames, joints)
    assert (expected - 1 / config.frames).abs().max() > 1e-3
    torch.testing.assert_close(importance, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(importance.sum(1), torch.ones(2))


def test_rollout_in_pieces_equals_rollout_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from starlab.models import rollout

    model = StarTransformer(CONFIG)
    inputs = batch(CONFIG)
    whole = frame_importance(model, *inputs)
    monkeypatch.setattr(rollout, "QUERIES_AT_ONCE", 7)
    torch.testing.assert_close(frame_importance(model, *inputs), whole)


@pytest.mark.parametrize("training", [True, False])
def test_rollout_leaves_the_model_as_it_was(training: bool) -> None:
    model = StarTransformer(dataclasses.replace(CONFIG, batch_norm="frozen")).train(training)
    modes = [module.training for module in model.modules()]
    state = {key: value.clone() for key, value in model.state_dict().items()}
    frame_importance(model, *batch(CONFIG))
    assert [module.training for module in model.modules()] == modes
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.modules())
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_separate_projections_and_poses_alone_roll_out_too() -> None:
    for options in ({"group_projections": "separate"}, {"modality": "pose"}, {"modality": "rgb"}):
        config = dataclasses.replace(CONFIG, **options)  # type: ignore[arg-type]
        importance = frame_importance(StarTransformer(config), *batch(config))
        assert (importance >= 0).all()
        torch.testing.assert_close(importance.sum(1), torch.ones(2))


def test_following_one_pattern_leaves_the_others_as_their_residual() -> None:
    torch.manual_seed(0)
    model = StarTransformer(dataclasses.replace(CONFIG, encoder="FZ", decoder="FB", layers=1))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    inputs = batch(CONFIG)
    torch.testing.assert_close(frame_importance(model, *inputs, "FZB"), frame_importance(model, *inputs))
    torch.testing.assert_close(frame_importance(model, *inputs, ""), torch.full((2, 4), 0.25))
    alone = [frame_importance(model, *inputs, letter) for letter in "FZB"]
    for one, other in ((0, 1), (1, 2), (0, 2)):
        assert (alone[one] - alone[other]).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("options", "sizes"),
    [({}, (3, 4)), ({"modality": "pose"}, (2, 4)), ({"modality": "rgb"}, (2, 0)), ({"class_tokens": "single"}, (1, 4))],
    ids=str,
)
def test_every_token_of_a_frame_is_a_class_token_a_cell_or_a_joint(options: dict[str, Any], sizes: tuple[int, int]) -> None:
    from starlab.models.rollout import token_importance

    config = dataclasses.replace(CONFIG, **options)
    found = token_importance(StarTransformer(config), *batch(config))
    assert (len(found.class_rows), len(found.joint_rows)) == sizes
    rows = sorted([*found.class_rows, *found.grid_rows, *found.joint_rows])
    assert rows == list(range(found.importance.shape[2]))
