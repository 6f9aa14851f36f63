"""`submit` against a real head with token authentication, and its messages about servers that are not a Ray head."""

from __future__ import annotations

import asyncio
import io
import json
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import redirect_stdout
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import ray
from hypothesis import given, settings
from hypothesis import strategies as st
from ray.job_submission import JobStatus, JobSubmissionClient

from starlab.experiments.catalog import SpecError
from starlab.platform.cluster import job_client, job_log
from starlab.platform.cluster import submit as submit_module
from starlab.platform.cluster.dashboard import Dashboard, find_dashboard
from starlab.platform.cluster.jobs import list_jobs, show_log, stop_job
from starlab.platform.cluster.shipping import ship_files
from starlab.platform.cluster.submit import JobRequest, submit
from starlab.platform.cluster.verbs import VERBS, with_absolute_paths
from starlab.platform.errors import RunFailedError, UserError

if TYPE_CHECKING:
    from conftest import Head

TOKEN_VARIABLES = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE")
ADDRESS_VARIABLES = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")


@pytest.fixture(autouse=True)
def stranger(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A user without a token, whose commands start in an empty folder."""
    for name in (*TOKEN_VARIABLES, *ADDRESS_VARIABLES, "STARLAB_RUNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def head(ray_head: Head, monkeypatch: pytest.MonkeyPatch) -> Head:
    """The head, with its token set for the test."""
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(ray_head.token_path))
    return ray_head


SECRETS = """
import json, os, sys
import ray
from starlab.platform.cluster.connect import connect
from starlab.platform.cluster.job_secrets import open_secrets

def password():
    return os.environ.get("MLFLOW_TRACKING_PASSWORD"), os.environ.get("AWS_SECRET_ACCESS_KEY")

open_secrets()  # what the command line does first
connect()
expected = ("hunter" + "2-of-here", "key-of" + "-the-store")
print("FOUND", [password() == expected, ray.get(ray.remote(password).remote()) == expected])
"""


@pytest.mark.slow
def test_a_secret_reaches_the_job_and_its_workers_and_nothing_shows_it(
    head: Head, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "look.py").write_text(SECRETS)
    (tmp_path / "key").write_text("key-of-the-store\n")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hunter2-of-here")
    request = JobRequest(
        arguments=["train", "demo"],
        secrets=["MLFLOW_TRACKING_PASSWORD", f"AWS_SECRET_ACCESS_KEY={tmp_path / 'key'}"],
        files=[Path("look.py")],
        submission_id="secrets",
        module="look",
    )
    assert submit(request, address=head.dashboard) == 0
    assert "FOUND [True, True]" in capsys.readouterr().out
    paths = [f"{before}/secrets{after}" for before in ("jobs", "api/jobs") for after in ("", "/logs")]
    for path in [*paths, "api/jobs/", "api/v0/jobs", "api/v0/actors?detail=1", "api/v0/runtime_envs", "nodes?view=details"]:
        assert "hunter2-of-here" not in (answer := ask_dashboard(head, path)), path
        assert "key-of-the-store" not in answer, path
    for file in (path for path in head.folder.rglob("*") if path.is_file() and path.stat().st_size < 50_000_000):
        content = file.read_bytes()  # logs, and the job's own files on the node
        assert b"hunter2-of-here" not in content, file
        assert b"key-of-the-store" not in content, file


PROBE = """
import json, os, sys
import ray
from starlab.experiments.catalog import read_experiment
from starlab.platform.cluster import connect as cluster
from starlab.platform.cluster.connect import SETTINGS, connect
from starlab.platform.package import package_version

def look():
    from starlab.platform.cluster import connect as cluster
    return cluster.__file__, {name: os.environ.get(name) for name in (*SETTINGS, "STARLAB_RUNS", "COLOR")}

joined = connect()
file, environment = ray.get(ray.remote(look).remote())
experiment = read_experiment(sys.argv[2])
experiment["tracking"] = {"uri": experiment["tracking"]["uri"] == "http://me:" + "hunter" + "2@host"}
print("FOUND", json.dumps({
    "arguments": sys.argv[1:], "experiment": experiment, "base": read_experiment("below/base.yaml"),
    "folder": os.getcwd(), "driver": cluster.__file__, "worker": file, "environment": environment,
    "local": joined.local, "cpus": joined.cpus, "version": package_version(),
}))
"""


@pytest.mark.slow
def test_a_job_gets_the_arguments_the_experiment_the_environment_and_the_code_of_this_checkout(
    head: Head, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "probe.py").write_text(PROBE)
    (tmp_path / "below").mkdir()
    # A password in a file that is sent: the job has it, and no answer of the dashboard shows it.
    (tmp_path / "below" / "mine.yaml").write_text(
        "base: below/base.yaml\nname: mine\ntracking: {uri: 'http://me:hunter2@host'}"
    )
    (tmp_path / "below" / "base.yaml").write_text("name: base")
    monkeypatch.setenv("COLOR", "a 'b' é")
    request = JobRequest(
        arguments=["train", "below/mine.yaml", "x=a 'b' $HOME é;exit 9"],
        runs="/shared/my runs",
        environment=["COLOR"],
        files=[Path("probe.py")],
        submission_id="probe",
        module="probe",
    )
    code = submit(request, address=head.dashboard)
    printed = capsys.readouterr().out
    assert code == 0, printed
    assert printed.endswith("probe: succeeded\n")
    found = json.loads(printed.partition("FOUND ")[2].partition("\n")[0])
    assert found["arguments"] == ["train", "below/mine.yaml", "x=a 'b' $HOME é;exit 9"]
    assert found["experiment"] == {"name": "mine", "base": "below/base.yaml", "tracking": {"uri": True}}
    assert found["base"]["name"] == "base"
    assert found["environment"] == submit_module.SETTINGS | {"STARLAB_RUNS": "/shared/my runs", "COLOR": "a 'b' é"}
    # starlab is installed in the head's Python too, as a link to the checkout; the shipped copy must win.
    shipped = f"{found['folder']}/starlab/platform/cluster/connect.py"
    assert found["driver"] == found["worker"] == shipped
    assert shipped.startswith(str(head.folder))
    assert (found["local"], found["cpus"], found["version"]) == (False, 4.0, submit_module.package_version())
    job = JobSubmissionClient(head.dashboard, headers={"Authorization": f"Bearer {head.token}"}).get_job_info("probe")
    assert job.metadata is not None
    assert job.metadata["starlab"] == submit_module.package_version()
    for path in (
        "jobs/",
        "jobs/probe",
        "api/jobs/",
        "api/jobs/probe",
        "api/jobs/probe/logs",
        "api/v0/jobs",
        "api/v0/actors?detail=1",
    ):
        assert "hunter2" not in ask_dashboard(head, path)
    with pytest.raises(UserError, match="already knows a job probe; give another --id"):
        submit(JobRequest(arguments=["train", "demo"], submission_id="probe"), address=head.dashboard)


def ask_dashboard(head: Head, path: str) -> str:
    request = urllib.request.Request(f"{head.dashboard}/{path}", headers={"Authorization": f"Bearer {head.token}"})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return str(answer.read())
    except urllib.error.HTTPError as error:
        return str(error.read())


@pytest.mark.slow
def test_a_job_that_meets_a_users_mistake_ends_with_2_and_runs_default_to_those_of_the_cluster(
    head: Head, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mistake.py").write_text("import os, sys; print('runs:', os.environ['STARLAB_RUNS']); sys.exit(2)")
    code = submit(JobRequest(arguments=["train", "demo"], files=[Path("mistake.py")], module="mistake"), address=head.dashboard)
    printed = capsys.readouterr().out
    assert code == 2
    assert f"runs: {head.folder}/runs-of-the-cluster\n" in printed
    assert printed.endswith(": failed\n")


@pytest.mark.slow
def test_the_log_comes_as_it_is_written_and_ctrl_c_leaves_the_job_running_and_says_how_to_stop_it(
    head: Head, tmp_path: Path
) -> None:
    (tmp_path / "wait.py").write_text("import time; print('READY', flush=True); time.sleep(600)")
    program = f"""
import signal, sys
from pathlib import Path
from starlab.platform.cluster.jobs import list_jobs, show_log, stop_job
from starlab.platform.cluster.shipping import ship_files
from starlab.platform.cluster.submit import JobRequest, submit
from starlab.platform.cluster.verbs import VERBS, with_absolute_paths
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests themselves run in the background
request = JobRequest(arguments=["train", "demo"], files=[Path("wait.py")], submission_id="waits", module="wait")
sys.exit(submit(request, address="{head.dashboard}"))
"""
    terminal = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert terminal.stdout is not None
    try:
        for line in terminal.stdout:  # the job cannot end before READY has arrived here
            if line == "READY\n":
                break
        terminal.send_signal(signal.SIGINT)
        rest, errors = terminal.communicate(timeout=60)
    finally:
        terminal.kill()
    client = JobSubmissionClient(head.dashboard, headers={"Authorization": f"Bearer {head.token}"})
    assert terminal.returncode == 130, errors
    assert errors == ""
    assert client.get_job_status("waits") == JobStatus.RUNNING
    stop = next(line.split("stop it:")[1] for line in rest.splitlines() if "stop it:" in line)
    assert stop.split() == ["starlab", "stop", "--address", head.dashboard, "waits"]
    said = subprocess.run(
        [sys.executable, "-m", "starlab.platform.cli", *stop.split()[1:]], capture_output=True, text=True, check=False
    )
    assert said.returncode == 0, said.stderr
    assert said.stdout.startswith("Asked waits to end; it has about 60 s for its checkpoint\n")
    assert said.stdout.endswith("waits: stopped\n")
    assert client.get_job_status("waits") == JobStatus.STOPPED
    listed = {job.id: job for job in list_jobs(address=head.dashboard)}
    assert (listed["waits"].status, listed["waits"].command) == ("stopped", "train demo")
    assert stop_job("wai", address=head.dashboard) == 0  # the beginning of its name; it has ended
    with pytest.raises(UserError, match=r"has no job nix; it has .*waits"):
        show_log("nix", address=head.dashboard)


def test_without_a_token_the_head_refuses_and_the_message_says_where_tokens_lie(ray_head: Head) -> None:
    with pytest.raises(UserError, match=r"asks for its token and there is none here: put it into ~/\.ray/auth_token"):
        submit(JobRequest(arguments=["train", "demo"]), address=ray_head.dashboard)


def test_a_wrong_token_is_refused_and_the_message_says_where_it_came_from(
    ray_head: Head, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "wrong")
    with pytest.raises(UserError, match="refuses the token from RAY_AUTH_TOKEN: ask its owner"):
        submit(JobRequest(arguments=["train", "demo"]), address=ray_head.dashboard)


def test_the_token_is_looked_for_where_ray_looks_for_it(ray_head: Head, tmp_path: Path) -> None:
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text(f"{ray_head.token}\n")
    assert find_dashboard(f"{ray_head.dashboard}/") == Dashboard(
        address=ray_head.dashboard, headers={"Authorization": f"Bearer {ray_head.token}"}
    )
    assert find_dashboard(ray_head.dashboard).token == ray_head.token


def test_a_token_file_that_is_named_and_missing_is_not_passed_over(ray_head: Head, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "nowhere")
    with pytest.raises(UserError, match="RAY_AUTH_TOKEN_PATH is nowhere, which cannot be read"):
        submit(JobRequest(arguments=["train", "demo"]), address=ray_head.dashboard)


class Server(ThreadingHTTPServer):
    """Answers every request in one way and remembers who showed a token."""

    def __init__(self, status: int, body: bytes) -> None:
        self.tokens: list[str | None] = []
        self.methods: set[str] = set()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.methods.add(self.command)
                server.tokens.append(self.headers.get("Authorization"))
                self.send_response(status)
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_PUT = do_GET  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        super().__init__(("0.0.0.0", 0), Handler)


@pytest.fixture
def serve() -> Iterator[Any]:
    servers: list[Server] = []

    def start(status: int, body: bytes) -> tuple[str, Server]:
        servers.append(Server(status, body))
        threading.Thread(target=servers[-1].serve_forever, args=(0.01,), daemon=True).start()
        return f":{servers[-1].server_address[1]}", servers[-1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def version_answer(version: str = ray.__version__) -> bytes:
    return json.dumps({"version": "4", "ray_version": version}).encode()


def test_a_cluster_elsewhere_without_a_token_is_refused_unless_told_otherwise_and_never_sees_ours(
    serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "ours")
    port, server = serve(200, version_answer())
    elsewhere = f"http://0.0.0.0{port}"  # reaches this machine, yet is no loopback address
    with pytest.raises(UserError, match="whoever reaches it can run anything"):
        find_dashboard(elsewhere)
    assert find_dashboard(elsewhere, insecure=True) == Dashboard(address=elsewhere, headers={})
    assert find_dashboard(f"127.0.0.1{port}").headers == {}
    assert set(server.tokens) == {None}


def test_a_proxy_does_not_stand_between_us_and_a_dashboard_on_this_machine(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    port, _ = serve(200, version_answer())
    assert find_dashboard(f"localhost{port}").address == f"http://localhost{port}"


def test_another_ray_is_refused_but_another_patch_of_ours_is_not(serve: Any) -> None:
    port, _ = serve(200, version_answer("2.9.0"))
    with pytest.raises(UserError, match=rf"runs Ray 2\.9\.0, starlab needs {ray.__version__}"):
        find_dashboard(f"localhost{port}")
    major, minor, _ = ray.__version__.split(".")
    port, _ = serve(200, version_answer(f"{major}.{minor}.99"))
    assert find_dashboard(f"localhost{port}").address == f"http://localhost{port}"


@pytest.mark.parametrize(("status", "body"), [(404, b""), (200, b"<html>"), (200, b"[]"), (200, b'{"other": 1}'), (500, b"")])
def test_a_server_that_is_no_dashboard_is_named_as_such(serve: Any, status: int, body: bytes) -> None:
    port, _ = serve(status, body)
    with pytest.raises(UserError, match=rf"answers \(HTTP {status}\), but not as Ray does"):
        find_dashboard(f"127.0.0.1{port}")


def test_where_nothing_listens_the_message_says_how_to_get_there() -> None:
    with pytest.raises(UserError, match=r"no cluster answers at http://127\.0\.0\.1:1 .*ray dashboard cluster\.yaml"):
        submit(JobRequest(arguments=["train", "demo"]), address="127.0.0.1:1")


@pytest.mark.parametrize("address", ["ray://head:10001", "http://", "ftp://head"])
def test_an_address_that_takes_no_jobs_is_refused(address: str) -> None:
    with pytest.raises(UserError, match="is no dashboard"):
        find_dashboard(address)


def test_a_variable_that_ray_would_obey_instead_of_the_option_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")
    with pytest.raises(UserError, match=r"--address is http://127\.0\.0\.1:2, but RAY_ADDRESS is http://127\.0\.0\.1:1"):
        find_dashboard("http://127.0.0.1:2")
    with pytest.raises(UserError, match=r"no cluster answers at http://127\.0\.0\.1:1 "):
        find_dashboard()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"arguments": []}, "nothing to submit"),
        ({"runs": "runs"}, "needs an absolute path that all its nodes share"),
        ({"submission_id": "a/b"}, "--id is 'a/b'"),
        ({"environment": ["STARLAB_NOT_SET"]}, "--env STARLAB_NOT_SET: it is not set here"),
        ({"environment": ["RAY_AUTH_TOKEN=x"]}, "the dashboard shows a job's environment"),
        ({"arguments": ["compare", "demo"]}, "'compare' is not a command that can be submitted; these are: train, search"),
        ({"arguments": ["prepare", "penn-action", "data"]}, "'prepare penn-action data' lacks arguments"),
        ({"secrets": ["STARLAB_NOT_SET"]}, "--secret STARLAB_NOT_SET: it is not set here"),
        ({"secrets": ["PASSWORD=hunter2"]}, "--secret PASSWORD=…: what follows = must be the name of a file"),
        ({"secrets": ["RAY_AUTH_TOKEN"]}, "the cluster has its token already"),
        ({"environment": ["MLFLOW_TRACKING_PASSWORD=hunter2"]}, "--env MLFLOW_TRACKING_PASSWORD: the dashboard shows"),
        ({"environment": ["DATABASE=postgresql://me:hunter2@host/db"]}, "--env DATABASE: the dashboard shows"),
        (
            {"arguments": ["train", "demo", "tracking.uri=http://me:hunter2@host"]},
            r"tracking.uri=http://me:\*\*\*@host: the dashboard",
        ),
    ],
)
def test_a_mistake_in_the_options_is_found_before_any_cluster_is_asked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as refused:
        submit(JobRequest(**{"arguments": ["train", "demo"]} | options), address="127.0.0.1:1")
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["train", "dmo"], "did you mean 'demo'"), (["search", "demo_search", "search.trails=2"], "did you mean 'search.trials'")],
)
def test_a_mistake_in_the_experiment_is_found_before_any_cluster_is_asked(arguments: list[str], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        submit(JobRequest(arguments=arguments), address="127.0.0.1:1")


def test_a_secret_is_refused_where_a_cluster_asks_for_no_token(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPASSWORD", "hunter2")
    port, _ = serve(200, version_answer())
    with pytest.raises(UserError, match=r"--secret PGPASSWORD: the cluster at .* asks for no token"):
        submit(JobRequest(arguments=["train", "demo"], secrets=["PGPASSWORD"]), address=f"127.0.0.1{port}")


def test_another_minor_version_of_python_is_refused_before_anything_is_sent(
    serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = json.loads(version_answer()) | {"data": {"pythonVersion": "3.9.1"}}
    port, server = serve(200, json.dumps(body).encode())
    with pytest.raises(UserError, match=r"runs Python 3\.9\.1, and starlab here Python 3"):
        submit(JobRequest(arguments=["train", "demo"]), address=f"127.0.0.1{port}")
    assert server.methods == {"GET"}


def test_the_paths_of_prepare_mean_this_folder_and_values_of_options_stay(tmp_path: Path) -> None:
    arguments = ["prepare", "ntu60", "raw", "--shard", "32", "--retry", "~/store", "--max-bad=0.1"]
    expected = ["prepare", "ntu60", f"{tmp_path}/raw", "--shard", "32", "--retry", f"{tmp_path}/store", "--max-bad=0.1"]
    assert with_absolute_paths(arguments, VERBS["prepare"]) == expected
    assert with_absolute_paths(["prepare", "ntu60", "/raw", "s3://bucket/x"], VERBS["prepare"])[3] == "s3://bucket/x"
    predict = ["predict", "demo-1a2b3c4d", "film.mp4", "--top", "3", "--joints", "joints.parquet", "--json", "more"]
    assert with_absolute_paths(predict, VERBS["predict"]) == [
        *("predict", "demo-1a2b3c4d", f"{tmp_path}/film.mp4", "--top", "3"),
        *("--joints", f"{tmp_path}/joints.parquet", "--json", f"{tmp_path}/more"),
    ]
    assert with_absolute_paths(["train", "demo", "data.store=x"], VERBS["train"])[2] == f"data.store={tmp_path}/x"


def ship(arguments: list[str], folder: Path, files: tuple[Path, ...] = ()) -> list[str]:
    folder.mkdir()
    return ship_files(arguments, files, folder)


def test_an_experiment_keeps_its_place_below_the_working_folder_and_one_from_elsewhere_goes_to_its_top(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here" / "mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    for name in ("mine/a.yaml", "../b.yml"):
        Path(name).write_text(f"name: {Path(name).stem}")
    arguments = ["train", "mine/a.yaml", "../b.yml", "data.store=c.yaml", "demo"]
    assert ship(arguments, tmp_path / "out") == ["train", "mine/a.yaml", "b.yml", "data.store=c.yaml", "demo"]
    shipped = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.y*ml"))
    assert shipped == ["b.yml", "mine/a.yaml"]


def test_what_cannot_be_shipped_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SpecError, match=r"no file missing\.yaml"):
        ship(["train", "missing.yaml"], tmp_path / "out1")
    with pytest.raises(UserError, match="no file notes to ship"):
        ship(["train"], tmp_path / "out2", (Path("notes"),))
    (tmp_path / "elsewhere.yaml").write_text("name: one")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    Path("mine.yaml").write_text("base: ../elsewhere.yaml")
    with pytest.raises(UserError, match=r"mine\.yaml: its base \.\./elsewhere\.yaml can be shipped only from below"):
        ship(["train", "mine.yaml"], tmp_path / "out3")
    Path("elsewhere.yaml").write_text("name: two")
    with pytest.raises(UserError, match="another file to ship has that name"):
        ship(["compare", "elsewhere.yaml", "../elsewhere.yaml"], tmp_path / "out4")


class Client:
    """A client whose job's log arrives in pieces and whose connection is lost after some of them."""

    def __init__(self, log: str, cuts: list[list[int]], **info: Any) -> None:
        self.log, self.cuts = log, cuts
        self.info = SimpleNamespace(**{"status": JobStatus.SUCCEEDED, "driver_exit_code": 0, "message": "said Ray"} | info)

    async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
        assert job == "job"
        cuts = self.cuts.pop(0) if len(self.cuts) > 1 else [len(self.log)]
        last = 0
        for cut in sorted(cuts):
            yield self.log[last:cut]
            last = max(last, cut)
        if last < len(self.log):
            raise RuntimeError("WebSocket connection closed unexpectedly")

    def get_job_status(self, job: str) -> JobStatus:
        return JobStatus.RUNNING if len(self.cuts) > 1 else self.info.status

    def get_job_info(self, job: str) -> SimpleNamespace:
        return self.info


DASHBOARD = Dashboard(address="http://127.0.0.1:1", headers={})


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=60), st.data())
def test_however_often_the_connection_breaks_the_log_is_printed_once(log: str, data: st.DataObject) -> None:
    cuts = data.draw(st.lists(st.lists(st.integers(0, len(log)), max_size=5), min_size=1, max_size=5))
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed):
        patch.setattr(job_log, "_RETRY_SECONDS", 0.0)
        assert job_log.follow(Client(log, cuts), "job", DASHBOARD) == 0
    assert printed.getvalue() == f"{log}job: succeeded\n"


@pytest.mark.parametrize(
    ("info", "code"),
    [
        ({}, 0),
        ({"status": JobStatus.FAILED, "driver_exit_code": 2}, 2),
        ({"status": JobStatus.FAILED, "driver_exit_code": 1}, 1),
        ({"status": JobStatus.FAILED, "driver_exit_code": 137}, 1),
        ({"status": JobStatus.FAILED, "driver_exit_code": None}, 1),
        ({"status": JobStatus.STOPPED, "driver_exit_code": None}, 1),
    ],
)
def test_the_jobs_outcome_becomes_the_exit_code_and_what_the_log_cannot_tell_is_told(
    info: dict[str, Any], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert job_log.follow(Client("", [[0]], **info), "job", DASHBOARD) == code
    told = capsys.readouterr().err
    assert told == ("said Ray\n" if code and info["driver_exit_code"] is None else "")


def test_a_cluster_that_stays_away_is_given_up_with_the_way_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_log, "_RETRY_SECONDS", 0.0)
    client = Client("log", [[1, 1]] * 100)  # a log that is only repeated does not count as progress
    with pytest.raises(RunFailedError, match=r"job may still run there\n  follow it: starlab logs --address"):
        job_log.follow(client, "job", DASHBOARD)


def test_after_the_head_was_started_again_the_way_on_is_the_same_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_log, "_RETRY_SECONDS", 0.0)

    class Restarted(Client):
        """First no connection, then a head that has never heard of the job."""

        answers = iter(
            [ConnectionError("refused"), RuntimeError("Request failed with status code 404: Job job does not exist.")]
        )

        def get_job_status(self, job: str) -> JobStatus:
            raise next(self.answers)

    with pytest.raises(RunFailedError, match="does not know job any more, because its head was started again"):
        job_log.follow(Restarted("log", [[1]] * 100), "job", DASHBOARD)


def test_a_silent_connection_is_replaced(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(job_log, "_SILENCE_SECONDS", 0.05)
    connections = iter(range(2))

    class Silent(Client):
        async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
            yield "before "
            if next(connections) == 0:
                await asyncio.sleep(600)
            yield "after\n"

    begun = time.monotonic()
    assert job_log.follow(Silent("", [[0]]), "job", DASHBOARD) == 0
    assert capsys.readouterr().out == "before after\njob: succeeded\n"
    assert time.monotonic() - begun < 500  # it did not wait the silence out


def test_a_log_that_cannot_be_had_any_more_does_not_hide_how_the_job_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_log, "_RETRY_SECONDS", 0.0)

    class Lost(Client):
        def get_job_status(self, job: str) -> JobStatus:
            return JobStatus.FAILED

    assert job_log.follow(Lost("log", [[]] * 100, driver_exit_code=2, status=JobStatus.FAILED), "job", DASHBOARD) == 2


def test_a_head_whose_agent_is_not_up_yet_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_log, "_RETRY_SECONDS", 0.0)
    answers = iter([RuntimeError("No available agent to submit job"), None])

    class Starting(Client):
        def submit_job(self, **_: object) -> None:
            if answer := next(answers):
                raise answer

    job_client.send_job(Starting("", [[0]]), {"submission_id": "job"}, DASHBOARD)
    assert next(answers, "none left") == "none left"
    monkeypatch.setattr(job_client, "_AGENT_SECONDS", -1.0)
    answers = iter([RuntimeError("No available agent to submit job")])
    with pytest.raises(RunFailedError, match="another Ray on that machine holds its port"):
        job_client.send_job(Starting("", [[0]]), {"submission_id": "job"}, DASHBOARD)
