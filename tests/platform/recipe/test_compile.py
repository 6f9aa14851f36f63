import pytest
import torch

from starlab.platform.recipe.precision import compiles


@pytest.mark.parametrize(("capability", "expected"), [((7, 0), False), ((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_auto_compiles_on_ampere_and_later_and_never_on_a_v100(
    capability: tuple[int, int], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert compiles("auto", torch.device("cuda", 0)) is expected
    assert compiles("on", torch.device("cuda", 0))
    assert not compiles("off", torch.device("cuda", 0))


def test_auto_leaves_a_cpu_uncompiled() -> None:
    assert not compiles("auto", torch.device("cpu"))
    assert compiles("on", torch.device("cpu"))
