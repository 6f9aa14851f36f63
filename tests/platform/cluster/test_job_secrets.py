"""The encrypted file of a job's secrets."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from starlab.platform.cluster.job_secrets import FILE, VARIABLE, open_secrets, seal_secrets
from starlab.platform.errors import UserError


@pytest.fixture
def sealed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / FILE
    file.write_text(seal_secrets({"STARLAB_TEST_PASSWORD": "hunter2"}, "the token"))
    monkeypatch.setenv(VARIABLE, str(file))
    monkeypatch.setenv("RAY_AUTH_TOKEN", "the token")
    monkeypatch.setenv("STARLAB_TEST_PASSWORD", "another")  # so that the test's end restores the environment
    return file


def test_a_holder_of_the_token_gets_the_secrets_into_its_environment(sealed: Path) -> None:
    open_secrets()
    assert os.environ["STARLAB_TEST_PASSWORD"] == "hunter2"


def test_the_file_shows_neither_secret_nor_name_and_differs_each_time(sealed: Path) -> None:
    assert "hunter2" not in sealed.read_text()
    assert "STARLAB_TEST_PASSWORD" not in sealed.read_text()
    assert seal_secrets({"STARLAB_TEST_PASSWORD": "hunter2"}, "the token") != sealed.read_text()


def test_another_token_opens_nothing(sealed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "another token")
    with pytest.raises(UserError, match=r"not made for this node's token \(RAY_AUTH_TOKEN\)"):
        open_secrets()
    assert os.environ["STARLAB_TEST_PASSWORD"] == "another"


@pytest.mark.parametrize("content", ["", "{}", "[]", json.dumps({"salt": 1, "sealed": 2})])
def test_a_damaged_file_is_named(sealed: Path, content: str) -> None:
    sealed.write_text(content)
    with pytest.raises(UserError, match="cannot be read as a job's secrets"):
        open_secrets()


def test_a_changed_file_is_refused(sealed: Path) -> None:
    content = json.loads(sealed.read_text())
    content["sealed"] = content["sealed"][:-10] + ("A" if content["sealed"][-10] != "A" else "B") + content["sealed"][-9:]
    sealed.write_text(json.dumps(content))
    with pytest.raises(UserError, match="not made for this node's token"):
        open_secrets()


def test_outside_a_job_with_secrets_nothing_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "nowhere")
    open_secrets()
