from __future__ import annotations

from pathlib import Path

import pytest

from starlab.platform import package
from starlab.platform.package import ROOMS, code_hash, copy_package, package_files


def tree(root: Path) -> Path:
    """A package with a module in every room, and in a folder and a folder's folder of every room."""
    for room in ROOMS:
        for folder in (room, f"{room}/inner", f"{room}/inner/most"):
            (root / folder).mkdir(parents=True)
            (root / folder / "module.py").write_text(f"# {folder}\n")
    (root / "experiments" / "inner" / "mine.yaml").write_text("base: demo\n")
    (root / "platform" / "inner" / "__pycache__").mkdir()
    (root / "platform" / "inner" / "__pycache__" / "stale.py").write_text("")
    return root


MODULES = [f"{room}{folder}/module.py" for room in ROOMS for folder in ("", "/inner", "/inner/most")]


@pytest.mark.parametrize("module", MODULES)
def test_the_code_hash_sees_a_change_of_any_module_however_deep(tmp_path: Path, module: str) -> None:
    root = tree(tmp_path)
    before = code_hash(root)
    (root / module).write_text("# another\n")
    assert code_hash(root) != before


def test_the_code_hash_sees_a_module_that_moves_to_another_folder(tmp_path: Path) -> None:
    root = tree(tmp_path)
    before = code_hash(root)
    (root / "platform/inner/module.py").rename(root / "platform/inner/other.py")
    assert code_hash(root) != before


def test_what_travels_to_a_cluster_is_every_file_of_every_folder_but_no_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tree(tmp_path / "source")
    monkeypatch.setattr(package, "package_root", lambda: root)
    copy_package(tmp_path / "target")
    copied = {
        path.relative_to(tmp_path / "target/starlab") for path in (tmp_path / "target/starlab").rglob("*") if path.is_file()
    }
    assert copied == {Path(module) for module in MODULES} | {Path("experiments/inner/mine.yaml")}


def test_this_packages_own_files_are_all_seen() -> None:
    root = package.package_root()
    modules = {path.relative_to(root) for room in ROOMS for path in (root / room).rglob("*.py")}
    assert modules == {path for path in package_files(root) if path.suffix == ".py"}
