"""The shared CNN: shapes, weights from a file, what is frozen, memory options that change no result."""

import hashlib
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.video import mc3_18

from starlab.models.backbone import (
    KINETICS_FILE,
    LOCAL_STRIDE_PX,
    STAGES,
    Backbone,
    BackboneName,
    BackboneOptions,
    LocalLayer,
    batch_norms,
    load_kinetics400,
)


def clips(count: int = 1, size: int = 32, frames: int = 4) -> Tensor:
    return torch.randint(0, 256, (count, frames, size, size, 3), dtype=torch.uint8)


@pytest.mark.parametrize(
    ("name", "layer", "size", "local_shape", "global_shape"),
    [
        ("mc3_18", "layer2", 32, (128, 3, 8, 8), (512, 3, 2, 2)),
        ("mc3_18", "layer3", 32, (256, 3, 4, 4), (512, 3, 2, 2)),
        ("mc3_tiny", "layer2", 48, (16, 3, 12, 12), (64, 3, 3, 3)),
        ("mc3_tiny", "layer3", 48, (32, 3, 6, 6), (64, 3, 3, 3)),
    ],
)
def test_both_maps_have_the_named_size_and_every_frame(
    name: str, layer: str, size: int, local_shape: tuple[int, ...], global_shape: tuple[int, ...]
) -> None:
    backbone = Backbone(name, BackboneOptions(local_layer=layer))  # type: ignore[arg-type]
    local_map, global_map = backbone(clips(2, size, frames=3))
    assert local_map.shape == (2, *local_shape)
    assert global_map.shape == (2, *global_shape)


@pytest.mark.parametrize("channels_last", [True, False])
def test_mc3_18_equals_torchvisions_trunk_on_normalised_frames(channels_last: bool) -> None:
    torch.manual_seed(0)
    reference = mc3_18(weights=None).eval()
    backbone = Backbone("mc3_18", BackboneOptions(channels_last=channels_last)).eval()
    backbone.load_state_dict({key: v for key, v in reference.state_dict().items() if not key.startswith("fc.")})
    frames = clips()
    mean, std = torch.tensor([0.43216, 0.394666, 0.37645]), torch.tensor([0.22803, 0.22145, 0.216989])
    x = ((frames / 255 - mean) / std).permute(0, 4, 1, 2, 3)
    with torch.no_grad():
        local_map, global_map = backbone(frames)
        expected_local = reference.layer2(reference.layer1(reference.stem(x)))
        expected_global = reference.layer4(reference.layer3(expected_local))
    torch.testing.assert_close(local_map, expected_local, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(global_map, expected_global, rtol=1e-4, atol=1e-4)


def test_the_first_stages_mix_frames_and_the_later_ones_do_not() -> None:
    names: tuple[BackboneName, ...] = ("mc3_18", "mc3_tiny")
    for name in names:
        kernels = {
            stage: {conv.kernel_size[0] for conv in stage_module.modules() if isinstance(conv, nn.Conv3d)}
            for stage, stage_module in Backbone(name).named_children()
        }
        assert kernels == {"stem": {3}, "layer1": {3}, "layer2": {1}, "layer3": {1}, "layer4": {1}}


def test_clip_standardisation_ignores_brightness_and_contrast_and_survives_a_blank_clip() -> None:
    backbone = Backbone("mc3_tiny", BackboneOptions(pixel_norm="clip"))
    frames = torch.randint(0, 100, (2, 4, 16, 16, 3), dtype=torch.uint8)
    pixels = backbone.normalise(frames)
    assert pixels.shape == (2, 3, 4, 16, 16)
    assert pixels.is_contiguous(memory_format=torch.channels_last_3d)
    torch.testing.assert_close(pixels.mean((1, 2, 3, 4)), torch.zeros(2), rtol=0, atol=1e-4)
    torch.testing.assert_close(pixels.square().mean((1, 2, 3, 4)), torch.ones(2), rtol=0, atol=1e-2)
    torch.testing.assert_close(backbone.normalise(frames * 2 + 20), pixels, rtol=0, atol=1e-2)
    assert not backbone.normalise(torch.full_like(frames, 7)).any()


@pytest.mark.parametrize("grid", [1, 2])
def test_grid_averages_equal_blocks_of_the_global_map(grid: int) -> None:
    torch.manual_seed(0)
    backbone = Backbone("mc3_tiny").eval()
    frames = clips(size=64)
    whole = backbone(frames)[1]
    backbone.grid = grid
    blocks = whole.unflatten(-1, (grid, -1)).unflatten(-3, (grid, -1)).mean((-1, -3))
    torch.testing.assert_close(backbone(frames)[1], blocks)


def test_a_grid_finer_than_the_map_is_refused() -> None:
    with pytest.raises(ValueError, match=r"grid is 3.*2 × 2 cells; use grid ≤ 2"):
        Backbone("mc3_tiny", BackboneOptions(grid=3))(clips())


@pytest.mark.parametrize("frozen_stages", [0, 2, 5])
def test_frozen_stages_keep_weights_and_statistics_and_the_others_move(frozen_stages: int) -> None:
    torch.manual_seed(0)
    backbone = Backbone("mc3_tiny", BackboneOptions(frozen_stages=frozen_stages)).train()
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    trained = [p for p in backbone.parameters() if p.requires_grad]
    if trained:
        optimizer = torch.optim.SGD(trained, lr=0.1)
        backbone(clips(2))[1].square().mean().backward()
        optimizer.step()
    else:
        backbone(clips(2))
    changed = {key.split(".")[0] for key, value in backbone.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == set(STAGES[frozen_stages:])


def test_frozen_batch_norm_uses_the_stored_statistics_and_still_trains_scale_and_shift() -> None:
    torch.manual_seed(0)
    backbone = Backbone("mc3_tiny", BackboneOptions(batch_norm="frozen")).train()
    frames = clips(2)
    trained = backbone(frames)[1]
    trained.square().mean().backward()
    assert torch.equal(trained, backbone.eval()(frames)[1])
    for norm in batch_norms(backbone):
        assert norm.num_batches_tracked == 0
        assert norm.weight.grad is not None
        assert norm.weight.grad.any()


def test_synchronised_batch_norm_says_where_it_cannot_train_and_still_evaluates() -> None:
    backbone = Backbone("mc3_tiny", BackboneOptions(batch_norm="sync"))
    assert all(isinstance(norm, nn.SyncBatchNorm) for norm in batch_norms(backbone))
    with pytest.raises(ValueError, match=r"'sync'.*frames are on cpu.*not initialised"):
        backbone(clips())
    plain = Backbone("mc3_tiny")
    plain.load_state_dict(backbone.state_dict())
    frames = clips()
    assert torch.equal(backbone.eval()(frames)[1], plain.eval()(frames)[1])


@pytest.mark.parametrize("name", ["mc3_18", "mc3_tiny"])
def test_checkpointing_changes_neither_gradients_nor_running_statistics(name: str) -> None:
    torch.manual_seed(0)
    plain = Backbone(name)  # type: ignore[arg-type]
    saving = Backbone(name, BackboneOptions(activation_checkpointing=True))  # type: ignore[arg-type]
    saving.load_state_dict(plain.state_dict())
    frames = clips(2)
    for backbone in (plain, saving):
        sum(output.square().mean() for output in backbone(frames)).backward()
    for (key, a), b in zip(plain.state_dict().items(), saving.state_dict().values(), strict=True):
        assert torch.equal(a, b), key
    for (key, a), b in zip(plain.named_parameters(), saving.parameters(), strict=True):
        assert a.grad is not None
        assert b.grad is not None
        torch.testing.assert_close(a.grad, b.grad, msg=key)


def test_checkpointing_with_synchronised_batch_norm_gives_plain_gradients_and_counts_a_batch_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Without a process group, SyncBatchNorm computes plain batch-norm, on a CPU too.
    monkeypatch.setattr("starlab.models.backbone.check_can_synchronise", lambda _: None)
    torch.manual_seed(0)
    plain = Backbone("mc3_tiny")
    saving = Backbone("mc3_tiny", BackboneOptions(batch_norm="sync", activation_checkpointing=True))
    saving.load_state_dict(plain.state_dict())
    frames = clips(2)
    for backbone in (plain, saving):
        sum(output.square().mean() for output in backbone(frames)).backward()
    for (key, a), b in zip(plain.state_dict().items(), saving.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, msg=key)
    assert all(norm.num_batches_tracked == 1 and norm.momentum == 0.1 for norm in batch_norms(saving))
    for (key, a), b in zip(plain.named_parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=key)


@pytest.mark.parametrize("size", [200, 202])
@pytest.mark.parametrize("layer", ["layer2", "layer3"])
@pytest.mark.parametrize("name", ["mc3_18", "mc3_tiny"])
def test_a_cell_of_the_local_map_looks_at_pixels_around_its_stride_times_its_index(
    name: BackboneName, layer: LocalLayer, size: int
) -> None:
    backbone = Backbone(name, BackboneOptions(local_layer=layer)).eval()
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.abs_()  # nothing cancels and no ReLU is closed: every pixel in reach has a gradient
    pixels = torch.rand(1, 3, 1, size, size, requires_grad=True)
    x = pixels
    for stage in STAGES[: STAGES.index(layer) + 1]:
        x = backbone.get_submodule(stage)(x)
    row, column = x.shape[-2] // 2, x.shape[-1] // 2 - 1
    (gradient,) = torch.autograd.grad(x[0, :, 0, row, column].sum(), pixels)
    rows, columns = (gradient.abs().amax((0, 1, 2))).nonzero().unbind(1)
    stride = LOCAL_STRIDE_PX[layer]
    assert rows.min() > 0
    assert columns.max() < size - 1
    assert (rows.min() + rows.max()) / 2 == stride * row
    assert (columns.min() + columns.max()) / 2 == stride * column


def weights_file(folder: Path, name: str | None = None) -> tuple[Path, dict[str, Tensor]]:
    """A file like torchvision's, with its hash in the name unless another name is given."""
    state = mc3_18(weights=None).state_dict()
    path = folder / "weights"
    torch.save(state, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return path.rename(folder / (name or f"mc3_18-{digest[:8]}.pth")), state


def test_kinetics_weights_load_from_a_path_and_from_the_hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, state = weights_file(tmp_path)
    backbone = Backbone("mc3_18")
    load_kinetics400(backbone, str(path))
    for key, value in backbone.state_dict().items():
        assert torch.equal(value, state[key])
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    path.rename(tmp_path / "hub" / "checkpoints" / KINETICS_FILE)
    with pytest.raises(ValueError, match="its name says a90a0ba3"):  # our file is not the real one: found, and checked
        load_kinetics400(backbone, None)


def test_a_missing_weights_file_says_what_to_download_and_where_to_put_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(FileNotFoundError, match=rf"{tmp_path}.*download https://.*{KINETICS_FILE}.*weights_path"):
        load_kinetics400(Backbone("mc3_18"), None)


def test_a_damaged_or_wrongly_named_weights_file_is_refused(tmp_path: Path) -> None:
    backbone = Backbone("mc3_18")
    path, _ = weights_file(tmp_path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="damaged"):
        load_kinetics400(backbone, str(path))
    path, _ = weights_file(tmp_path, "resnet.pth")
    with pytest.raises(ValueError, match="the name must be mc3_18-"):
        load_kinetics400(backbone, str(path))


def test_our_name_of_the_kinetics_file_is_torchvisions() -> None:
    from torchvision.models.video import MC3_18_Weights

    assert MC3_18_Weights.KINETICS400_V1.url.endswith("/" + KINETICS_FILE)


def test_frozen_batch_norm_is_frozen_in_a_model_that_was_just_built() -> None:
    backbone = Backbone("mc3_tiny", BackboneOptions(batch_norm="frozen", frozen_stages=1))
    before = {name: value.clone() for name, value in backbone.named_buffers()}
    backbone(torch.randint(0, 255, (2, 2, 16, 16, 3), dtype=torch.uint8))
    assert all(torch.equal(value, before[name]) for name, value in backbone.named_buffers())
