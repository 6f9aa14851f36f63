"""The web service without Ray: answers, refusals, and how little of a refused upload is kept."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import uvicorn
from numpy.typing import NDArray

from starlab.pipelines.estimated_joints import write_joints
from starlab.platform.errors import UserError
from starlab.platform.serving import service
from starlab.platform.serving.limits import Limits, check_binding
from starlab.platform.serving.recogniser import Recogniser
from starlab.platform.serving.service import make_app
from starlab.platform.serving.windows import Clip

pytestmark = pytest.mark.skipif(find_spec("multipart") is None, reason="needs the extra: pip install 'starlab[serve]'")
TOKEN = "a-token-of-enough-length"


class Local:
    """The model in this process."""

    def __init__(self, recogniser: Recogniser, seconds: float = 0.0) -> None:
        self._recogniser, self._seconds = recogniser, seconds

    async def logits(self, clip: Clip) -> NDArray[np.float32]:
        import asyncio

        await asyncio.sleep(self._seconds)
        return self._recogniser.logits(clip.frames[None], clip.joints[None])[0]


@contextmanager
def served(recogniser: Recogniser, limits: Limits, token: str | None = None, seconds: float = 0.0) -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])
    app = make_app(recogniser, Local(recogniser, seconds), limits, token)
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    try:
        yield port
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def port(recogniser: Recogniser) -> Iterator[int]:
    with served(recogniser, Limits(max_megabytes=3, max_seconds=5)) as found:
        yield found


def ask(port: int, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, body, names, encode_chunked="Transfer-Encoding" in names)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, json.loads(content) if "json" in answer.headers["content-type"] else content


def form(*parts: tuple[str, str, bytes], **fields: str) -> tuple[bytes, str]:
    boundary, lines = "starlab-boundary", []
    for name, filename, content in parts:
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"; filename="{filename}"\r\n\r\n'
        lines.append(head.encode() + content + b"\r\n")
    for name, value in fields.items():
        lines.append(f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode())
    return b"".join(lines) + f"--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}"


def upload(port: int, *parts: tuple[str, str, bytes], headers: dict[str, str] | None = None, **fields: str) -> tuple[int, Any]:
    body, kind = form(*parts, **fields)
    return ask(port, "POST", "/predict", body, Content_Type=kind, **(headers or {}))


def test_an_upload_gives_the_actions_and_the_timeline_of_each_person(port: int, videos: Path) -> None:
    joints = ("joints", "joints.parquet", (videos / "joints.parquet").read_bytes())
    status, found = upload(port, ("video", "two.mp4", (videos / "two.mp4").read_bytes()), joints, top="2", window_seconds="1")
    assert status == 200
    assert (found["video"], found["frames"], found["calibrated"]) == ("two.mp4", 40, True)
    assert [one["person"] for one in found["people"]] == [0, 1]
    assert [len(one["top"]) for one in found["people"]] == [2, 2]
    assert found["people"][0]["timeline"][-1]["end_seconds"] == 2.0


def test_the_page_and_the_documentation_load_nothing_from_elsewhere(port: int) -> None:
    for path in ("/", "/docs"):
        status, page = ask(port, "GET", path)
        assert status == 200
        assert b"://" not in page.replace(b"http://www.w3.org", b"")
    assert ask(port, "GET", "/docs/swagger-ui-bundle.js")[0] == 200
    assert ask(port, "GET", "/docs/__init__.py")[0] == 404
    assert "/predict" in ask(port, "GET", "/openapi.json")[1]["paths"]
    assert ask(port, "GET", "/about")[1]["skeleton"] == "penn_action"


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("film.mp4", b"garbage" * 500, "film.mp4 cannot be read as a video"),
        ("film.mp4", b"", "film.mp4 is empty"),
        ("../../etc/passwd", b"root:x:0:0" * 50, "passwd cannot be read as a video"),
    ],
)
def test_garbage_and_empty_videos_are_422_with_a_clear_line(
    port: int, videos: Path, name: str, content: bytes, says: str
) -> None:
    joints = ("joints", "joints.parquet", (videos / "joints.parquet").read_bytes())
    status, found = upload(port, ("video", name, content), joints)
    assert (status, found["detail"][: len(says)]) == (422, says)


@pytest.mark.parametrize("name", ["my film (1).mp4", "прыжок.mp4", "no ending", "x" * 240 + ".mp4", "joints.parquet"])
def test_a_video_may_have_any_name(port: int, videos: Path, tmp_path: Path, make: Any, name: str) -> None:
    write_joints(tmp_path / "j.parquet", [(f"folder/{name}", make.joints())])
    joints = ("joints", "joints.parquet", (tmp_path / "j.parquet").read_bytes())
    status, found = upload(port, ("video", name, (videos / "one.mp4").read_bytes()), joints)
    assert (status, found.get("video")) == (200, name), found


def test_joints_that_would_need_too_much_memory_are_refused_unread(
    port: int, videos: Path, tmp_path: Path, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "_MOST_JOINT_NUMBERS", 100)
    write_joints(tmp_path / "j.parquet", [("one", make.joints())])
    joints = ("joints", "joints.parquet", (tmp_path / "j.parquet").read_bytes())
    status, found = upload(port, ("video", "one.mp4", (videos / "one.mp4").read_bytes()), joints)
    assert (status, found["detail"]) == (422, "the joints are 1,563 numbers, more than the 100 that are taken")


def test_a_window_without_an_end_is_refused(port: int, videos: Path) -> None:
    video = ("video", "one.mp4", (videos / "one.mp4").read_bytes())
    for value in ("inf", "nan", "1e300"):
        assert upload(port, video, window_seconds=value)[0] == 422


def test_joints_that_are_missing_garbage_or_of_another_video_are_422(port: int, videos: Path) -> None:
    video = ("video", "one.mp4", (videos / "one.mp4").read_bytes())
    assert upload(port, video) == (422, {"detail": upload(port, video)[1]["detail"]})
    assert "name a file of them as joints" in upload(port, video)[1]["detail"]
    status, found = upload(port, video, ("joints", "j.parquet", b"garbage" * 50))
    assert (status, "cannot be read" in found["detail"]) == (422, True)
    joints = ("joints", "joints.parquet", (videos / "joints.parquet").read_bytes())
    status, found = upload(port, ("video", "other.mp4", video[2]), joints)
    assert (status, "has no joints of other.mp4" in found["detail"]) == (422, True)
    assert upload(port, joints)[0] == 422  # no video
    assert upload(port, video, joints, top="0")[0] == 422


def test_a_long_video_and_a_slow_model_are_refused(recogniser: Recogniser, videos: Path) -> None:
    parts = [("video", "one.mp4", (videos / "one.mp4").read_bytes()), ("joints", "j", (videos / "joints.parquet").read_bytes())]
    with served(recogniser, Limits(max_seconds=1)) as port:
        status, found = upload(port, *parts)
        assert (status, found["detail"]) == (413, "one.mp4 is longer than 1 s, the longest video that is taken")
    with served(recogniser, Limits(timeout_seconds=0.5), seconds=5) as port:
        status, found = upload(port, *parts)
        assert (status, found["detail"]) == (504, "the video took longer than 0.5 s to recognise")


def test_two_gigabytes_are_refused_by_their_declared_length_before_any_is_sent(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(
            f"POST /predict HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: multipart/form-data; boundary=b\r\n"
            f"Content-Length: {2 * 10**9}\r\n\r\n".encode()
        )
        answer = connection.recv(4096)
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"larger than 3 MB" in answer


def test_two_gigabytes_are_refused_by_their_real_length_without_being_held(port: int) -> None:
    process = psutil.Process()
    before, most, sent = process.memory_info().rss, 0, 0
    chunk = bytes(2**20)
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(
            f"POST /predict HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: multipart/form-data; boundary=b\r\n"
            "Transfer-Encoding: chunked\r\n\r\n".encode()
        )
        head = b'--b\r\nContent-Disposition: form-data; name="video"; filename="big.mp4"\r\n\r\n'
        connection.sendall(f"{len(head):x}\r\n".encode() + head + b"\r\n")
        try:
            while sent < 2000:
                connection.sendall(f"{len(chunk):x}\r\n".encode() + chunk + b"\r\n")
                sent += 1
                most = max(most, process.memory_info().rss)
        except OSError:
            pass  # refused: the service closed the connection
    assert sent < 200
    assert most - before < 100e6


def test_a_body_that_is_larger_than_declared_or_chunked_within_the_limit_is_handled(port: int, videos: Path) -> None:
    body, kind = form(
        ("video", "one.mp4", (videos / "one.mp4").read_bytes()), ("joints", "j", (videos / "joints.parquet").read_bytes())
    )
    chunks = (body[start : start + 1000] for start in range(0, len(body), 1000))
    status, _ = ask(port, "POST", "/predict", chunks, Content_Type=kind, **{"Transfer-Encoding": "chunked"})
    assert status == 200
    big, kind = form(("video", "big.mp4", bytes(4_000_000)))
    chunks = (big[start : start + 10000] for start in range(0, len(big), 10000))
    try:
        status, found = ask(port, "POST", "/predict", chunks, Content_Type=kind, **{"Transfer-Encoding": "chunked"})
    except OSError:
        return  # closed before everything was sent
    assert (status, found["detail"]) == (413, "the request is larger than 3 MB, the largest that is taken")


def test_pages_of_other_sites_and_other_names_of_this_machine_are_refused(port: int) -> None:
    assert ask(port, "GET", "/about", Host="evil.example")[0] == 400
    assert ask(port, "GET", "/about", Host=f"localhost:{port}")[0] == 200
    assert ask(port, "POST", "/predict", b"", Origin="http://evil.example")[0] == 403
    assert ask(port, "POST", "/predict", b"", Origin=f"http://127.0.0.1:{port}")[0] == 422


def test_a_token_is_wanted_where_one_is_set(recogniser: Recogniser, videos: Path) -> None:
    parts = [("video", "one.mp4", (videos / "one.mp4").read_bytes()), ("joints", "j", (videos / "joints.parquet").read_bytes())]
    with served(recogniser, Limits(), TOKEN) as port:
        assert upload(port, *parts)[0] == 401
        assert upload(port, *parts, headers={"Authorization": "Bearer wrong"})[0] == 401
        assert upload(port, *parts, headers={"Authorization": f"Bearer {TOKEN}"})[0] == 200
        assert ask(port, "GET", "/about")[1]["needs_token"] is True


def test_an_address_that_others_reach_needs_a_token() -> None:
    check_binding("127.0.0.1", None)
    check_binding("0.0.0.0", TOKEN)
    with pytest.raises(UserError, match=r"--host is 0.0.0.0, which other machines can reach; set a token"):
        check_binding("0.0.0.0", None)
    with pytest.raises(UserError, match="has 5 characters; it must have 16 or more"):
        check_binding("0.0.0.0", "short")
    with pytest.raises(UserError, match="--max-seconds is 0; it must be above 0"):
        Limits(max_seconds=0)
