"""Makes the ranks of a training find each other over the address by which Ray knows their node.

Left alone, Gloo resolves the machine's own host name. Where that gives nothing, or 127.0.1.1, as Debian writes it into
/etc/hosts, the ranks of two machines look for each other on their own loopback interfaces.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import psutil
import ray.util
from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend

VARIABLES = {"GLOO_SOCKET_IFNAME": "{}", "NCCL_SOCKET_IFNAME": "={}"}
"""What names the interface to each library; "=" makes NCCL take the name for the whole name, not for a prefix."""


@dataclass
class NodeAddressTorchConfig(TorchConfig):
    """Ray Train's set-up of torch.distributed, on the network interface that Ray uses."""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        """The set-up, which runs before a group's training function."""
        return _Backend


class _Backend(_TorchBackend):
    def on_start(self, worker_group: object, backend_config: TorchConfig) -> None:
        worker_group.execute(use_interface_of_node)  # type: ignore[attr-defined]
        super().on_start(worker_group, backend_config)


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
