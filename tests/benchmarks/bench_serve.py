"""Measure the service beside plain PyTorch: requests per second with batches of 1 and of 8, and the 95th percentile of latency.

    .venv/bin/python tests/benchmarks/bench_serve.py RUN VIDEO --joints JOINTS.parquet        # about three minutes

Each request uploads the video. Eight clients ask at the same time, and one alone. "plain" cuts and computes the same video in
this process, one request after the other, without a server. Numbers are ratios to plain of the same call: absolute times belong
to one machine.
"""

from __future__ import annotations

import argparse
import http.client
import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import torch

from starlab.platform.runs.folder import runs_folder
from starlab.platform.serving.joints_input import joints_from_file
from starlab.platform.serving.recognise import recognise
from starlab.platform.serving.recogniser import Place, locate
from starlab.platform.serving.served import ServeOptions, start
from starlab.platform.serving.video_input import VideoInput

CLIENTS = 8


def main() -> None:
    """Measure and print the table."""
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("run")
    arguments.add_argument("video", type=Path)
    arguments.add_argument("--joints", type=Path)
    arguments.add_argument("--runs", type=Path)
    arguments.add_argument("--requests", type=int, default=80)
    given = arguments.parse_args()
    torch.set_num_threads(1)
    place = locate(given.run, runs_folder(given.runs))
    plain = _plain(place, given.video, given.joints, given.requests // 2)
    rows = [("plain PyTorch, 1 client", *_summary(plain, 1))]
    body = _form(given.video, given.joints)
    for batch in (1, 8):
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = int(free.getsockname()[1])
        service = start(place, ServeOptions(port=port, batch=batch))
        for clients in (1, CLIENTS):
            _ask(port, body, 4, clients)  # warm
            began = time.perf_counter()
            seconds = _ask(port, body, given.requests, clients)
            rate = given.requests / (time.perf_counter() - began)
            rows.append(
                (f"batch {batch}, {clients} client{'s' if clients > 1 else ''}", rate, float(np.quantile(seconds, 0.95)))
            )
        if batch == 8:
            _refuse_two_gigabytes(port)
        service.stop()
    base_rate, base_p95 = rows[0][1], rows[0][2]
    print(f"\n{'':<28}{'requests/s':>12}{'of plain':>10}{'p95, ms':>10}{'of plain':>10}")
    for name, rate, p95 in rows:
        print(f"{name:<28}{rate:>12.1f}{rate / base_rate:>9.2f}×{1000 * p95:>10.0f}{p95 / base_p95:>9.2f}×")


def _plain(place: Place, video: Path, joints: Path | None, requests: int) -> list[float]:
    recogniser = place.load()
    seconds = []
    for _ in range(requests + 2):
        began = time.perf_counter()
        joints_of = joints_from_file(joints, recogniser.spec.data.facts().skeleton) if joints else None
        recognise(recogniser, VideoInput(str(video)), joints_of)
        seconds.append(time.perf_counter() - began)
    return seconds[2:]


def _summary(seconds: list[float], clients: int) -> tuple[float, float]:
    return clients * len(seconds) / sum(seconds), float(np.quantile(seconds, 0.95))


def _form(video: Path, joints: Path | None) -> bytes:
    parts = []
    for name, path in (("video", video), ("joints", joints)):
        if path is not None:
            head = f'--b\r\nContent-Disposition: form-data; name="{name}"; filename="{path.name}"\r\n\r\n'
            parts.append(head.encode() + path.read_bytes() + b"\r\n")
    return b"".join(parts) + b"--b--\r\n"


def _ask(port: int, body: bytes, requests: int, clients: int) -> list[float]:
    def one(_: int) -> float:
        began = time.perf_counter()
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
        connection.request("POST", "/predict", body, {"Content-Type": "multipart/form-data; boundary=b"})
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        if answer.status != 200:
            raise RuntimeError(f"{answer.status}: {content[:300]!r}")
        assert json.loads(content)["people"]
        return time.perf_counter() - began

    with ThreadPoolExecutor(clients) as pool:
        return list(pool.map(one, range(requests)))


def _refuse_two_gigabytes(port: int) -> None:
    """Send 2 GB without a declared length, and print how far it came and how much memory the service's processes gained."""
    this = psutil.Process()
    family = [this, *(process for process in this.children(recursive=True) if "ray::" in " ".join(process.cmdline()[:1]))]
    before, most, sent, chunk = _memory(family), 0.0, 0, bytes(2**20)
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        head = b'--b\r\nContent-Disposition: form-data; name="video"; filename="big.mp4"\r\n\r\n'
        connection.sendall(
            f"POST /predict HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: multipart/form-data; boundary=b\r\n"
            f"Transfer-Encoding: chunked\r\n\r\n{len(head):x}\r\n".encode()
            + head
            + b"\r\n"
        )
        try:
            while sent < 2000:
                connection.sendall(f"{len(chunk):x}\r\n".encode() + chunk + b"\r\n")
                sent += 1
                if sent % 20 == 0:
                    most = max(most, _memory(family) - before)
        except OSError:
            pass
    print(
        f"\n2 GB without a length: refused after {sent} MiB were sent; the service gained at most {most / 1e6:.0f} MB of memory"
    )


def _memory(family: list[psutil.Process]) -> float:
    total = 0.0
    for process in family:
        try:
            total += process.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total


if __name__ == "__main__":
    main()
