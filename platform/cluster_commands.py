"""The cluster commands: submit, jobs, logs, stop, slurm, kuberay, on-premise."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from starlab.experiments.spec import Spec

Command = Annotated[list[str], typer.Argument(help="Command to run there, after --: train demo train.epochs=1")]
Address = Annotated[
    str | None,
    typer.Option(help="Dashboard of the cluster. Default: RAY_API_SERVER_ADDRESS, RAY_ADDRESS, else local port 8265."),
]
Insecure = Annotated[bool, typer.Option("--insecure", help="Accept a remote cluster that asks for no token.")]
Job = Annotated[str, typer.Argument(help="Id of the job, or a beginning that only one job has.")]


def submit(
    command: Command,
    address: Address = None,
    runs: Annotated[str | None, typer.Option(help="Runs folder that every node of the cluster shares (absolute path).")] = None,
    env: Annotated[list[str] | None, typer.Option(help="NAME or NAME=VALUE for the job; no secrets. Repeatable.")] = None,
    secret: Annotated[
        list[str] | None, typer.Option(help="NAME, or NAME=FILE: a password or key, which goes encrypted. Repeatable.")
    ] = None,
    file: Annotated[list[Path] | None, typer.Option(help="Another file to copy into the job's folder. Repeatable.")] = None,
    job: Annotated[str | None, typer.Option("--id", help="Name of the job. Default: made from the command.")] = None,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", "--follow/--no-follow", help="Print the log until the job ends.")
    ] = True,
    insecure: Insecure = False,
) -> None:
    """Run a command as a job on a Ray cluster and follow its log: starlab submit -- train demo train.epochs=1"""
    from starlab.platform.cluster.submit import JobRequest
    from starlab.platform.cluster.submit import submit as send

    request = JobRequest(
        arguments=command,
        runs=runs,
        environment=env or [],
        secrets=secret or [],
        files=file or [],
        submission_id=job,
    )
    raise typer.Exit(send(request, address=address, follow=wait, insecure=insecure))


def jobs(
    address: Address = None,
    as_json: Annotated[bool, typer.Option("--json", help="For scripts.")] = False,
    insecure: Insecure = False,
) -> None:
    """List the jobs that starlab submitted to a cluster."""
    from rich.console import Console
    from rich.table import Table

    from starlab.platform.cluster.jobs import job_rows, list_jobs

    found = list_jobs(address=address, insecure=insecure)
    if as_json:
        print(json.dumps([dataclasses.asdict(job) for job in found], default=str, indent=1))
        return
    if not found:
        print("no jobs; submit one: starlab submit -- train demo")
        return
    table = Table(box=None, pad_edge=False)
    for name in ("job", "status", "started", "took"):
        table.add_column(name, no_wrap=True)
    table.add_column("command", overflow="ellipsis", no_wrap=True)
    for row in job_rows(found):
        table.add_row(*row)
    # A pipe gets whole lines, a terminal what fits.
    Console(width=None if sys.stdout.isatty() else 10_000).print(table, markup=False, highlight=False)


def logs(
    job: Job,
    address: Address = None,
    follow: Annotated[bool, typer.Option(help="Print the log until the job ends.")] = True,
    insecure: Insecure = False,
) -> None:
    """Print the log of a job, and follow it until it ends."""
    from starlab.platform.cluster.jobs import show_log

    raise typer.Exit(show_log(job, address=address, follow=follow, insecure=insecure))


def stop(job: Job, address: Address = None, insecure: Insecure = False) -> None:
    """Stop a job after its checkpoint; the same command submitted again goes on from there."""
    from starlab.platform.cluster.jobs import stop_job

    raise typer.Exit(stop_job(job, address=address, insecure=insecure))


def slurm(
    command: Command,
    runs: Annotated[
        Path | None, typer.Option(help="Runs folder that all nodes share. Default: STARLAB_RUNS, else ./runs.")
    ] = None,
    nodes: Annotated[int, typer.Option(help="Nodes of the job.")] = 1,
    gpus_per_node: Annotated[int, typer.Option(help="GPUs of each node.")] = 0,
    time: Annotated[str | None, typer.Option(help="Time limit as sbatch takes it: 12:00:00. Default: the partition's.")] = None,
    option: Annotated[list[str] | None, typer.Option(help="Another option of sbatch: --option=--partition=gpu")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only write the script and print its name.")] = False,
) -> None:
    """Run a command as a Slurm job with a Ray cluster of its own: starlab slurm --nodes 2 -- train penn_action"""
    from starlab.platform.cluster.slurm import BatchJob, send_script, write_script
    from starlab.platform.runs.folder import runs_folder

    job = BatchJob(
        arguments=command,
        runs=runs_folder(runs),
        nodes=nodes,
        gpus_per_node=gpus_per_node,
        time=time,
        options=option or [],
    )
    script = write_script(job)
    if dry_run:
        print(script)
        return
    number = send_script(script)
    print(f"Submitted job {number}; its log goes to {script.parent}/*-{number}.log")
    print(f"  stop it after its checkpoint: scancel --batch --signal=TERM {number}")


def kuberay(
    command: Command,
    image: Annotated[str, typer.Option(help="Container image with starlab and its packages.")],
    claim: Annotated[str, typer.Option(help="PersistentVolumeClaim that becomes /mnt/starlab on every node.")],
) -> None:
    """Print a KubeRay manifest for a command: starlab kuberay --image … --claim … -- train penn_action | kubectl apply -f -"""
    from starlab.platform.cluster.kuberay import manifest

    print(manifest(command, image=image, claim=claim), end="")


def on_premise(
    tracking: Annotated[
        bool, typer.Option("--tracking", help="Print the compose file of a team's MLflow server instead.")
    ] = False,
) -> None:
    """Print the script that starts Ray on a machine of your own: starlab on-premise > on_premise.sh"""
    from importlib.resources import files

    name = "tracking_compose.yaml" if tracking else "on_premise.sh"
    print((files("starlab.platform.cluster") / name).read_text(), end="")


def examine(
    spec: Spec | None, storages: list[str], experiment: str | None, overrides: list[str], *, address: str | None, insecure: bool
) -> None:
    """Check every node of a cluster: of the one that a job runs on, else as a job of the cluster at `address`."""
    from starlab.platform.runs.folder import runs_folder

    if "://" in (joined := os.environ.get("RAY_ADDRESS", "")) or joined in ("", "local"):
        from starlab.platform.cluster.submit import JobRequest
        from starlab.platform.cluster.submit import submit as send

        arguments = ["doctor", "--cluster", *(["--cost", experiment] if experiment else []), *overrides]
        arguments += [f"--storage={storage}" for storage in storages]
        raise typer.Exit(send(JobRequest(arguments=arguments), address=address, insecure=insecure))
    from starlab.experiments.sections import TrackingConfig
    from starlab.platform.cluster.connect import connect
    from starlab.platform.cluster_doctor import examine_cluster

    connect()
    runs = runs_folder(None)
    own = [(spec.tracking if spec else TrackingConfig()).address(runs)]
    worst = "ok"
    for check in examine_cluster(spec, runs, [*own, *storages]):
        print(f"{check.level:<8} {check.name}: {check.says}{f' → {check.fix}' if check.fix else ''}", flush=True)
        worst = check.level if check.level == "error" or worst == "ok" else worst
    if worst == "error":
        raise typer.Exit(1)
