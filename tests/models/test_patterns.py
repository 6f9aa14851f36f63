"""A new attention pattern is one entry in `PATTERNS`: specs, model, cost and rollout take it from there.

Letters: B clips, T frames, S tokens per frame, D width; G groups.
"""

import math

import pytest
import torch
from torch import Tensor

from starlab.models.attention import SpatioTemporalAttention, from_other_groups, to_other_groups
from starlab.models.cost import cost
from starlab.models.patterns import PATTERNS, Grouping
from starlab.models.rollout import frame_importance
from starlab.models.star import StarConfig, StarTransformer

NEW = [Grouping("(g t)", 4), Grouping("(t g)", 4), Grouping("(t g)", 3)]
NAMES = ["four quarters", "every fourth frame", "every third frame"]
FRAMES = 12


@pytest.fixture(params=NEW, ids=NAMES)
def grouping(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Grouping:
    """A pattern that nobody but this fixture knows, under the letter Q."""
    grouping: Grouping = request.param
    monkeypatch.setitem(PATTERNS, "Q", grouping)
    return grouping


def config(**options: object) -> StarConfig:
    settings: dict[str, object] = {
        "num_classes": 3, "num_joints": 2, "frames": FRAMES, "backbone": "mc3_tiny", "layers": 1, "dim": 8, "heads": 2,
        "encoder": "FQ", "decoder": "Q", "token_init_std": 0.5,
    }  # fmt: skip
    return StarConfig(**{**settings, **options})  # type: ignore[arg-type]


def batch(clips: int = 2) -> tuple[Tensor, Tensor]:
    return torch.randint(0, 256, (clips, FRAMES, 16, 16, 3), dtype=torch.uint8), torch.rand(clips, FRAMES, 1, 2, 3)


def group_of(grouping: Grouping, frame: int) -> int:
    """The group of a frame, written out for both orders of the frame axis."""
    return frame % grouping.groups if grouping.frame_axis == "(t g)" else frame * grouping.groups // FRAMES


def weights_by_loops(module: SpatioTemporalAttention, z: Tensor, grouping: Grouping) -> Tensor:
    """(H, T·S, T·S) of one clip: for each head and query a softmax over every token of every other group."""
    frames, tokens, dim = z.shape
    head_dim = dim // module.heads
    assert isinstance(module.qkv, torch.nn.Linear)
    q, k, _ = module.qkv(z).chunk(3, -1)
    weights = torch.zeros(module.heads, frames * tokens, frames * tokens, dtype=z.dtype)
    for head in range(module.heads):
        part = slice(head * head_dim, (head + 1) * head_dim)
        for t in range(frames):
            keys = [u for u in range(frames) if group_of(grouping, u) != group_of(grouping, t)]
            for s in range(tokens):
                columns = [u * tokens + r for u in keys for r in range(tokens)]
                scores = torch.stack([q[t, s, part] @ k[u, r, part] for u in keys for r in range(tokens)])
                weights[head, t * tokens + s, columns] = (scores / math.sqrt(head_dim)).softmax(0)
    return weights


def test_a_model_with_the_new_letter_trains(grouping: Grouping) -> None:
    torch.manual_seed(0)
    model = StarTransformer(config())
    logits = model(*batch())
    assert logits.shape == (2, 3)
    (logits * torch.randn(2, 3)).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_each_group_may_have_projections_of_its_own(grouping: Grouping) -> None:
    model = StarTransformer(config(group_projections="separate"))
    assert len(model.decoder[0].attentions[0].qkv) == grouping.groups
    assert model(*batch()).isfinite().all()


def test_frames_that_do_not_divide_are_refused_with_the_next_number_that_does(grouping: Grouping) -> None:
    following = FRAMES + grouping.groups
    with pytest.raises(ValueError, match=rf"frames is 13.*a multiple of {grouping.groups} such as {following}"):
        config(frames=13)
    with pytest.raises(ValueError, match=rf"have 13 frames; use a multiple of {grouping.groups} such as {following}"):
        SpatioTemporalAttention(8, 2, "Q")(torch.randn(1, 13, 2, 8))
    both = math.lcm(2, grouping.groups)
    with pytest.raises(ValueError, match=rf"frames is 13.*a multiple of {both} such as {-(-13 // both) * both}"):
        config(frames=13, encoder="ZQ")


def test_an_unknown_letter_is_refused_with_the_letters_there_are(grouping: Grouping) -> None:
    with pytest.raises(ValueError, match="must be one or two letters of F, Z, B, Q"):
        config(encoder="X")


def test_the_attention_agrees_with_loops_over_queries_and_keys(grouping: Grouping) -> None:
    torch.manual_seed(0)
    module = SpatioTemporalAttention(8, 2, "Q").double()
    z = torch.randn(FRAMES, 3, 8, dtype=torch.float64)
    assert isinstance(module.qkv, torch.nn.Linear)
    v = module.qkv(z).chunk(3, -1)[2].reshape(FRAMES * 3, 2, 4).transpose(0, 1)
    mixed = (weights_by_loops(module, z, grouping) @ v).transpose(0, 1).reshape(FRAMES, 3, 8)
    torch.testing.assert_close(module(z[None])[0], module.out(mixed), rtol=0, atol=1e-12)


def test_a_masked_token_is_no_key_of_any_group(grouping: Grouping) -> None:
    torch.manual_seed(0)
    module = SpatioTemporalAttention(8, 2, "Q").double()
    z = torch.randn(1, FRAMES, 3, 8, dtype=torch.float64)
    mask = torch.ones(1, FRAMES, 3, dtype=torch.bool)
    mask[:, :, 1] = False
    expected = module(z[:, :, [0, 2]])
    torch.testing.assert_close(module(z, mask)[:, :, [0, 2]], expected, rtol=0, atol=1e-12)


def test_the_rollout_agrees_with_the_products_of_loops(grouping: Grouping) -> None:
    torch.manual_seed(0)
    model = StarTransformer(config(modality="pose", encoder="Q", decoder="Q")).double().eval()
    frames, joints = batch(1)
    joints = joints.double()
    with torch.no_grad():
        z = model.tokens(None, None, joints, (48, 48))
        size, x, product = z.tokens.shape[2], z.tokens, torch.eye(FRAMES * z.tokens.shape[2], dtype=torch.float64)
        for layer in (*model.encoder, *model.decoder):
            step = weights_by_loops(layer.attentions[0], x[0], grouping).mean(0)
            product = (step + torch.eye(len(step))) / 2 @ product
            x = layer(x)
    rows = [frame * size + row for frame in range(FRAMES) for row in z.class_rows]
    expected = product[rows].mean(0).unflatten(0, (FRAMES, size)).sum(-1)
    importance = frame_importance(model, frames, joints)[0]
    torch.testing.assert_close(importance, expected.float(), rtol=0, atol=1e-6)


def test_the_cost_counts_the_keys_of_all_other_groups(grouping: Grouping) -> None:
    def scores(letter: str) -> int:
        attention = cost(config(encoder=letter, decoder="F", modality="pose")).parts["encoder"].flops
        return attention - projections

    tokens = FRAMES * (1 + 2 + 1)
    both = cost(config(encoder="FF", decoder="F", modality="pose")).parts["encoder"].flops
    one = cost(config(encoder="F", decoder="F", modality="pose")).parts["encoder"].flops
    full = 4 * tokens**2 * 8
    projections = one - full
    assert both - one == full + 2 * tokens * 8 * (3 * 8 + 8)
    assert scores("Q") * grouping.groups == full * (grouping.groups - 1)


@pytest.mark.parametrize("groups", [1, 2, 3, 5])
def test_putting_keys_back_is_the_transpose_of_taking_them(groups: int) -> None:
    torch.manual_seed(0)
    grouped = torch.randn(2, groups, 3, dtype=torch.float64, requires_grad=True)
    keys = from_other_groups(grouped)
    weights = torch.randn_like(keys)
    (gradient,) = torch.autograd.grad((keys * weights).sum(), grouped)
    torch.testing.assert_close(to_other_groups(weights), gradient)
