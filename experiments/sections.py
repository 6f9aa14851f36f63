"""The sections of a spec that neither the data nor the model owns: train, resources, tracking, search."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """The `train` section. Defaults are the paper's recipe (§4.1) unless said otherwise."""

    epochs: float = 300
    """Passes over the training part; a fraction is fine for a quick try."""
    stop_after_epochs: float | None = None
    """End the run after so many of its `epochs`. The learning rate keeps the schedule of all of them. null trains them all."""
    global_batch: int = 16
    """Clips per step over all workers; does not change with their number. (The paper's 4 on each of 4 GPUs.)"""
    accumulate: int = 1
    """Parts that a worker takes its share of a step in, one after the other: less memory, the same global batch."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float = 2e-4
    """Peak learning rate; never rescaled unless `lr_scaling` says so."""
    lr_scaling: Literal["none", "linear"] = "none"
    """"linear" takes `lr` as the rate for `reference_batch` and multiplies it by global_batch / reference_batch."""
    reference_batch: int = 16
    """The global batch that `lr` was found for, where it is scaled."""
    momentum: float = 0.9
    """For sgd."""
    backbone_lr_scale: float = 1.0
    """The backbone's learning rate over that of the rest. 1 is the paper's; a pre-trained backbone often takes 0.1."""
    weight_decay: float = 0.0
    """Decoupled for adamw. Only weights of linear layers and convolutions decay: no bias, norm, token or learned position."""
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_fraction: float = 0.0
    """Share of all steps over which the rate rises linearly from 0."""
    clip_norm: float | None = None
    """Largest norm of the gradient; null does not clip."""
    label_smoothing: float = 0.0
    mixup: float = 0.0
    """α of mixup's Beta(α, α); 0 is off. Clips are blended within a worker's share, so their number matters."""
    cutmix: float = 0.0
    """α of temporal CutMix's Beta(α, α); 0 is off. A span of a clip's frames, with their joints, comes from another clip of the
    worker's share, and the label in proportion. With `mixup` too, each step does one of the two."""
    action_loss_weight: float = 1.0
    """Weight of the loss of the actions, for model.pose "learned"; 0 learns the joints alone and does not use the labels."""
    pose_loss_weight: float = 1.0
    """Weight of the loss of the joints that a model with model.pose "learned" finds, beside the loss of the actions."""
    pose_teacher_forcing: float = 0.0
    """Share of the training clips whose heat maps in Eq. 1 are the annotated ones, for model.pose "learned"; the others take
    those that the model finds, as in a test."""
    ema: float | None = None
    """Decay of a moving average of the weights, e.g. 0.999, which is then what is evaluated; null keeps none."""
    on_bad_loss: Literal["skip", "rollback", "stop"] = "skip"
    """When a loss is NaN or infinite: leave the step out, go back to the newest checkpoint and pass the step over, or stop.
    Too many skips become a roll-back, too many roll-backs a stop."""
    max_bad_steps: int = 10
    """Bad steps in a row that are skipped before a roll-back."""
    max_rollbacks: int = 2
    precision: Literal["fp32", "fp16", "bf16", "auto"] = "auto"
    """"auto" takes bf16 or fp16 on a GPU, and fp32 on a CPU."""
    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile for the training step. "auto" takes it on GPUs of compute capability 8.0 or more, so not on a V100."""
    tf32: bool = False
    """Products in fp32 with TF32's 10 bits of mantissa, on GPUs of compute capability 8.0 or more. Changes fp32 runs only."""
    deterministic: bool = False
    """On a GPU, use only kernels that give the same bits every time, at a cost (docs/performance.md). A CPU always does."""
    seed: int = 0
    """Weights, order and augmentation."""
    select_by: str = "top1"
    """Metric that picks the best checkpoint, by its name: top1, top5, mean_class, loss. Of equal values the lower loss wins."""
    evaluate_every_epochs: int = 1
    """Epochs between two evaluations of the validation part."""
    checkpoint_every_epochs: int = 1
    """Epochs between two checkpoints at an epoch's end. More than 1 for few clips, whose epochs are short."""
    checkpoint_every_steps: int | None = None
    """Besides the checkpoints at epochs' ends and at every evaluation; null writes none in between."""
    log_every_steps: int = 10
    """Steps between two points of the training curve."""
    init_from: str | None = None
    """Model whose weights the run starts from, where they fit: a run, a .safetensors file, a model's folder, or an MLflow
    address such as models:/demo@best. The name is not part of the run's identity; `init_digest` is."""
    init_digest: str | None = None
    """SHA-256 of these weights; null fills it in when the run starts. Other weights under the same name are then refused."""
    init_lr_scale: float = 1.0
    """The learning rate of the weights that were taken from `init_from` over that of the rest; 0 freezes them."""
    extends: str | None = None
    """SHA-256 of the last checkpoint of the run that this one trains longer; `starlab train --extend RUN` sets it."""
    profile: bool = False
    """Trace a few steps of rank 0 into the run's artifacts. Not part of the run's identity."""

    @property
    def learns_actions(self) -> bool:
        """Whether the loss of the actions counts."""
        return self.action_loss_weight != 0

    @property
    def trained_epochs(self) -> float:
        """Passes over the training part until the run ends."""
        return self.epochs if self.stop_after_epochs is None else self.stop_after_epochs

    def __post_init__(self) -> None:
        _require(0 < self.epochs < math.inf, "train.epochs", self.epochs, "be above 0, and finite")
        stop = self.stop_after_epochs
        _require(
            stop is None or 0 < stop <= self.epochs,
            "train.stop_after_epochs",
            stop,
            f"be above 0 and at most train.epochs, {self.epochs:g}, or null",
        )
        _require(self.lr > 0, "train.lr", self.lr, "be above 0")
        _require(0 <= self.momentum < 1, "train.momentum", self.momentum, "be in [0, 1)")
        _require(self.backbone_lr_scale > 0, "train.backbone_lr_scale", self.backbone_lr_scale, "be above 0")
        _require(self.weight_decay >= 0, "train.weight_decay", self.weight_decay, "be 0 or more")
        _require(0 <= self.warmup_fraction < 1, "train.warmup_fraction", self.warmup_fraction, "be in [0, 1)")
        _require(0 <= self.label_smoothing < 1, "train.label_smoothing", self.label_smoothing, "be in [0, 1)")
        _require(self.clip_norm is None or self.clip_norm > 0, "train.clip_norm", self.clip_norm, "be above 0 or null")
        _require(0 <= self.action_loss_weight < math.inf, "train.action_loss_weight", self.action_loss_weight, "be 0 or more")
        _require(0 <= self.pose_loss_weight < math.inf, "train.pose_loss_weight", self.pose_loss_weight, "be 0 or more")
        _require(0 <= self.pose_teacher_forcing <= 1, "train.pose_teacher_forcing", self.pose_teacher_forcing, "be in [0, 1]")
        _require(self.mixup >= 0, "train.mixup", self.mixup, "be 0 or more")
        _require(self.cutmix >= 0, "train.cutmix", self.cutmix, "be 0 or more")
        _require(self.ema is None or 0 < self.ema < 1, "train.ema", self.ema, "be above 0 and below 1, or null")
        _require(self.init_lr_scale >= 0, "train.init_lr_scale", self.init_lr_scale, "be 0 or more; 0 freezes what was taken")
        _require(
            self.init_from is not None or (self.init_digest is None and self.init_lr_scale == 1),
            "train.init_from",
            self.init_from,
            "name a model where train.init_digest or train.init_lr_scale is set",
        )
        for name in ("max_bad_steps", "max_rollbacks"):
            _require(getattr(self, name) >= 0, f"train.{name}", getattr(self, name), "be 0 or more")
        positive = ("global_batch", "accumulate", "reference_batch", "log_every_steps")
        for name in (*positive, "evaluate_every_epochs", "checkpoint_every_epochs"):
            _require(getattr(self, name) >= 1, f"train.{name}", getattr(self, name), "be 1 or more")
        every = self.checkpoint_every_steps
        _require(every is None or every >= 1, "train.checkpoint_every_steps", every, "be 1 or more, or null")
        _require(self.seed >= 0, "train.seed", self.seed, "be 0 or more")
        both = self.deterministic and self.compile == "on"
        _require(not both, "train.compile", "on", 'be "auto" or "off" with train.deterministic: compiled kernels are timed')


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerRange:
    """A number of workers that may change while the run trains: `{min: 2, max: 8}`."""

    min: int
    """The run starts, and goes on after a lost node, as soon as there is room for so many."""
    max: int
    """The run takes up room for more workers until it has so many."""

    def __post_init__(self) -> None:
        _require(self.min >= 1, "resources.workers.min", self.min, "be 1 or more")
        _require(self.max >= self.min, "resources.workers.max", self.max, f"be at least resources.workers.min, {self.min}")


@dataclass(frozen=True, kw_only=True, slots=True)
class ResourcesConfig:
    """The `resources` section: where a run computes. Not part of the run's identity."""

    workers: int | WorkerRange = 1
    """Ray Train workers, one model replica each. With `{min: 2, max: 8}` their number follows the room in the cluster."""
    gpus_per_worker: int = 0
    cpus_per_worker: float | None = None
    """CPUs reserved by each worker; null leaves half of the cluster's CPUs to decoding, 1 at most per worker."""
    threads_per_worker: int = 1
    """Threads of a worker's arithmetic on a CPU."""
    accelerator: str | None = None
    """Ray's accelerator type, e.g. V100; null takes any."""
    max_failures: int = 3
    """Restarts of the worker group, each from the newest valid checkpoint, before the run fails. Each new checkpoint starts the
    count again."""
    wait_for_room_seconds: float = 3600.0
    """How long to wait, at the start and after a lost node, until a cluster has room for the workers."""
    stuck_after_seconds: float = 600.0
    """A worker without a forward pass for so long is stuck: its stacks are written and its group is restarted."""
    grace_seconds: float = 20.0
    """After SIGTERM, the time to end with a checkpoint before the driver gives up waiting."""
    checkpoints: str | None = None
    """Folder or URI (s3://bucket/path) that takes the checkpoints, in a folder of the run's own; null is the run's folder.
    Where a run keeps them is settled when it is new."""

    @property
    def collective_seconds(self) -> int:
        """Time-out of a collective: ranks that wait for a stuck rank must not fail before the watchdog finds it."""
        return math.ceil(self.stuck_after_seconds) + 120

    def __post_init__(self) -> None:
        _require(self.min_workers >= 1, "resources.workers", self.workers, "be 1 or more")
        _require(
            self.gpus_per_worker in (0, 1),
            "resources.gpus_per_worker",
            self.gpus_per_worker,
            "be 0 or 1: one replica per GPU",
        )
        _require(
            self.cpus_per_worker is None or self.cpus_per_worker > 0,
            "resources.cpus_per_worker",
            self.cpus_per_worker,
            "be above 0, or null",
        )
        _require(self.threads_per_worker >= 1, "resources.threads_per_worker", self.threads_per_worker, "be 1 or more")
        _require(self.max_failures >= 0, "resources.max_failures", self.max_failures, "be 0 or more")
        _require(
            "@" not in (self.checkpoints or ""),
            "resources.checkpoints",
            "an address with a user's name or key in it",
            "have none: it is stored; keys belong in the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY)",
        )
        for name in ("wait_for_room_seconds", "stuck_after_seconds", "grace_seconds"):
            _require(getattr(self, name) > 0, f"resources.{name}", getattr(self, name), "be above 0")

    @property
    def min_workers(self) -> int:
        """The smallest number of workers with which the run trains."""
        return self.workers if isinstance(self.workers, int) else self.workers.min

    @property
    def max_workers(self) -> int:
        """The largest number of workers with which the run trains."""
        return self.workers if isinstance(self.workers, int) else self.workers.max


@dataclass(frozen=True, kw_only=True, slots=True)
class TrackingConfig:
    """The `tracking` section. Not part of the run's identity."""

    uri: str | None = field(default=None, repr=False)
    """An MLflow server's address; null is sqlite under the runs folder. A password in it is never stored (docs/tracking.md)."""
    experiment: str | None = None
    """MLflow experiment; null takes the spec's name."""

    def address(self, runs: Path) -> str:
        """`uri`, or SQLite in the folder of runs. In its address "%" and "?" have a meaning, so they are quoted in the path."""
        return self.uri or f"sqlite:///{str(runs / 'mlflow.db').replace('%', '%25').replace('?', '%3F')}"


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchConfig:
    """The `search` section of a search. Budgets count earlier calls of the same search too; the first one used up ends it."""

    trials: int | None = 20
    """Points of the space to try; null is no limit."""
    hours: float | None = None
    """Hours that the search may run, over all of its calls; null is no limit. Trials under way then write a checkpoint."""
    gpu_hours: float | None = None
    """GPUs times hours that its trials may hold, over all of its calls; null is no limit."""
    objectives: tuple[str, ...] | None = None
    """What a point is judged by, by name (platform/search/objectives.py): val/top1, val/loss, flops, parameters,
    clips_per_second, … The winner is the best by the first one. null is val/ and `train.select_by`."""
    seeds: int = 1
    """Runs of each point, with `train.seed`, train.seed + 1, …; the point's value is their mean."""
    start: tuple[dict[str, Any], ...] | None = None
    """Points to try first; a key that one leaves out has the base's value. null is the base itself, if the space holds it."""
    seed: int = 0
    """Seeds the sampler. Another seed is another search."""
    sampler: str = "tpe"
    """What proposes the next point, by its name in platform/search/samplers.py: tpe, gp, cmaes, random, grid."""
    early_stopping: Literal["asha", "hyperband", "none"] | None = None
    """What ends hopeless trials early, by the first objective. null is "asha", or "none" where it could not be fair: with
    several objectives, or with one that is known only at the end."""
    grace_epochs: int = 1
    """Epochs before a trial may be ended early."""
    reduction: int = 2
    """Early stopping keeps one in so many at each rung."""
    concurrent: int | None = None
    """Runs at once; null takes as many as the cluster's GPUs (or CPUs) hold, and more when it grows."""
    storage: str | None = field(default=None, repr=False)
    """Database of the proposals, e.g. postgresql+psycopg2://me@host/db; null is SQLite in the search's folder. A password in it
    is never stored."""

    def __post_init__(self) -> None:
        for name in ("trials", "concurrent"):
            value = getattr(self, name)
            _require(value is None or value >= 1, f"search.{name}", value, "be 1 or more, or null")
        for name in ("hours", "gpu_hours"):
            value = getattr(self, name)
            _require(value is None or 0 < value < math.inf, f"search.{name}", value, "be above 0 and finite, or null")
        for name, lowest in (("seeds", 1), ("grace_epochs", 1), ("reduction", 2), ("seed", 0)):
            _require(getattr(self, name) >= lowest, f"search.{name}", getattr(self, name), f"be {lowest} or more")
        names = self.objectives
        _require(names is None or 0 < len(names) == len(set(names)), "search.objectives", names, "name one or more, each once")


def _require(holds: bool, key: str, value: object, must: str) -> None:
    if not holds:
        raise ValueError(f"{key} is {value}; it must {must}")
