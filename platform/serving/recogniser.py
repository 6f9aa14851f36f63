"""A trained model ready to recognise: weights, classes, temperature, and how much of a video one prediction covers.

It is found by the name of a run, the folder of a run or of its model, or an MLflow address.

Letters: B clips, T frames, H W pixels, M bodies, N joints, C classes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file

from starlab.experiments.spec import Spec, spec_from_dict
from starlab.models.star import StarTransformer, load_state
from starlab.platform.errors import UserError
from starlab.platform.recipe.calibration import fit_temperature
from starlab.platform.recipe.metrics import softmax
from starlab.platform.recipe.training_state import weights_to_evaluate
from starlab.platform.runs.checkpoint import find_checkpoint
from starlab.platform.runs.folder import MODEL, SPEC, RunFolder, find_run
from starlab.platform.runs.records import EvaluationRecord, Result, RunInfo
from starlab.platform.runs.search_records import SearchSummary
from starlab.platform.serving.registry import ABOUT, WEIGHTS, download
from starlab.platform.worker.predictions import read_predictions


@dataclass(frozen=True, slots=True)
class Place:
    """Where a model is: a finished run, or the folder of a model without its run. Small enough to send to processes."""

    name: str
    run: Path | None
    model: Path | None

    def card(self) -> ModelCard:
        """Read what is known of the model, without its weights.

        Raises:
            UserError: The run has not finished, or the model's files are damaged.
        """
        with self._readable():
            return _card_of_run(RunFolder(self.run)) if self.run else _card_of_folder(self.name, self.model or Path())

    def load(self) -> Recogniser:
        """Load the model onto the GPU if there is one, else the CPU.

        Raises:
            UserError: The run has not finished, its weights are gone, or the model's files are damaged.
        """
        card = self.card()
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        config = card.spec.model
        batch_norm = "frozen" if config.batch_norm == "sync" else config.batch_norm  # the same in evaluation mode
        model = StarTransformer(replace(config, weights="none", batch_norm=batch_norm))  # the state has the weights
        with self._readable():
            load_state(model, _state_of_run(RunFolder(self.run)) if self.run else load_file((self.model or Path()) / WEIGHTS))
        own = {field.name: getattr(card, field.name) for field in fields(card)}
        return Recogniser(**own, model=model.eval().to(device), device=device)

    @contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except UserError:
            raise
        except (ValueError, OSError, KeyError, SafetensorError) as error:
            raise UserError(f"the model of {self.name} cannot be loaded: {error}") from error


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """What is known of a trained model besides its weights."""

    name: str
    spec: Spec
    classes: tuple[str, ...]
    """In the order of the logits."""
    temperature: float | None
    """Number by which logits are divided before the softmax; None if it was never fitted."""
    clip_frames: int | None
    """Median number of frames of the clips that it was trained on; None if the run did not record it."""

    @property
    def needs_joints(self) -> bool:
        """Whether somebody must give joints: the model reads them, or its frames are crops to them."""
        reads = self.spec.model.modality != "rgb" and self.spec.model.pose != "learned"
        return reads or (self.spec.data.person_crop is not None and self.spec.data.has_joints())

    @property
    def why_joints(self) -> str:
        """Why the model needs joints, for messages."""
        crop = self.spec.data.person_crop
        return f"model.modality is {self.spec.model.modality}" + (f", data.person_crop {crop}" if crop is not None else "")

    def probabilities(self, logits: NDArray[np.float32]) -> NDArray[np.float64]:
        """Turn logits (B, C) into probabilities, calibrated if the temperature is known."""
        found: NDArray[np.float64] = softmax(logits.astype(np.float64) / (self.temperature or 1.0))
        return found


@dataclass(frozen=True, kw_only=True)
class Recogniser(ModelCard):
    """A model in evaluation mode."""

    model: StarTransformer
    device: torch.device

    def logits(self, frames: NDArray[np.uint8], joints: NDArray[np.float32]) -> NDArray[np.float32]:
        """Compute logits (B, C) from frames (B, T, H, W, 3) and joints (B, T, M, N, 3)."""
        with torch.inference_mode():
            scores = self.model(torch.from_numpy(frames).to(self.device), torch.from_numpy(joints).to(self.device))
        found: NDArray[np.float32] = scores.float().cpu().numpy()
        return found


def locate(name: str, runs: Path, say: Callable[[str], None] = lambda _: None) -> Place:
    """Find the model that `name` means.

    Args:
        name: Name of a run or of an experiment with a single run, a search (its best trial), the folder of a run or of a
            model, or an MLflow address such as models:/demo@best. These are resolved at MLFLOW_TRACKING_URI.
        runs: Folder of runs.
        say: Called with a line about each run that cannot be read.

    Raises:
        UserError: There is none, there are several, or the run has not finished.
    """
    if name.startswith(("models:", "runs:")):
        return Place(name, None, download(name))
    path = Path(name).expanduser()
    if (path / ABOUT).is_file() and (path / WEIGHTS).is_file():
        return Place(str(path), None, path.resolve())
    folder = RunFolder(path.resolve()) if (path / RunInfo.FILE).is_file() else find_run(runs, name, say)
    if trials := folder.trials():
        summary = folder.read(SearchSummary)
        best = [trial for trial in trials if summary and trial.path.name == summary.best]
        if not best:
            raise UserError(f"{folder.path.name} is a search without a winner yet; name one of its {len(trials)} trials")
        folder = best[0]
    if folder.result is None:
        raise UserError(
            f"run {folder.path.name} has not finished: its status is {folder.info.status}; train it to its end first"
        )
    return Place(folder.path.name, folder.path, None)


def locate_recogniser(name: str, runs: Path, say: Callable[[str], None] = lambda _: None) -> Place:
    """Find the model that `name` means, as `locate`, to recognise actions with it.

    Raises:
        UserError: As `locate`; also if the model learned no actions.
    """
    place = locate(name, runs, say)
    refuse_without_actions(place.name, place.card().spec)
    return place


def refuse_without_actions(name: str, spec: Spec) -> None:
    """Refuse a model that learned the joints alone.

    Raises:
        UserError: `train.action_loss_weight` was 0.
    """
    if not spec.train.learns_actions:
        raise UserError(
            f"{name} learned no actions (train.action_loss_weight is 0), so it cannot recognise any; "
            f"train a run that starts from it: starlab train EXPERIMENT train.init_from={name}"
        )


def _card_of_run(folder: RunFolder) -> ModelCard:
    spec, result = spec_from_dict(folder.read_json(SPEC), str(folder.path / SPEC)), folder.require(Result)
    return ModelCard(
        name=folder.path.name,
        spec=spec,
        classes=result.classes,
        temperature=result.calibration.temperature if result.calibration else _temperature_of_evaluations(folder, result),
        clip_frames=result.clip_frames,
    )


def _card_of_folder(name: str, folder: Path) -> ModelCard:
    about = json.loads((folder / ABOUT).read_text())
    return ModelCard(
        name=name,
        spec=spec_from_dict(about["spec"], str(folder / ABOUT)),
        classes=tuple(about["classes"]),
        temperature=about.get("temperature"),
        clip_frames=about.get("clip_frames"),
    )


def _state_of_run(folder: RunFolder) -> dict[str, torch.Tensor]:
    stored = folder.artifacts / MODEL / WEIGHTS
    if stored.is_file():
        state: dict[str, torch.Tensor] = load_file(stored)
        return state
    # A trial of a search keeps its checkpoints only.
    best = find_checkpoint(folder.stored_checkpoints, folder.require(Result).best_step)
    return weights_to_evaluate(best.tensors)


def _temperature_of_evaluations(folder: RunFolder, result: Result) -> float | None:
    """Fit the temperature to a validation part that `starlab evaluate` predicted with the same weights, if there is one."""
    for path in sorted((folder.artifacts / "evaluations").glob("validation-*/predictions.parquet")):
        record = RunFolder(path.parent).read(EvaluationRecord)
        if record is not None and record.step == result.best_step:
            _, evaluation, _ = read_predictions(path)
            return fit_temperature(evaluation) if len(evaluation.labels) else None
    return None
