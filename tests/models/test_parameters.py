"""Which parameters an optimizer may decay, and which are the backbone's."""

import dataclasses

import pytest

from starlab.models.parameters import backbone_names, decayed_names
from starlab.models.star import StarConfig, StarTransformer

CONFIG = StarConfig(
    num_classes=3,
    num_joints=4,
    max_bodies=2,
    frames=4,
    backbone="mc3_tiny",
    joint_position="index_xy",
    token_norm=True,
    temporal_position="learned",
    layers=1,
    dim=8,
    heads=2,
)


def test_tokens_positions_norms_and_biases_take_no_weight_decay() -> None:
    model = StarTransformer(CONFIG)
    decayed = decayed_names(model)
    others = {name for name, _ in model.named_parameters()} - decayed
    learned = {"cls_glob", "cls_joint", "cls_total", "time", "joint_tokens.pos", "joint_tokens.body", "joint_tokens.unseen"}
    assert {f"tokens.{name}" for name in learned} <= others
    rest = others - {f"tokens.{name}" for name in learned}
    shapes = {name: parameter.ndim for name, parameter in model.named_parameters()}
    assert all(shapes[name] == 1 for name in rest)
    assert all(shapes[name] >= 2 for name in decayed)
    assert "tokens.joint_tokens.xy.weight" in decayed
    assert "head.3.weight" in decayed


@pytest.mark.parametrize("separate", [False, True])
def test_every_projection_of_an_attention_is_decayed(separate: bool) -> None:
    config = dataclasses.replace(CONFIG, group_projections="separate" if separate else "shared")
    names = {name for name in decayed_names(StarTransformer(config)) if ".attentions." in name}
    assert len(names) == 2 * (2 + (4 if separate else 2))


def test_the_backbones_parameters_are_its_own_and_a_pose_model_has_none() -> None:
    model = StarTransformer(CONFIG)
    assert model.backbone is not None
    assert len(backbone_names(model)) == len(list(model.backbone.parameters()))
    assert all(name.startswith("backbone.") for name in backbone_names(model))
    assert backbone_names(StarTransformer(dataclasses.replace(CONFIG, modality="pose"))) == frozenset()
