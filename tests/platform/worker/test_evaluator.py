"""Tests how an evaluation handles unreadable clips. Complete evaluations are in test_evaluate.py and test_trainer.py."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from starlab.platform.errors import StopRunError
from starlab.platform.recipe.metrics import Evaluation
from starlab.platform.worker.evaluate import Evaluator, Predictor


def evaluate(clips: int, readable: int, limit: float, folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Evaluation, dict]:
    listed: dict[str, str] = {}
    unreadable = tuple((f"{clip:04d}", "torn") for clip in range(readable, clips))
    found = Evaluation(np.arange(readable), np.zeros(readable, np.int64), np.zeros((readable, 2), np.float32), unreadable)
    monkeypatch.setattr(Predictor, "predict", lambda *_, **__: found)
    spec = SimpleNamespace(data=SimpleNamespace(max_unreadable_fraction=limit), train=SimpleNamespace(global_batch=4))
    task = SimpleNamespace(spec=spec, source=None, limits=None, folder=SimpleNamespace(path=folder))
    state = SimpleNamespace(unreadable=listed, average=None, model=None, precision="fp32")
    ranks = SimpleNamespace(share_buffers=lambda _: None, world=1)
    writer = SimpleNamespace(list_unreadable=lambda clips: (folder / "unreadable.json").write_text(str(clips)))
    evaluator = Evaluator(task, ranks, state, torch.device("cpu"), writer)  # type: ignore[arg-type]
    return evaluator.evaluate(tuple(range(clips)), "validation"), listed


def test_a_few_unreadable_clips_are_listed_and_the_evaluation_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluation, listed = evaluate(10, 9, 0.1, tmp_path, monkeypatch)
    assert len(evaluation.clips) == 9
    assert listed == {"0009": "torn"}


@pytest.mark.parametrize(("readable", "limit"), [(8, 0.1), (0, 1.0)])
def test_too_many_unreadable_clips_stop_the_run_and_so_does_a_part_without_readable_clips(
    readable: int, limit: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(StopRunError, match=rf"{10 - readable} of 10 validation clips could not be read.*unreadable.json"):
        evaluate(10, readable, limit, tmp_path, monkeypatch)
    assert (tmp_path / "unreadable.json").is_file()
