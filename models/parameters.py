"""The kinds of parameters that an optimizer may treat differently, by name."""

from __future__ import annotations

from torch import nn


def decayed_names(model: nn.Module) -> frozenset[str]:
    """Parameters that weight decay is meant for: the weights of linear layers and convolutions.

    All others take none: biases, norms, class tokens, the positions of joints, bodies and frames, the token of an unseen joint.
    """
    return frozenset(
        f"{prefix}.weight" for prefix, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv3d)
    )


def backbone_names(model: nn.Module) -> frozenset[str]:
    """Parameters of the backbone, which may be pre-trained while the rest starts random; empty for a pose-only model."""
    return frozenset(name for name, _ in model.named_parameters() if name.startswith("backbone."))
