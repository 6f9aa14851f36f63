"""What FAttn, ZAttn and BAttn depend on, and what they must not depend on."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from starlab.models.attention import SpatioTemporalAttention
from starlab.models.layers import LayerOptions, StarLayer

DIM = 8
patterns = st.sampled_from(["F", "Z", "B"])
split_patterns = st.sampled_from(["Z", "B"])
even_frames = st.integers(1, 4).map(lambda half: 2 * half)
sizes = st.integers(1, 5)
seeds = st.integers(0, 2**32 - 1)


def attention_and_tokens(
    pattern: str, frames: int, size: int, seed: int, projections: str = "shared"
) -> tuple[SpatioTemporalAttention, Tensor]:
    torch.manual_seed(seed)
    module = SpatioTemporalAttention(DIM, 2, pattern, projections)  # type: ignore[arg-type]
    return module.double(), torch.randn(1, frames, size, DIM, dtype=torch.float64)


def group_of(pattern: str, frames: int) -> list[int]:
    """The group of every frame, the paper's odd frames and the first half being group 0."""
    return [frame % 2 if pattern == "Z" else int(frame >= frames // 2) for frame in range(frames)]


@settings(deadline=None, max_examples=25)
@given(split_patterns, even_frames, sizes, seeds, st.data())
def test_an_output_depends_on_its_own_token_and_on_every_frame_of_the_other_group_only(
    pattern: str, frames: int, size: int, seed: int, data: st.DataObject
) -> None:
    module, tokens = attention_and_tokens(pattern, frames, size, seed)
    frame, token = data.draw(st.integers(0, frames - 1)), data.draw(st.integers(0, size - 1))
    tokens.requires_grad_()
    direction = torch.randn(DIM, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((module(tokens)[0, frame, token] * direction).sum(), tokens)
    influence = gradient[0].abs().amax(-1)
    group = group_of(pattern, frames)
    expected = torch.tensor([[group[other] != group[frame]] * size for other in range(frames)])
    if frames // 2 * size > 1:
        expected[frame, token] = True
    else:  # one key leaves the softmax constant: the query has no say, but for the rounding of some processors' kernels
        assert influence[frame, token] < 1e-12
        influence[frame, token] = 0
    assert torch.equal(influence > 0, expected)


@settings(deadline=None, max_examples=25)
@given(patterns, even_frames, sizes, seeds, st.data())
def test_permuting_the_frames_of_a_group_permutes_its_outputs_and_leaves_the_other_groups_alone(
    pattern: str, frames: int, size: int, seed: int, data: st.DataObject
) -> None:
    module, tokens = attention_and_tokens(pattern, frames, size, seed)
    group = [0] * frames if pattern == "F" else group_of(pattern, frames)
    members = [frame for frame in range(frames) if group[frame] == 0]
    order = list(range(frames))
    for place, member in zip(members, data.draw(st.permutations(members)), strict=True):
        order[place] = member
    torch.testing.assert_close(module(tokens[:, order]), module(tokens)[:, order], rtol=0, atol=1e-12)


@settings(deadline=None, max_examples=25)
@given(patterns, even_frames, sizes, seeds)
def test_every_attention_commutes_with_reversing_the_frames_when_projections_are_shared(
    pattern: str, frames: int, size: int, seed: int
) -> None:
    module, tokens = attention_and_tokens(pattern, frames, size, seed)
    torch.testing.assert_close(module(tokens.flip(1)), module(tokens).flip(1), rtol=0, atol=1e-12)


@settings(deadline=None, max_examples=25)
@given(split_patterns, even_frames, sizes, seeds)
def test_reversing_the_frames_is_noticed_when_the_groups_have_projections_of_their_own(
    pattern: str, frames: int, size: int, seed: int
) -> None:
    module, tokens = attention_and_tokens(pattern, frames, size, seed, "separate")
    assert (module(tokens.flip(1)) - module(tokens).flip(1)).abs().max() > 1e-3


@settings(deadline=None, max_examples=25)
@given(patterns, even_frames, st.integers(2, 5), seeds, st.data())
def test_masked_tokens_change_nothing_and_count_as_if_they_were_not_there(
    pattern: str, frames: int, size: int, seed: int, data: st.DataObject
) -> None:
    module, tokens = attention_and_tokens(pattern, frames, size, seed)
    masked = data.draw(st.integers(1, size - 1))
    kept = [token for token in range(size) if token != masked]
    mask = torch.ones(1, frames, size, dtype=torch.bool)
    mask[:, :, masked] = False
    changed = tokens.clone()
    changed[:, :, masked] = 100 * torch.randn(frames, DIM, dtype=torch.float64)
    output = module(tokens, mask)[:, :, kept]
    torch.testing.assert_close(module(changed, mask)[:, :, kept], output, rtol=0, atol=1e-12)
    torch.testing.assert_close(module(tokens[:, :, kept]), output, rtol=0, atol=1e-12)


@pytest.mark.parametrize("norm", ["post", "pre"])
@pytest.mark.parametrize("patterns", ["F", "FZ", "ZB", "BF"])
def test_a_layer_keeps_the_tokens_shape_and_commutes_with_frame_reversal(patterns: str, norm: str) -> None:
    torch.manual_seed(0)
    layer = StarLayer(DIM, 2, patterns, LayerOptions(norm=norm)).double()  # type: ignore[arg-type]
    tokens = torch.randn(2, 4, 3, DIM, dtype=torch.float64)
    output = layer(tokens)
    assert output.shape == tokens.shape
    torch.testing.assert_close(layer(tokens.flip(1)), output.flip(1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("pattern", ["Z", "B"])
def test_an_odd_number_of_frames_is_refused_with_the_number_and_the_fix(pattern: str) -> None:
    module = SpatioTemporalAttention(DIM, 2, pattern)
    with pytest.raises(ValueError, match=r"have 5 frames; use an even number such as 6"):
        module(torch.randn(1, 5, 2, DIM))


def test_full_attention_takes_an_odd_number_of_frames() -> None:
    assert SpatioTemporalAttention(DIM, 2, "F")(torch.randn(1, 5, 2, DIM)).shape == (1, 5, 2, DIM)


def test_an_unknown_pattern_or_a_width_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="'X'"):
        SpatioTemporalAttention(DIM, 2, "X")
    with pytest.raises(ValueError, match="dim 8 does not divide into 3 heads"):
        SpatioTemporalAttention(DIM, 3, "F")


@pytest.mark.parametrize("pattern", ["F", "Z", "B"])
@pytest.mark.parametrize("masked", [False, True])
def test_training_keeps_no_matrix_of_tokens_by_tokens(pattern: str, masked: bool) -> None:
    frames, size = 16, 40
    length = frames * size
    module = SpatioTemporalAttention(32, 4, pattern)
    mask = torch.rand(1, frames, size) < 0.9 if masked else None
    kept: list[int] = []

    def record(tensor: Tensor) -> Tensor:
        kept.append(tensor.untyped_storage().nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor):
        module(torch.randn(1, frames, size, 32, requires_grad=True), mask)
    assert kept
    assert max(kept) < 4 * (length // module.groups) ** 2


@pytest.mark.parametrize("pattern", ["Z", "B"])
def test_both_groups_go_through_one_fused_attention_call(pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, ...]] = []
    fused = torch.nn.functional.scaled_dot_product_attention

    def counting(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None) -> Tensor:
        calls.append(tuple(q.shape))
        return fused(q, k, v, attn_mask=attn_mask)

    monkeypatch.setattr("starlab.models.attention.scaled_dot_product_attention", counting)
    SpatioTemporalAttention(DIM, 2, pattern)(torch.randn(3, 4, 5, DIM))
    assert calls == [(6, 2, 10, 4)]
