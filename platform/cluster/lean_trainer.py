"""Ray Train's trainer without the processes that a run of starlab does not need.

Each actor is a process, and a process takes one to two seconds of a CPU to start.
"""

from __future__ import annotations

import threading

import ray
from ray.train import Result
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.callback import RayTrainCallback
from ray.train.v2._internal.execution.controller import TrainController

from starlab.platform.cluster.connect import describe_cluster


class LeanTrainer(TorchTrainer):
    """Ray Train's trainer with fewer processes: no manager of data sets and, on a local cluster, no cleaner.

    starlab passes no data set to Ray Train. A local cluster ends with its driver, and its placement groups with it.
    """

    def _create_default_callbacks(self) -> list[RayTrainCallback]:
        local = describe_cluster().local
        left_out = (DatasetsCallback, PlacementGroupCleanerCallback) if local else DatasetsCallback
        return [callback for callback in super()._create_default_callbacks() if not isinstance(callback, left_out)]

    def _initialize_and_run_controller(self, **controller_init_kwargs: object) -> Result:
        if not describe_cluster().local:
            return super()._initialize_and_run_controller(**controller_init_kwargs)
        # Without an environment of its own, the controller gets a process that Ray started with the cluster. On this machine
        # every process inherits the driver's environment anyway.
        controller = ray.remote(num_cpus=0)(TrainController).remote(**controller_init_kwargs)
        if threading.current_thread() is threading.main_thread():
            self._register_sigint_handler(controller)
        ray.get(controller.run.remote())
        result: Result = ray.get(controller.get_result.remote())
        return result
