"""The trunks: mc3_18 is torchvision's, written out."""

import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.video import mc3_18

from starlab.models.trunks import STAGES, Mc3Trunk, TinyTrunk


def through(trunk: nn.Module, x: Tensor) -> Tensor:
    for stage in STAGES:
        x = trunk.get_submodule(stage)(x)
    return x


@pytest.mark.parametrize("training", [True, False])
def test_mc3_18_gives_the_values_and_gradients_of_torchvisions(training: bool) -> None:
    torch.manual_seed(0)
    reference = mc3_18(weights=None).train(training)
    ours = Mc3Trunk().train(training)
    ours.load_state_dict({name: value for name, value in reference.state_dict().items() if not name.startswith("fc.")})
    x = torch.randn(2, 3, 3, 33, 40)
    expected, output = through(reference, x), through(ours, x)
    assert torch.equal(output, expected)
    expected.square().sum().backward()
    output.square().sum().backward()
    theirs = dict(reference.named_parameters())
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, theirs[name].grad, msg=name)


def test_mc3_18_starts_with_the_spread_of_torchvisions_weights() -> None:
    torch.manual_seed(0)
    theirs = dict(mc3_18(weights=None).named_parameters())
    for name, parameter in Mc3Trunk().named_parameters():
        if parameter.ndim > 1:
            assert parameter.std().item() == pytest.approx(theirs[name].std().item(), rel=0.1), name
        else:
            assert torch.equal(parameter, theirs[name]), name


def test_building_the_papers_model_does_not_import_torchvision() -> None:
    code = (
        "import sys; from starlab.models.star import StarConfig, StarTransformer; "
        "StarTransformer(StarConfig(num_classes=2, num_joints=13)); print('torchvision' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


def test_the_weights_of_the_tiny_trunk_keep_their_names_so_that_earlier_runs_can_be_read() -> None:
    names = set(TinyTrunk().state_dict())
    assert {"stem.0.0.weight", "stem.0.1.running_mean", "layer1.conv1.0.weight", "layer2.shortcut.0.weight"} <= names
