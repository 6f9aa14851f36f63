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
from starlab.pipelines.loading import LoadClips, as_batch
from starlab.pipelines.schedule import EvalPlan
from starlab.platform.errors import UserError
from starlab.platform.evaluation import CHANGEABLE, checkpoint_step, one_run
from starlab.platform.preflight import open_data
from starlab.platform.recipe.training_state import weights_to_evaluate
from starlab.platform.reports.attention import MODEL, Focus, focus, typical_clip
from starlab.platform.reports.clip_picture import picture
from starlab.platform.reports.embedding import embed
from starlab.platform.reports.explain_files import (
    CLIP,
    EMBEDDING,
    FOLDER,
    FRAMES,
    ROLLOUT,
    UNTRAINED,
    ClipMap,
    Embedding,
    Rollouts,
    write_embedding,
    write_rollouts,
    write_untrained,
)
from starlab.platform.reports.untrained import Untrained, untrained_of
from starlab.platform.runs.checkpoint import find_checkpoint
from starlab.platform.runs.folder import SPEC, RunFolder, runs_folder
from starlab.platform.runs.records import FINGERPRINT

_BATCH = 8
_SAY_EVERY_SECONDS = 10.0
UNTRAINED_MODELS = 5
_UNTRAINED_CLIPS = 64
"""Clips over which an untrained model is averaged. Its mean over clips scatters much less than another model's differs."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """What `explain_run` found."""

    run_id: str
    focuses: tuple[Focus, ...]
    """For all attentions of the model, and for each pattern that it has."""
    untrained: Untrained | None
    """The same measures of untrained models with the same wiring; None if there are none."""
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
    untrained: int = UNTRAINED_MODELS,
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
        untrained: Number of untrained models to compare with: 0, or 2 or more.
        overrides: Changes to the run's spec, e.g. ["data.store=/elsewhere"].
        runs: Folder of runs; None uses STARLAB_RUNS, else ./runs.
        say: Called with each line of progress.

    Raises:
        UserError, SpecError, DataError: The run, the checkpoint, the clip or the data do not exist.
    """
    if untrained < 0 or untrained == 1:
        raise UserError(f"--untrained is {untrained}; it must be 0, or at least 2: one model says nothing about their spread")
    root = runs_folder(runs)
    folder = one_run(root, name, say)
    spec = override_spec(
        spec_from_dict(folder.read_json(SPEC), str(folder.path / SPEC)), overrides, CHANGEABLE, folder.path.name
    )
    step = checkpoint_step(folder, checkpoint)
    source, parts = open_data(spec, root, say)
    trained_on = folder.info.tags.get(FINGERPRINT, source.fingerprint)
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
    control = _untrained(run, _spread(parts.test, min(most_clips or _UNTRAINED_CLIPS, _UNTRAINED_CLIPS)), untrained)
    write_untrained(target / UNTRAINED, control)
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
    return Explanation(folder.path.name, focuses, control, found, points, unreadable, target)


def _untrained(run: _Explainer, clips: Sequence[int], models: int) -> Untrained | None:
    """Measure untrained models with the wiring of a run, on the same clips: what of its attention is not learned."""
    found = []
    for seed in range(models):
        run.say(f"untrained {seed + 1} of {models}")
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = StarTransformer(replace(run.spec.model, weights="none"))
        rollouts, _ = replace(run, model=model.to(run.device).eval(), say=lambda _: None).rollouts(clips, 0)
        found.append({pattern: focus(pattern, importance) for pattern, importance in rollouts.importance.items()})
    return untrained_of(found) if found else None


@dataclass(frozen=True, slots=True)
class _Explainer:
    """Runs a model over clips."""

    spec: Spec
    source: ClipSource
    model: StarTransformer
    device: torch.device
    say: Callable[[str], None]

    @property
    def patterns(self) -> dict[str, str | None]:
        """The letters of each attention pattern to follow, None for all, by its name."""
        wiring = self.spec.model
        letters = sorted({letter for letter in f"{wiring.encoder or ''}{wiring.decoder or ''}" if letter in "FZB"})
        # With a single pattern, the rollout of the model and that of the pattern are the same.
        found: dict[str, str | None] = {letters[0]: None} if len(letters) == 1 else {MODEL: None}
        return found | {letter: letter for letter in letters if letter not in found}

    def rollouts(self, clips: Sequence[int], step: int) -> tuple[Rollouts, int]:
        """Compute the frame importance of each clip, by pattern. Also returns how many clips could not be read."""
        ids: list[str] = []
        found: dict[str, list[NDArray[np.float32]]] = {pattern: [] for pattern in self.patterns}
        for numbers, frames, joints in self._batches(clips, "rollout"):
            ids += [self.source.clips[number].clip_id for number in numbers]
            for pattern, letters in self.patterns.items():
                found[pattern].append(frame_importance(self.model, frames, joints, letters).cpu().numpy())
        if not ids:
            raise UserError("none of the clips can be read; starlab verify lists the damage of a store")
        importance = {pattern: np.concatenate(parts) for pattern, parts in found.items()}
        return Rollouts(tuple(ids), importance, step, "test"), len(clips) - len(ids)

    def embedding(self, clips: Sequence[int], part: str) -> Embedding:
        """Compute the averaged class token of each clip and project it to two dimensions."""
        numbers, vectors = [], []
        for batch, frames, joints in self._batches(clips, "embedding"):
            with torch.no_grad():
                vectors.append(self.model.embed(frames, joints).float().cpu().numpy())
            numbers += batch
        points, explained = embed(np.concatenate(vectors))
        rows = [self.source.clips[number] for number in numbers]
        true = tuple(self.source.classes[row.label] for row in rows)
        return Embedding(true, tuple(row.clip_id for row in rows), points, explained, part)

    def draw(self, number: int, target: Path) -> ClipMap:
        """Write the frames of one clip with joints and importance, and the numbers behind them.

        Raises:
            UserError: The clip cannot be read.
        """
        row = self.source.clips[number]
        batches = list(self._batches([number], ""))
        if not batches:
            raise UserError(f"clip {row.clip_id} cannot be read, so it cannot be drawn")
        _, frames, joints = batches[0]
        if self.model.pose is not None:
            with torch.no_grad():
                joints = self.model.forward_with_joints(frames)[1]
        tokens = token_importance(self.model, frames, joints)
        values = tokens.importance[0].cpu().numpy()  # (T, S)
        names = self.source.skeleton.joints
        bodies = [f" {body + 1}" if body else "" for body in range(self.source.max_bodies)]
        found = ClipMap(
            clip_id=row.clip_id,
            true=self.source.classes[row.label],
            joints=tuple(f"{name}{body}" for body in bodies for name in names) if tokens.joint_rows else (),
            frames={
                pattern: frame_importance(self.model, frames, joints, letters)[0].tolist()
                for pattern, letters in self.patterns.items()
            },
            joint_importance=values[:, list(tokens.joint_rows)].T.tolist(),
            grid_share=float(values[:, list(tokens.grid_rows)].sum()),
            class_share=float(values[:, list(tokens.class_rows)].sum()),
        )
        sheet = picture(
            frames[0].cpu().numpy(), joints[0].cpu().numpy(), values[:, list(tokens.grid_rows)], self.source.skeleton
        )
        target.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(target / FRAMES), cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 80])
        (target / CLIP).write_text(json.dumps(asdict(found), indent=1))
        return found

    def _batches(self, clips: Sequence[int], what: str) -> Iterator[tuple[list[int], torch.Tensor, torch.Tensor]]:
        """Yield clip numbers, frames and joints of the readable clips, in order."""
        plan = EvalPlan(tuple(clips), 0, 1)
        load = LoadClips(self.source, self.spec.data, plan, 0)
        began = said = time.monotonic()
        for first in range(0, len(clips), _BATCH):
            batch = as_batch(load({"id": np.arange(first, min(first + _BATCH, len(clips)))}))
            if len(batch.clips):
                frames, joints = (torch.from_numpy(part).to(self.device) for part in (batch.frames, batch.joints))
                yield batch.clips.tolist(), frames, joints
            now, done = time.monotonic(), min(first + _BATCH, len(clips))
            if what and now - said > _SAY_EVERY_SECONDS:
                rate, said = done / (now - began), now
                self.say(f"{what}  {done} of {len(clips)} clips, {rate:.1f} clips/s, {(len(clips) - done) / rate:.0f} s left")


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
