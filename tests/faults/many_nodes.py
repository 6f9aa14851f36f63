"""Several Ray nodes on this machine, which share its network and its processes (separate_nodes.py: which do not)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster as Nodes

from starlab.platform.cluster.connect import SETTINGS

AS_DEPLOYED = {"RAY_idle_worker_killing_time_threshold_ms": "60000", "RAY_grpc_client_keepalive_timeout_ms": "15000"}
"""What every deployment sets for its nodes."""
ONE_CPU = {"num_cpus": 1, "object_store_memory": 80_000_000}


@contextmanager
def nodes_on_this_machine(
    nodes: Sequence[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, *, dashboard: bool = False
) -> Iterator[Nodes]:
    """A head without CPUs, where drivers run, and these nodes. RAY_ADDRESS names the cluster; `join` connects this process."""
    ray.shutdown()
    for name, value in (SETTINGS | AS_DEPLOYED).items():
        monkeypatch.setenv(name, value)
    head = {"num_cpus": 0, "object_store_memory": 150_000_000, "include_dashboard": dashboard}
    cluster = Nodes(initialize_head=True, head_node_args=head)
    try:
        for node in nodes:
            cluster.add_node(**node)
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


def join(nodes: Nodes) -> None:
    """Connect this process to the nodes."""
    ray.init(address=nodes.address, log_to_driver=False, runtime_env={"env_vars": SETTINGS})
