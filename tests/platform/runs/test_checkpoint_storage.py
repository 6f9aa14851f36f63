"""Tests checkpoints in a bucket with pyarrow's real S3 client and a simulated service in this process."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
import torch

from starlab.pipelines.storage import Folder, below
from starlab.platform.runs.checkpoint import find_checkpoint, newest_checkpoint, remove_orphans, write_checkpoint
from starlab.platform.runs.checkpoint_writer import CheckpointWriter


class SimulatedS3(BaseHTTPRequestHandler):
    """Implements the part of S3 that is needed for folders and files. Like S3, it has no rename and no append."""

    protocol_version = "HTTP/1.1"
    objects: dict[str, bytes]
    uploads: dict[str, dict[int, bytes]]

    def do_GET(self) -> None:
        path, query = self._split()
        if "list-type" in query:
            self._list(path.split("/")[0], query)
        elif path in self.objects:
            data = self.objects[path]
            if found := re.match(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")):
                first, last = int(found[1]), min(int(found[2]), len(data) - 1)
                self._answer(206, data[first : last + 1], {"Content-Range": f"bytes {first}-{last}/{len(data)}"})
            else:
                self._answer(200, data)
        else:
            self._answer(404)

    def do_HEAD(self) -> None:
        path, _ = self._split()
        known = path in self.objects or "/" not in path.strip("/")
        self._answer(200 if known else 404, self.objects.get(path, b""))

    def do_PUT(self) -> None:
        path, query = self._split()
        data = self._body()
        if "uploadId" in query:
            self.uploads[query["uploadId"]][int(query["partNumber"])] = data
        else:
            self.objects[path] = data
        self._answer(200, b"", {"ETag": '"e"'})

    def do_POST(self) -> None:
        path, query = self._split()
        data = self._body()
        if "uploads" in query:
            number = str(len(self.uploads))
            self.uploads[number] = {}
            self._xml(f"<InitiateMultipartUploadResult><UploadId>{number}</UploadId></InitiateMultipartUploadResult>")
        elif "uploadId" in query:
            parts = self.uploads.pop(query["uploadId"])
            self.objects[path] = b"".join(parts[number] for number in sorted(parts))
            self._xml("<CompleteMultipartUploadResult><ETag>e</ETag></CompleteMultipartUploadResult>")
        else:
            for key in re.findall(r"<Key>(.*?)</Key>", data.decode()):
                self.objects.pop(f"{path.strip('/')}/{key}", None)
            self._xml("<DeleteResult></DeleteResult>")

    def do_DELETE(self) -> None:
        path, _ = self._split()
        self.objects.pop(path, None)
        self._answer(204)

    def _list(self, bucket: str, query: dict[str, str]) -> None:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
        keys = sorted(key.partition("/")[2] for key in self.objects if key.startswith(f"{bucket}/{prefix}"))
        folders, files = set(), []
        for key in keys:
            rest = key[len(prefix) :]
            if delimiter and delimiter in rest:
                folders.add(prefix + rest.split(delimiter)[0] + delimiter)
            else:
                files.append(key)
        listed = "".join(
            f"<Contents><Key>{key}</Key><Size>{len(self.objects[f'{bucket}/{key}'])}</Size>"
            "<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
            for key in files
        )
        listed += "".join(f"<CommonPrefixes><Prefix>{folder}</Prefix></CommonPrefixes>" for folder in sorted(folders))
        count = len(files) + len(folders)
        self._xml(f"<ListBucketResult><IsTruncated>false</IsTruncated><KeyCount>{count}</KeyCount>{listed}</ListBucketResult>")

    def _split(self) -> tuple[str, dict[str, str]]:
        parts = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(parts.query, keep_blank_values=True).items()}
        return unquote(parts.path).lstrip("/"), query

    def _body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", "") or "aws-chunked" in self.headers.get("Content-Encoding", ""):
            raw = self.rfile.read(int(self.headers["Content-Length"])) if "Content-Length" in self.headers else self._chunks()
            return _unchunk(raw) if "aws-chunked" in self.headers.get("Content-Encoding", "") else raw
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _chunks(self) -> bytes:
        data = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return data

    def _xml(self, text: str) -> None:
        self._answer(200, f'<?xml version="1.0" encoding="UTF-8"?>{text}'.encode(), {"Content-Type": "application/xml"})

    def _answer(self, status: int, data: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Suppress the log of requests."""


def _unchunk(raw: bytes) -> bytes:
    data = b""
    while raw:
        size, _, raw = raw.partition(b"\r\n")
        count = int(size.split(b";")[0], 16)
        if not count:
            break
        data, raw = data + raw[:count], raw[count + 2 :]
    return data


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Address of a folder in an empty bucket."""
    for name, value in {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_EC2_METADATA_DISABLED": "true"}.items():
        monkeypatch.setenv(name, value)
    handler = type("Handler", (SimulatedS3,), {"objects": {}, "uploads": {}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"s3://bucket/runs?scheme=http&region=us-east-1&endpoint_override=127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(params=["disk", "bucket"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    if request.param == "disk":
        return Folder(tmp_path / "not" / "there")
    opened = Folder(below(request.getfixturevalue("bucket"), "demo-1"))
    assert not opened.is_local
    return opened


def test_a_folder_works_the_same_on_disk_and_in_a_bucket(storage: Folder) -> None:
    assert storage.folders() == []
    assert not storage.has("a/file")
    with pytest.raises(OSError, match="file"):
        storage.read("a/file")
    storage.put("a/file", b"one")
    storage.put("b/file", b"")
    storage.put("a/file", b"two" * 100_000)
    assert storage.folders() == ["a", "b"]
    assert storage.has("a/file")
    assert storage.read("a/file") == b"two" * 100_000
    assert storage.read("b/file") == b""
    storage.delete("b/file")
    storage.delete("a")
    assert not storage.has("a/file")
    assert not storage.has("b/file")


def test_checkpoints_are_written_found_pruned_and_set_aside_on_disk_and_in_a_bucket(storage: Folder) -> None:
    alerts: list[object] = []
    writer = CheckpointWriter(storage, lambda: None, lambda: None, lambda step, reason: alerts.append((step, reason)))
    for step in range(1, 5):
        writer.save(step, {"t": torch.full((300_000,), float(step))}, {"best": {}}, {2})
    writer.wait()
    assert alerts == []
    names = [name for name in storage.folders() if storage.has(f"{name}/manifest.json")]
    assert [int(name[5:13]) for name in names] == [2, 3, 4]
    damaged = bytearray(storage.read(f"{names[-1]}/tensors.safetensors"))
    damaged[1000] ^= 1
    storage.put(f"{names[-1]}/tensors.safetensors", bytes(damaged))
    newest, complaints = newest_checkpoint(storage)
    assert newest is not None
    assert (newest.step, len(complaints)) == (3, 1)
    assert newest_checkpoint(storage)[1] == []
    assert find_checkpoint(storage, 2).tensors["t"].mean() == 2


def test_a_checkpoint_without_its_manifest_does_not_exist_on_disk_or_in_a_bucket(storage: Folder) -> None:
    write_checkpoint(storage, 1, {"t": torch.ones(3)}, {})

    def die() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(storage, 2, {"t": torch.ones(3)}, {}, die)
    newest, _ = newest_checkpoint(storage)
    assert newest is not None
    assert newest.step == 1
    assert [name[:13] for name in remove_orphans(storage)] == ["step_00000002"]


def test_a_bucket_that_does_not_answer_costs_the_checkpoint_and_not_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_MAX_ATTEMPTS": "1"}.items():
        monkeypatch.setenv(name, value)
    address = "s3://bucket/x?scheme=http&region=us-east-1&endpoint_override=127.0.0.1:9"
    alerts: list[int] = []
    writer = CheckpointWriter(Folder(address), lambda: None, lambda: None, lambda step, reason: alerts.append(step))
    writer.save(1, {"t": torch.ones(3)}, {}, set())
    writer.wait()
    assert alerts == [1]
