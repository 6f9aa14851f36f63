"""What a finished run gives to serving: its calibration, its registered model under an alias, and the service on Ray Serve."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import mlflow
import pytest

from starlab.platform.errors import UserError
from starlab.platform.recipe.calibration import expected_calibration_error
from starlab.platform.runs.folder import RunFolder
from starlab.platform.runs.records import Result
from starlab.platform.serving.promotion import promote
from starlab.platform.serving.recogniser import locate
from starlab.platform.trainer import RunResult
from starlab.platform.worker.predictions import read_predictions

pytestmark = pytest.mark.slow


def test_the_result_has_the_calibration_of_the_best_checkpoint(run: RunResult, runs: Path) -> None:
    result = RunFolder(run.folder).require(Result)
    assert result.calibration is not None
    assert result.clip_frames is not None
    _, kept, _ = read_predictions(run.folder / "artifacts" / "validation.parquet")
    assert kept.metrics() == pytest.approx(result.val)
    assert result.calibration.val_ece_before == pytest.approx(expected_calibration_error(kept))
    _, tested, _ = read_predictions(run.folder / "artifacts" / "predictions.parquet")
    temperature = result.calibration.temperature
    assert result.calibration.test_ece_after == pytest.approx(expected_calibration_error(tested, temperature))
    card = locate(run.run_id, runs).card()
    assert (card.temperature, card.clip_frames) == (temperature, result.clip_frames)
    about = json.loads((run.folder / "artifacts" / "model" / "spec.json").read_text())
    assert about["temperature"] == temperature


def test_an_alias_names_the_version_of_a_run(run: RunResult, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = promote(run.run_id, "best", runs)
    assert (done.model, done.version, done.before) == ("demo", "1", None)
    assert promote(run.run_id, "best", runs).before == "1"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", done.uri)
    mlflow.set_tracking_uri(done.uri)
    try:
        place = locate("models:/demo@best", runs)
        assert place.load().classes == locate(run.run_id, runs).card().classes
        with pytest.raises(UserError, match="no model at models:/demo@other"):
            locate("models:/demo@other", runs)
    finally:
        mlflow.set_tracking_uri(None)
    with pytest.raises(UserError, match="MLflow did not set the alias 'latest'"):
        promote(run.run_id, "latest", runs)


def test_ray_serve_answers_an_upload(run: RunResult, runs: Path, videos: Path) -> None:
    pytest.importorskip("multipart", reason="needs the extra: pip install 'starlab[serve]'")
    pytest.importorskip("grpc_reflection", reason="needs the extra: pip install 'starlab[serve]'")
    import urllib.request

    from starlab.platform.serving.limits import Limits
    from starlab.platform.serving.served import ServeOptions, start

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(UserError, match="cannot be used"):
        start(locate(run.run_id, runs), ServeOptions(port=taken.getsockname()[1]))
    service = start(locate(run.run_id, runs), ServeOptions(port=port, limits=Limits(max_megabytes=5)))
    try:
        lines = []
        for name, path in (("video", videos / "one.mp4"), ("joints", videos / "joints.parquet")):
            head = f'--b\r\nContent-Disposition: form-data; name="{name}"; filename="{path.name}"\r\n\r\n'
            lines.append(head.encode() + path.read_bytes() + b"\r\n")
        body = b"".join(lines) + b"--b--\r\n"
        request = urllib.request.Request(
            f"{service.address}/predict", body, {"Content-Type": "multipart/form-data; boundary=b"}, method="POST"
        )
        with urllib.request.urlopen(request, timeout=120) as answer:
            found = json.loads(answer.read())
        assert found["frames"] == 40
        assert found["calibrated"] is True
        assert megabytes_taken(port) < 40, "an upload without a length is refused as soon as it is larger than 5 MB"
    finally:
        service.stop()


def megabytes_taken(port: int) -> int:
    """How much of an upload without an end the service reads before it closes the connection, with what the sockets hold."""
    piece = bytes(2**20)
    head = b'--b\r\nContent-Disposition: form-data; name="video"; filename="big.mp4"\r\n\r\n'
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(
            f"POST /predict HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: multipart/form-data; boundary=b\r\n"
            f"Transfer-Encoding: chunked\r\n\r\n{len(head):x}\r\n".encode()
            + head
            + b"\r\n"
        )
        for sent in range(500):
            try:
                connection.sendall(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
            except OSError:
                return sent
    return 500
