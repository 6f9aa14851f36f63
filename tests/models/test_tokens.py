"""Order, positions and masks of the tokens (Eq. 2-4)."""

import pytest
import torch

from starlab.models.star import StarConfig, StarTransformer
from starlab.models.tokens import FOURIER_BANDS, JointTokenOptions, JointTokens, fourier_code, present_keys, sincos_position


def tiny(**options: object) -> StarConfig:
    settings: dict[str, object] = {
        "num_classes": 4,
        "num_joints": 5,
        "frames": 4,
        "backbone": "mc3_tiny",
        "layers": 1,
        "dim": 8,
        "heads": 2,
    }
    return StarConfig(**{**settings, **options})  # type: ignore[arg-type]


def joints_of(config: StarConfig, clips: int = 2) -> torch.Tensor:
    return torch.rand(clips, config.frames, config.max_bodies, config.num_joints, 3)


@pytest.mark.parametrize(
    ("options", "tokens", "class_rows"),
    [
        ({}, 1 + 9 + 1 + 5 + 1, (0, 10, 16)),
        ({"class_tokens": "single"}, 9 + 5 + 1, (14,)),
        ({"modality": "rgb"}, 1 + 9 + 1, (0, 10)),
        ({"modality": "pose"}, 1 + 5 + 1, (0, 6)),
        ({"modality": "pose", "class_tokens": "single"}, 5 + 1, (5,)),
        ({"max_bodies": 2}, 1 + 9 + 1 + 10 + 1, (0, 10, 21)),
        ({"grid": 2}, 1 + 4 + 1 + 5 + 1, (0, 5, 11)),
    ],
)
def test_every_frame_has_its_class_tokens_in_the_papers_order(
    options: dict[str, object], tokens: int, class_rows: tuple[int, ...]
) -> None:
    config = tiny(token_init_std=0.5, **options)
    model = StarTransformer(config)
    frames = torch.randint(0, 256, (2, 4, 48, 48, 3), dtype=torch.uint8)
    local_map, global_map = (None, None) if model.backbone is None else model.backbone(frames)
    z = model.tokens(local_map, global_map, joints_of(config), (48, 48))
    assert z.tokens.shape == (2, 4, tokens, 8)
    assert z.class_rows == class_rows
    vectors = [v for v in (model.tokens.cls_glob, model.tokens.cls_joint, model.tokens.cls_total) if v is not None]
    for row, vector in zip(class_rows, vectors, strict=True):
        assert (z.tokens[:, :, row] == vector).all()


def test_only_the_joints_of_a_body_absent_from_the_whole_clip_are_masked() -> None:
    joints = torch.rand(3, 4, 2, 5, 3) + 0.1
    joints[0, :, 1, :, 2] = 0
    joints[1, :3, 1, :, 2] = 0
    joints[2, :, 0, :, 2] = 0
    mask = present_keys(joints, first_joint=3, num_tokens=14)
    expected = torch.ones(3, 4, 14, dtype=torch.bool)
    expected[0, :, 8:13] = False
    expected[2, :, 3:8] = False
    assert torch.equal(mask, expected)


def test_one_body_builds_no_mask_even_where_it_is_absent_so_attention_stays_on_its_fast_path() -> None:
    config = tiny(modality="pose")
    joints = torch.zeros(2, 4, 1, 5, 3)
    assert StarTransformer(config).tokens(None, None, joints, (48, 48)).key_mask is None


def test_a_joint_that_is_not_visible_has_no_fourier_code() -> None:
    joints = torch.rand(1, 2, 5, 3) * 0.9 + 0.05
    joints[0, 0, 3, 2] = 0
    joints[0, 1, 4, 0] = float("nan")
    code = fourier_code(joints)
    assert code.shape == (1, 2, 5, 4 * FOURIER_BANDS)
    seen = code.abs().amax(-1) > 0
    expected = torch.ones(1, 2, 5, dtype=torch.bool)
    expected[0, 0, 3] = expected[0, 1, 4] = False
    assert torch.equal(seen, expected)


def test_index_xy_tells_two_places_of_a_joint_apart_on_a_map_without_features() -> None:
    frames = torch.zeros(1, 4, 48, 48, 3, dtype=torch.uint8)
    for position, differs in (("index", False), ("index_xy", True)):
        torch.manual_seed(0)
        model = StarTransformer(tiny(joint_position=position)).eval()
        assert model.backbone is not None
        local_map, global_map = model.backbone(frames)
        local_map = torch.ones_like(local_map)
        left, right = (torch.full((1, 4, 1, 5, 3), place) for place in (0.3, 0.6))
        left, right = (model.tokens(local_map, global_map, joints, (48, 48)).tokens for joints in (left, right))
        gap = left - right
        assert (gap.abs().max() > 1e-2) == differs


@pytest.mark.parametrize("temporal_position", ["sincos", "learned"])
def test_a_temporal_position_is_the_same_for_all_tokens_of_a_frame_and_scales(temporal_position: str) -> None:
    offsets = []
    for scale in (0.0, 1.0, 0.5):
        torch.manual_seed(0)
        config = tiny(modality="pose", temporal_position=temporal_position, temporal_position_scale=scale, token_init_std=0.3)
        offsets.append(StarTransformer(config).tokens(None, None, torch.full((1, 4, 1, 5, 3), 0.4), (48, 48)).tokens)
    full, half = offsets[1] - offsets[0], offsets[2] - offsets[0]
    torch.testing.assert_close(full, full[:, :, :1].expand_as(full))
    torch.testing.assert_close(half, full / 2)
    assert (full[0, 0] - full[0, 1]).abs().max() > 0.1


def test_sincos_positions_are_bounded_and_differ_between_any_two_frames() -> None:
    table = sincos_position(32, 16)
    assert table.shape == (32, 16)
    assert table.abs().max() <= 1
    distances = torch.cdist(table, table) + torch.eye(32)
    assert distances.min() > 0.1


def test_the_pose_model_reads_no_pixel_and_has_no_backbone() -> None:
    model = StarTransformer(tiny(modality="pose")).eval()
    joints = joints_of(model.config)
    dark, bright = (torch.full((2, 4, 8, 8, 3), level, dtype=torch.uint8) for level in (0, 255))
    assert model.backbone is None
    assert torch.equal(model(dark, joints), model(bright, joints))
    assert not torch.equal(model(dark, joints), model(dark, joints.flip(-2)))


def test_the_rgb_model_reads_no_joint() -> None:
    model = StarTransformer(tiny(modality="rgb")).eval()
    frames = torch.randint(0, 256, (2, 4, 48, 48, 3), dtype=torch.uint8)
    assert torch.equal(model(frames, joints_of(model.config)), model(frames, joints_of(model.config)))


def joint_tokens(token_norm: bool) -> JointTokens:
    return JointTokens(
        6,
        8,
        JointTokenOptions(
            num_joints=5,
            max_bodies=1,
            stride_px=4,
            sigma_cells=0.7,
            heatmap_norm="sum",
            position="index",
            token_norm=token_norm,
            init_std=0.5,
        ),
    )


def test_under_token_norm_an_invisible_joint_is_a_learned_token_and_adds_nothing_to_the_projections_gradient() -> None:
    torch.manual_seed(0)
    module = joint_tokens(token_norm=True)
    assert module.unseen is not None
    local_map, joints = torch.randn(2, 6, 4, 12, 12), torch.rand(2, 4, 1, 5, 3) * 0.9 + 0.05
    joints[:, :, 0, 1, 2] = 0
    joints[:, :, 0, 3, 0] = float("nan")
    seen = [0, 2, 4]
    direction = torch.randn(2, 4, 5, 8)
    tokens = module(local_map, joints, (48, 48))
    assert torch.equal(tokens[:, :, [1, 3]], (module.unseen + module.pos[[1, 3]]).expand(2, 4, 2, 8))
    parameters = (module.projection.weight, module.projection.bias, module.unseen)
    of_all = torch.autograd.grad((tokens * direction).sum(), parameters, retain_graph=True)
    of_seen = torch.autograd.grad((tokens * direction)[:, :, seen].sum(), parameters)
    torch.testing.assert_close(of_all[:2], of_seen[:2])
    assert of_all[0].norm() < 100  # 316 times as much came from each joint that nobody saw
    torch.testing.assert_close(of_all[2], direction[:, :, [1, 3]].sum((0, 1, 2)))


def test_without_token_norm_an_invisible_joint_is_what_equation_1_makes_of_it() -> None:
    torch.manual_seed(0)
    module = joint_tokens(token_norm=False)
    assert module.unseen is None
    joints = torch.zeros(1, 2, 1, 5, 3)
    tokens = module(torch.randn(1, 6, 2, 12, 12), joints, (48, 48))
    torch.testing.assert_close(tokens, (module.projection.bias + module.pos).expand(1, 2, 5, 8))


def test_token_norm_makes_the_tokens_of_a_new_model_unit_scale_before_positions() -> None:
    model = StarTransformer(tiny(token_norm=True, token_init_std=0.0))
    frames = torch.randint(0, 256, (2, 4, 48, 48, 3), dtype=torch.uint8)
    assert model.backbone is not None
    z = model.tokens(*model.backbone(frames), joints_of(model.config), (48, 48)).tokens
    cells = z[:, :, 1:10]
    torch.testing.assert_close(cells.square().mean(-1), torch.ones(2, 4, 9), rtol=1e-2, atol=1e-2)
