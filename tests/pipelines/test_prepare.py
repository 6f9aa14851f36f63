"""`prepare` and `verify` over Ray Data: nothing lost, nothing doubled, whatever happens on the way."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from starlab.pipelines.clip import DataError
from starlab.pipelines.estimated_joints import write_joints
from starlab.pipelines.generated.penn_action import SYNTHETIC_CLASSES
from starlab.pipelines.penn_action import PennActionSource
from starlab.pipelines.prepare import Progress, StoreLayout, prepare, verify
from starlab.pipelines.sources import DataConfig, open_source
from starlab.pipelines.storage import Folder
from starlab.pipelines.store import StoreSource
from starlab.platform import cli

DATASET = "synthetic_penn_action"


@dataclasses.dataclass(frozen=True)
class Said:
    code: int
    out: str
    err: str


@pytest.fixture(scope="module")
def prepared(small_source: PennActionSource, tmp_path_factory: pytest.TempPathFactory, local_ray: object) -> Path:
    """The small folder as a store of 9 shards; read only."""
    root = tmp_path_factory.mktemp("prepared") / "store"
    prepare(small_source, DATASET, root, StoreLayout(clips_per_shard=10))
    return root


@pytest.fixture
def copy(prepared: Path, tmp_path: Path) -> Path:
    """One to damage."""
    return Path(shutil.copytree(prepared, tmp_path / "store"))


@pytest.fixture
def folder(small_folder: Path, tmp_path: Path) -> Path:
    """The authors' files, to damage."""
    return Path(shutil.copytree(small_folder, tmp_path / "authors"))


def content(root: Path) -> dict[str, bytes]:
    return {name: Folder(root).read(name) for name in Folder(root).names()}


@pytest.mark.usefixtures("local_ray")
def test_every_clip_of_the_folder_is_in_the_store_once_with_the_same_pixels_and_joints(
    prepared: Path, small_source: PennActionSource
) -> None:
    store = StoreSource(prepared)
    assert store.clips == small_source.clips
    assert (store.classes, store.skeleton, store.skipped) == (small_source.classes, small_source.skeleton, ())
    assert sum(shard["clips"] for shard in store.manifest["shards"]) == len(store.clips) == store.manifest["clips"]
    for row in store.clips[::7]:
        one, other = (source.read(row, range(row.num_frames), 48) for source in (store, small_source))
        assert all((a == b).all() for a, b in zip(one.frames, other.frames, strict=True))
        assert (one.joints == other.joints).all()
    assert verify(prepared, decode=True)[1] == []


@pytest.mark.usefixtures("local_ray")
def test_preparing_again_changes_nothing_and_what_is_left_of_an_attempt_is_used_and_tidied(copy: Path, small_source) -> None:
    before = content(copy)
    times = {path: path.stat().st_mtime_ns for path in copy.rglob("*.parquet")}
    prepare(small_source, DATASET, copy, StoreLayout(clips_per_shard=10))
    assert {path: path.stat().st_mtime_ns for path in copy.rglob("*.parquet")} == times

    # As a kill leaves it: no manifest, one shard without its record, one half written, one damaged, drafts.
    for name in ("manifest.json", "index.parquet", "shards/00003.json"):
        (copy / name).unlink()
    (copy / "shards/00005.parquet").write_bytes(before["shards/00005.parquet"][:1000])
    (copy / "shards/00007.parquet").write_bytes(before["shards/00007.parquet"].replace(b"\xff\xd8", b"\xff\x00", 1))
    (copy / "shards/00008.parquet.0badf00d.part").write_bytes(b"draft")
    seen: list[Progress] = []
    prepare(small_source, DATASET, copy, StoreLayout(clips_per_shard=10), on_progress=seen.append)
    assert content(copy) == before
    kept = {path for path, then in times.items() if path.exists() and path.stat().st_mtime_ns == then}
    written = {f"0000{shard}.parquet" for shard in (3, 5, 7)} | {"index.parquet"}
    assert {path.name for path in times} - {path.name for path in kept} == written
    assert [progress.clips_done for progress in seen] == sorted(progress.clips_done for progress in seen)
    assert seen[-1].clips_done == seen[-1].clips == 90


@pytest.mark.usefixtures("local_ray")
def test_clips_that_fail_a_check_are_quarantined_with_the_reason_and_a_mended_one_comes_back(
    folder: Path, tmp_path: Path
) -> None:
    frames = folder / "frames"
    whole = (frames / "0007/000003.jpg").read_bytes()
    (frames / "0007/000003.jpg").write_bytes(whole[: len(whole) // 2])
    (frames / "0012/000001.jpg").write_bytes((frames / "0012/000001.jpg").read_bytes().replace(b"\xff\xd8", b"GIF8", 1))
    (folder / "labels/0020.mat").write_bytes(b"<html>not found</html>")
    source = PennActionSource(folder, classes=SYNTHETIC_CLASSES)
    store = prepare(source, DATASET, tmp_path / "store", StoreLayout(clips_per_shard=10))
    reasons = {clip.clip_id: clip.reason for clip in store.skipped}
    assert set(reasons) == {"0007", "0012", "0020"}
    assert "0007/000003.jpg" in reasons["0007"]
    assert "0012/000001.jpg" in reasons["0012"]
    assert "0020.mat: not a readable .mat file" in reasons["0020"]
    assert len(store.clips) == 87
    assert verify(tmp_path / "store")[1] == []

    (frames / "0007/000003.jpg").write_bytes(whole)
    assert prepare(source, DATASET, tmp_path / "store", StoreLayout(clips_per_shard=10)).fingerprint == store.fingerprint
    mended = prepare(source, DATASET, tmp_path / "store", StoreLayout(clips_per_shard=10), retry=True)
    assert {clip.clip_id for clip in mended.skipped} == {"0012", "0020"}
    assert mended.fingerprint != store.fingerprint


@pytest.mark.usefixtures("local_ray")
def test_a_frame_of_another_size_than_its_label_tells_is_no_frame_of_that_clip(folder: Path, tmp_path: Path) -> None:
    import simplejpeg

    (folder / "frames/0031/000002.jpg").write_bytes(simplejpeg.encode_jpeg(np.zeros((64, 32, 3), np.uint8)))
    store = prepare(
        PennActionSource(folder, classes=SYNTHETIC_CLASSES), DATASET, tmp_path / "store", StoreLayout(clips_per_shard=30)
    )
    [bad] = store.skipped
    assert bad.reason.endswith("0031/000002.jpg: 64×32 pixels, its label says 64×64")


@pytest.mark.usefixtures("local_ray")
def test_the_whole_fails_only_past_the_threshold_and_then_leaves_the_list(folder: Path, tmp_path: Path) -> None:
    for clip in range(1, 11):
        (folder / f"frames/{clip:04d}/000001.jpg").write_bytes(b"")
    source = PennActionSource(folder, classes=SYNTHETIC_CLASSES)
    root = tmp_path / "store"
    with pytest.raises(DataError, match=r"of 90 clips cannot be used, more than the allowed share of 0\.05") as failure:
        prepare(source, DATASET, root, StoreLayout(clips_per_shard=10))
    listed = json.loads((root / "quarantine.json").read_text())
    assert len(listed) > 4
    assert str(root / "quarantine.json") in str(failure.value)
    with pytest.raises(DataError, match="not finished"):
        StoreSource(root)
    allowed = prepare(source, DATASET, root, StoreLayout(clips_per_shard=10), max_bad_fraction=0.2)
    assert len(allowed.skipped) == 10
    assert not (root / "quarantine.json").exists()


@pytest.mark.usefixtures("local_ray")
def test_a_place_that_holds_something_else_is_refused_untouched(copy: Path, small_source, folder: Path) -> None:
    before = content(copy)
    with pytest.raises(DataError, match=r"clips_per_shard 10, now it is 11: use the same again, or name a new folder"):
        prepare(small_source, DATASET, copy, StoreLayout(clips_per_shard=11))
    shutil.rmtree(folder / "frames/0001")
    (folder / "labels/0001.mat").unlink()
    with pytest.raises(DataError, match="was begun with source_fingerprint"):
        prepare(PennActionSource(folder, classes=SYNTHETIC_CLASSES), DATASET, copy, StoreLayout(clips_per_shard=10))
    assert content(copy) == before
    with pytest.raises(DataError, match=r"no plan\.json, so it is no store: name a new folder"):
        prepare(small_source, DATASET, folder)


@pytest.mark.usefixtures("local_ray")
def test_verify_names_every_kind_of_damage(copy: Path) -> None:
    before = content(copy)
    (copy / "shards/00001.parquet").unlink()
    (copy / "shards/00002.parquet").write_bytes(before["shards/00002.parquet"][:-9])
    (copy / "shards/00004.parquet").write_bytes(before["shards/00005.parquet"])
    manifest = json.loads(before["manifest.json"])
    manifest["shards"][6]["sha256"] = manifest["shards"][7]["sha256"]  # bytes that are well formed, of another shard
    (copy / "shards/00006.parquet").write_bytes(before["shards/00007.parquet"])
    (copy / "manifest.json").write_text(json.dumps(manifest))
    problems = verify(copy)[1]
    assert [problem.split(":")[0] for problem in problems] == [f"shards/0000{shard}.parquet" for shard in (1, 2, 4, 6)]
    assert problems[3].endswith("holds other clips than the index says")


def test_a_run_reads_a_store_or_the_authors_files_and_says_when_it_is_told_wrong(
    prepared: Path, small_folder: Path, tmp_path: Path
) -> None:
    config = DataConfig(dataset=DATASET, store=str(prepared))
    assert isinstance(open_source(config, tmp_path), StoreSource)
    with pytest.raises(DataError, match=r"data\.source is raw, but .* is a prepared store"):
        open_source(dataclasses.replace(config, source="raw"), tmp_path)
    with pytest.raises(DataError, match=r"was prepared from synthetic_penn_action, but data\.dataset is penn_action"):
        open_source(dataclasses.replace(config, dataset="penn_action"), tmp_path)
    with pytest.raises(DataError, match="is no prepared store"):
        open_source(dataclasses.replace(config, store=str(small_folder), source="prepared"), tmp_path)
    with pytest.raises(DataError, match="read from a local folder only"):
        open_source(DataConfig(dataset="penn_action", store=tmp_path.as_uri()), tmp_path)


@pytest.fixture
def starlab(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], local_ray: object) -> Callable[..., Said]:
    """The command line in this process, which has a Ray already."""

    def run(*arguments: str) -> Said:
        monkeypatch.setattr(sys, "argv", ["starlab", *arguments])
        code = 0
        try:
            cli.main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        said = capsys.readouterr()
        return Said(code, said.out, said.err)

    return run


def test_the_verbs_prepare_verify_and_look_and_end_with_2_where_the_user_is_wrong(starlab, small_folder, tmp_path) -> None:
    wrong = starlab("prepare", "pen-action", str(small_folder), str(tmp_path / "store"))
    assert (wrong.code, wrong.out) == (2, "")
    assert wrong.err.startswith("starlab: unknown data set 'pen_action'; did you mean 'penn-action'?")
    assert starlab("prepare", "penn-action", str(tmp_path / "nowhere"), str(tmp_path / "store")).code == 2
    assert starlab("verify", str(small_folder)).code == 2

    store = str(tmp_path / "store")
    done = starlab("prepare", "synthetic-penn-action", str(small_folder), store, "--shard", "50")
    assert done.code == 0, done.err
    assert "90/90 clips" in done.out
    assert done.out.endswith(f"train on it with data.store={store}\n")
    assert done.err == ""

    shown = starlab("data", "show", store, "--clip", "0005", "--out", str(tmp_path / "sheet.png"))
    assert shown.code == 0, shown.err
    assert (tmp_path / "sheet.png").read_bytes().startswith(b"\x89PNG")
    missing = starlab("data", "show", store, "--clip", "0500")
    assert (missing.code, missing.out) == (2, "")
    stats = starlab("data", "stats", store)
    assert stats.code == 0, stats.err
    assert "wave_then_squat" in stats.out
    assert "quarantine 0 clips" in stats.out

    victim = tmp_path / "store/shards/00001.parquet"
    victim.write_bytes(victim.read_bytes()[:-1] + b"?")
    damaged = starlab("verify", store)
    assert damaged.code == 1
    assert "PROBLEM  shards/00001.parquet: its bytes are not those that were written" in damaged.out
    mended = starlab("prepare", "synthetic-penn-action", str(small_folder), store, "--shard", "50", "--retry")
    assert mended.code == 0, mended.err
    assert starlab("verify", store, "--decode").code == 0


def test_a_preparation_killed_at_any_moment_goes_on_and_ends_with_the_same_bytes(
    prepared: Path, small_folder: Path, tmp_path: Path
) -> None:
    root = tmp_path / "store"
    command = [sys.executable, "-m", "starlab.platform.cli", "prepare", "synthetic-penn-action", str(small_folder), str(root)]
    command += ["--shard", "1"]
    for shards_before_the_kill in (1, 20):
        process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        hang_guard = time.monotonic() + 200
        while len(list(root.glob("shards/*.json"))) < shards_before_the_kill and time.monotonic() < hang_guard:
            assert process.poll() is None
            time.sleep(0.005)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert not (root / "manifest.json").exists()
    whole_before = {path: path.read_bytes() for path in root.glob("shards/*.json")}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    resumed, clean = StoreSource(root), StoreSource(prepared)
    assert resumed.clips == clean.clips
    assert resumed.fingerprint == clean.fingerprint
    assert len(resumed.manifest["shards"]) == 90
    assert [shard["clips"] for shard in resumed.manifest["shards"]] == [1] * 90
    assert not [name for name in Folder(root).names() if name.endswith(".part")]
    assert all(path.read_bytes() == before for path, before in whole_before.items())


def test_show_draws_a_clip_of_an_unprepared_folder_and_estimated_joints(
    starlab, small_folder: Path, ntu_folder: Path, tmp_path: Path
) -> None:
    def shown(place: Path, *options: str) -> bytes:
        said = starlab("data", "show", str(place), "--out", str(tmp_path / "sheet.png"), "--frames", "4", *options)
        assert (said.code, said.err) == (0, "")
        return (tmp_path / "sheet.png").read_bytes()

    plain = shown(small_folder, "--clip", "0005")
    assert plain.startswith(b"\x89PNG")
    assert shown(small_folder, "--clip", "0005", "--dataset", "synthetic-penn-action") == plain
    clips = PennActionSource(small_folder, SYNTHETIC_CLASSES).clips
    path = tmp_path / "coco.parquet"
    joints = np.random.default_rng(0).random((17, 3), np.float32)
    write_joints(path, ((row.clip_id, np.broadcast_to(joints, (row.num_frames, 1, 17, 3))) for row in clips))
    estimated = ["--estimated-joints", str(path), "--estimated-skeleton", "coco"]
    assert shown(small_folder, "--clip", "0005", *estimated) != plain
    assert shown(ntu_folder).startswith(b"\x89PNG")

    def refused(*arguments: str) -> str:
        said = starlab("data", "show", *arguments)
        assert (said.code, said.out) == (2, "")
        return said.err

    assert "did you mean 0055?" in refused(str(small_folder), "--clip", "00055")
    assert "neither a prepared store nor a folder with files of" in refused(str(tmp_path))
    assert "no folder at" in refused(str(tmp_path / "nowhere"))
    assert "unknown data set 'pen_action'" in refused(str(small_folder), "--dataset", "pen-action")
    assert "give both" in refused(str(small_folder), *estimated[:2])
    assert "unknown skeleton 'openpose'" in refused(str(small_folder), *estimated[:3], "openpose")


def test_stats_count_visible_joints_outside_the_frame_and_print_no_empty_rows(starlab, folder: Path, tmp_path: Path) -> None:
    import scipy.io

    path = folder / "labels/0003.mat"
    label = {key: value for key, value in scipy.io.loadmat(path).items() if not key.startswith("__")}
    label["x"] = label["x"].astype(float)
    label["x"][2, :4], label["visibility"][2, :4] = (-3, 70, 64, 20), 1
    label["x"][3, :4], label["visibility"][3, :4] = -9, 0
    scipy.io.savemat(path, label)
    for clip in range(13, 91):
        (folder / f"labels/{clip:04d}.mat").unlink()
    store = str(tmp_path / "store")
    assert starlab("prepare", "synthetic-penn-action", str(folder), store).code == 0
    said = starlab("data", "stats", store).out
    inside = [clip for clip in StoreSource(store).stored if clip.clip_id != "0003" and clip.joints_outside]
    count = 2 + sum(clip.joints_outside or 0 for clip in inside)
    assert f"{count} visible are outside the frame, in {1 + len(inside)} clips: 0003" in said
    classes = {row.label for row in StoreSource(store).clips}
    assert f"classes    {10 - len(classes)} have no clip: " in said
    for label_index, name in enumerate(SYNTHETIC_CLASSES):
        in_table = any(line.startswith("│") and name in line for line in said.splitlines())
        assert in_table == (label_index in classes)
