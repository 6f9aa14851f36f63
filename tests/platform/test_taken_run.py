"""The same run started twice: the second process is refused at once, not when the cluster has room for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from starlab.experiments.spec import load_spec
from starlab.platform import preflight, trainer
from starlab.platform.cluster.connect import Cluster
from starlab.platform.runs.lease import Lease, RunTakenError

CLUSTER = Cluster(local=False, nodes=1, cpus=0.0, gpus=0.0, accelerators=())

SMALL = [
    f"data.synthetic.{setting}"
    for setting in ("train_subjects=3", "test_subjects=2", "train_clips_per_class=6", "test_clips_per_class=3", "size_px=64")
]


def test_a_run_that_waits_for_room_is_taken_already(
    small_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = load_spec("demo", [f"data.store={small_folder}", "data.validation_fraction=0.4", *SMALL])
    waits: list[Path] = []

    def wait(*_: object, **__: object) -> Cluster:
        [lease] = tmp_path.glob("demo-*/lease.json")
        waits.append(lease.parent)
        with pytest.raises(RunTakenError):  # the second process, while the first waits
            trainer.train(spec, runs=tmp_path)
        raise KeyboardInterrupt

    monkeypatch.setattr(preflight, "connect", lambda: CLUSTER)
    monkeypatch.setattr(preflight, "wait_for_room", wait)
    with pytest.raises(KeyboardInterrupt):
        trainer.train(spec, runs=tmp_path)
    [folder] = waits  # the second one never waited
    Lease.claim(folder).release()  # and the first has given it back
