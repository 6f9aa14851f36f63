import pytest
import torch

from starlab.experiments.sections import TrainConfig
from starlab.platform.recipe.precision import compiles


@pytest.mark.parametrize(("capability", "expected"), [((7, 0), False), ((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_auto_compiles_on_ampere_and_later_and_never_on_a_v100(
    capability: tuple[int, int], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert compiles(TrainConfig(), torch.device("cuda", 0)) is expected
    assert compiles(TrainConfig(compile="on"), torch.device("cuda", 0))
    assert not compiles(TrainConfig(compile="off"), torch.device("cuda", 0))


def test_auto_leaves_a_cpu_uncompiled() -> None:
    assert not compiles(TrainConfig(), torch.device("cpu"))
    assert compiles(TrainConfig(compile="on"), torch.device("cpu"))


def test_auto_leaves_a_deterministic_run_uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    assert not compiles(TrainConfig(deterministic=True), torch.device("cuda", 0))


def test_compiling_and_determinism_together_are_refused() -> None:
    with pytest.raises(ValueError, match=r"train.compile is on; it must be .* with train.deterministic"):
        TrainConfig(compile="on", deterministic=True)
