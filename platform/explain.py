"""Explains a run: which frames and joints its attention looks at, and how its classes lie apart: `starlab explain`.

    artifacts/explain/   see reports/explain_files.py

It reads the clips in this process, without Ray, and uses a GPU if this machine has one. The rollout uses no label and gives no
accuracy, so it is not a look at the test part. The embedding is coloured by the true class and shows how well classes separate;
for a run whose test part was not evaluated, such as a trial of a search, it therefore shows the validation part.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from starlab.experiments.spec import Spec, override_spec, spec_from_dict
from starlab.models.rollout import frame_importance, token_importance
from starlab.models.star import StarTransformer, load_state
from starlab.pipelines.clip import ClipSource
from starlab.pipelines.contact_sheet import draw_joints
from starlab.pipelines.loading import LoadClips, as_batch
from starlab.pipelines.schedule import EvalPlan
from starlab.pipelines.skeletons import Skeleton
from starlab.platform.errors import UserError
from starlab.platform.evaluation import CHANGEABLE, checkpoint_step, one_run
from starlab.platform.preflight import open_data
from starlab.platform.recipe.training_state import weights_to_evaluate
from starlab.platform.reports.attention import MODEL, Focus, focus, typical_clip
from starlab.platform.reports.embedding import embed
from starlab.platform.reports.explain_files import (
    CLIP,
    EMBEDDING,
    FOLDER,
    FRAMES,
    ROLLOUT,
    ClipMap,
    Embedding,
    Rollouts,
    write_embedding,
    write_rollouts,
)
from starlab.platform.runs.checkpoint import find_checkpoint
from starlab.platform.runs.folder import SPEC, RunFolder, runs_folder

_BATCH = 8
_FRAME_PX = 112
_COLUMNS = 8
_SAY_EVERY_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Explanation:
    """What `explain_run` found."""

    run_id: str
    focuses: tuple[Focus, ...]
    """For all attentions of the model, and for each pattern that it has."""
    clip: ClipMap
    embedding: Embedding | None
    unreadable: int
    """Number of clips that could not be read."""
    folder: Path
    """Folder of the files."""


def explain_run(
    name: str,
    *,
    clip: str | None = None,
    embedding: bool = False,
    checkpoint: str = "best",
    most_clips: int | None = None,
    overrides: Sequence[str] = (),
    runs: str | Path | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Explanation:
    """Compute the attention rollout of every test clip, draw one clip, and on request the embedding.

    Args:
        name: Name of the run, or of an experiment with a single run.
        clip: Id of the clip to draw; None draws the one whose frame importance is nearest to the mean.
        embedding: Whether to compute the embedding, too.
        checkpoint: "best", "last" or a step.
        most_clips: Largest number of clips, evenly spread over the part; None takes all.
        overrides: Changes to the run's spec, e.g. ["data.store=/elsewhere"].
        runs: Folder of runs; None uses STARLAB_RUNS, else ./runs.
        say: Called with each line of progress.

    Raises:
        UserError, SpecError, DataError: The run, the checkpoint, the clip or the data do not exist.
    """
    root = runs_folder(runs)
    folder = one_run(root, name, say)
    spec = override_spec(
        spec_from_dict(folder.read_json(SPEC), str(folder.path / SPEC)), overrides, CHANGEABLE, folder.path.name
    )
    step = checkpoint_step(folder, checkpoint)
    source, parts = open_data(spec, root, say)
    trained_on = folder.info.tags.get("starlab.data_fingerprint", source.fingerprint)
    if source.fingerprint != trained_on:
        raise UserError(
            f"run {folder.path.name} was trained on data with fingerprint {trained_on[:12]}, not {source.fingerprint[:12]}: "
            "name the current location of the same data with data.store=…"
        )
    drawn = _find(source, parts.test, clip)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = _load(folder, spec, step).to(device)
    run = _Explainer(spec, source, model, device, say)
    rollouts, unreadable = run.rollouts(_spread(parts.test, most_clips), step)
    target = folder.artifacts / FOLDER
    write_rollouts(target / ROLLOUT, rollouts)
    if drawn is None:
        typical = rollouts.clip_ids[typical_clip(rollouts.importance[next(iter(rollouts.importance))])]
        drawn = _find(source, parts.test, typical)
    assert drawn is not None
    found = run.draw(drawn, target)
    points = None
    if embedding:
        result = folder.result
        tested = result is not None and result.test is not None
        part = ("test", parts.test) if tested or not parts.validation else ("validation", parts.validation)
        if not tested:
            say(f"embedding of the {part[0]} part, because the run has not evaluated its test part")
        points = run.embedding(_spread(part[1], most_clips), part[0])
        write_embedding(target / EMBEDDING, points)
    focuses = tuple(focus(pattern, importance) for pattern, importance in rollouts.importance.items())
    return Explanation(folder.path.name, focuses, found, points, unreadable, target)


class _Explainer:
    """Runs the model of one run over clips."""

    def __init__(
        self, spec: Spec, source: ClipSource, model: StarTransformer, device: torch.device, say: Callable[[str], None]
    ) -> None:
        self._spec, self._source, self._model, self._device, self._say = spec, source, model, device, say
        letters = sorted({letter for letter in f"{spec.model.encoder or ''}{spec.model.decoder or ''}" if letter in "FZB"})
        # With a single pattern, the rollout of the model and that of the pattern are the same.
        self._patterns: dict[str, str | None] = {letters[0]: None} if len(letters) == 1 else {MODEL: None}
        self._patterns |= {letter: letter for letter in letters if letter not in self._patterns}

    def rollouts(self, clips: Sequence[int], step: int) -> tuple[Rollouts, int]:
        """Compute the frame importance of each clip, by pattern. Also returns how many clips could not be read."""
        ids: list[str] = []
        found: dict[str, list[NDArray[np.float32]]] = {pattern: [] for pattern in self._patterns}
        for numbers, frames, joints in self._batches(clips, "rollout"):
            ids += [self._source.clips[number].clip_id for number in numbers]
            for pattern, letters in self._patterns.items():
                found[pattern].append(frame_importance(self._model, frames, joints, letters).cpu().numpy())
        if not ids:
            raise UserError("none of the clips can be read; starlab verify lists the damage of a store")
        importance = {pattern: np.concatenate(parts) for pattern, parts in found.items()}
        return Rollouts(tuple(ids), importance, step, "test"), len(clips) - len(ids)

    def embedding(self, clips: Sequence[int], part: str) -> Embedding:
        """Compute the averaged class token of each clip and project it to two dimensions."""
        numbers, vectors = [], []
        for batch, frames, joints in self._batches(clips, "embedding"):
            with torch.no_grad():
                vectors.append(self._model.embed(frames, joints).float().cpu().numpy())
            numbers += batch
        points, explained = embed(np.concatenate(vectors))
        rows = [self._source.clips[number] for number in numbers]
        true = tuple(self._source.classes[row.label] for row in rows)
        return Embedding(true, tuple(row.clip_id for row in rows), points, explained, part)

    def draw(self, number: int, target: Path) -> ClipMap:
        """Write the frames of one clip with joints and importance, and the numbers behind them.

        Raises:
            UserError: The clip cannot be read.
        """
        row = self._source.clips[number]
        batches = list(self._batches([number], ""))
        if not batches:
            raise UserError(f"clip {row.clip_id} cannot be read, so it cannot be drawn")
        _, frames, joints = batches[0]
        tokens = token_importance(self._model, frames, joints)
        values = tokens.importance[0].cpu().numpy()  # (T, S)
        names = self._source.skeleton.joints
        bodies = [f" {body + 1}" if body else "" for body in range(self._source.max_bodies)]
        found = ClipMap(
            clip_id=row.clip_id,
            true=self._source.classes[row.label],
            joints=tuple(f"{name}{body}" for body in bodies for name in names) if tokens.joint_rows else (),
            frames={
                pattern: frame_importance(self._model, frames, joints, letters)[0].tolist()
                for pattern, letters in self._patterns.items()
            },
            joint_importance=values[:, list(tokens.joint_rows)].T.tolist(),
            grid_share=float(values[:, list(tokens.grid_rows)].sum()),
            class_share=float(values[:, list(tokens.class_rows)].sum()),
        )
        sheet = picture(
            frames[0].cpu().numpy(), joints[0].cpu().numpy(), values[:, list(tokens.grid_rows)], self._source.skeleton
        )
        target.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(target / FRAMES), cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 80])
        (target / CLIP).write_text(json.dumps(asdict(found), indent=1))
        return found

    def _batches(self, clips: Sequence[int], what: str) -> Iterator[tuple[list[int], torch.Tensor, torch.Tensor]]:
        """Yield clip numbers, frames and joints of the readable clips, in order."""
        plan = EvalPlan(tuple(clips), 0, 1)
        load = LoadClips(self._source, self._spec.data, plan, 0)
        began = said = time.monotonic()
        for first in range(0, len(clips), _BATCH):
            batch = as_batch(load({"id": np.arange(first, min(first + _BATCH, len(clips)))}))
            if len(batch.clips):
                frames, joints = (torch.from_numpy(part).to(self._device) for part in (batch.frames, batch.joints))
                yield batch.clips.tolist(), frames, joints
            now, done = time.monotonic(), min(first + _BATCH, len(clips))
            if what and now - said > _SAY_EVERY_SECONDS:
                rate, said = done / (now - began), now
                self._say(f"{what}  {done} of {len(clips)} clips, {rate:.1f} clips/s, {(len(clips) - done) / rate:.0f} s left")


def picture(
    frames: NDArray[np.uint8], joints: NDArray[np.float32], grid: NDArray[np.float32], skeleton: Skeleton
) -> NDArray[np.uint8]:
    """Draw frames (T, H, W, 3) with joints (T, M, N, 3), and below each row of them the importance of their places.

    `grid` holds the importance (T, P) of the square map's cells, or (T, 0) if the model sees no pixels. Returns uint8 RGB.
    """
    with_joints = [draw_joints(_sized(frame), body, skeleton) for frame, body in zip(frames, joints, strict=True)]
    rows = [with_joints]
    if grid.shape[1]:
        side = round(grid.shape[1] ** 0.5)
        shade = grid.reshape(len(frames), side, -1) / max(float(grid.max()), 1e-12)
        rows.append([_lit(_sized(frame), cells) for frame, cells in zip(frames, shade, strict=True)])
    blocks = []
    for first in range(0, len(frames), _COLUMNS):
        for row in rows:
            shown = row[first : first + _COLUMNS]
            shown += [np.full_like(shown[0], 255)] * (min(_COLUMNS, len(frames)) - len(shown))
            blocks.append(np.concatenate([np.pad(one, ((0, 3), (0, 3), (0, 0)), constant_values=255) for one in shown], axis=1))
    return np.concatenate(blocks)


def _lit(frame: NDArray[np.uint8], cells: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Darken a frame where it is unimportant."""
    light = cv2.resize(cells.astype(np.float32), frame.shape[1::-1], interpolation=cv2.INTER_CUBIC).clip(0, 1)
    lit: NDArray[np.uint8] = (frame * (0.15 + 0.85 * light[..., None])).astype(np.uint8)
    return lit


def _sized(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    how = cv2.INTER_AREA if len(frame) > _FRAME_PX else cv2.INTER_CUBIC
    sized: NDArray[np.uint8] = cv2.resize(frame, (_FRAME_PX, _FRAME_PX), interpolation=how)
    return sized


def _load(folder: RunFolder, spec: Spec, step: int) -> StarTransformer:
    model = StarTransformer(replace(spec.model, weights="none"))  # the checkpoint has the weights
    load_state(model, weights_to_evaluate(find_checkpoint(folder.stored_checkpoints, step).tensors))
    return model.eval()


def _find(source: ClipSource, part: Sequence[int], clip: str | None) -> int | None:
    if clip is None:
        return None
    for number in part:
        if source.clips[number].clip_id == clip:
            return number
    some = ", ".join(source.clips[number].clip_id for number in part[:5])
    raise UserError(f"the test part has no clip {clip!r}; it has, for example, {some}")


def _spread(part: Sequence[int], most: int | None) -> tuple[int, ...]:
    """Choose at most `most` clips, evenly spread."""
    if most is None or len(part) <= most:
        return tuple(part)
    return tuple(part[int(index)] for index in np.linspace(0, len(part) - 1, most))
