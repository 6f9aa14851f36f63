"""LitData's loader of the store's clips, for peers.py. Only peers.py imports this: the project does not use LitData.

Its worker processes find what they unpickle by name, so the classes are those of a module.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from litdata import StreamingDataLoader, StreamingDataset, optimize
from plain_reader import BATCH, FRAMES, Reader


def make_loader(store: Path, folder: Path, threads: int) -> Any:
    """Write the clips of a store as LitData's chunks into `folder`. Returns LitData's loader of them."""
    writer = ClipWriter(store)
    numbers = list(range(len(writer.reader.index)))
    optimize(writer, numbers, str(folder), chunk_bytes="64MB", num_workers=1, verbose=False)
    clips = Clips(str(folder), shuffle=True)
    clips.reader = writer.reader
    return StreamingDataLoader(clips, batch_size=BATCH, num_workers=threads, persistent_workers=True)


class Clips(StreamingDataset):
    """The clips, decoded by the plain reader."""

    reader: Reader

    def __getitem__(self, index: Any) -> Any:
        """Decode the picked frames of a clip; also its joints and label."""
        clip = super().__getitem__(index)
        ends, data, count = clip["ends"], memoryview(clip["jpegs"]), len(clip["ends"]) - 1
        picked = (2 * np.arange(FRAMES) + 1) * count // (2 * FRAMES)
        return self.reader.decode(data[ends[i] : ends[i + 1]] for i in picked), clip["joints"][picked], clip["label"]


class ClipWriter:
    """Writes a whole clip as LitData's item: its JPEGs one after the other, and where each begins."""

    def __init__(self, store: Path) -> None:
        self.reader = Reader(store)

    def __call__(self, number: int) -> dict[str, Any]:
        """The item of a clip."""
        row = self.reader.index[number]
        group = pq.ParquetFile(self.reader.store / f"shards/{row['shard']:05d}.parquet").read_row_group(row["row"])
        jpegs = group.column("frames")[0].as_py()
        joints = np.asarray(group.column("joints")[0].as_py(), np.float32).reshape(len(jpegs), -1)
        ends = np.cumsum([0, *map(len, jpegs)])
        return {"jpegs": b"".join(jpegs), "ends": ends, "joints": joints, "label": row["label"]}
