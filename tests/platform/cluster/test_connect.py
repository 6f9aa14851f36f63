"""`connect` in new processes, the copy of the package, and cluster.yaml against Ray's own check."""

from __future__ import annotations

import copy
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from packaging.requirements import Requirement

from starlab.platform.cluster import connect
from starlab.platform.errors import UserError
from starlab.platform.package import ROOMS, copy_package

ROOT = Path(__file__).resolve().parents[3]
LOCK = ROOT / "requirements.lock"


def run_python(code: str, cwd: Path, environment: Mapping[str, str] = {}) -> subprocess.CompletedProcess[str]:
    """Run `code` in a new interpreter that inherits no settings of Ray."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "STARLAB_"))}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=cwd, env=clean | environment, capture_output=True, text=True, timeout=180, check=False)


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A folder whose path is short enough for Ray's sockets."""
    folder = Path(tempfile.mkdtemp(prefix="sl", dir="/tmp"))
    yield folder
    shutil.rmtree(folder)


CONNECT_TWICE = """
import os, ray
from starlab.platform.cluster import room
from starlab.platform.cluster.connect import SETTINGS, connect
from starlab.platform.cluster.room import Demand, wait_for_room
from starlab.platform.errors import UserError
first = connect(num_cpus=3, object_store_bytes=80_000_000)
assert first == connect(num_cpus=1)
assert (first.local, first.nodes, first.cpus) == (True, 1, 3.0)
seen = ray.get(ray.remote(lambda: {name: os.environ.get(name) for name in SETTINGS}).remote())
assert seen == SETTINGS, seen
assert ray.available_resources()["object_store_memory"] <= 80_000_000

assert wait_for_room(Demand(3), timeout_seconds=60) == first
said, room._FIRST_SAY_SECONDS, room._SAY_SECONDS = [], 0.1, 0.2
try:
    wait_for_room(Demand(2, gpus_per_worker=1, accelerator="V100"), say=said.append, timeout_seconds=5)
except UserError as error:
    said.append(str(error))
assert all("2 × {CPU: 1, GPU: 1, accelerator_type:V100: 0.001}" in line for line in said), said
assert all("1 nodes with 3 CPUs" in line for line in said), said
assert len(said) >= 2 and said[-1].startswith("no room for"), said
assert wait_for_room(Demand(3), timeout_seconds=60) == first  # the attempt left nothing reserved
"""


@pytest.mark.slow
def test_without_an_address_a_quiet_local_cluster_starts_once_and_workers_have_settings_and_room(short_path: Path) -> None:
    tmp_path = short_path
    done = run_python(CONNECT_TWICE, tmp_path, {"HOME": str(tmp_path), "RAY_TMPDIR": str(tmp_path)})
    assert done.returncode == 0, done.stderr
    assert done.stdout + done.stderr == ""
    left = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if not path.is_symlink())
    assert left == [".ray", ".ray/auth_token", "ray"]  # Ray's own: the token of local clusters, an empty temporary folder


def test_a_long_temporary_folder_is_not_used_because_sockets_below_it_could_not_be_opened(tmp_path: Path) -> None:
    code = """
import ray
ray.init = lambda **options: print(options["_temp_dir"])
ray.cluster_resources, ray.nodes = dict, lambda: []
ray._private.worker._global_node = type("Node", (), {"get_session_dir_path": lambda self: "nowhere"})()
from starlab.platform.cluster.connect import connect
connect()
"""
    long = tmp_path / ("x" * 60)
    long.mkdir()
    assert run_python(code, tmp_path, {"TMPDIR": str(long)}).stdout.strip() == "/tmp/ray"
    assert run_python(code, tmp_path, {"TMPDIR": "/tmp"}).stdout.strip() == "None"


STUBBED = """
import os, ray
ray.shutdown = lambda: None
from ray._private import ray_constants
ray.cluster_resources, ray.nodes = dict, lambda: []
ray._private.worker._global_node = type("Node", (), {"get_session_dir_path": lambda self: "nowhere"})()
from starlab.platform.cluster import connect as module
"""


@pytest.mark.parametrize(("variable", "ships"), [({}, False), ({"RAY_ENABLE_UV_RUN_RUNTIME_ENV": "1"}, True)])
def test_uv_run_makes_ray_ship_the_folder_only_if_the_user_wants_it(
    tmp_path: Path, variable: dict[str, str], ships: bool
) -> None:
    code = (
        STUBBED
        + """
ray.init = lambda **_: print(ray_constants.RAY_ENABLE_UV_RUN_RUNTIME_ENV)
module.connect()
"""
    )
    assert run_python(code, tmp_path, variable).stdout.strip() == str(ships)


@pytest.mark.parametrize(
    ("failures", "said"), [(1, "started at try 2"), (2, "in two tries, most likely because it is too busy")]
)
def test_a_start_of_ray_that_took_too_long_is_tried_once_more(tmp_path: Path, failures: int, said: str) -> None:
    code = (
        STUBBED
        + f"""
tries = []
def init(**_):
    tries.append(1)
    if len(tries) <= {failures}:
        raise Exception("The current node timed out during startup. This could happen because of much.")
ray.init = init
try:
    module.connect()
    print("started at try", len(tries))
except module.RunFailedError as error:
    print(error)
"""
    )
    assert said in run_python(code, tmp_path).stdout


def test_another_failure_of_rays_start_is_not_tried_again(tmp_path: Path) -> None:
    code = (
        STUBBED
        + """
def init(**_):
    print("tried")
    raise ValueError("another")
ray.init = init
module.connect()
"""
    )
    done = run_python(code, tmp_path)
    assert done.stdout.split() == ["tried"]
    assert "ValueError: another" in done.stderr


@pytest.mark.parametrize(
    ("closed", "message"),
    [("ray", "set RAY_TMPDIR to a folder of your own"), ("home", "set HOME to a folder of your own, or RAY_AUTH_TOKEN_PATH")],
)
def test_a_folder_of_somebody_else_is_found_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, closed: str, message: str
) -> None:
    for name in ("ray", "home"):
        (tmp_path / name).mkdir()
    for name in ("RAY_ADDRESS", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(connect.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(connect, "_TEMP_DIR_LIMIT", 1000)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    connect.check_ray_can_start()
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path / closed and access(path, mode))
    with pytest.raises(UserError, match=message):
        connect.check_ray_can_start()
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")  # another machine's Ray writes nothing here
    connect.check_ray_can_start()


def test_a_proxy_is_not_asked_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {"PATH": "/bin"})
    connect.spare_loopback()
    assert os.environ == {"PATH": "/bin"}
    monkeypatch.setattr(os, "environ", {"https_proxy": "http://proxy:1", "no_proxy": "example.org"})
    connect.spare_loopback()
    connect.spare_loopback()
    assert os.environ["no_proxy"] == "example.org,localhost,127.0.0.1,::1"
    assert os.environ["NO_PROXY"] == "localhost,127.0.0.1,::1"


def refusal(tmp_path: Path, environment: Mapping[str, str]) -> str:
    code = """
from starlab.platform.cluster.connect import connect
from starlab.platform.errors import UserError
try:
    connect()
except UserError as error:
    print(error)
"""
    done = run_python(code, tmp_path, {"HOME": str(tmp_path), **environment})
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_address_of_a_dashboard_is_refused_with_the_verb_that_uses_it(tmp_path: Path) -> None:
    assert "starlab submit" in refusal(tmp_path, {"RAY_ADDRESS": "http://127.0.0.1:8265"})


def test_an_address_that_is_none_is_refused_with_the_way_back(tmp_path: Path) -> None:
    assert "unset RAY_ADDRESS" in refusal(tmp_path, {"RAY_ADDRESS": "nonsense"})


def test_a_cluster_with_a_token_is_not_joined_without_one(tmp_path: Path) -> None:
    # Nothing listens there: Ray misses the token before it looks.
    said = refusal(tmp_path, {"RAY_ADDRESS": "127.0.0.1:1", "RAY_AUTH_MODE": "token"})
    assert "~/.ray/auth_token" in said


def files_below(folder: Path) -> set[str]:
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {path.as_posix() for path in found if "__pycache__" not in path.parts}


def test_the_copy_holds_every_file_of_the_four_rooms_and_the_version(tmp_path: Path) -> None:
    copy_package(tmp_path)
    shipped = {name.removeprefix("starlab/") for name in files_below(tmp_path) if name.startswith("starlab/")}
    assert shipped == {f"{room}/{name}" for room in ROOMS for name in files_below(ROOT / room)}
    code = "import importlib.metadata, starlab.models as m; print(importlib.metadata.version('starlab'), m.__file__)"
    version, file = run_python(code, tmp_path).stdout.split()
    assert re.fullmatch(r"\d+\.\d+\.\d+", version)
    assert Path(file) == tmp_path / "starlab" / "models" / "__init__.py"


@pytest.fixture
def config(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    def refuse(*_: object) -> None:
        raise AssertionError("checking the file must not need the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    return loaded


def check(config: dict[str, Any]) -> dict[str, Any]:
    """Run the check of Ray's launcher that needs no cloud. It is private to Ray; the pinned version keeps it."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared: dict[str, Any] = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    return prepared


def test_ray_accepts_cluster_yaml(config: dict[str, Any]) -> None:
    prepared = check(config)
    types = prepared["available_node_types"]
    for name in ("v100_spot", "v100_on_demand"):
        assert types[name]["node_config"]["InstanceType"] == "p3.8xlarge"
        assert types[name]["resources"] == {"CPU": 32, "GPU": 4, "accelerator_type:V100": 1}
        assert "--gpus all" in types[name]["docker"]["worker_run_options"]
    assert types["v100_spot"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert "InstanceMarketOptions" not in types["v100_on_demand"]["node_config"]
    assert types["decode"]["resources"] == {"CPU": 32}
    assert "docker" not in types["decode"]
    assert "GPU" not in prepared["available_node_types"]["head"]["resources"]


def test_none_of_rays_default_commands_is_left(config: dict[str, Any]) -> None:
    text = str(check(config))
    assert "3.0.0.dev0" not in text
    assert "0.0.0.0" not in text


@pytest.mark.parametrize(
    ("place", "key"), [((), "setup_comands"), (("available_node_types", "v100_spot"), "resource"), (("docker",), "images")]
)
def test_ray_refuses_an_unknown_key_of_cluster_yaml(config: dict[str, Any], place: tuple[str, ...], key: str) -> None:
    part = config
    for name in place:
        part = part[name]
    part[key] = []
    with pytest.raises(jsonschema.ValidationError, match=key):
        check(config)


def test_every_start_command_asks_for_the_token_and_the_runs_lie_on_the_shared_file_system(config: dict[str, Any]) -> None:
    starts = [
        command
        for section in ("head_start_ray_commands", "worker_start_ray_commands")
        for command in config[section]
        if "ray start" in command
    ]
    assert len(starts) == 2
    for command in starts:
        assert "RAY_AUTH_MODE=token" in command
    assert "-v /mnt/starlab:/mnt/starlab" in config["docker"]["run_options"]
    assert "-e STARLAB_RUNS=/mnt/starlab/runs" in config["docker"]["run_options"]
    assert "~/.ray/auth_token" in config["file_mounts"]


def test_every_command_of_cluster_yaml_is_valid_shell(config: dict[str, Any]) -> None:
    for section in (name for name in config if name.endswith("_commands")):
        for command in config[section]:
            subprocess.run(["bash", "-n", "-c", command], check=True)


def locked(text: str) -> dict[str, Requirement]:
    """The requirements of a lock file; asserts that each has its hashes and that nothing else is between them."""
    found = {}
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        assert not line[0].isspace(), f"a hash without its requirement: {line.strip()[:60]}"
        requirement, *hashes = re.split(r"--hash=sha256:", line)
        assert hashes, f"no hash: {requirement}"
        assert all(re.fullmatch(r"[0-9a-f]{64}\s*", one) for one in hashes), f"a torn hash: {requirement}"
        parsed = Requirement(requirement.strip())
        found[parsed.name] = parsed
    return found


def needed_only_by_torch(text: str) -> set[str]:
    """Names of torch, torchvision and the CUDA packages that only they need, from the `via` comments of the lock."""
    reasons: dict[str, set[str]] = {}
    for block in re.split(r"\n(?=[^ #\n])", text):
        name = re.split(r"[=\[]", block, maxsplit=1)[0]
        comments = re.findall(r"^ +# +(.*)$", block, flags=re.MULTILINE)
        reasons[name] = {re.sub(r"^via\s*", "", reason).split()[0] for reason in comments if reason not in ("via", "")}
    unwanted = {"torch", "torchvision"}
    while more := {name for name, why in reasons.items() if why and why <= unwanted and name not in unwanted}:
        unwanted |= more
    pure = {
        "filelock",
        "fsspec",
        "jinja2",
        "markupsafe",
        "mpmath",
        "networkx",
        "sympy",
        "setuptools",
        "typing-extensions",
    }
    return unwanted - pure


def test_the_set_up_leaves_torch_and_its_cuda_out_of_the_lock_and_nothing_else(config: dict[str, Any], tmp_path: Path) -> None:
    lock = LOCK.read_text()
    (tmp_path / "requirements.lock").write_text(lock)
    command = next(command for command in config["setup_commands"] if "cluster.lock" in command and "awk" in command)
    subprocess.run(["bash", "-c", command], env={**os.environ, "HOME": str(tmp_path)}, check=True)
    before, after = locked(lock), locked((tmp_path / "cluster.lock").read_text())
    removed = set(before) - set(after)
    assert {"torch", "torchvision", "triton"} <= removed
    assert removed == needed_only_by_torch(lock)
    assert all(str(after[name]) == str(before[name]) for name in after)
    kept = iter(lock.splitlines())
    assert all(line in kept for line in (tmp_path / "cluster.lock").read_text().splitlines())  # cut, not rewritten


def test_cluster_yaml_installs_the_locked_torch_built_for_cuda_12_6_and_the_locked_ray(config: dict[str, Any]) -> None:
    lock = locked(LOCK.read_text())
    torch = next(command for command in config["setup_commands"] if "+cu126" in command)
    assert torch.split()[-2:] == [f"{lock[name]}+cu126" for name in ("torch", "torchvision")]
    assert config["docker"]["image"] == f"rayproject/ray:{str(lock['ray'].specifier).removeprefix('==')}-py311"
