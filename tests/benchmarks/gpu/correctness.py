"""Is what is measured right? Precisions, attention kernels, convolutions and compiled code against slower, surer arithmetic."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch
from gpu.measure import matrix_flags, relative_error
from gpu.report import Row, guarded
from gpu.setup import CLIPS, SHIPPED, Bench, Setup, model_config, random_clips, tokens_per_clip
from gpu.step import BACKENDS, Step
from torch import Tensor, nn
from torch.nn.attention import sdpa_kernel
from torch.nn.functional import cross_entropy

from starlab.models.attention import SpatioTemporalAttention
from starlab.models.star import StarTransformer
from starlab.platform.recipe.precision import AUTOCAST

Attend = Callable[[SpatioTemporalAttention, Tensor, Tensor | None], Tensor]

LOSS_SCALE = 2.0**12
"""For gradients in fp16 where no scaler is at work."""
ATTENTION_LIMITS = {"fp32": 1e-4, "bf16": 3e-2, "fp16": 5e-3}
LOGITS_LIMITS = {"tf32": 1e-2, "bf16": 5e-2, "fp16": 1e-2}
GRADIENT_LIMITS = {"tf32": 5e-2, "bf16": 2.5e-1, "fp16": 5e-2}
CONVOLUTION_LIMITS = {"bf16": 1e-2, "fp16": 2e-3}


def correctness_rows(bench: Bench) -> Iterator[Row]:
    """Every comparison, the surest to find a fault first."""
    yield from exactness_rows(bench)
    yield guarded("deterministic kernels, bf16: gradients twice", lambda: deterministic_twice(bench))
    yield on_gpu("shipped against plain fp32, one layer: gradients", lambda: shipped_against_plain(bench), bench)
    yield guarded("fp16 with loss scaling, memory-efficient attention", lambda: fp16_training(bench))
    yield from precision_rows(bench)
    yield from attention_rows(bench)
    yield from convolution_rows(bench)
    yield on_gpu("compiled against eager, fp32, one layer: gradients", lambda: compiled_against_eager(bench), bench)


def compared(error: float, limit: float) -> Row:
    """Figures of a comparison; an error that is not a number is over every limit."""
    return {"relative_error": error, "limit": limit, "reached": error <= limit}


# --- precisions -------------------------------------------------------------------------------------------------------


def precision_rows(bench: Bench) -> Iterator[Row]:
    """Logits and gradients of the whole model: fp32 against float64, every other precision against fp32."""
    setup = Setup(clips=bench.scale.check_clips, precision="fp32")
    clips = random_clips(setup, bench.scale, bench.device)
    torch.manual_seed(0)
    with torch.device(bench.device):
        model = StarTransformer(model_config(setup, bench.scale)).train()
    reference = logits_and_gradients(model, clips, "fp32")

    def against_double() -> Row:
        exact = logits_and_gradients(copy.deepcopy(model).double(), (clips[0], clips[1].double(), clips[2]), "fp32")
        worst = max(relative_error(mine, its) for mine, its in zip(reference, exact, strict=True))
        return compared(worst, 2e-3)

    def against_fp32(precision: str, part: int, limit: float) -> Row:
        return compared(relative_error(logits_and_gradients(model, clips, precision)[part], reference[part]), limit)

    yield guarded("model, fp32 against float64: logits and gradients", against_double)
    for precision in ("bf16", "fp16", "tf32"):
        yield guarded(f"model, {precision} against fp32: logits", partial(against_fp32, precision, 0, LOGITS_LIMITS[precision]))
        yield guarded(
            f"model, {precision} against fp32: gradients", partial(against_fp32, precision, 1, GRADIENT_LIMITS[precision])
        )


def logits_and_gradients(model: nn.Module, clips: tuple[Tensor, Tensor, Tensor], precision: str) -> tuple[Tensor, Tensor]:
    """Logits, and the gradients of the mean loss of all parameters in one row. Batch-norm uses the batch, so passes repeat."""
    frames, joints, labels = clips
    dtype = AUTOCAST.get(precision)
    scale = LOSS_SCALE if precision == "fp16" else 1.0
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with matrix_flags(matmul_tf32=precision == "tf32", conv_tf32=precision != "fp32"):
        with torch.autocast(frames.device.type, dtype=dtype, enabled=dtype is not None):
            logits = model(frames, joints)
        loss = cross_entropy(logits if logits.dtype == torch.float64 else logits.float(), labels)
        gradients = torch.autograd.grad(loss * scale, parameters)
    return logits.detach(), torch.cat([gradient.flatten() for gradient in gradients]) / scale


# --- attention --------------------------------------------------------------------------------------------------------


def attention_rows(bench: Bench) -> Iterator[Row]:
    """F, Z and B, with and without absent bodies, and every fused kernel, against Eq. 5-10 as they are written."""
    setup = Setup(clips=2, data="ntu")
    config, clips = model_config(setup, bench.scale), CLIPS["ntu"]
    size = tokens_per_clip(setup, bench.scale) // config.frames
    tokens = torch.randn(2, config.frames, size, config.dim, device=bench.device)
    mask = torch.ones(tokens.shape[:3], dtype=torch.bool, device=bench.device)
    mask[1, :, -1 - clips.joints : -1] = False  # the second clip's second body is absent
    for pattern in ("F", "Z", "B"):
        torch.manual_seed(0)
        module = SpatioTemporalAttention(config.dim, config.heads, pattern).to(bench.device)
        for key_mask, suffix in ((None, ""), (mask, ", absent body")):
            reference = output_and_gradient(literal_attention, module.double(), tokens.double(), key_mask)
            module.float()
            for precision in ("fp32", "bf16", "fp16"):
                what = f"attention {pattern}{suffix}, {precision} against float64"
                yield guarded(what, partial(attention_error, module, tokens, key_mask, reference, precision))
            for name in BACKENDS if pattern == "F" else ():
                what = f"attention F{suffix}, bf16, {name} kernel against float64"
                if name == "flash" and key_mask is not None:
                    yield {"what": what, "skipped": "takes no mask"}
                else:
                    yield on_gpu(what, partial(with_kernel, name, module, tokens, key_mask, reference), bench)


def on_gpu(what: str, figures: Callable[[], Row], bench: Bench) -> Row:
    """A row that only a GPU can give."""
    return guarded(what, figures) if bench.on_gpu else {"what": what, "skipped": "needs a GPU"}


def with_kernel(
    name: str, module: SpatioTemporalAttention, tokens: Tensor, key_mask: Tensor | None, reference: tuple[Tensor, Tensor]
) -> Row:
    """The comparison with one kernel and no other allowed."""
    with sdpa_kernel([BACKENDS[name]]):
        return attention_error(module, tokens, key_mask, reference, "bf16")


def attention_error(
    module: SpatioTemporalAttention,
    tokens: Tensor,
    key_mask: Tensor | None,
    reference: tuple[Tensor, Tensor],
    precision: str,
) -> Row:
    """The larger error of output and gradient."""
    dtype = AUTOCAST[precision]
    with (
        matrix_flags(matmul_tf32=False, conv_tf32=False),
        torch.autocast(tokens.device.type, dtype=dtype, enabled=dtype is not None),
    ):
        mine = output_and_gradient(lambda m, x, mask: m(x, mask), module, tokens, key_mask)
    worst = max(relative_error(value, exact) for value, exact in zip(mine, reference, strict=True))
    return compared(worst, ATTENTION_LIMITS[precision])


def output_and_gradient(
    function: Attend, module: SpatioTemporalAttention, tokens: Tensor, key_mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The output, and the gradient in the tokens of its product with a fixed random direction."""
    tokens = tokens.detach().requires_grad_()
    output = function(module, tokens, key_mask)
    generator = torch.Generator(tokens.device).manual_seed(1)
    direction = torch.randn(tokens.shape, generator=generator, device=tokens.device).to(output.dtype)
    (gradient,) = torch.autograd.grad((output * direction).float().sum(), tokens)
    return output.detach(), gradient


def literal_attention(module: SpatioTemporalAttention, tokens: Tensor, key_mask: Tensor | None) -> Tensor:
    """Scores of all pairs of tokens; those that a pattern or an absent body rules out become −∞; softmax; weighted values."""
    _, frames, size, dim = tokens.shape
    qkv, out, width = module.qkv, module.out, dim // module.heads
    assert isinstance(qkv, nn.Linear)
    assert isinstance(out, nn.Linear)
    frame = torch.arange(frames, device=tokens.device).repeat_interleave(size)
    group = {"F": frame, "Z": frame % 2, "B": frame // (frames // 2)}[module.pattern]
    allowed = (group[:, None] != group) if module.pattern != "F" else torch.ones_like(group[:, None] == group)
    if key_mask is not None:
        allowed = allowed & key_mask.flatten(1)[:, None]
    x = tokens.flatten(1, 2)
    q, k, v = (x @ qkv.weight.T + qkv.bias).chunk(3, dim=-1)
    heads = []
    for head in range(module.heads):
        own = slice(head * width, (head + 1) * width)
        scores = q[..., own] @ k[..., own].transpose(-1, -2) / math.sqrt(width)
        heads.append(scores.masked_fill(~allowed, -math.inf).softmax(-1) @ v[..., own])
    return (torch.cat(heads, dim=-1) @ out.weight.T + out.bias).reshape(tokens.shape)


# --- convolutions -----------------------------------------------------------------------------------------------------


def convolution_rows(bench: Bench) -> Iterator[Row]:
    """Every convolution of the backbone in half precision against fp32: output and both gradients."""
    setup = Setup(clips=1)
    torch.manual_seed(0)
    with torch.device(bench.device):
        model = StarTransformer(model_config(setup, bench.scale)).eval()
    convolutions: dict[str, tuple[nn.Conv3d, Tensor]] = {}
    assert model.backbone is not None
    for name, module in model.backbone.named_modules():
        if isinstance(module, nn.Conv3d):
            module.register_forward_hook(partial(keep_input, convolutions, name))
    with torch.no_grad():
        model.backbone(random_clips(setup, bench.scale, bench.device)[0])
    for precision in ("bf16", "fp16"):
        for last in (False, True):
            form = torch.channels_last_3d if last else torch.contiguous_format
            what = f"Conv3d, {precision} against fp32, {'channels_last_3d' if last else 'channels first'}"
            yield guarded(what, partial(worst_convolution, convolutions, precision, form))


def keep_input(
    convolutions: dict[str, tuple[nn.Conv3d, Tensor]], name: str, module: nn.Conv3d, inputs: tuple[Tensor], _: Tensor
) -> None:
    """A forward hook that keeps a convolution and its input."""
    convolutions[name] = module, inputs[0].detach()


def worst_convolution(convolutions: dict[str, tuple[nn.Conv3d, Tensor]], precision: str, form: torch.memory_format) -> Row:
    """The largest error of all convolutions, and which one it is."""
    errors: dict[str, float] = {}
    for name, (module, x) in convolutions.items():
        exact = convolution_results(module, x, torch.float32, torch.contiguous_format)
        mine = convolution_results(module, x, AUTOCAST[precision] or torch.float32, form)
        for what, value, reference in zip(("output", "input gradient", "weight gradient"), mine, exact, strict=True):
            error = relative_error(value, reference)
            errors[f"{name}, {what}"] = error if math.isfinite(error) else math.inf
    worst = max(errors, key=lambda name: errors[name])
    return {**compared(errors[worst], CONVOLUTION_LIMITS[precision]), "worst": worst, "convolutions": len(convolutions)}


def convolution_results(
    module: nn.Conv3d, x: Tensor, dtype: torch.dtype, form: torch.memory_format
) -> tuple[Tensor, Tensor, Tensor]:
    """Output and gradients of a convolution for a random direction of its output."""
    x = x.to(dtype).contiguous(memory_format=form).requires_grad_()
    weight = module.weight.detach().to(dtype).contiguous(memory_format=form).requires_grad_()
    with matrix_flags(matmul_tf32=False, conv_tf32=dtype != torch.float32):
        output = nn.functional.conv3d(x, weight, None, module.stride, module.padding, module.dilation, module.groups)
        generator = torch.Generator(x.device).manual_seed(2)
        direction = torch.randn(output.shape, generator=generator, device=x.device).to(dtype)
        x_gradient, weight_gradient = torch.autograd.grad(output, (x, weight), direction)
    return output.detach(), x_gradient, weight_gradient


# --- whole steps ------------------------------------------------------------------------------------------------------


def fp16_training(bench: Bench) -> Row:
    """A few steps on one batch, as on a V100: fp16, a loss scaler, no flash attention. The loss falls and stays finite."""
    clips = 2 * bench.scale.check_clips
    step = Step(Setup(clips=clips, precision="fp16", lr=2e-3, attention="efficient" if bench.on_gpu else "auto"), bench)
    losses, scales = [], [step.state.scaler.get_scale()]
    for _ in range(bench.scale.fp16_steps):
        losses.append(float(step()) / clips)
        scales.append(step.state.scaler.get_scale())
    finite = all(bool(parameter.isfinite().all()) for parameter in step.model.parameters())
    halved = sum(later < earlier for earlier, later in itertools.pairwise(scales))
    reached = finite and all(map(math.isfinite, losses)) and losses[-1] < losses[0] and step.dropped == 0 and scales[-1] >= 1
    figures = {"first_loss": losses[0], "last_loss": losses[-1], "loss_scale": scales[-1], "scale_halved": halved}
    return {**figures, "dropped_steps": step.dropped, "weights_finite": finite, "reached": reached}


def exactness_rows(bench: Bench) -> Iterator[Row]:
    """Changes that must not change the result: the gradients of one fp32 step with and without each."""
    penn = Setup(clips=bench.scale.check_clips, precision="fp32")
    ntu = replace(penn, data="ntu")
    rows, mixed = replace(penn, class_rows_last=True), replace(ntu, data="ntu mixed", clips=4)
    maps = replace(penn, layout="maps")
    pairs = {
        "last layer for class rows only, fp32: gradients": (penn, rows),
        "absent bodies left out, fp32: gradients": (ntu, replace(ntu, mask="left out")),
        "absent bodies left out of some clips, fp32: gradients": (mixed, replace(mixed, mask="left out")),
        "first convolution on cells, fp32: gradients": (maps, replace(maps, stem_cells=True)),
        "activation checkpointing, fp32: gradients": (rows, replace(rows, checkpointing=True)),
    }
    for what, (plain, changed) in pairs.items():
        yield guarded(what, partial(gradient_difference, plain, changed, 1e-3, bench))
    half = replace(ntu, precision="bf16")
    packed = partial(gradient_difference, half, replace(half, mask="varlen"), GRADIENT_LIMITS["bf16"], bench)
    yield on_gpu("variable-length attention, bf16, absent body: gradients", packed, bench)


def compiled_against_eager(bench: Bench) -> Row:
    """The gradients of one step, compiled as the library does and not; with few layers, because compiling takes long."""
    eager = Setup(clips=bench.scale.check_clips, precision="fp32", layers=1)
    return gradient_difference(eager, replace(eager, compile="regions"), 1e-3, bench)


def shipped_against_plain(bench: Bench) -> Row:
    """The gradients of one step with every improvement in bf16, against the plain ones in fp32."""
    plain = Setup(clips=4, data="ntu mixed", precision="fp32", layers=1)
    return gradient_difference(plain, replace(plain, **SHIPPED, precision="bf16"), GRADIENT_LIMITS["bf16"], bench)


def deterministic_twice(bench: Bench) -> Row:
    """The gradients of one step in bf16, from the same weights and clips, twice."""
    setup = Setup(clips=bench.scale.clips[0], deterministic=True, layout="maps", class_rows_last=True)
    return gradient_difference(setup, setup, 0.0, bench)


def gradient_difference(plain: Setup, changed: Setup, limit: float, bench: Bench) -> Row:
    """The error of one setup's gradients against another's, from the same weights and clips."""
    exact, mine = (first_gradients(setup, bench) for setup in (plain, changed))
    return compared(relative_error(mine, exact), limit)


def first_gradients(setup: Setup, bench: Bench) -> Tensor:
    """The gradients of the first step in one row."""
    step = Step(setup, bench)
    with step.flags():
        step.train_step.gradients(step.batch)
    return torch.cat([parameter.grad.flatten() for parameter in step.model.parameters() if parameter.grad is not None])
