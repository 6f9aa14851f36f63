"""`starlab slurm -- train penn_action` writes a batch script that runs the command on the nodes of a Slurm job, and submits it.

The script (slurm.sh) starts one Ray cluster for the job with `ray symmetric-run`; no cluster has to run before.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from starlab.experiments.credentials import without_password
from starlab.platform.cluster.verbs import check_command, with_absolute_paths
from starlab.platform.errors import RunFailedError, UserError

_BODY = "slurm.sh"


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchJob:
    """A command and the nodes that it gets."""

    arguments: Sequence[str]
    """As typed after `starlab`."""
    runs: Path
    """Folder of runs, on a file system that all nodes share. Script, log and token of the job are in its folder `slurm`."""
    nodes: int = 1
    gpus_per_node: int = 0
    time: str | None = None
    """Limit in Slurm's form, such as 12:00:00 or 2-00:00:00; None leaves the partition's. A run that needs longer is queued
    again and goes on."""
    grace_seconds: int = 120
    """How long before the limit, or before a preemption, the command is asked to write its checkpoint."""
    options: Sequence[str] = ()
    """More options of sbatch: --partition=gpu, --account=me."""


def write_script(job: BatchJob) -> Path:
    """Write the batch script of a job; the same job writes the same file.

    Raises:
        UserError: the command cannot be submitted, has a password in it, or an option is not one.
        SpecError: the experiment or an override is wrong.
    """
    verb = check_command(job.arguments)
    for argument in job.arguments:
        if without_password(argument) != argument:
            raise UserError(
                f"{without_password(argument)}: the script would contain the password; set MLFLOW_TRACKING_PASSWORD or "
                "PGPASSWORD where you run starlab slurm: Slurm hands the environment on"
            )
    for option in job.options:
        if not re.fullmatch(r"--[a-z][^\n]*|-[A-Za-z][^\n]*", option):
            raise UserError(f"--option {option}: write an option of sbatch, such as --option=--partition=gpu")
    if job.nodes < 1 or job.gpus_per_node < 0:
        raise UserError("--nodes must be 1 or more, --gpus-per-node 0 or more")
    arguments = [str(Path(one).absolute()) if _is_file_here(one) else one for one in job.arguments]
    arguments = with_absolute_paths(arguments, verb)
    folder = job.runs.absolute() / "slurm"
    words = "-".join(PurePosixPath(argument).stem for argument in arguments[:2])
    name = re.sub(r"[^A-Za-z0-9_.]+", "-", words).strip("_.-")[:60]
    head = [
        "#!/bin/bash",
        f"#SBATCH --job-name={name}",
        f"#SBATCH --nodes={job.nodes}",
        "#SBATCH --exclusive",
        "#SBATCH --requeue",
        "#SBATCH --open-mode=append",
        f"#SBATCH --signal=B:USR1@{job.grace_seconds}",
        f"#SBATCH --output={folder}/%x-%j.log",
        *([f"#SBATCH --gpus-per-node={job.gpus_per_node}"] if job.gpus_per_node else []),
        *([f"#SBATCH --time={job.time}"] if job.time else []),
        *(f"#SBATCH {option}" for option in job.options),
        "",
        f"PYTHON_BIN={shlex.quote(str(Path(sys.executable).parent))}",
        f"STARLAB_RUNS={shlex.quote(str(job.runs.absolute()))}",
        f"COMMAND=(python -m starlab.platform.cli {shlex.join(arguments)})",
        "",
    ]
    text = "\n".join(head) + (Path(__file__).parent / _BODY).read_text()
    folder.mkdir(parents=True, exist_ok=True)
    script = folder / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}.sh"
    script.write_text(text)
    return script


def send_script(script: Path) -> str:
    """Hand a batch script to Slurm and return the job's number.

    Raises:
        UserError: there is no sbatch here, or it refuses the script.
        RunFailedError: sbatch gave no answer.
    """
    if shutil.which("sbatch") is None:
        raise UserError(f"no sbatch on this machine: run this where jobs are submitted, or there: sbatch {script}")
    try:
        done = subprocess.run(
            ["sbatch", "--parsable", str(script)], capture_output=True, text=True, timeout=60, check=False, env=_environment()
        )
    except subprocess.TimeoutExpired:
        raise RunFailedError(f"sbatch gave no answer within 60 s; the script is {script}") from None
    if done.returncode != 0:
        raise UserError(f"sbatch refuses {script}: {' '.join(done.stderr.split())}")
    return done.stdout.strip().partition(";")[0]


def _environment() -> dict[str, str]:
    """This process's environment without variables that would send the job's Ray elsewhere."""
    return {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}


def _is_file_here(argument: str) -> bool:
    return argument.endswith((".yaml", ".yml")) and "=" not in argument
