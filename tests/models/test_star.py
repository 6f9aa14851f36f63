"""The whole model: options, symmetry in time, absent bodies, bad input, state dicts, export."""

import dataclasses
import io
import itertools
import json
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from starlab.models.star import StarConfig, StarTransformer, load_state

PAIRS = ["".join(letters) for length in (1, 2) for letters in itertools.product("FZB", repeat=length)]
DEMO = StarConfig(
    num_classes=10,
    num_joints=13,
    backbone="mc3_tiny",
    pixel_norm="clip",
    joint_position="index_xy",
    token_norm=True,
    token_init_std=0.5,
    temporal_position="sincos",
    temporal_position_scale=0.7,
    layers=1,
    dim=64,
    heads=4,
    mlp_ratio=2.0,
    norm="pre",
)
TINY = StarConfig(num_classes=3, num_joints=4, frames=4, backbone="mc3_tiny", layers=1, dim=8, heads=2)


def batch(config: StarConfig, clips: int = 2, size: int = 32) -> tuple[Tensor, Tensor]:
    frames = torch.randint(0, 256, (clips, config.frames, size, size, 3), dtype=torch.uint8)
    return frames, torch.rand(clips, config.frames, config.max_bodies, config.num_joints, 3)


# --- options ----------------------------------------------------------------------------------------------------------

OPTIONS: list[dict[str, Any]] = [
    {},
    {"modality": "rgb"},
    {"modality": "pose"},
    {"modality": "pose", "joint_position": "index_xy"},
    {"max_bodies": 2},
    {"class_tokens": "single"},
    {"class_tokens": "single", "modality": "rgb"},
    {"grid": 1},
    {"local_layer": "layer3"},
    {"heatmap_norm": "peak"},
    {"joint_position": "index_xy"},
    {"temporal_position": "sincos"},
    {"temporal_position": "learned"},
    {"token_norm": True},
    {"norm": "pre"},
    {"group_projections": "separate"},
    {"layers": 3, "share_layers": True, "drop_path": 0.2},
    {"pixel_norm": "clip"},
    {"batch_norm": "frozen"},
    {"activation_checkpointing": True},
    {"channels_last": False},
    {"dropout": 0.1, "drop_path": 0.1},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_option_gives_logits_and_a_gradient_to_every_parameter(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    config = dataclasses.replace(TINY, **options)
    model = StarTransformer(config)
    logits = model(*batch(config, clips=4))
    assert logits.shape == (4, 3)
    (logits * torch.randn(4, 3)).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_depths_of_one_to_eight_are_free_for_encoder_and_decoder() -> None:
    for encoder_layers, decoder_layers in ((1, 8), (8, 1), (None, 2), (3, None)):
        config = dataclasses.replace(
            TINY, layers=4, modality="pose", encoder_layers=encoder_layers, decoder_layers=decoder_layers
        )
        model = StarTransformer(config)
        assert len(model.encoder) == (encoder_layers or 4)
        assert len(model.decoder) == (decoder_layers or 4)
        assert model(*batch(config)).shape == (2, 3)


def test_every_pair_of_patterns_runs_in_the_encoder_and_in_the_decoder() -> None:
    for encoder, decoder in zip(PAIRS, reversed(PAIRS), strict=True):
        config = dataclasses.replace(TINY, encoder=encoder, decoder=decoder, modality="pose")
        assert StarTransformer(config)(*batch(config)).isfinite().all()


def test_the_papers_model_has_the_papers_defaults() -> None:
    config = StarConfig(num_classes=15, num_joints=13)
    assert (config.frames, config.encoder, config.decoder, config.encoder_depth, config.decoder_depth) == (
        *(16, "FZ", "FB"),
        *(3, 3),
    )
    assert (config.norm, config.temporal_position, config.class_tokens) == ("post", "none", "multi")
    assert json.loads(json.dumps(dataclasses.asdict(config))) == dataclasses.asdict(config)


def test_dropout_and_drop_path_act_in_training_only_and_keep_the_mean() -> None:
    from starlab.models.layers import stochastic_depth

    config = dataclasses.replace(TINY, dropout=0.3, drop_path=0.5, modality="pose")
    torch.manual_seed(0)
    model = StarTransformer(config)
    frames, joints = batch(config)
    assert not torch.equal(model(frames, joints), model(frames, joints))
    model.eval()
    assert torch.equal(model(frames, joints), model(frames, joints))
    kept = stochastic_depth(torch.ones(10_000, 2), 0.25)
    torch.testing.assert_close(kept.unique(), torch.tensor([0.0, 1 / 0.75]))
    assert torch.equal(kept[:, 0], kept[:, 1])
    assert abs(kept.mean().item() - 1) < 0.05


def test_activation_checkpointing_gives_the_same_gradients() -> None:
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        config = dataclasses.replace(DEMO, activation_checkpointing=checkpointing, dropout=0.1)
        model = StarTransformer(config)
        torch.manual_seed(1)
        model(*batch(config)).square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed)


def test_embedding_is_the_averaged_class_token_before_the_head() -> None:
    model = StarTransformer(TINY).eval()
    frames, joints = batch(TINY)
    embedding = model.embed(frames, joints)
    assert embedding.shape == (2, 8)
    assert torch.equal(model.head(embedding), model(frames, joints))


@pytest.mark.parametrize("patterns", [("F", "B"), ("FZ", "FB"), ("ZB", "BF")], ids=str)
@pytest.mark.parametrize("options", [{}, {"norm": "pre", "group_projections": "separate", "max_bodies": 2}], ids=str)
def test_a_layer_gives_the_same_rows_alone_as_among_all(options: dict[str, Any], patterns: tuple[str, str]) -> None:
    config = dataclasses.replace(TINY, encoder=patterns[0], decoder=patterns[1], **options)
    model = StarTransformer(config).double()
    frames, joints = batch(config)
    joints[1, :, -1] = 0
    z = model.tokens(*model.backbone(frames), joints.double(), (32, 32))  # type: ignore[misc]
    every, alone = z.tokens.detach().requires_grad_(), z.tokens.detach().requires_grad_()
    for layer in (model.encoder[0], model.decoder[0]):
        rows = layer(alone, z.key_mask, z.class_rows)
        assert rows.shape[2] == len(z.class_rows)
        torch.testing.assert_close(rows, layer(every, z.key_mask)[:, :, list(z.class_rows)])
        torch.testing.assert_close(
            torch.autograd.grad(rows.square().sum(), alone),
            torch.autograd.grad(layer(every, z.key_mask)[:, :, list(z.class_rows)].square().sum(), every),
        )


# --- symmetry in time -------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=20)
@given(st.sampled_from(PAIRS), st.sampled_from(PAIRS), st.sampled_from(["post", "pre"]), st.integers(0, 2**32 - 1))
def test_without_temporal_position_and_with_shared_projections_the_transformer_is_blind_to_times_direction(
    encoder: str, decoder: str, norm: str, seed: int
) -> None:
    torch.manual_seed(seed)
    config = dataclasses.replace(TINY, modality="pose", encoder=encoder, decoder=decoder, norm=norm, frames=6)  # type: ignore[arg-type]
    model = StarTransformer(config).double().eval()
    frames, joints = batch(config)
    joints = joints.double()
    torch.testing.assert_close(model(frames, joints.flip(1)), model(frames, joints), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "option",
    [{"temporal_position": "sincos"}, {"temporal_position": "learned"}, {"group_projections": "separate"}],
    ids=str,
)
@pytest.mark.parametrize("pair", [("FZ", "FB"), ("FB", "FZ"), ("FZ", "FZ"), ("FB", "FB")], ids="/".join)
def test_either_option_lets_the_transformer_tell_a_clip_from_its_reversal(
    pair: tuple[str, str], option: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    config = dataclasses.replace(TINY, modality="pose", token_init_std=0.5, encoder=pair[0], decoder=pair[1], **option)
    model = StarTransformer(config).double().eval()
    frames, joints = batch(config)
    joints = joints.double()
    assert (model(frames, joints.flip(1)) - model(frames, joints)).abs().max() > 1e-5


def test_with_pixels_too_order_reaches_the_transformer_only_through_the_backbone() -> None:
    torch.manual_seed(0)
    model = StarTransformer(TINY).double().eval()
    frames, joints = batch(TINY)
    joints = joints.double()
    assert model.backbone is not None
    local_map, global_map = model.backbone(frames)
    outputs = []
    for flip in (False, True):
        maps = [m.flip(2) if flip else m for m in (local_map, global_map)]
        z = model.tokens(maps[0], maps[1], joints.flip(1) if flip else joints, (32, 32))
        x = z.tokens
        for layer in (*model.encoder, *model.decoder):
            x = layer(x)
        outputs.append(x)
    torch.testing.assert_close(outputs[1], outputs[0].flip(1), rtol=0, atol=1e-12)
    assert (model(frames.flip(1), joints.flip(1)) - model(frames, joints)).abs().max() > 1e-6


# --- absent bodies ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("modality", ["both", "pose"])
def test_an_absent_body_changes_nothing_wherever_its_joints_are_said_to_be(modality: str) -> None:
    torch.manual_seed(0)
    config = dataclasses.replace(TINY, max_bodies=2, modality=modality, joint_position="index_xy")  # type: ignore[arg-type]
    model = StarTransformer(config).eval()
    frames, joints = batch(config)
    joints[:, :, 1, :, 2] = 0
    elsewhere = joints.clone()
    elsewhere[:, :, 1, :, :2] = torch.rand(2, 4, 4, 2)
    assert torch.equal(model(frames, joints), model(frames, elsewhere))
    present = joints.clone()
    present[:, 0, 1, 0, 2] = 1
    assert not torch.equal(model(frames, joints), model(frames, present))


@pytest.mark.parametrize("options", [{}, {"class_tokens": "single", "modality": "pose", "norm": "pre"}], ids=str)
def test_absent_bodies_left_out_give_the_logits_and_gradients_of_absent_bodies_masked(options: dict[str, Any]) -> None:
    config = dataclasses.replace(TINY, max_bodies=3, **options)
    model = StarTransformer(config).double()
    frames, joints = batch(config, clips=5)
    joints[:2, :, 1:] = 0
    joints[2, :, (0, 2)] = 0
    joints[4] = 0
    bodies = ((2, (0,)), (1, (1,)), (1, (0, 1, 2)), (1, ()))
    results = []
    for present in (None, bodies):
        model.zero_grad()
        logits = model(frames, joints.double(), present)
        logits.square().sum().backward()
        results.append([logits, *(parameter.grad for parameter in model.parameters())])
    for masked, left_out in zip(*results, strict=True):
        torch.testing.assert_close(left_out, masked)


@pytest.mark.parametrize("max_bodies", [1, 2])
@pytest.mark.parametrize("modality", ["both", "pose"])
def test_a_clip_without_anybody_still_gets_finite_logits_and_gradients(modality: str, max_bodies: int) -> None:
    config = dataclasses.replace(TINY, max_bodies=max_bodies, modality=modality)  # type: ignore[arg-type]
    model = StarTransformer(config)
    frames, joints = batch(config)
    model(frames, torch.zeros_like(joints)).sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frames": 5}, r"frames is 5.*encoder 'FZ'.*decoder 'FB'.*even number such as 6"),
        ({"frames": 5, "encoder": "FF", "decoder": "B"}, r"frames is 5"),
        ({"encoder": "FZB"}, r"StarConfig.encoder is 'FZB'; it must be one or two letters of F, Z, B"),
        ({"decoder": "X"}, r"StarConfig.decoder is 'X'"),
        ({"encoder": ""}, r"StarConfig.encoder is ''"),
        ({"layers": 9}, r"StarConfig.layers is 9; it must be 1 to 8"),
        ({"encoder_layers": 0}, r"StarConfig.encoder_layers is 0"),
        ({"heads": 3}, r"StarConfig.dim is 8; it must be a multiple of heads = 3"),
        ({"norm": "both"}, r"StarConfig.norm is 'both'; it must be one of \('post', 'pre'\)"),
        ({"weights": "kinetics400"}, r"StarConfig.weights is 'kinetics400'; .*'mc3_18' only"),
        ({"num_classes": 0}, r"StarConfig.num_classes is 0; it must be at least 1"),
        ({"dropout": 1.0}, r"StarConfig.dropout is 1.0"),
        ({"sigma_cells": 0.0}, r"StarConfig.sigma_cells is 0.0; it must be above 0"),
        ({"frozen_stages": 6}, r"StarConfig.frozen_stages is 6; it must be 0 to 5"),
        ({"grid": 0}, r"StarConfig.grid is 0"),
        ({"dim": 9, "heads": 3, "temporal_position": "sincos"}, r"StarConfig.dim is 9; it must be even"),
    ],
)
def test_a_bad_configuration_names_the_field_its_value_and_the_limit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **options)


def test_odd_frames_are_fine_where_no_pattern_splits_them() -> None:
    config = dataclasses.replace(TINY, frames=5, encoder="FF", decoder="F")
    assert StarTransformer(config)(*batch(config)).shape == (2, 3)


def bad_inputs() -> list[object]:
    frames, joints = batch(TINY)
    nan, infinite = joints.clone(), joints.clone()
    nan[1, 2, 0, 3, 0] = float("nan")
    infinite[0, 1, 0, 2, 1] = float("inf")
    value, kind = ValueError, TypeError
    return [
        pytest.param(frames.float(), joints, kind, r"frames are torch.float32; expected torch.uint8", id="float frames"),
        pytest.param(frames, joints.half(), kind, r"joints are torch.float16; expected torch.float32", id="half joints"),
        pytest.param(
            frames.permute(0, 1, 4, 2, 3), joints, value, r"frames have shape \(2, 4, 3, 32, 32\).*last", id="channels first"
        ),
        pytest.param(
            frames[0], joints, value, r"frames have shape \(4, 32, 32, 3\); expected \(B, T, H, W, 3\)", id="no batch"
        ),
        pytest.param(
            frames, joints[:, :, 0], value, r"joints have shape \(2, 4, 4, 3\); expected \(B, T, M, N, 3\)", id="no bodies"
        ),
        pytest.param(frames, joints[..., :2], value, r"joints have shape \(2, 4, 1, 4, 2\)", id="no confidence"),
        pytest.param(frames, joints[:1], value, r"frames hold 2 clips and joints 1", id="clips"),
        pytest.param(frames[:, :3], joints, value, r"frames have T \(axis 1\) = 3; StarConfig.frames = 4", id="T of frames"),
        pytest.param(frames, joints[:, :2], value, r"joints have T \(axis 1\) = 2; StarConfig.frames = 4", id="T of joints"),
        pytest.param(
            frames, joints.repeat(1, 1, 2, 1, 1), value, r"joints have M \(axis 2\) = 2; StarConfig.max_bodies = 1", id="M"
        ),
        pytest.param(frames, joints[:, :, :, :3], value, r"joints have N \(axis 3\) = 3; StarConfig.num_joints = 4", id="N"),
        pytest.param(frames, nan, value, r"NaN or infinity, first at clip 1, frame 2, body 0, joint 3", id="NaN"),
        pytest.param(frames, infinite, value, r"NaN or infinity, first at clip 0, frame 1, body 0, joint 2", id="infinity"),
    ]


@pytest.mark.parametrize(("frames", "joints", "kind", "message"), bad_inputs())
def test_bad_input_names_the_tensor_what_came_and_what_is_expected(
    frames: Tensor, joints: Tensor, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        StarTransformer(TINY)(frames, joints)


# --- state dicts ------------------------------------------------------------------------------------------------------


def test_a_state_dict_survives_a_file_read_with_weights_only() -> None:
    config = dataclasses.replace(DEMO, temporal_position="learned", max_bodies=2)
    model, fresh = StarTransformer(config).eval(), StarTransformer(config).eval()
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    load_state(fresh, torch.load(file, weights_only=True))
    inputs = batch(config)
    assert torch.equal(fresh(*inputs), model(*inputs))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"num_classes": 12}, r"StarConfig.num_classes: the state dict was made with 12, this model has 10"),
        ({"num_joints": 25}, r"StarConfig.num_joints: .*with 25, this model has 13"),
        ({"max_bodies": 2}, r"StarConfig.max_bodies: .*with 2, this model has 1"),
        ({"dim": 32}, r"StarConfig.dim: .*with 32, this model has 64"),
        ({"mlp_ratio": 4.0}, r"StarConfig.mlp_ratio: .*with 4.0, this model has 2.0"),
        ({"encoder_layers": 2}, r"StarConfig.encoder_layers: .*with 2, this model has 1"),
        ({"decoder_layers": 3}, r"StarConfig.decoder_layers: .*with 3, this model has 1"),
        ({"encoder": "Z"}, r"StarConfig.encoder: .*with 1 letter\(s\), this model has 2"),
        ({"modality": "rgb"}, r"StarConfig.modality: .*with rgb, this model has both"),
        ({"modality": "pose"}, r"StarConfig.modality: .*with pose, this model has both"),
        ({"class_tokens": "single"}, r"StarConfig.class_tokens: .*with single, this model has multi"),
        ({"local_layer": "layer3"}, r"StarConfig.local_layer: .*with layer3, this model has layer2"),
        ({"backbone": "mc3_18"}, r"StarConfig.backbone: .*with mc3_18, this model has mc3_tiny"),
        ({"norm": "post"}, r"StarConfig.norm: .*with post, this model has pre"),
        ({"token_norm": False}, r"StarConfig.token_norm: .*with False, this model has True"),
        ({"joint_position": "index"}, r"StarConfig.joint_position: .*with index, this model has index_xy"),
        ({"temporal_position": "learned"}, r"StarConfig.temporal_position: .*with learned, this model has none or sincos"),
        ({"group_projections": "separate"}, r"StarConfig.group_projections: .*with separate, this model has shared"),
    ],
    ids=str,
)
def test_a_state_dict_of_another_model_names_the_one_field_that_differs_and_loads_nothing(
    option: dict[str, Any], message: str
) -> None:
    model = StarTransformer(DEMO)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=message) as error:
        load_state(model, StarTransformer(dataclasses.replace(DEMO, **option)).state_dict())
    assert str(error.value).count("StarConfig.") == 1
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_state_dict_of_a_wrapped_or_a_stranger_model_is_explained() -> None:
    model = StarTransformer(DEMO)
    with pytest.raises(ValueError, match=r"starts with 'module.'"):
        load_state(model, {f"module.{key}": value for key, value in model.state_dict().items()})
    with pytest.raises(ValueError, match=r"\d+ entries missing.*\n.*1 entries unexpected, first weight"):
        load_state(model, {"weight": torch.zeros(1)})


# --- export and compilation -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"max_bodies": 2, "group_projections": "separate"}], ids=str)
def test_the_exported_model_gives_equal_logits_for_any_number_of_clips(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    config = dataclasses.replace(DEMO, **options)
    model = StarTransformer(config).eval()
    clips = torch.export.Dim("clips", min=1, max=64)
    inputs = batch(config, clips=2)
    exported = torch.export.export(model, inputs, dynamic_shapes=({0: clips}, {0: clips})).module()
    for count in (1, 5):
        inputs = batch(config, clips=count)
        torch.testing.assert_close(exported(*inputs), model(*inputs), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "backend"), [({"max_bodies": 2}, "eager"), ({"activation_checkpointing": True}, "aot_eager")], ids=str
)
def test_the_training_model_compiles_to_one_graph_with_equal_logits_gradients_and_statistics(
    options: dict[str, Any], backend: str
) -> None:
    torch.manual_seed(0)
    config = dataclasses.replace(DEMO, **options)
    model, twin = StarTransformer(config), StarTransformer(config)
    twin.load_state_dict(model.state_dict())
    inputs = batch(config)
    logits = model(*inputs)
    compiled_logits = torch.compile(twin, backend=backend, fullgraph=True)(*inputs)
    torch.testing.assert_close(compiled_logits, logits, rtol=0, atol=1e-5)
    logits.sum().backward()
    compiled_logits.sum().backward()
    for (name, parameter), other in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(other.grad, parameter.grad, rtol=1e-4, atol=1e-4, msg=name)
    for (name, buffer), twins in zip(model.named_buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(twins, buffer, msg=name)


@pytest.mark.parametrize("options", [{}, {"max_bodies": 2}, {"batch_norm": "frozen"}], ids=str)
def test_the_model_trains_under_bf16_autocast(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    config = dataclasses.replace(DEMO, **options)
    model = StarTransformer(config)
    inputs = batch(config)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(*inputs)
    logits.square().sum().backward()
    assert logits.dtype == torch.float32
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert (logits - model(*inputs)).abs().max() < 0.1


def test_under_autocast_a_post_norm_layer_passes_its_tokens_on_in_half_precision_and_the_embedding_is_fp32() -> None:
    seen: list[torch.dtype] = []
    for norm in ("post", "pre"):
        model = StarTransformer(dataclasses.replace(DEMO, norm=norm)).eval()
        for layer in model.layers():
            layer.register_forward_hook(lambda _module, _inputs, tokens: seen.append(tokens.dtype))
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            assert model.embed(*batch(DEMO)).dtype == torch.float32
    post, pre = seen[: len(seen) // 2], seen[len(seen) // 2 :]
    assert set(post) == {torch.bfloat16}
    assert set(pre) == {torch.float32}  # its residuals are a sum over all layers, which would be rounded at each


@pytest.mark.parametrize(("layers", "logits_limit", "gradient_limit"), [(3, 2.0, 1.5), (6, 2.5, 1.6)])
def test_half_precision_between_layers_costs_little_exactness(layers: int, logits_limit: float, gradient_limit: float) -> None:
    """Errors against fp32 over those with fp32 between layers, in the mean; docs/performance.md has the ratios.

    They move by a few per cent with the number of threads.
    """
    logs = []
    for seed in range(8):
        torch.manual_seed(seed)
        model, inputs = StarTransformer(dataclasses.replace(DEMO, norm="post", layers=layers)), batch(DEMO)
        exact = logits_and_gradient(model, inputs, half=False)
        half = logits_and_gradient(model, inputs, half=True)
        for layer in model.layers():
            layer._join = lambda norm, x, branch: norm(x + branch)  # type: ignore[method-assign]
        full = logits_and_gradient(model, inputs, half=True)
        logs.append([((a - b).norm() / (c - b).norm()).log() for a, b, c in zip(half, exact, full, strict=True)])
    logits, gradient = torch.tensor(logs).mean(0).exp().tolist()
    print(f"{layers} layers: error of the logits × {logits:.2f}, of the transformer's gradient × {gradient:.2f}")
    assert logits < logits_limit
    assert gradient < gradient_limit


def logits_and_gradient(model: StarTransformer, inputs: tuple[Tensor, Tensor], *, half: bool) -> tuple[Tensor, Tensor]:
    """The logits, and the gradients of encoder and decoder in one vector."""
    model.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
        logits = model(*inputs)
    logits.square().sum().backward()
    return logits.detach(), torch.cat(
        [p.grad.flatten() for layer in model.layers() for p in layer.parameters() if p.grad is not None]
    )


def test_the_head_is_computed_in_full_precision_under_autocast() -> None:
    torch.manual_seed(0)
    model = StarTransformer(DEMO).eval()
    inputs = batch(DEMO)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        logits, embedding = model(*inputs), model.embed(*inputs)
    torch.testing.assert_close(logits, model.head(embedding.float()), rtol=0, atol=1e-6)
