"""Scores of rows on the same test clips, one line per seed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from starlab.platform.reports.blocks import Block, Key, largest_block
from starlab.platform.reports.grouping import Group
from starlab.platform.reports.results import RunRow
from starlab.platform.reports.scores import BOUNDED, ScoreReader, Scores, subjects
from starlab.platform.reports.statistics import Spread, mcnemar, spread
from starlab.platform.runs.records import DamagedRecordError


@dataclass(frozen=True, slots=True)
class ScoreTable:
    """Scores of the runs of a row on the clips that all of them could read."""

    replicates: tuple[Key, ...]
    """(R,) which run of the row each run is."""
    runs: tuple[str, ...]
    """(R,) run ids."""
    clip_ids: tuple[str, ...]
    """(n,) names of the clips, in alphabetical order."""
    values: NDArray[np.float32]
    """(R, n) scores."""
    labels: NDArray[np.int32]
    """(n,) true classes."""
    asked: frozenset[str]
    """Every test clip, those that could not be read included."""
    metric: str

    def spread(self) -> Spread | None:
        """Measure the row's own mean. None for fewer than two clips."""
        values = largest_block(self.replicates).by_seed(self.by_key())
        return _spread(values, self.labels, self.clip_ids, self.metric)

    def by_key(self, clips: NDArray[np.int64] | slice = slice(None)) -> dict[Key, NDArray[np.float32]]:
        """Return the scores of each run on these clips."""
        return {key: line[clips] for key, line in zip(self.replicates, self.values, strict=True)}


@dataclass(frozen=True, slots=True)
class Pairing:
    """A row and the base at the seeds and settings, and on the clips, that both have."""

    block: Block
    """The runs that both have."""

    clip_ids: tuple[str, ...]
    labels: NDArray[np.int32]
    row: NDArray[np.floating]
    """(S, n) scores of the row at each seed, the mean over the settings."""
    base: NDArray[np.floating]
    """(S, n) scores of the base."""
    metric: str

    @classmethod
    def of(cls, row: ScoreTable | None, base: ScoreTable | None) -> tuple[Pairing | None, str]:
        """Pair two rows. Returns the pairing, or None and the reason why they cannot be compared."""
        if row is None or base is None:
            return None, f"{'it' if row is None else 'the base'} has no predictions of test clips"
        if row.asked is not base.asked and row.asked != base.asked:
            shared = len(row.asked & base.asked)
            return None, (
                f"it was tested on other clips than the base ({len(row.asked):,} and {len(base.asked):,} clips, {shared:,} in "
                f"both; runs {row.runs[0]} and {base.runs[0]})"
            )
        block = largest_block(set(row.replicates).intersection(base.replicates))
        if not block.seeds:
            if _seeds(row.replicates) & _seeds(base.replicates):
                return None, "at no seed does it have a run with the same other settings as a run of the base"
            return None, f"it shares no seed with the base ({_seeds_text(row.replicates)} and {_seeds_text(base.replicates)})"
        clip_ids, (of_row, of_base) = _shared_clips([row.clip_ids, base.clip_ids])
        if len(clip_ids) < 2:
            return None, f"both could read only {len(clip_ids)} of the test clips"
        if not np.array_equal(row.labels[of_row], base.labels[of_base]):
            return None, "the same clips have other true classes than in the base"
        values, base_values = block.by_seed(row.by_key(of_row)), block.by_seed(base.by_key(of_base))
        return cls(block, clip_ids, row.labels[of_row], values, base_values, row.metric), ""

    @property
    def subjects(self) -> int | None:
        """Number of subjects, None where clip ids do not name them."""
        numbers = subjects(self.clip_ids)
        return None if numbers is None else int(numbers.max()) + 1

    def spread(self) -> Spread:
        """Measure the mean of the differences row − base."""
        found = _spread(self.row - self.base, self.labels, self.clip_ids, self.metric)
        assert found is not None  # `of` has checked that there are two clips
        return found

    def mcnemar(self) -> tuple[tuple[int, int, float], ...]:
        """Compare the hits at each seed (see `statistics.mcnemar`). Empty for means over several settings: they are no hits."""
        if len(self.block.settings) > 1:
            return ()
        return tuple(mcnemar(row > 0.5, base > 0.5) for row, base in zip(self.row, self.base, strict=True))


def read_tables(groups: Sequence[Group], metric: str) -> tuple[dict[str, ScoreTable], list[str]]:
    """Read the predictions of every row. Returns the tables by the row's name, and notes about what was left out."""
    reader = ScoreReader(metric)
    tables: dict[str, ScoreTable] = {}
    notes: list[str] = []
    without: list[str] = []
    asked_by: dict[tuple[tuple[str, ...], frozenset[str]], frozenset[str]] = {}  # shared, because comparing large sets is slow
    for group in groups:
        read: dict[Key, tuple[RunRow, Scores, frozenset[str]]] = {}
        for key, run in group.replicates.items():
            if not run.test:
                continue
            if run.predictions is None:
                without.append(run.run)
                continue
            try:
                scores = reader.read(run.predictions)
            except DamagedRecordError as error:
                notes.append(f"skipped  {error}")
                continue
            if bad := int((~np.isfinite(scores.values)).sum()):
                notes.append(f"skipped  {run.run}: the {metric} of {bad} test clips is not finite")
                continue
            clips = (scores.clip_ids, scores.unreadable)
            read[key] = run, scores, asked_by.setdefault(clips, scores.asked)
        if read:
            table, others = _table(read, metric)
            tables[group.name] = table
            if others:
                notes.append(
                    f"{group.name}: tested on other clips or classes than {table.runs[0]}, so left out: {', '.join(others)}"
                )
            if _same_hits(table):
                notes.append(
                    f"{group.name}: its {len(table.runs)} seeds are right on exactly the same clips, so they may be copies of "
                    f"one training: {', '.join(table.runs)}"
                )
    if without:
        notes.append(f"no predictions, so neither an interval nor a difference: {', '.join(without)}")
    unread = {len(table.asked) - len(table.clip_ids): name for name, table in tables.items()}
    if (most := max(unread, default=0)) > 0:
        notes.append(f"up to {most} test clips could not be read by every run of a row ({unread[most]}) and are left out")
    return tables, notes


def _table(read: dict[Key, tuple[RunRow, Scores, frozenset[str]]], metric: str) -> tuple[ScoreTable, list[str]]:
    """Put the runs of a row together. Returns the table, and the runs that were tested on other clips than the first."""
    _, first, asked = next(iter(read.values()))
    same = {
        key: (run, scores)
        for key, (run, scores, clips) in read.items()
        if (clips is asked or clips == asked) and _same_labels(first, scores)
    }
    clip_ids, places = _shared_clips([scores.clip_ids for _, scores in same.values()])
    table = ScoreTable(
        replicates=tuple(same),
        runs=tuple(run.run for run, _ in same.values()),
        clip_ids=clip_ids,
        values=np.stack([scores.values[at] for (_, scores), at in zip(same.values(), places, strict=True)]),
        labels=next(iter(same.values()))[1].labels[places[0]],
        asked=asked,
        metric=metric,
    )
    return table, [run.run for key, (run, _, _) in read.items() if key not in same]


def _same_labels(one: Scores, other: Scores) -> bool:
    _, (of_one, of_other) = _shared_clips([one.clip_ids, other.clip_ids])
    return np.array_equal(one.labels[of_one], other.labels[of_other])


def _shared_clips(lists: Sequence[tuple[str, ...]]) -> tuple[tuple[str, ...], list[NDArray[np.int64] | slice]]:
    """Return the clips that are in every list, in alphabetical order, and where each list has them."""
    first = lists[0]
    if all(names is first for names in lists):
        return first, [slice(None)] * len(lists)
    shared = sorted(set(first).intersection(*lists[1:]))
    return tuple(shared), [np.searchsorted(np.array(names), shared) if shared else np.zeros(0, np.int64) for names in lists]


def _spread(values: NDArray[np.floating], labels: NDArray[np.int32], clip_ids: tuple[str, ...], metric: str) -> Spread | None:
    if len(clip_ids) < 2:
        return None
    strata = labels.astype(np.int64) if metric == "mean_class" else None
    return spread(values, units=subjects(clip_ids), strata=strata, bounded=metric in BOUNDED)


def _same_hits(table: ScoreTable) -> bool:
    """Whether several seeds have the same scores and this says something, that is, some clips are right and some wrong."""
    first = table.values[0]
    return len(table.runs) > 1 and bool((table.values == first).all()) and len(np.unique(first)) > 1


def _seeds(replicates: Iterable[Key]) -> set[int]:
    return {key[0] for key in replicates}


def _seeds_text(replicates: Iterable[Key]) -> str:
    return "seeds " + ", ".join(map(str, sorted(_seeds(replicates))))
