"""Tells Ray when AWS will take this spot machine away, so that trainings write a checkpoint and leave it in time.

AWS gives notice two minutes ahead, in the machine's metadata. Nothing else in a cluster of `ray up` reads it: without this the
machine would just vanish, and a run would lose the steps since its checkpoint and the minute until Ray gives the node up.
cluster.yaml copies this file to every worker and runs it beside Ray. It needs nothing but Python and Ray's command.

    python spot_notice.py HEAD:6379
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

METADATA = "http://169.254.169.254"
"""Where AWS answers a machine about itself."""
LOOK_SECONDS = 5.0
LEFT_SECONDS = 100
"""What is left of AWS's two minutes once the notice was seen and Ray was told."""


def read_notice(metadata: str = METADATA) -> str | None:
    """AWS's notice, such as {"action": "terminate", "time": "2026-05-04T08:22:00Z"}; None if there is none."""
    try:
        asked = urllib.request.Request(f"{metadata}/latest/api/token", method="PUT")
        asked.add_header("X-aws-ec2-metadata-token-ttl-seconds", "300")
        with urllib.request.urlopen(asked, timeout=5) as answer:
            token = answer.read().decode()
        asked = urllib.request.Request(f"{metadata}/latest/meta-data/spot/instance-action")
        asked.add_header("X-aws-ec2-metadata-token", token)
        with urllib.request.urlopen(asked, timeout=5) as answer:
            return str(answer.read().decode())
    except OSError:  # 404 without a notice and on other machines, or the service is busy
        return None


def drain(head: str, notice: str) -> bool:
    """Tell Ray that this node goes away. Returns whether Ray accepted it."""
    command = [str(Path(sys.executable).parent / "ray"), "drain-node", f"--address={head}"]
    command += ["--reason=DRAIN_NODE_REASON_PREEMPTION", f"--reason-message=AWS takes this spot machine away: {notice}"]
    command += [f"--deadline-remaining-seconds={LEFT_SECONDS}"]
    return subprocess.run(command, env=os.environ | {"RAY_ADDRESS": head}, check=False).returncode == 0


def watch(head: str, metadata: str = METADATA, look_seconds: float = LOOK_SECONDS) -> None:
    """Wait for a notice and pass it on to Ray, again and again until Ray has accepted it."""
    while (notice := read_notice(metadata)) is None or not drain(head, notice):
        time.sleep(look_seconds)


if __name__ == "__main__":
    watch(sys.argv[1])
