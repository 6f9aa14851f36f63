"""A notice in the machine's metadata reaches Ray's command; the metadata service is imitated."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from ray.scripts.scripts import drain_node

from starlab.platform.cluster import spot_notice

ROOT = Path(__file__).resolve().parents[3]
NOTICE = '{"action": "terminate", "time": "2026-05-04T08:22:00Z"}'


class Metadata(ThreadingHTTPServer):
    """AWS's metadata service, which answers with a token only."""

    def __init__(self) -> None:
        self.notice: str | None = None
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_PUT(self) -> None:
                known = self.path == "/latest/api/token" and self.headers["X-aws-ec2-metadata-token-ttl-seconds"]
                self._answer("a token" if known else None)

            def do_GET(self) -> None:
                known = self.path == "/latest/meta-data/spot/instance-action"
                self._answer(outer.notice if known and self.headers["X-aws-ec2-metadata-token"] == "a token" else None)

            def _answer(self, body: str | None) -> None:
                self.send_response(404 if body is None else 200)
                self.end_headers()
                self.wfile.write((body or "").encode())

            def log_message(self, *_: object) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@pytest.fixture
def metadata() -> Iterator[Metadata]:
    server = Metadata()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_a_machine_without_a_notice_and_one_that_is_not_aws_have_none(metadata: Metadata) -> None:
    assert spot_notice.read_notice(metadata.address) is None
    assert spot_notice.read_notice("http://127.0.0.1:9") is None


def test_a_notice_reaches_ray_again_and_again_until_it_is_accepted(metadata: Metadata, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []
    codes = [1, 1, 0]  # a head that is too busy twice

    def run(command: list[str], **_: object) -> SimpleNamespace:
        asked.append(command)
        return SimpleNamespace(returncode=codes.pop(0))

    monkeypatch.setattr(spot_notice.subprocess, "run", run)
    threading.Timer(0.3, lambda: setattr(metadata, "notice", NOTICE)).start()
    spot_notice.watch("10.0.0.1:6379", metadata.address, look_seconds=0.05)
    assert len(asked) == 3
    assert NOTICE in " ".join(asked[0])
    # By the parser of the command itself.
    parsed = drain_node.make_context("drain-node", asked[0][2:])
    assert parsed.params["reason"] == "DRAIN_NODE_REASON_PREEMPTION"
    assert 0 < parsed.params["deadline_remaining_seconds"] < 120
    assert "drain-node" in asked[0][1]


def test_every_worker_of_the_cluster_file_watches_and_gets_the_file() -> None:
    config = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    assert config["file_mounts"]["~/spot_notice.py"] == "platform/cluster/spot_notice.py"
    assert (ROOT / "platform" / "cluster" / "spot_notice.py").is_file()
    start, watch = config["worker_start_ray_commands"][-2:]
    assert "ray start" in start
    assert "~/spot_notice.py $RAY_HEAD_IP:6379" in watch
    assert watch.rstrip().endswith("&")  # the set-up goes on
