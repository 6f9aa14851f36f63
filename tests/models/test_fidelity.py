"""The modules against a literal reading of Eq. 1-14: plain loops in float64, nothing shared with the code under test.

Letters: T frames, S tokens per frame, D width. A clip is one (T, S, D) array; frames count from 0 here, so the paper's
odd frames are 0, 2, 4, …
"""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from starlab.models.attention import SpatioTemporalAttention
from starlab.models.layers import StarLayer
from starlab.models.star import StarConfig, StarTransformer

Array = NDArray[np.float64]
TOLERANCE = 1e-10
HEIGHT_PX, WIDTH_PX = 32, 48


# --- the reference ----------------------------------------------------------------------------------------------------


def value(parameter: object) -> Array:
    assert isinstance(parameter, torch.Tensor)
    return np.array(parameter.detach().numpy(), dtype=np.float64)


def linear(module: object, x: Array) -> Array:
    assert isinstance(module, torch.nn.Linear)
    bias = 0.0 if module.bias is None else value(module.bias)
    return np.asarray(x @ value(module.weight).T + bias)


def layer_norm(module: object, x: Array) -> Array:
    assert isinstance(module, torch.nn.LayerNorm)
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + module.eps)
    return np.asarray(scaled * value(module.weight) + value(module.bias))


def gelu(x: Array) -> Array:
    return np.array([0.5 * z * (1 + math.erf(z / math.sqrt(2))) for z in x.ravel()]).reshape(x.shape)


def key_frames(pattern: str, query_frame: int, frames: int) -> list[int]:
    """The frames whose tokens a token of `query_frame` may attend to."""
    if pattern == "F":
        return list(range(frames))
    if pattern == "Z":
        return [frame for frame in range(frames) if frame % 2 != query_frame % 2]
    return [frame for frame in range(frames) if (frame < frames // 2) != (query_frame < frames // 2)]


def attention(module: SpatioTemporalAttention, z: Array, present: NDArray[np.bool_]) -> Array:
    """Eq. 5-10: for every query token and head a softmax over every key of the other group, times the values."""
    frames, tokens, dim = z.shape
    head_dim = dim // module.heads

    def of_group(linears: object, frame: int) -> object:
        """Shared projections, or those of the frame's group."""
        if isinstance(linears, torch.nn.Linear):
            return linears
        assert isinstance(linears, torch.nn.ModuleList)
        return linears[frame % 2 if module.pattern == "Z" else int(frame >= frames // 2)]

    qkv = np.stack([linear(of_group(module.qkv, t), z[t]) for t in range(frames)])
    q, k, v = qkv[..., :dim], qkv[..., dim : 2 * dim], qkv[..., 2 * dim :]
    output = np.zeros_like(z)
    for t in range(frames):
        keys = [(u, r) for u in key_frames(module.pattern, t, frames) for r in range(tokens) if present[u, r]]
        for s in range(tokens):
            for head in range(module.heads):
                part = slice(head * head_dim, (head + 1) * head_dim)
                scores = [float(q[t, s, part] @ k[u, r, part]) / math.sqrt(head_dim) for u, r in keys]
                exponentials = [math.exp(score - max(scores)) for score in scores]
                for (u, r), exponential in zip(keys, exponentials, strict=True):
                    output[t, s, part] += exponential / sum(exponentials) * v[u, r, part]
    return np.stack([linear(of_group(module.out, t), output[t]) for t in range(frames)])


def star_layer(layer: StarLayer, z: Array, present: NDArray[np.bool_]) -> Array:
    """Eq. 11-14, post-norm; the decoupling is inside `attention`."""
    for module, norm in zip(layer.attentions, layer.attention_norms, strict=True):
        assert isinstance(module, SpatioTemporalAttention)
        z = layer_norm(norm, attention(module, z, present) + z)
    return layer_norm(layer.mlp_norm, linear(layer.mlp.down, gelu(linear(layer.mlp.up, z))) + z)


def joint_map(joint: Array, size: tuple[int, int], stride_px: int, sigma: float) -> Array:
    """§3.1: the joint projected on the map, blurred by a Gaussian, brought to sum 1; nothing where it is invisible.

    Cell i is centred on pixel stride · i, whose own centre is half a pixel from its edge.
    """
    (x, y, confidence), (height, width) = joint, size
    heatmap = np.zeros(size)
    if confidence <= 0 or not 0 <= x <= 1 or not 0 <= y <= 1:
        return heatmap
    for i in range(height):
        for j in range(width):
            above, left = stride_px * i + 0.5 - y * HEIGHT_PX, stride_px * j + 0.5 - x * WIDTH_PX
            heatmap[i, j] = math.exp(-(above**2 + left**2) / (2 * (sigma * stride_px) ** 2))
    return np.asarray(heatmap / heatmap.sum())


def joint_token(local: Array, heatmap: Array) -> Array:
    """Eq. 1 for one joint of one frame: (C, h, w) and (h, w) → (C,)."""
    channels, height, width = local.shape
    token = np.zeros(channels)
    for c in range(channels):
        for i in range(height):
            for j in range(width):
                token[c] += local[c, i, j] * heatmap[i, j]
    return token


def transformer(model: StarTransformer, local: Array, grid: Array, joints: Array) -> Array:
    """Eq. 1-14 and the head for one clip: maps (C, T, h, w) and joints (T, M, N, 3) → logits."""
    config, tokens = model.config, model.tokens
    assert tokens.global_tokens is not None
    assert tokens.joint_tokens is not None
    jm = tokens.joint_tokens
    frames, bodies, num_joints, _ = joints.shape
    present_body = [bool((joints[:, m, :, 2] > 0).any()) or bodies == 1 for m in range(bodies)]
    per_frame: list[Array] = []
    present: list[list[bool]] = []
    for t in range(frames):
        cells = [grid[:, t, i, j] for i in range(grid.shape[2]) for j in range(grid.shape[3])]
        gg = list(linear(tokens.global_tokens.projection, np.stack(cells)))
        joint_rows = []
        for m in range(bodies):
            for n in range(num_joints):
                stride_px = {"layer2": 4, "layer3": 8}[config.local_layer]
                heatmap = joint_map(joints[t, m, n], (local.shape[2], local.shape[3]), stride_px, config.sigma_cells)
                row = linear(jm.projection, joint_token(local[:, t], heatmap)) + value(jm.pos)[n]
                joint_rows.append(row if jm.body is None else row + value(jm.body)[m])
        t_g = ([value(tokens.cls_glob)] if tokens.cls_glob is not None else []) + gg  # Eq. 2
        t_j = ([value(tokens.cls_joint)] if tokens.cls_joint is not None else []) + joint_rows  # Eq. 3
        per_frame.append(np.stack([*t_g, *t_j, value(tokens.cls_total)]))  # Eq. 4
        joints_present = [present_body[m] for m in range(bodies) for _ in range(num_joints)]
        first = len(t_g) + len(t_j) - len(joint_rows)
        present.append([True] * first + joints_present + [True])
    z = np.stack(per_frame)
    mask = np.array(present)
    for layer in (*model.encoder, *model.decoder):
        assert isinstance(layer, StarLayer)
        z = star_layer(layer, z, mask)
    size = z.shape[1]
    joint_class_row = 1 + grid.shape[2] * grid.shape[3]
    class_rows = [0, joint_class_row, size - 1] if config.class_tokens == "multi" else [size - 1]
    averaged = z[:, class_rows].reshape(-1, config.dim).mean(0)
    return linear(model.head[3], gelu(linear(model.head[1], layer_norm(model.head[0], averaged))))


# --- the comparison ---------------------------------------------------------------------------------------------------


def shake(module: torch.nn.Module) -> None:
    """Give every parameter, biases and norms too, a value that would show if it were left out."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))


def compare(model: StarTransformer, clips: int, tweak: Callable[[torch.Tensor], None] | None = None) -> None:
    config = model.config
    shake(model)
    model.double().eval()
    frames = torch.randint(0, 256, (clips, config.frames, HEIGHT_PX, WIDTH_PX, 3), dtype=torch.uint8)
    joints = torch.rand(clips, config.frames, config.max_bodies, config.num_joints, 3, dtype=torch.float64) * 1.2 - 0.1
    if tweak is not None:
        tweak(joints)
    assert model.backbone is not None
    with torch.no_grad():
        local, grid = model.backbone(frames)
        logits = model(frames, joints).numpy()
    for clip in range(clips):
        expected = transformer(model, local[clip].numpy(), grid[clip].numpy(), joints[clip].numpy())
        np.testing.assert_allclose(logits[clip], expected, rtol=0, atol=TOLERANCE)


def tiny(encoder: str, decoder: str, **options: object) -> StarConfig:
    settings: dict[str, object] = {
        "num_classes": 5, "num_joints": 3, "frames": 4, "backbone": "mc3_tiny", "layers": 1, "dim": 8, "heads": 2,
        "mlp_ratio": 2.0, "token_init_std": 0.5,
    }  # fmt: skip
    return StarConfig(encoder=encoder, decoder=decoder, **{**settings, **options})  # type: ignore[arg-type]


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("pattern", ["F", "Z", "B"])
@pytest.mark.parametrize(("frames", "tokens", "heads"), [(2, 1, 1), (6, 5, 3), (4, 7, 2)])
def test_attention_equals_equations_5_to_10(pattern: str, frames: int, tokens: int, heads: int, separate: bool) -> None:
    torch.manual_seed(frames)
    module = SpatioTemporalAttention(12, heads, pattern, "separate" if separate else "shared")  # type: ignore[arg-type]
    shake(module)
    module.double()
    z = torch.randn(2, frames, tokens, 12, dtype=torch.float64)
    mask = torch.rand(2, frames, tokens) < 0.7
    mask[:, :, 0] = True
    for key_mask in (None, mask):
        with torch.no_grad():
            output = module(z, key_mask).numpy()
        for clip in range(2):
            present = np.ones((frames, tokens), dtype=bool) if key_mask is None else key_mask[clip].numpy()
            expected = attention(module, z[clip].numpy(), present)
            np.testing.assert_allclose(output[clip], expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("pair", [("FF", "FF"), ("FZ", "FZ"), ("FB", "FB"), ("FB", "FZ"), ("FZ", "FB")])
def test_whole_model_equals_equations_1_to_14_for_every_pair_of_table_4(pair: tuple[str, str]) -> None:
    torch.manual_seed(0)
    compare(StarTransformer(tiny(*pair)), clips=1)


def test_whole_model_equals_the_equations_with_two_bodies_one_of_them_absent() -> None:
    torch.manual_seed(1)

    def second_body_leaves_clip_0(joints: torch.Tensor) -> None:
        joints[0, :, 1, :, 2] = 0
        joints[1, 0, 1, :, 2] = 0  # gone from one frame only: not absent

    compare(StarTransformer(tiny("FZ", "FB", max_bodies=2)), clips=2, tweak=second_body_leaves_clip_0)


def test_whole_model_equals_the_equations_with_one_class_token_unequal_depths_and_single_letters() -> None:
    torch.manual_seed(2)
    compare(StarTransformer(tiny("Z", "BF", class_tokens="single", encoder_layers=2, local_layer="layer3")), clips=1)


def test_whole_model_equals_the_equations_with_separate_projections() -> None:
    torch.manual_seed(3)
    compare(StarTransformer(tiny("FZ", "FB", group_projections="separate")), clips=1)
