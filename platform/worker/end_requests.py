"""Checks before every step whether the training should end early."""

from __future__ import annotations

from ray.train.v2._internal.execution.context import get_train_context

from starlab.platform.runs.end_request import read_request
from starlab.platform.runs.folder import RunFolder


def why_to_end(folder: RunFolder, rank: int) -> str | None:
    """The reason why this run should end now, or None.

    Rank 0 sees a request of the driver (SIGTERM, Ctrl-C) in the run's folder; every rank sees that a node is taken away.
    """
    if rank == 0 and (request := read_request(folder)):
        return request.reason
    # The public get_preemption_info() is a barrier over all ranks through an actor, too slow for every step.
    info = get_train_context().preemption_context.preemption_info
    return f"the cluster takes away {len(info.preempted_node_to_ranks)} of its nodes" if info is not None else None
