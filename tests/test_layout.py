"""Guards of the packaging: four folders that are one package, and a `platform/` that hides nobody's `platform`."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("platform", "models", "pipelines", "experiments")
RAY_IN_PIPELINES = ("starlab.pipelines.prepare", "starlab.pipelines.stream")


def shipped_files(root: Path) -> set[str]:
    """What must travel: every file of the four rooms, caches left out."""
    paths = (path.relative_to(root) for room in ROOMS for path in (root / room).rglob("*") if path.is_file())
    return {path.as_posix() for path in paths if "__pycache__" not in path.parts}


def modules_of(room: str) -> list[str]:
    paths = (path.relative_to(ROOT).with_suffix("") for path in (ROOT / room).rglob("*.py"))
    return sorted(".".join(("starlab", *path.parts)).removesuffix(".__init__") for path in paths)


def test_platform_is_the_standard_librarys_for_every_process_started_in_the_checkout() -> None:
    code = "import platform, sys; print(platform.__file__, platform.system())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    file, system = done.stdout.split()
    assert not Path(file).is_relative_to(ROOT / "platform")
    assert system == os.uname().sysname


def test_neither_platform_nor_any_test_folder_is_a_package() -> None:
    assert not (ROOT / "platform" / "__init__.py").exists()
    assert list((ROOT / "tests").rglob("__init__.py")) == []


def folders_with_modules() -> set[str]:
    """Every folder of the package that holds a module, dotted."""
    folders = (path.parent.relative_to(ROOT) for room in ROOMS for path in (ROOT / room).rglob("*.py"))
    return {".".join(("starlab", *folder.parts)) for folder in folders if "__pycache__" not in folder.parts}


def test_the_packages_are_the_folders_because_the_wheel_would_silently_leave_an_unlisted_one_out() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    assert set(listed) == folders_with_modules()
    assert len(listed) == len(set(listed))


def test_every_room_says_in_its_docstring_what_lives_there_and_holds_nothing_else_in_its_init() -> None:
    for folder in folders_with_modules() - {"starlab.platform"}:
        tree = ast.parse((ROOT.joinpath(*folder.split(".")[1:]) / "__init__.py").read_text())
        assert ast.get_docstring(tree), folder
        assert len(tree.body) == 1, folder


def test_type_checkers_see_the_four_rooms_through_links() -> None:
    links = ROOT / ".typing" / "starlab"
    assert sorted(path.name for path in links.iterdir()) == sorted(ROOMS)
    for room in ROOMS:
        assert (links / room).is_symlink()
        assert (links / room).readlink() == Path(f"../../{room}")


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built as `make wheel` does, but of a copy: setuptools leaves litter beside the sources."""
    source = tmp_path_factory.mktemp("source")
    for room in ROOMS:
        shutil.copytree(ROOT / room, source / room, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copyfile(ROOT / "pyproject.toml", source / "pyproject.toml")
    (source / "README.md").write_text("the long description")
    code = "from setuptools import build_meta; build_meta.build_wheel('dist')"
    done = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    [built] = (source / "dist").glob("*.whl")
    return built


def test_the_wheel_holds_every_module_every_experiment_and_the_typing_marks(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as opened:
        packed = {name.removeprefix("starlab/") for name in opened.namelist() if name.startswith("starlab/")}
    assert packed == shipped_files(ROOT)
    assert {f"{room}/py.typed" for room in ROOMS} <= packed
    assert "experiments/demo.yaml" in packed


def test_starlab_installed_from_its_wheel_ships_to_a_cluster_what_the_checkout_ships(wheel: Path, tmp_path: Path) -> None:
    installed, shipped = tmp_path / "installed", tmp_path / "shipped"
    with zipfile.ZipFile(wheel) as opened:
        opened.extractall(installed)
    code = """
import sys
from pathlib import Path
from starlab.platform import package
assert package.__file__.startswith(sys.argv[1]), package.__file__
package.copy_package(Path(sys.argv[2]))
"""
    # Outside the checkout, and first on the path, so that it is not the checkout that is copied.
    command = [sys.executable, "-c", code, str(installed), str(shipped)]
    subprocess.run(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(installed)}, check=True)
    assert shipped_files(shipped / "starlab") == shipped_files(ROOT)


IMPORT_EACH_IN_A_CHILD = r"""
import importlib, os, sys, tempfile, threading, traceback

pure, rest, base = (argument.split() for argument in sys.argv[1:4])

def load(names):
    for name in names:
        importlib.import_module(name)

def state(forbidden):
    yield "environment", set(os.environ.items())
    yield "threads", {thread.name for thread in threading.enumerate()}
    yield "files", set(os.listdir("."))
    yield "libraries that are not its room's", set(forbidden) & set(sys.modules)
    yield "Ray", {"ray" in sys.modules and sys.modules["ray"].is_initialized()}

def child(name, forbidden):
    before = dict(state(forbidden))
    importlib.import_module(name)
    touched = [what for what, now in state(forbidden) if now != before[what]]
    assert not touched, f"importing it touches {touched}"

def check(names, forbidden=()):
    # Each module alone, on top of the libraries: what they do at import is not ours.
    for name in names:
        said = tempfile.TemporaryFile()
        if (pid := os.fork()) == 0:
            os.dup2(said.fileno(), 1), os.dup2(said.fileno(), 2)
            code = 1
            try:
                child(name, forbidden)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush(), sys.stderr.flush()
                os._exit(code)
        _, status = os.waitpid(pid, 0)
        said.seek(0)
        if status or (text := said.read()):
            said.seek(0)
            print(f"{name}: {said.read().decode()}")

heavy = ("ray", "mlflow", "optuna")
load(name for name in base if name.partition(".")[0] not in heavy)
check(pure, forbidden=heavy)
load(base)
check(rest)
"""


def libraries_imported_by(folders: list[Path]) -> set[str]:
    """The installed modules of others that the rooms import, wherever in the file they do it; some are optional."""
    found: set[str] = set()
    for path in (path for folder in folders for path in folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.add(node.module)
    tops = {name.partition(".")[0] for name in found} - {"starlab", "__future__"}
    installed = {top for top in tops if importlib.util.find_spec(top)}
    return {name for name in found if name.partition(".")[0] in installed}


@pytest.mark.slow
def test_every_module_can_be_imported_alone_and_importing_it_does_nothing_else(tmp_path: Path) -> None:
    pipelines = [name for name in modules_of("pipelines") if name not in RAY_IN_PIPELINES]
    pure = [*modules_of("models"), *pipelines]
    with_ray = [name for name in modules_of("pipelines") if name in RAY_IN_PIPELINES]
    rest = [*with_ray, *modules_of("experiments"), *modules_of("platform")]
    base = sorted(libraries_imported_by([ROOT / room for room in ROOMS]))
    command = [sys.executable, "-c", IMPORT_EACH_IN_A_CHILD, *(" ".join(names) for names in (pure, rest, base))]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, ""), f"{done.stdout}\n{done.stderr}"


def test_the_rooms_import_each_other_one_way() -> None:
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / ".typing")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def project_files() -> list[Path]:
    """What is or would be committed."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        pytest.skip("not a git checkout, so there is no telling which files are the project's")
    return [path for name in listed.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def test_only_cluster_yaml_names_a_package_index_and_only_pytorchs() -> None:
    hosts = r"pypi\.org|pythonhosted\.org|download\.pytorch\.org/whl|pypi\.nvidia\.com|anaconda\.org|test\.pypi|/simple/"
    options = r"--(?:extra-)?index-url[= ]\s*\S+|--find-links[= ]\s*\S+|(?:PIP|UV)_(?:EXTRA_)?INDEX_URL"
    found: dict[str, list[str]] = {}
    for path in project_files():
        if path == Path(__file__) or path.is_symlink():
            continue
        if hits := re.findall(f"{hosts}|{options}", path.read_text(errors="ignore")):
            found[path.relative_to(ROOT).as_posix()] = hits
    host, build = "download.pytorch.org", "cu126"
    assert found == {"cluster.yaml": [f"--index-url https://{host}/whl/{build}"]}
    assert "://" not in (ROOT / "requirements.lock").read_text()
