"""NTU from the authors' formats into a store: what is bad is in quarantine, the rest looks as it does raw."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from starlab.pipelines.datasets import open_authors_files
from starlab.pipelines.ntu import MISSING_LISTS
from starlab.pipelines.ntu_names import parse_name
from starlab.pipelines.prepare import StoreLayout, prepare, verify
from starlab.pipelines.sources import DataConfig, open_source
from starlab.pipelines.store import StoreSource

MISSING, TRUNCATED = "S001C001P001R002A901", "S001C002P001R001A953"


@pytest.fixture(scope="module")
def folder(ntu_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Without the list of missing skeletons, and with one video cut short."""
    root = Path(shutil.copytree(ntu_folder, tmp_path_factory.mktemp("authors") / "ntu"))
    (root / MISSING_LISTS[1]).unlink()
    video = root / "nturgb+d_rgb" / f"{TRUNCATED}_rgb.avi"
    video.write_bytes(video.read_bytes()[:-3000])
    return root


@pytest.fixture(scope="module")
def store(folder: Path, tmp_path_factory: pytest.TempPathFactory, local_ray: object) -> Path:
    root = tmp_path_factory.mktemp("prepared") / "store"
    source = open_authors_files("synthetic_ntu", folder)
    prepare(source, "synthetic_ntu", root, StoreLayout(short_side_px=72, clips_per_shard=16), max_bad_fraction=0.1)
    return root


def test_clips_whose_video_skeleton_and_container_disagree_are_in_quarantine_with_the_reason(store: Path) -> None:
    source = StoreSource(store)
    reasons = {clip.clip_id: clip.reason for clip in source.skipped}
    assert set(reasons) == {MISSING, TRUNCATED}
    assert "nobody is seen in any of its" in reasons[MISSING]
    assert f"{TRUNCATED}_rgb.avi" in reasons[TRUNCATED]
    assert len(source.clips) == 35
    assert verify(store, decode=True)[1] == []


def test_prepared_frames_are_the_raw_ones_within_jpegs_error_and_the_joints_are_the_same(store: Path, folder: Path) -> None:
    prepared, raw = StoreSource(store), open_authors_files("synthetic_ntu", folder)
    kept = {row.clip_id: row for row in raw.clips if row.clip_id not in (MISSING, TRUNCATED)}
    assert list(kept.values()) == list(prepared.clips)
    for row in prepared.clips[::6]:
        wanted = range(0, row.num_frames, 7)
        encoded, stored = raw.encode(row, 72), prepared.encode(row, 72)
        assert encoded.jpegs == stored.jpegs
        assert stored.joints_3d is not None
        np.testing.assert_array_equal(encoded.joints_3d, stored.joints_3d)
        clip, same = prepared.read(row, wanted, 72), raw.read(row, wanted, 72)
        np.testing.assert_array_equal(clip.joints, same.joints)
        assert clip.frames[0].shape == (72, 128, 3)


def test_one_store_serves_every_protocol(store: Path, tmp_path: Path) -> None:
    fingerprints = set()
    for protocol in ("xsub", "xview", "xset"):
        source = open_source(DataConfig(dataset="synthetic_ntu", protocol=protocol, store=str(store)), tmp_path)  # type: ignore[arg-type]
        expected = [parse_name(row.clip_id).split(protocol) for row in source.clips]  # type: ignore[arg-type]
        assert [row.split for row in source.clips] == expected
        assert [row.split for row in pickle.loads(pickle.dumps(source)).clips] == expected
        fingerprints.add(source.fingerprint)
    assert len(fingerprints) == 1
