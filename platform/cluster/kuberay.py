"""`starlab kuberay -- train penn_action` prints a RayJob manifest for Kubernetes with KubeRay."""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import ray
import yaml

from starlab.experiments.credentials import without_password
from starlab.platform.cluster.verbs import check_command
from starlab.platform.errors import UserError

_TEMPLATE = "kuberay.yaml"


def manifest(arguments: Sequence[str], *, image: str, claim: str) -> str:
    """The manifest that runs `starlab ARGUMENTS` once, with the workers that the command asks for.

    Args:
        image: a container image with starlab and its locked packages, for every node.
        claim: a PersistentVolumeClaim that many nodes may mount for writing; it becomes /mnt/starlab.

    Raises:
        UserError: the command cannot be submitted, has a password in it, or names a file of this machine.
        SpecError: the experiment or an override is wrong.
    """
    check_command(arguments)
    for argument in arguments:
        if without_password(argument) != argument:
            raise UserError(
                f"{without_password(argument)}: everyone who may read the manifest would see the password; put it into the "
                "Secret starlab-secrets (docs/cluster.md)"
            )
        if argument.endswith((".yaml", ".yml")) and "=" not in argument and not argument.startswith("/"):
            raise UserError(
                f"{argument}: a file of this machine is not in the cluster; copy it to /mnt/starlab and name it there"
            )
    command = f"python -m starlab.platform.cli {shlex.join(arguments)}"
    words = "-".join(PurePosixPath(argument).stem for argument in arguments[:2])
    name = re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")[:30].strip("-")
    digest = hashlib.sha256("\0".join([*arguments, image, claim]).encode()).hexdigest()[:8]
    values = {
        "NAME": f"{name}-{digest}",
        "COMMAND": command,
        "IMAGE": image,
        "CLAIM": claim,
        "RAY_VERSION": ray.__version__,
    }
    keys = re.compile(rf"\b({'|'.join(values)})\b(?=\s|}})")
    return keys.sub(lambda found: _quoted(values[found[0]]), (Path(__file__).parent / _TEMPLATE).read_text())


def _quoted(text: str) -> str:
    """A YAML string on one line."""
    return yaml.safe_dump(text, default_style='"', width=10**6, allow_unicode=True).strip()
