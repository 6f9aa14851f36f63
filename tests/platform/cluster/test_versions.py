"""What a cluster's versions are compared with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from packaging.requirements import Requirement
from ray.job_submission import JobSubmissionClient

from starlab.platform.cluster import versions
from starlab.platform.cluster.dashboard import Dashboard, find_dashboard
from starlab.platform.cluster.job_client import open_client, send_job
from starlab.platform.errors import UserError

if TYPE_CHECKING:
    from conftest import Head


def test_starlabs_own_requirements_are_compared_and_those_of_its_extras_are_not() -> None:
    names = {requirement.name for requirement in versions.requirements()}
    assert {"torch", "ray", "mlflow", "optuna", "pyarrow"} <= names
    assert not {"pytest", "ruff", "cmaes"} & names


def test_a_build_for_another_cuda_fits_and_another_release_and_a_missing_package_do_not() -> None:
    wanted = [Requirement("torch>=2.14,<2.15"), Requirement("av>=18"), Requirement("rich")]
    assert versions.mismatches(wanted, {"torch": "2.14.1+cu126", "av": "18.0", "rich": "14.0"}) == []
    problems = versions.mismatches(wanted, {"torch": "2.13.0", "av": None, "rich": "14.0"})
    assert problems == ["torch is 2.13.0 and must be <2.15,>=2.14", "av is not installed"]


@pytest.mark.slow
def test_a_cluster_with_another_torch_is_refused_once_asked_and_asked_again_the_next_time(
    ray_head: Head, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(ray_head.token_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    dashboard = find_dashboard(ray_head.dashboard)
    client: JobSubmissionClient = open_client(dashboard)
    sent: list[str] = []

    def counted(client: JobSubmissionClient, job: dict[str, Any], dashboard: Dashboard) -> None:
        send_job(client, job, dashboard)
        sent.append(job["submission_id"])

    monkeypatch.setattr(versions, "send_job", counted)
    monkeypatch.setattr(versions, "requirements", lambda: [Requirement("torch<2"), Requirement("no-such-package")])
    for asked in (1, 2):  # an answer that refuses is asked for again
        with pytest.raises(
            UserError, match=r"torch is 2\.[0-9.+a-z]+ and must be <2; no-such-package is not installed.*Nothing was"
        ):
            versions.check_versions(client, dashboard)
        assert len(sent) == asked
    monkeypatch.setattr(versions, "requirements", lambda: [Requirement("torch>=2")])
    versions.check_versions(client, dashboard)
    versions.check_versions(client, dashboard)
    assert len(sent) == 3
