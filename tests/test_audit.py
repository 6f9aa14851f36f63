"""`.ci/audit`: what fails a build, and what does not."""

from __future__ import annotations

import importlib.machinery
import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

AUDIT = Path(__file__).resolve().parents[1] / ".ci" / "audit"


@pytest.fixture
def audit() -> ModuleType:
    loader = importlib.machinery.SourceFileLoader("audit", str(AUDIT))
    spec = importlib.util.spec_from_loader("audit", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def package(**vulnerability: object) -> dict[str, object]:
    return {"name": "rich", "version": "1.0", "vulns": [{"id": "PYSEC-1", "aliases": ["CVE-1"], **vulnerability}]}


def test_only_what_a_newer_release_fixes_and_nobody_excepted_fails(
    audit: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(audit, "IGNORED", tmp_path / "audit.ignore")
    assert audit.judge([{"name": "rich", "version": "1.0", "vulns": []}], 1) == 0
    assert audit.judge([package(fix_versions=[])], 1) == 0
    assert audit.judge([package(fix_versions=["2.0"])], 1) == 1
    assert "VULNERABLE rich 1.0: PYSEC-1, fixed in 2.0" in capsys.readouterr().out
    (tmp_path / "audit.ignore").write_text("# why\nCVE-1 the function is not used here\n")
    assert audit.judge([package(fix_versions=["2.0"])], 1) == 0


def test_a_machine_without_network_is_told_and_not_failed(
    audit: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unreachable(command: list[object]) -> object:
        raise OSError("no network")

    monkeypatch.setattr(audit, "run", unreachable)
    assert audit.main() == 0
    assert capsys.readouterr().out == "audit skipped: pip-audit gave no answer (OSError)\n"
