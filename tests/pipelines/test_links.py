"""Names from a manifest, and links, never lead out of a store's folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from starlab.pipelines.clip import DataError
from starlab.pipelines.generated.penn_action import SYNTHETIC_CLASSES
from starlab.pipelines.penn_action import PennActionSource
from starlab.pipelines.prepare import StoreLayout, prepare, verify
from starlab.pipelines.storage import Folder
from starlab.pipelines.store import StoreSource


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    (tmp_path / "secret").write_text("{}")
    (tmp_path / "store" / "deep").mkdir(parents=True)
    (tmp_path / "store" / "deep" / "file").write_text("{}")
    return Folder(tmp_path / "store")


@pytest.mark.parametrize(
    "name", ["../secret", "deep/../../secret", "/etc/hosts", "", "..", "deep\\..\\..\\secret", "link", "to/secret"]
)
def test_a_name_that_leads_out_of_the_folder_is_refused_whatever_reads_it(folder: Folder, tmp_path: Path, name: str) -> None:
    (tmp_path / "store" / "link").symlink_to(tmp_path / "secret")
    (tmp_path / "store" / "to").symlink_to(tmp_path)
    for read in (folder.read, folder.read_json, folder.sha256, folder.open):
        with pytest.raises(DataError, match="leads out of the folder"):
            read(name)


def test_a_link_inside_the_folder_and_a_linked_folder_are_read(folder: Folder, tmp_path: Path) -> None:
    (tmp_path / "store" / "inside").symlink_to("deep/file")
    (tmp_path / "linked").symlink_to(tmp_path / "store")
    for place in (folder, Folder(tmp_path / "linked"), Folder((tmp_path / "linked").as_uri())):
        assert place.read("inside") == place.read("deep/file") == b"{}"
        assert place.read_json("..file") is None  # a name that only begins with dots


@pytest.mark.usefixtures("local_ray")
def test_a_store_with_a_link_out_of_it_is_refused(small_folder: Path, tmp_path: Path) -> None:
    source = PennActionSource(small_folder, SYNTHETIC_CLASSES)
    prepare(source, "synthetic_penn_action", tmp_path / "store", StoreLayout(clips_per_shard=45))
    for name in ("manifest.json", "index.parquet", "shards/00000.parquet", "shards"):
        path, elsewhere = tmp_path / "store" / name, tmp_path / "elsewhere"
        path.rename(elsewhere)
        path.symlink_to(elsewhere)
        for read in (StoreSource, verify):
            with pytest.raises(DataError, match="leads out of the folder"):
                read(tmp_path / "store")
        path.unlink()
        elsewhere.rename(path)
    assert StoreSource(tmp_path / "store").clips == source.clips
