"""What changed between two versions of a table: columns, rows, and how far lengths, sources and labels have moved (PSI)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.data.columnar import batches_of
from pipelines.data.streams import keys_of

FLOOR = 1e-4
BINS = 10
WARN, ALARM = 0.1, 0.25
"""The convention of the population stability index; below 500 rows it is noise."""

ROWS = 16384
LENGTHS = ("prompt", "completion", "chosen", "rejected", "text")
NAMES = ("source", "split", "label", "task", "group")


def compare(name: str, old: pq.ParquetFile, new: pq.ParquetFile) -> tuple[list[str], list[str]]:
    """(facts, differences of the schema) of one table, one line each. Its texts are read in blocks."""
    changed = columns(name, old.schema_arrow, new.schema_arrow)
    before, after = (np.unique(_of_blocks(table, "id", keys_of)) for table in (old, new))
    both = len(np.intersect1d(before, after, assume_unique=True))
    sizes = old.metadata.num_rows, new.metadata.num_rows
    lines = [f"{name}: {sizes[0]} -> {sizes[1]} rows, {len(after) - both} added, {len(before) - both} removed"]
    for field in [field for field in old.schema_arrow.names if field in new.schema_arrow.names]:
        if field in LENGTHS:
            value = psi_numbers(*(_of_blocks(table, field, _lengths) for table in (old, new)))
        elif field in NAMES:
            value = psi_counts(*(Counter(table.read([field])[field].to_pylist()) for table in (old, new)))
        else:
            continue
        word = "stable" if value < WARN else "moved" if value < ALARM else "drifted"
        small = "" if min(sizes) >= 500 else ", fewer than 500 rows: noise is as large"
        lines.append(f"  {field}: PSI {value:.3f} ({word}{small})")
    return lines + [f"  {line}" for line in changed], changed


def columns(name: str, old: pa.Schema, new: pa.Schema) -> list[str]:
    """Columns that were added, removed or retyped."""
    added = [field for field in new.names if field not in old.names]
    removed = [field for field in old.names if field not in new.names]
    retyped = [
        f"{field} ({old.field(field).type} -> {new.field(field).type})"
        for field in old.names
        if field in new.names and old.field(field).type != new.field(field).type
    ]
    found = (("added", added), ("removed", removed), ("retyped", retyped))
    return [f"{name}: columns {word}: {', '.join(fields)}" for word, fields in found if fields]


def psi_numbers(old: np.ndarray, new: np.ndarray) -> float:
    """Population stability index over the reference's deciles."""
    if not len(old) or not len(new):
        return 0.0
    edges = np.unique(np.quantile(old, np.linspace(0, 1, BINS + 1)[1:-1]))
    counts = [np.bincount(np.searchsorted(edges, values, side="left"), minlength=len(edges) + 1) for values in (old, new)]
    return _psi(counts[0] / len(old), counts[1] / len(new))


def psi_counts(old: Counter, new: Counter) -> float:
    """Population stability index over names."""
    names = sorted(set(old) | set(new), key=str)
    shares = [np.array([counts[name] for name in names]) / max(sum(counts.values()), 1) for counts in (old, new)]
    return _psi(shares[0], shares[1])


def _psi(old: np.ndarray, new: np.ndarray) -> float:
    old, new = np.maximum(old, FLOOR), np.maximum(new, FLOOR)
    return math.fsum((new - old) * np.log(new / old))


def _of_blocks(table: pq.ParquetFile, field: str, of: Callable[[pa.Array], np.ndarray]) -> np.ndarray:
    """What is made of every block of a column, joined."""
    return np.concatenate([of(block[field]) for block in batches_of(table, ROWS, [field])] or [np.empty(0)])


def _lengths(texts: pa.Array) -> np.ndarray:
    return pc.utf8_length(texts.drop_null()).to_numpy().astype(float)
