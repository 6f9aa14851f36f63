"""Finds the weights that a run starts from, and puts those that fit into its folder."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from starlab.experiments.ablation import AblationSpec, Row
from starlab.experiments.catalog import experiment_names, read_experiment
from starlab.experiments.spec import Spec
from starlab.models.star import StarTransformer
from starlab.models.state import fitting
from starlab.platform.errors import UserError
from starlab.platform.runs.folder import SPEC, RunFolder
from starlab.platform.runs.records import InitialWeights
from starlab.platform.serving.recogniser import locate
from starlab.platform.worker.initial_weights import FILE

_CLASS_LAYER, _JOINT_POSITIONS = "head.3.", "tokens.joint_tokens.pos"


@dataclass(frozen=True, slots=True)
class Origin:
    """The model that a run starts from."""

    name: str
    state: Mapping[str, Tensor]
    classes: tuple[str, ...] | None
    """None for a file of weights, which does not name its classes."""
    skeleton: str | None
    """Name of the skeleton of its joints; None for a file of weights."""

    @property
    def digest(self) -> str:
        """SHA-256 over names, types, shapes and values."""
        return digest_of(self.state)


def digest_of(state: Mapping[str, Tensor]) -> str:
    """Compute the SHA-256 of the names, types, shapes and values of tensors, in the order of their names."""
    found = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def find_origin(name: str, runs: Path) -> Origin:
    """Load the model that `train.init_from` names.

    Raises:
        UserError: There is none, or its weights cannot be read.
    """
    if name.endswith(".safetensors"):
        try:
            return Origin(name, load_file(Path(name).expanduser()), None, None)
        except (OSError, SafetensorError) as error:
            raise UserError(f"train.init_from is {name}, which cannot be read as safetensors: {error}") from None
    try:
        found = locate(name, runs).load()
    except UserError as error:
        why = f"this experiment has no run under {runs} yet; train it first: starlab train {name}"
        raise UserError(f"train.init_from is {name!r}: {why if _awaits_training(name, runs) else error}") from None
    return Origin(name, found.model.state_dict(), found.classes, found.spec.data.facts().skeleton.name)


def _awaits_training(name: str, runs: Path) -> bool:
    """Return whether this is a packaged experiment for `starlab train` that has no run."""
    if name not in experiment_names() or any(runs.glob(f"{name}-*")):
        return False
    return not read_experiment(name).keys() & {"rows", "space"}


def with_digest(spec: Spec, runs: Path) -> Spec:
    """Fill in `train.init_digest`, which makes the weights part of the run's identity. Other specs are returned unchanged.

    Raises:
        UserError: The model does not exist.
    """
    if spec.train.init_from is None or spec.train.init_digest is not None:
        return spec
    return replace(spec, train=replace(spec.train, init_digest=find_origin(spec.train.init_from, runs).digest))


def with_digests(spec: AblationSpec, runs: Path) -> AblationSpec:
    """Fill in `train.init_digest` of the base of an ablation, and of each row that names a model of its own.

    If a model is not found any more, the digest that an earlier call of this ablation stored is taken, so that it goes on.

    Raises:
        UserError: A model does not exist, or two rows are the same experiment because they start from the same weights.
    """
    found: dict[str, str] = {}

    def digest(name: str) -> str:
        if name not in found:
            try:
                found[name] = find_origin(name, runs).digest
            except UserError as error:
                stored = _stored_digests(spec.name, name, runs)
                if len(stored) != 1:
                    raise UserError(f"{error}; a row can name another model, in a copy of the experiment's file") from None
                [found[name]] = stored
        return found[name]

    def filled(row: Row) -> Row:
        if "train.init_from" not in row.set or "train.init_digest" in row.set:
            return row
        name = row.set["train.init_from"]
        return replace(row, set={**row.set, "train.init_digest": None if name is None else digest(name)})

    base, train = spec.base, spec.base.train
    if train.init_from is not None and train.init_digest is None:
        base = replace(base, train=replace(train, init_digest=digest(train.init_from)))
    full = replace(spec, base=base, rows=tuple(filled(row) for row in spec.rows))
    if twins := full.twins():
        raise UserError(f"{spec.name}: rows {twins[0]!r} and {twins[1]!r} start from the same weights and are one experiment")
    return full


def _stored_digests(ablation: str, origin: str, runs: Path) -> set[str]:
    """Return the digests of a model that ablations of this name have stored with their base or a row."""
    digests: set[str | None] = set()
    for path in runs.glob(f"{ablation}-*/{SPEC}"):
        stored = RunFolder(path.parent).read_json(SPEC)
        settings = [{f"train.{key}": value for key, value in stored.get("train", {}).items()}]
        settings += [row["set"] for row in stored.get("rows", [])]
        digests |= {one.get("train.init_digest") for one in settings if one.get("train.init_from") == origin}
    return {digest for digest in digests if digest is not None}


def place_initial_weights(folder: RunFolder, spec: Spec, runs: Path) -> InitialWeights | None:
    """Put the weights that a new run starts from into its folder. A run that has them already keeps them.

    Entries of equal shape are taken, except the last layer of the head if the classes differ, and the positions of the joints
    if the skeletons do.

    Args:
        folder: Folder of the run.
        spec: Spec of the run, with `train.init_digest`.
        runs: Folder of runs, in which `train.init_from` is looked up.

    Returns:
        What was taken; None if the spec names no model.

    Raises:
        UserError: The model does not exist, has changed, or has no weight that fits.
    """
    name = spec.train.init_from
    if name is None:
        return None
    known = folder.read(InitialWeights)
    if known is not None and (folder.path / FILE).is_file():
        return known
    origin = find_origin(name, runs)
    if origin.digest != spec.train.init_digest:
        raise UserError(
            f"train.init_from is {name!r}, whose weights have the digest {origin.digest}, but train.init_digest is "
            f"{spec.train.init_digest}; set it to the former to start from the weights as they are now"
        )
    with torch.device("meta"):
        model = StarTransformer(replace(spec.model, weights="none"))
    expected = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    taken, new = fitting(expected, {key: tuple(value.shape) for key, value in origin.state.items()})
    facts = spec.data.facts()
    others = {}
    if origin.classes is not None and origin.classes != facts.classes:
        others[_CLASS_LAYER] = "other classes"
    if origin.skeleton is not None and origin.skeleton != facts.skeleton.name:
        others[_JOINT_POSITIONS] = f"joints of {origin.skeleton} there, of {facts.skeleton.name} here"
    new |= {key: why for key in taken for start, why in others.items() if key.startswith(start)}
    taken = tuple(key for key in taken if key not in new)
    if not taken:
        raise UserError(f"no weight of train.init_from={name} fits this model; the first: {next(iter(new.items()))}")
    if not new and spec.train.init_lr_scale == 0:
        raise UserError(f"train.init_lr_scale is 0 and all weights come from {name}: nothing would be trained")
    unused = tuple(sorted(origin.state.keys() - expected.keys()))
    record = InitialWeights(origin=name, digest=origin.digest, taken=taken, new=new, unused=unused)
    save_file({key: origin.state[key].cpu().contiguous() for key in taken}, folder.path / FILE)
    folder.write(record)
    return record


def initial_lines(record: InitialWeights, lr_scale: float) -> list[str]:
    """Say what a run took from another model, and what begins new."""
    rate = "frozen" if lr_scale == 0 else f"at {lr_scale:g} times the learning rate" if lr_scale != 1 else ""
    whole = len(record.taken) + len(record.new)
    lines = [
        f"init     {len(record.taken)} of {whole} weights from {record.origin}{f', {rate}' if rate else ''}; "
        f"digest {record.digest[:12]}"
    ]
    lines += [f"         new: {name} ({why})" for name, why in list(record.new.items())[:8]]
    if len(record.new) > 8:
        lines.append(f"         and {len(record.new) - 8} more, all in the run's {InitialWeights.FILE}")
    if record.unused:
        lines.append(f"         not used: {', '.join(record.unused[:4])}{' …' if len(record.unused) > 4 else ''}")
    return lines
