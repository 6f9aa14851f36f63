"""Starts a group of Ray Train workers with fewer new processes: the second training of a process takes over its controller.

Ray Train starts a controller, a cleaner of placement groups, a watcher of nodes, a manager of data sets and a synchroniser
for each group of workers, each in a process of its own that imports Ray again. On two cores that took about nine seconds of
processor time, and a search or an ablation pays them for every run. Here a controller stays for the next training of the same
process, the watcher is a thread of the controller, and there is no manager, because no data set is passed through Ray Train.
"""

from __future__ import annotations

import functools
from collections import deque
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import get_or_create_autoscaling_coordinator
from ray.data._internal.stats import get_or_create_stats_actor
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.callbacks.preemption_callback import PreemptionCallback
from ray.train.v2._internal.constants import get_env_vars_to_propagate
from ray.train.v2._internal.execution.callback import RayTrainCallback
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.preemption import PreemptionWatcher
from ray.train.v2._internal.execution.worker_group import WorkerGroup
from ray.train.v2._internal.execution.worker_group.poll import WorkerStatus
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.train.v2.api.result import Result
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from starlab.platform.cluster.connect import describe_cluster
from starlab.platform.cluster.failures import is_out_of_reach


class ReusingTrainer(DataParallelTrainer):
    """A trainer of Ray Train whose controller stays for the next one in this process.

    The controller of a training that failed goes away.
    """

    def _create_default_callbacks(self) -> list[RayTrainCallback]:
        callbacks: list[RayTrainCallback] = super()._create_default_callbacks()
        without = _WithoutDatasets(train_run_context=self.train_run_context, datasets={})
        callbacks = [without if isinstance(callback, DatasetsCallback) else callback for callback in callbacks]
        if describe_cluster().local:  # the cleaner asks Ray's dashboard about the controller, and a local cluster has none
            callbacks = [callback for callback in callbacks if not isinstance(callback, PlacementGroupCleanerCallback)]
        return callbacks

    def _initialize_and_run_controller(self, **training: Any) -> Result:
        idle = _idle_controllers(ray.get_runtime_context().get_worker_id())
        controller = _take(idle) or _start()
        ray.get(controller.begin.remote(training))
        ray.get(controller.run.remote())
        result: Result = ray.get(controller.get_result.remote())
        if result.error is None:
            idle.append(controller)
        return result


class PatientGroup(WorkerGroup):
    """Ray Train's group of workers, which stays when a worker cannot be reached for a while.

    When a network is cut and heals, a call to a worker fails whose process still trains, and Ray Train would end the group. If
    the node is really gone, Ray gives it up, and then the worker counts as dead.
    """

    def _poll_workers_and_collect_errors(self, timeout: float | None) -> list[WorkerStatus]:
        return [
            WorkerStatus(running=True) if is_out_of_reach(status.error) else status
            for status in super()._poll_workers_and_collect_errors(timeout)
        ]


class _InheritingGroup(PatientGroup):
    """A group on this machine, whose workers have Ray Train's variables from the process that started Ray.

    Variables of their own would keep them out of the processes that Ray has started already.
    """

    @staticmethod
    def _get_worker_runtime_env(custom_runtime_env: Any) -> Any:
        return custom_runtime_env


class Controller(TrainController):
    """Ray Train's controller, in a process that serves one training after another."""

    _worker_group_callbacks_to_propagate: list[Any]

    def __init__(self, inherits: bool) -> None:
        """Start without a training. `inherits` says that workers have the environment that this process has."""
        self.worker_group_cls = _InheritingGroup if inherits else PatientGroup

    def begin(self, training: dict[str, Any]) -> None:
        """Become the controller of a training. Takes the arguments of `TrainController` by their names."""
        super().__init__(**training)
        self._worker_group_callbacks_to_propagate = [
            _WatchesInAThread() if isinstance(callback, PreemptionCallback) else callback
            for callback in self._worker_group_callbacks_to_propagate
        ]


class _WithoutDatasets(DatasetsCallback):
    """Passes the settings of Ray Data to the workers, and starts no manager of data sets."""

    def before_init_train_context(self, workers: object) -> dict[str, list[Any]]:
        return {}


class _WatchesInAThread(PreemptionCallback):
    """Watches in the controller's own process whether nodes are taken away."""

    def __init__(self) -> None:
        super().__init__()
        self._thread: PreemptionWatcher | None = None

    def after_worker_group_start(self, worker_group: Any) -> None:
        self._stop_watcher()
        workers = {worker.distributed_context.world_rank: worker for worker in worker_group.get_workers()}
        ranks: dict[str, list[int]] = {}
        for rank, worker in workers.items():
            ranks.setdefault(worker.metadata.node_id, []).append(rank)
        self._thread = PreemptionWatcher(
            node_to_ranks=ranks,
            poll_interval_s=self._poll_interval_s,
            worker_actors_by_rank={rank: worker.actor for rank, worker in workers.items()},
        )

    def _stop_watcher(self) -> None:
        if self._thread is not None:
            self._thread._stop_event.set()
            self._thread = None


@functools.cache
def _idle_controllers(_worker_id: str) -> deque[ActorHandle]:
    """Controllers of this process that wait for a training, by this process's id in the cluster that it is connected to."""
    return deque()


def _take(idle: deque[ActorHandle]) -> ActorHandle | None:
    """Take an idle controller that still lives."""
    while idle:
        try:
            controller = idle.popleft()
            ray.get(controller.__ray_ready__.remote())
        except (IndexError, ray.exceptions.RayError):
            continue
        else:
            return controller
    return None


def start_ahead(*, streams: bool) -> None:
    """Start the processes that the next training of this process waits for one after the other, and wait for none of them.

    Args:
        streams: Whether Ray Data will load its clips.
    """
    idle = _idle_controllers(ray.get_runtime_context().get_worker_id())
    if not idle:
        idle.append(_start())
    get_or_create_autoscaling_coordinator()
    if streams:
        get_or_create_stats_actor()


def _start() -> ActorHandle:
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    inherits = describe_cluster().local
    settings = {"RAY_WARN_BLOCKING_GET_INSIDE_ASYNC": "0", **get_env_vars_to_propagate()}
    environment = None if inherits else {"env_vars": settings}
    remote = ray.remote(num_cpus=0, scheduling_strategy=here, runtime_env=environment)
    controller: ActorHandle = remote(Controller).remote(inherits)
    return controller
