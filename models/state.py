"""Load a state dict, or name the `StarConfig` fields in which it differs from the model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor
from torch.nn.functional import layer_norm

from starlab.models.trunks import CHANNELS

if TYPE_CHECKING:
    from starlab.models.star import StarTransformer

Shapes = Mapping[str, tuple[int, ...]]


def load_state(model: StarTransformer, state: Mapping[str, Tensor]) -> None:
    """Copy a state dict, as `model.state_dict()` gives it, into the model: all of it or nothing.

    Fields that do not change any shape (F, Z or B with shared projections, heads, sigma_cells …) are not checked.

    Raises:
        ValueError: a key is missing or unexpected or a shape differs; names the StarConfig fields that differ, with
            the value of the state dict and that of the model.
    """
    state = with_unseen_joints(model, state)
    given = {key: tuple(value.shape) for key, value in state.items()}
    expected = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    if given != expected:
        raise ValueError(explain(given, expected))
    model.load_state_dict(dict(state))


def fitting(expected: Shapes, given: Shapes) -> tuple[tuple[str, ...], dict[str, str]]:
    """Compare the state dict of a model with that of another one.

    Args:
        expected: Shapes of the model's state dict, by name.
        given: Shapes of the other model's.

    Returns:
        The names of the entries that have equal shapes, and for each other entry of the model why it cannot be taken.
    """
    taken = tuple(name for name, shape in expected.items() if given.get(name) == shape)
    new = {
        name: f"{given[name]} there, {shape} here" if name in given else "not there"
        for name, shape in expected.items()
        if name not in taken
    }
    return taken, new


def with_unseen_joints(model: StarTransformer, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Complete a state dict from before unseen joints had a learned token: with what such a joint's token was then.

    Under `token_norm` it was the norm of the projection of a zero feature, and so the norm of the projection's bias.
    """
    joints = "tokens.joint_tokens"
    parts = [f"{joints}.{name}" for name in ("projection.bias", "norm.weight", "norm.bias")]
    if f"{joints}.unseen" in state or f"{joints}.unseen" not in model.state_dict() or not state.keys() >= set(parts):
        return state
    bias, scale, shift = (state[part] for part in parts)
    return {**state, f"{joints}.unseen": layer_norm(bias, bias.shape, scale, shift)}


def explain(given: Shapes, expected: Shapes) -> str:
    """The message of `load_state` for two sets of shapes that differ."""
    prefix = re.match(r"(module\.|_orig_mod\.)+", next(iter(given), ""))
    if prefix is not None:
        return f"every key of the state dict starts with {prefix[0]!r}: save the state of the unwrapped StarTransformer"
    ours, theirs = traced_fields(expected), traced_fields(given)
    lines = [
        f"StarConfig.{field}: the state dict was made with {theirs[field]}, this model has {ours[field]}"
        for field in ours
        if field in theirs and theirs[field] != ours[field]
    ]
    missing, unexpected = sorted(expected.keys() - given.keys()), sorted(given.keys() - expected.keys())
    reshaped = sorted(key for key in given.keys() & expected.keys() if given[key] != expected[key])
    for what, keys in (("missing", missing), ("unexpected", unexpected), ("of another shape", reshaped)):
        if keys:
            example = f"{keys[0]} {given.get(keys[0], 'absent')}, expected {expected.get(keys[0], 'absent')}"
            lines.append(f"{len(keys)} entries {what}, first {example}")
    return "the state dict does not fit this model; build it with the fields below, or load another.\n  " + "\n  ".join(lines)


def traced_fields(shapes: Shapes) -> dict[str, str]:
    """The StarConfig fields that can be inferred from the shapes of a state dict, as text; unknown ones are left out."""
    fields: dict[str, str] = {}

    def record(field: str, key: str, axis: int) -> None:
        if key in shapes:
            fields[field] = str(shapes[key][axis])

    def has(pattern: str) -> bool:
        return any(re.match(pattern, key) for key in shapes)

    record("num_classes", "head.3.weight", 0)
    record("dim", "head.1.weight", 1)
    rgb, joints = has(r"backbone\."), has(r"tokens\.joint_tokens\.")
    fields["modality"] = {(True, True): "both", (True, False): "rgb"}.get((rgb, joints), "pose")
    fields["class_tokens"] = "multi" if has(r"tokens\.cls_(glob|joint)") else "single"
    fields["token_norm"] = str(has(r"tokens\.(global|joint)_tokens\.norm"))
    fields["norm"] = "pre" if has(r"norm\.") else "post"
    fields["temporal_position"] = "learned" if has(r"tokens\.time") else "none or sincos"
    record("frames", "tokens.time", 0)
    fields["pose"] = "learned" if has(r"pose\.") else "annotated or estimated"
    if joints:
        record("num_joints", "tokens.joint_tokens.pos", 0)
        fields["max_bodies"] = str(shapes.get("tokens.joint_tokens.body", (1,))[0])
    if rgb:
        last_channels = shapes.get("tokens.global_tokens.projection.weight", (0, 0))[1]
        fields["backbone"] = next((name for name in CHANNELS if CHANNELS[name]["layer4"] == last_channels), "unknown")
    if rgb and joints:
        channels = shapes.get("tokens.joint_tokens.projection.weight", (0, 0))[1]
        layers = {width["layer2"]: "layer2" for width in CHANNELS.values()}
        layers |= {width["layer3"]: "layer3" for name, width in CHANNELS.items() if name == fields["backbone"]}
        fields["local_layer"] = layers.get(channels, "unknown")
        fields["joint_position"] = "index_xy" if has(r"tokens\.joint_tokens\.xy") else "index"
    for part in ("encoder", "decoder"):
        numbers = [re.match(rf"{part}\.(\d+)\.attentions\.(\d+)\.", key) for key in shapes]
        if found := [(int(match[1]), int(match[2])) for match in numbers if match]:
            fields[f"{part}_layers"] = str(1 + max(layer for layer, _ in found))
            fields[part] = f"{1 + max(attention for _, attention in found)} letter(s)"
    fields["group_projections"] = "separate" if has(r".*\.qkv\.\d\.") else "shared"
    if "dim" in fields and "encoder.0.mlp.up.weight" in shapes:
        fields["mlp_ratio"] = str(shapes["encoder.0.mlp.up.weight"][0] / int(fields["dim"]))
    return fields
