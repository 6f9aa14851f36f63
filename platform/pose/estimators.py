"""Which estimator finds the joints, by name, and its settings."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import ray

from starlab.pipelines.estimated_joints import ESTIMATOR_SKELETONS
from starlab.platform.errors import UserError
from starlab.platform.pose.estimate import Estimator
from starlab.platform.pose.joints_file import PoseSettings
from starlab.platform.pose.model_file import load_model

MOVENET = "movenet"


def pose_settings(estimator: str = MOVENET, skeleton: str = "coco", long_side_px: int = 384, every: int = 1) -> PoseSettings:
    """Check settings, and whether the estimator can be used here.

    Args:
        estimator: "movenet", or `module:function` for another one (`estimate.Estimator`), importable from the current folder.
        skeleton: The skeleton of its joints.
        long_side_px: Long side of the frames that MoveNet sees.
        every: 2 estimates every second frame and interpolates between them.

    Raises:
        UserError: a value is out of range, the model was not fetched, or the function cannot be imported.
    """
    if every < 1:
        raise UserError(f"every {every} frames cannot be estimated; the least is 1, which estimates all")
    if not 64 <= long_side_px <= 2048:
        raise UserError(f"a long side of {long_side_px} px is not sensible; it must be from 64 to 2048")
    if skeleton not in ESTIMATOR_SKELETONS:
        raise UserError(f"unknown skeleton '{skeleton}'; there are: {', '.join(ESTIMATOR_SKELETONS)}")
    if estimator == MOVENET:
        if skeleton != "coco":
            raise UserError(f"MoveNet finds the joints of the skeleton coco, not {skeleton}: remove --skeleton")
        model = load_model().sha256[:12]
        return PoseSettings(estimator=estimator, skeleton=skeleton, model=model, long_side_px=long_side_px, every=every)
    import_estimator(estimator)
    return PoseSettings(estimator=estimator, skeleton=skeleton, model="", long_side_px=0, every=every)


def make_estimator(settings: PoseSettings) -> Estimator:
    """The estimator that the settings name, for use in this process; MoveNet is read from the cache folder."""
    if settings.estimator != MOVENET:
        return import_estimator(settings.estimator)
    from starlab.platform.pose.movenet import MoveNet  # loads torch

    return MoveNet(load_model(), settings.long_side_px)


def import_estimator(name: str) -> Estimator:
    """The function that `module:function` names. A module of the current folder is sent to the tasks as a whole.

    Raises:
        UserError: there is no such module or function.
    """
    module, _, function = name.partition(":")
    if not function:
        raise UserError(f"unknown estimator '{name}': name movenet, or a function of yours as module:function")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        loaded = importlib.import_module(module)
        found = getattr(loaded, function)
    except (ImportError, AttributeError) as error:
        raise UserError(f"the estimator {name} cannot be imported from {here}: {error}") from error
    if not callable(found):
        raise UserError(f"the estimator {name} is no function")
    if (loaded.__file__ or "").startswith(here):
        ray.cloudpickle.register_pickle_by_value(loaded)  # so that no node needs the file
    estimator: Estimator = found
    return estimator
