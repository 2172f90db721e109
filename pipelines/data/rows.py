"""All sources as one Parquet file of rows: read, checked, split and freed of repeats in a stream.

Memory does not grow with the rows but for a byte a row, or some: texts are never all in memory, nor are their hashes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.config.data import Prepare, Source
from pipelines.context import seed_for
from pipelines.data import formats, phrasing, sources, texts
from pipelines.data.columnar import batches_of
from pipelines.data.formats import Row
from pipelines.data.problems import BadRow, Ledger
from pipelines.data.seen import Seen
from pipelines.data.splits import split_of
from pipelines.data.templates import Phrasings

BLOCK = 16384
FIRST = 20
"""Records by which a format is recognised."""

_META = {"id": pa.string(), "place": pa.string(), "split": pa.string(), "split_group": pa.string(), "prompt_key": pa.uint64()}
SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("kind", "prompt", "completion", "chosen", "rejected")),
        ("label", pa.bool_()),
        *((name, pa.string()) for name in ("group", "annotator")),
        *((name, pa.float64()) for name in ("margin", "weight")),
        *((name, pa.string()) for name in ("source", "task", "template")),
        *((name, pa.float64()) for name in ("chosen_grade", "rejected_grade")),
        *_META.items(),
    ]
)
TEXTS = ("prompt", "completion", "chosen", "rejected")


@dataclass
class Ingested:
    """A file of rows and what was found on the way. ``repeats`` and ``conflicts`` are row numbers of that file.

    ``kept`` [rows of the file] says which of them are still used: the file itself is written once.
    """

    path: Path
    ledger: Ledger
    kept: np.ndarray
    repeats: np.ndarray = field(default_factory=lambda: np.empty((0, 2), np.int64))
    conflicts: np.ndarray = field(default_factory=lambda: np.empty((0, 2), np.int64))
    personal: Counter[str] = field(default_factory=Counter)
    formats: dict[str, str] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)
    """The weight of every task: that of its source."""

    @property
    def rows(self) -> int:
        """How many rows are used."""
        return int(self.kept.sum())

    @property
    def numbers(self) -> np.ndarray:
        """The row numbers of those that are used."""
        return np.flatnonzero(self.kept)

    def blocks(self, columns: list[str]) -> Iterator[tuple[np.ndarray, pa.RecordBatch]]:
        """(row numbers, columns) of every block of the file, without the rows that are not used."""
        start = 0
        with pq.ParquetFile(self.path) as table:
            for batch in batches_of(table, BLOCK, columns):
                kept = self.kept[start : start + batch.num_rows]
                if kept.any():
                    yield start + np.flatnonzero(kept), batch if kept.all() else batch.filter(pa.array(kept))
                start += batch.num_rows


def ingest(prepare: Prepare, root: Path, folder: Path, seed: int, quarantine: Path | None = None) -> Ingested:
    """Read all sources into ``folder/rows.parquet``. Bad rows are in the ledger; whether they are too many is asked later.

    Raises DataError for what makes a whole file unusable.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = Ingested(folder / "rows.parquet", Ledger(quarantine), np.empty(0, bool))
    seen = Seen(folder / "seen")
    with pq.ParquetWriter(found.path, SCHEMA, compression="lz4") as writer:
        block: list[tuple[Any, ...]] = []
        for row in _rows(prepare, root, seed, found):
            seen.add(*_identity(row))
            block.append(row)
            if len(block) == BLOCK:
                writer.write_batch(_batch(block))
                block.clear()
        writer.write_batch(_batch(block))
    found.kept = np.ones(seen.rows, bool)
    found.repeats, found.conflicts = seen.find()
    return found


def _rows(prepare: Prepare, root: Path, seed: int, found: Ingested) -> Iterator[tuple[Any, ...]]:
    for name, source in prepare.sources.items():
        read = None
        phrasings = Phrasings(root / source.templates, name, source, prepare.mixture, seed) if source.templates else None
        splitter = _Splitter(prepare, source)
        records = sources.records(name, source, root, found.ledger, prepare.max_row_bytes)
        first = list(islice(records, FIRST))
        if first and phrasings is None:
            kind = formats.recognise([record for _, record, _ in first], source, first[0][0])
            found.formats[name], read = kind, formats.reader(kind, source, name)
        for number, (place, record, raw) in enumerate(chain(first, records)):
            id_, key = f"{name}-{number:06d}", ""
            try:
                if phrasings is not None:
                    key = phrasings.key(record)
                    made, ties = phrasings.rows(record, key, splitter.of_key(key)), 0
                else:
                    assert read is not None
                    made, ties = read(record)
            except BadRow as bad:
                found.ledger.refuse(place, bad, raw)
                continue
            found.ledger.dropped.update({"ties": ties} if ties else {})
            for index, row in enumerate(made):
                own = f"{id_}-{index}" if len(made) > 1 else id_
                whole = _finished(row, own, place, prepare, seed, found)
                if whole is not None:
                    found.weights[whole.task or name] = source.weight
                    yield (*whole, own, place, *splitter.of(whole, key))


def _finished(row: Row, id_: str, place: str, prepare: Prepare, seed: int, found: Ingested) -> Row | None:
    """The row, cut where it is a whole text, personal data masked where asked; strange texts are noted."""
    if row.kind == "text":
        cut = phrasing.cut_by_sampler(row.prompt, prepare, seed_for(seed, "length", id_))
        if cut is None:
            found.ledger.dropped["too_short_to_cut"] += 1
            return None
        row = row._replace(kind="demonstration", prompt=cut[0], completion=cut[1])
    written = {name: text for name, text in zip(TEXTS, row[1:5], strict=True) if text is not None}
    return row if texts.unremarkable(" ".join(written.values())) else _remarked(row, written, place, prepare, found)


def _remarked(row: Row, written: dict[str, str], place: str, prepare: Prepare, found: Ingested) -> Row | None:
    """Note what is strange or personal in the texts of a row; mask what is personal where asked. A pair may be none then."""
    changed: dict[str, Any] = {}
    for name, text in written.items():
        for code, what, fix in texts.oddities(text):
            found.ledger.warn(place, code, what, fix, name)
        kinds = texts.personal(text)
        if kinds:
            found.personal.update(kind for kind, _, _ in kinds)
            if prepare.personal_data == "mask":
                changed[name] = texts.masked(text)
    row = row._replace(**changed)
    if row.kind == "pair" and str(row.chosen).strip() == str(row.rejected).strip():
        what = "chosen equals rejected once personal data is masked"
        found.ledger.refuse(place, BadRow("chosen-equals-rejected", what, "remove the row: it prefers nothing"))
        return None
    return row


class _Splitter:
    """The split of a row: by the hash of its normalised prompt, or of its group, or the source's own."""

    def __init__(self, prepare: Prepare, source: Source) -> None:
        self.fractions = (prepare.validation_fraction, prepare.test_fraction)
        self.by, self.fixed = prepare.split_by, "" if source.split == "hash" else source.split

    def of(self, row: Row, key: str) -> tuple[str, str, int]:
        """(split, what it hangs on, 64-bit key of the prompt). ``key`` is that of a phrased record."""
        asked = texts.key_of(row.prompt)
        by_group = row.group and (self.by == "group" or (self.by == "auto" and row.kind == "demonstration"))
        group = str(row.group) if by_group else key or f"prompt-{asked.to_bytes(8, 'little').hex()[:12]}"
        return self.of_key(group), group, asked

    def of_key(self, key: str) -> str:
        """The split of everything that hangs on a key."""
        return self.fixed or split_of(key, *self.fractions)


def _identity(row: tuple[Any, ...]) -> tuple[tuple[str, ...], int]:
    """What makes two rows the same, and which way they point."""
    kind, prompt, completion, chosen, rejected, label, group, annotator = row[:8]
    if kind == "pair":
        low, high = sorted((chosen, rejected))
        return (kind, prompt, low, high, group or "", annotator or ""), int(chosen == low)
    if kind == "label":
        return (kind, prompt, completion, group or "", annotator or ""), int(label)
    return (kind, prompt, completion), 0


def _batch(block: list[tuple[Any, ...]]) -> pa.RecordBatch:
    columns = zip(*block, strict=True) if block else [()] * len(SCHEMA)
    return pa.RecordBatch.from_arrays(
        [pa.array(values, type=each.type) for values, each in zip(columns, SCHEMA, strict=True)], schema=SCHEMA
    )
