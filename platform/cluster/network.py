"""Makes the ranks of a training find each other over the address by which Ray knows their node.

Left alone, Gloo resolves the machine's own host name. Where that gives nothing, or 127.0.1.1, as Debian writes it into
/etc/hosts, the ranks of two machines look for each other on their own loopback interfaces.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import import_module
from typing import Any

import psutil
import ray
import ray.util
from ray.exceptions import GetTimeoutError
from ray.train._internal.utils import get_address_and_port
from ray.train.backend import Backend, BackendConfig
from ray.train.v2._internal.util import TrainingFramework

VARIABLES = {"GLOO_SOCKET_IFNAME": "{}", "NCCL_SOCKET_IFNAME": "={}"}
"""What names the interface to each library; "=" makes NCCL take the name for the whole name, not for a prefix."""
_LEAVE_SECONDS = 30.0


@dataclass
class NodeAddressTorchConfig(BackendConfig):
    """Ray Train's set-up of torch.distributed, on the network interface that Ray uses.

    It does what `ray.train.torch.TorchConfig` does, but only the workers import torch. That takes two seconds of processor
    time, and the controller of a group has no other use for it.
    """

    backend: str | None = None
    """None is nccl for workers with GPUs, else gloo."""
    timeout_s: int = 1800
    """Seconds that a collective operation may take."""

    @property
    def backend_cls(self) -> type[Backend]:
        """The set-up, which runs before a group's training function."""
        return _Backend

    @property
    def train_func_context(self) -> type[_OnItsDevice]:
        """What surrounds the training function in a worker."""
        return _OnItsDevice

    @property
    def framework(self) -> TrainingFramework:
        """The library, by Ray Train's name."""
        return TrainingFramework.TORCH

    def to_dict(self) -> dict[str, Any]:
        """The fields, for Ray's records."""
        return asdict(self)


class _OnItsDevice:
    """Makes the worker's GPU the current one, as Ray Train does."""

    def __enter__(self) -> None:
        from ray.train.torch.config import TorchConfigContextManager

        TorchConfigContextManager().__enter__()

    def __exit__(self, *_: object) -> None:
        pass


class _Backend(Backend):
    share_cuda_visible_devices = True

    def on_start(self, worker_group: Any, backend_config: NodeAddressTorchConfig) -> None:
        has_gpus = worker_group.get_resources_per_worker().get("GPU", 0) > 0
        backend = backend_config.backend or ("nccl" if has_gpus else "gloo")
        # Importing torch takes seconds, in which others could take a port that is chosen already.
        worker_group.execute(prepare_rank)
        address, port = worker_group.execute_single(0, get_address_and_port)
        world = len(worker_group)
        ray.get(
            [
                worker_group.execute_single_async(
                    rank, join_ranks, backend, (rank, world), (address, port), backend_config.timeout_s
                )
                for rank in range(world)
            ]
        )

    def on_shutdown(self, worker_group: Any, backend_config: NodeAddressTorchConfig) -> None:
        """Leave the ranks. A worker that has hung does not keep the others from ending."""
        with suppress(GetTimeoutError):
            ray.get(worker_group.execute_async(leave_ranks, len(worker_group)), timeout=_LEAVE_SECONDS)


def prepare_rank() -> None:
    """Choose this process's network interface and import torch."""
    use_interface_of_node()
    import_module("ray.train.torch.config")


def join_ranks(backend: str, place: tuple[int, int], master: tuple[str, int], timeout_seconds: int) -> None:
    """Make this worker a rank of torch.distributed.

    Args:
        backend: gloo or nccl.
        place: Its rank, and how many there are.
        master: Address and port of rank 0.
        timeout_seconds: How long a collective operation may take.
    """
    from ray.train.torch import config

    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = master[0], str(master[1])
    config._set_torch_distributed_env_vars()
    config._setup_torch_process_group(backend, *place, "env://", timeout_seconds)


def leave_ranks(world: int) -> None:
    """Leave torch.distributed and give back the GPU's memory."""
    from ray.train.torch import config

    config._shutdown_torch(destroy_process_group=world > 1)


def use_interface_of_node() -> None:
    """Set Gloo's and NCCL's interface in this process, unless the user has set it."""
    name = find_interface(ray.util.get_node_ip_address())
    for variable, form in VARIABLES.items():
        if name is not None:
            os.environ.setdefault(variable, form.format(name))


def find_interface(address: str) -> str | None:
    """The network interface that has an IP address; None if none has it, as with an address that is forwarded."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(entry.address.partition("%")[0] == address for entry in addresses):  # IPv6: fe80::1%eth0
            return name
    return None
