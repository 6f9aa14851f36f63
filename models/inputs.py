"""Checks of the model's inputs before any work: an error names the tensor, what it is and what is expected.

Letters: B clips, T frames, H W pixels, M bodies, N joints per body.
"""

from __future__ import annotations

import torch
from torch import Tensor

from starlab.models.config import StarConfig


def check_inputs(config: StarConfig, frames: Tensor, joints: Tensor | None) -> Tensor:
    """Check dtypes and shapes, which never synchronises a device, and joints on the CPU for NaN. Returns the joints.

    Raises:
        TypeError: joints are missing, or a dtype is not as expected.
        ValueError: a shape is not as expected, or a joint is NaN or infinite.
    """
    if joints is None:
        raise TypeError(
            f"joints are missing; a model with StarConfig.pose = {config.pose!r} takes them as its second argument, "
            "one with pose='learned' finds them in the frames"
        )
    check_frames(config, frames)
    if joints.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"joints are {joints.dtype}; expected torch.float32")
    if joints.ndim != 5 or joints.shape[-1] != 3:
        raise ValueError(
            f"joints have shape {tuple(joints.shape)}; expected (B, T, M, N, 3): bodies, joints, then x, y, confidence"
        )
    if frames.shape[0] != joints.shape[0]:
        raise ValueError(f"frames hold {frames.shape[0]} clips and joints {joints.shape[0]}; expected equal numbers")
    check_size("joints", "T (axis 1)", joints.shape[1], "frames", config.frames)
    check_size("joints", "M (axis 2)", joints.shape[2], "max_bodies", config.max_bodies)
    check_size("joints", "N (axis 3)", joints.shape[3], "num_joints", config.num_joints)
    # Reading a value back from an accelerator would stall it at every step; there NaN counts as an invisible joint.
    if joints.device.type == "cpu" and not torch.compiler.is_compiling() and not bool(joints.isfinite().all()):
        clip, frame, body, joint, _ = (~joints.isfinite()).nonzero()[0].tolist()
        raise ValueError(
            f"joints hold NaN or infinity, first at clip {clip}, frame {frame}, body {body}, joint {joint}; "
            "mark a missing joint with confidence 0 and finite x, y"
        )
    return joints


def check_frames(config: StarConfig, frames: Tensor) -> None:
    """Check the dtype and the shape of frames.

    Raises:
        TypeError: the dtype is not as expected.
        ValueError: the shape is not as expected.
    """
    if frames.dtype != torch.uint8:
        raise TypeError(f"frames are {frames.dtype}; expected torch.uint8, the model normalises them itself")
    if frames.ndim != 5 or frames.shape[-1] != 3:
        hint = ": channels come last, permute them" if frames.ndim == 5 and 3 in frames.shape[1:3] else ""
        raise ValueError(f"frames have shape {tuple(frames.shape)}; expected (B, T, H, W, 3), RGB{hint}")
    check_size("frames", "T (axis 1)", frames.shape[1], "frames", config.frames)


def check_size(tensor: str, axis: str, size: int, field: str, expected: int) -> None:
    """Check one axis against the configuration.

    Raises:
        ValueError: the size is not the expected one.
    """
    if size != expected:
        raise ValueError(
            f"{tensor} have {axis} = {size}; StarConfig.{field} = {expected} is expected: "
            f"pass {expected}, or build the model with {field}={size}"
        )
