"""A team's tracking as docs/tracking-server.md sets it up: MLflow with users over PostgreSQL and an S3 endpoint."""

from __future__ import annotations

import base64
import json
import os
import re
import secrets
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny import TINY_MODEL

from starlab.platform.tracking.server import SERVER_SETTINGS

ROOT = Path(__file__).resolve().parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "platform" / "cluster" / "tracking_compose.yaml").read_text())
SMALL = [*TINY_MODEL, "train.epochs=1", "data.validation_fraction=0.34"]


def server_script() -> str:
    """The shell script of the compose file's MLflow service."""
    return str(COMPOSE["services"]["mlflow"]["command"][-1])


def test_the_compose_file_protects_everything_with_a_password_from_its_env_file() -> None:
    services = COMPOSE["services"]
    assert set(services) == {"database", "objects", "mlflow"}
    text = (ROOT / "platform" / "cluster" / "tracking_compose.yaml").read_text()
    secret = re.findall(r"\$\{(\w+)(:\?)?\}", text)
    assert {name for name, _ in secret} == {
        "POSTGRES_PASSWORD",
        "ADMIN_PASSWORD",
        "SESSION_KEY",
        "S3_KEY",
        "S3_SECRET",
        "TRACKING_HOST",
    }
    assert all(required for _, required in secret)  # compose refuses to start where one is empty
    assert "--app-name basic-auth" in server_script()
    assert "--allowed-hosts" in server_script()
    assert SERVER_SETTINGS.items() <= services["mlflow"]["environment"].items()
    connections = int(services["database"]["command"][-1].partition("=")[2])
    assert connections >= 4 * int(SERVER_SETTINGS["MLFLOW_SQLALCHEMYSTORE_POOL_SIZE"]) + 100  # --workers 4; users, proposals
    for name, service in services.items():
        assert {entry["source"] for entry in service.get("configs", [])} <= set(COMPOSE["configs"]), name
        named = [entry.partition(":")[0] for entry in service.get("volumes", [])]
        assert set(named) <= set(COMPOSE["volumes"]), name
    for line in ("[mlflow]", "default_permission = READ", "authorization_function = mlflow.server.auth:authenticate"):
        assert line in COMPOSE["configs"]["users"]["content"]
        assert line in (ROOT / "docs" / "tracking-server.md").read_text()
    subprocess.run(["bash", "-n", "-c", server_script()], check=True)


@dataclass(frozen=True)
class Team:
    mlflow: str
    objects: str
    database: str
    environment: dict[str, str]
    python: Path


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python with the packages of this one and those that the server needs beside them."""
    folder = tmp_path_factory.mktemp("server")
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    [site] = folder.glob("lib/python3*/site-packages")
    borrowed = [path for path in sys.path if path.endswith("site-packages")]
    (site / "borrowed.pth").write_text("\n".join(borrowed) + "\n")
    wanted = ["boto3", "moto[server]", "flask-wtf", "psycopg2-binary"]
    command = [str(folder / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check", *wanted]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"{', '.join(wanted)} cannot be installed here: {done.stderr.strip().splitlines()[-1:]}")
    return folder / "bin" / "python"


def request(address: str, user: str = "", host: str = "", body: dict[str, object] | None = None) -> int:
    headers = {"Content-Type": "application/json"}
    if user:
        headers["Authorization"] = f"Basic {base64.b64encode(user.encode()).decode()}"
    if host:
        headers["Host"] = host
    asked = urllib.request.Request(address, headers=headers, data=json.dumps(body).encode() if body is not None else None)
    try:
        with urllib.request.urlopen(asked, timeout=20) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


@pytest.fixture(scope="module")
def team(packages: Path, postgres: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    folder = tmp_path_factory.mktemp("team")
    database = postgres[0].rpartition("/")[0]  # its database is for others
    objects, mlflow = free_port(), free_port()
    keys = {"AWS_ACCESS_KEY_ID": "starlab", "AWS_SECRET_ACCESS_KEY": secrets.token_hex(8), "AWS_DEFAULT_REGION": "us-east-1"}
    databases = [*re.findall(r"CREATE DATABASE (\w+);", COMPOSE["configs"]["databases"]["content"]), "mlflow"]
    make = f"""
import sqlalchemy
engine = sqlalchemy.create_engine("{postgres[0]}", isolation_level="AUTOCOMMIT")
with engine.connect() as connection:
    for name in {databases!r}:
        connection.execute(sqlalchemy.text(f"CREATE DATABASE {{name}}"))
"""
    subprocess.run([str(packages), "-c", make], check=True)
    script = server_script().split("exec ", 1)[1]
    script = script.replace("postgresql+psycopg2://starlab@database", database).replace("--port 5000", f"--port {mlflow}")
    script = (
        script.replace("--host 0.0.0.0", "--host 127.0.0.1")
        .replace("--workers 4", "--workers 1")
        .replace(":5000", f":{mlflow}")
    )
    users = COMPOSE["configs"]["users"]["content"].replace("postgresql+psycopg2://starlab@database", database)
    (folder / "auth.ini").write_text(users)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "RAY_", "AWS_"))}
    server_environment = (
        kept
        | keys
        | {
            "PATH": f"{packages.parent}:{os.environ['PATH']}",
            "TRACKING_HOST": "127.0.0.1",
            "MLFLOW_AUTH_CONFIG_PATH": str(folder / "auth.ini"),
            "MLFLOW_AUTH_ADMIN_PASSWORD": "admins-password",
            "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(16),
            **SERVER_SETTINGS,
            "MLFLOW_S3_ENDPOINT_URL": f"http://127.0.0.1:{objects}",
        }
    )
    commands = [[str(packages), "-m", "moto.server", "-H", "127.0.0.1", "-p", str(objects)]]
    commands.append(["bash", "-ec", script.replace("mlflow server", f"{shlex.quote(str(packages))} -m mlflow server", 1)])
    processes = []
    try:
        with (folder / "log").open("w") as log:
            for command in commands:
                processes.append(
                    subprocess.Popen(
                        command, cwd=folder, env=server_environment, stdout=log, stderr=log, start_new_session=True
                    )
                )
        make = f"import boto3; boto3.client('s3', endpoint_url='http://127.0.0.1:{objects}').create_bucket(Bucket='starlab')"
        wait_for_port(objects, folder / "log")
        subprocess.run([str(packages), "-c", make], check=True, env=server_environment)
        wait_for_port(mlflow, folder / "log")
        environment = (
            kept
            | keys
            | {
                "PYTHONPATH": str(next(packages.parent.parent.glob("lib/python3*/site-packages"))),
                "MLFLOW_TRACKING_USERNAME": "cluster",
                "MLFLOW_TRACKING_PASSWORD": "the-clusters-password",
                "AWS_ENDPOINT_URL": f"http://127.0.0.1:{objects}",
            }
        )
        yield Team(f"http://127.0.0.1:{mlflow}", f"http://127.0.0.1:{objects}", database, environment, packages)
    finally:
        for process in processes:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_for_port(port: int, log: Path) -> None:
    deadline = time.monotonic() + 180
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
        except OSError:
            assert time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.3)
        else:
            return


def starlab(team: Team, runs: Path, *arguments: str, code: int = 0) -> str:
    command = [sys.executable, "-m", "starlab.platform.cli", *arguments]
    environment = team.environment | {"STARLAB_RUNS": str(runs)}
    done = subprocess.run(command, env=environment, cwd=runs.parent, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def python(team: Team, program: str) -> list[str]:
    done = subprocess.run([str(team.python), "-c", program], env=team.environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.slowest
@pytest.mark.timeout(1800)  # a hang guard for a busy machine
def test_a_teams_server_admits_users_and_holds_stores_checkpoints_models_and_proposals(
    team: Team, small_folder: Path, tmp_path: Path
) -> None:
    # Who may come in.
    create = f"{team.mlflow}/api/2.0/mlflow/users/create"
    user = {"username": "cluster", "password": "the-clusters-password"}
    search = f"{team.mlflow}/api/2.0/mlflow/experiments/search"
    assert request(create, body=user) == 401
    assert request(create, "admin:admins-password", body=user) == 200
    assert request(search, body={"max_results": 5}) == 401
    assert request(search, "cluster:wrong", body={"max_results": 5}) == 401
    assert request(search, "cluster:the-clusters-password", body={"max_results": 5}) == 200
    assert request(search, "cluster:the-clusters-password", host="elsewhere.example", body={"max_results": 5}) == 403
    # A store and checkpoints in the object store, runs on the server.
    runs = tmp_path / "runs"
    runs.mkdir()
    starlab(team, runs, "prepare", "synthetic-penn-action", str(small_folder), "s3://starlab/stores/small")
    data = [*SMALL, "data.store=s3://starlab/stores/small", f"tracking.uri={team.mlflow}"]
    said = starlab(team, runs, "train", "demo", *data, "resources.checkpoints=s3://starlab/checkpoints")
    if "later: starlab sync" in said:  # a busy machine, where the server was too slow for the last try of half a minute
        starlab(team, runs, "sync", "demo")
    else:
        assert re.search(r"MLflow +run [0-9a-f]{32} in http://127\.0\.0\.1", said), said
    assert not list(runs.glob("demo-*/checkpoints/*"))
    # A search whose proposals are in PostgreSQL.
    storage = f"search.storage={team.database}/optuna"
    starlab(team, runs, "search", "demo_search", *data, "search.trials=2", "model.layers=1", storage)
    starlab(team, runs, "sync", "demo", "demo_search")
    names = python(
        team,
        f"""
import boto3, mlflow, optuna
listed = boto3.client("s3", endpoint_url="{team.objects}").get_paginator("list_objects_v2").paginate(Bucket="starlab")
for page in listed:
    for found in page["Contents"]:
        print("object", found["Key"])
client = mlflow.MlflowClient("{team.mlflow}")
for experiment in client.search_experiments():
    for run in client.search_runs([experiment.experiment_id]):
        print("run", experiment.name, run.info.status)
[study] = optuna.get_all_study_summaries("{team.database}/optuna")
print("trials", study.n_trials)
""",
    )
    objects = [name.removeprefix("object ") for name in names if name.startswith("object ")]
    assert any(re.fullmatch(r"checkpoints/demo-[\w-]+/.*manifest\.json", name) for name in objects), objects
    assert any(name.startswith("stores/small/") for name in objects)
    assert any(re.fullmatch(r"mlflow/.*weights\.safetensors", name) for name in objects), objects
    assert names[-1] == "trials 2"
    ended = [name for name in names if name.startswith("run ")]
    assert len(ended) == 4, ended  # the training, the search and its two trials
    assert all(name.endswith("FINISHED") for name in ended)
    # No password in anything that was written.
    for file in (path for path in tmp_path.rglob("*") if path.is_file()):
        assert b"the-clusters-password" not in file.read_bytes(), file
        assert team.environment["AWS_SECRET_ACCESS_KEY"].encode() not in file.read_bytes(), file
