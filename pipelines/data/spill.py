"""What is asked of all rows together, asked on disk: records parted by their key, so that one part at a time is in memory."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np

PARTS = 64
TOP = np.uint64(58)
"""A 64-bit key shifted by so many bits is the number of its part."""

FLUSH = 2**18
"""Records that are held until they are written."""

NUMBERED = np.dtype([("key", "<u8"), ("number", "<u4")])
"""Something of a row, hashed, and the row's number; or what it is of."""


class Spill:
    """Records with a 64-bit ``key``, in the order in which they came within every part. A block removes its files.

    As long as there are few, they stay in memory.
    """

    def __init__(self, path: Path, kind: np.dtype = NUMBERED) -> None:
        self.files = [path.with_name(f"{path.name}.{part}") for part in range(PARTS)]
        self.kind, self.rows, self.written = kind, 0, 0
        self._held: list[tuple[np.ndarray, np.ndarray]] = []

    def add(self, records: np.ndarray, parts: np.ndarray | None = None) -> None:
        """The next records; the part of each, where it is not a matter of its key."""
        self._held.append((records, (records["key"] >> TOP if parts is None else parts).astype(np.uint8)))
        self.rows += len(records)
        if self.rows - self.written >= FLUSH:
            self._flush()

    def parts(self) -> Iterator[np.ndarray]:
        """The records of every part."""
        if not self.written:
            return iter(self._parted())
        self._flush()
        return (np.fromfile(file, self.kind) if file.exists() else np.empty(0, self.kind) for file in self.files)

    def __enter__(self) -> Spill:
        return self

    def __exit__(self, *_: object) -> None:
        self._held.clear()
        if self.written:
            self._remove()

    def _flush(self) -> None:
        if not self.written:
            self._remove()  # what a run that was killed has left
        for file, records in zip(self.files, self._parted(), strict=True):
            if len(records):
                with file.open("ab") as opened:
                    records.tofile(opened)
        self._held.clear()
        self.written = self.rows

    def _parted(self) -> list[np.ndarray]:
        """What is held, by part."""
        if not self._held:
            return [np.empty(0, self.kind)] * PARTS
        records, parts = (np.concatenate(held) for held in zip(*self._held, strict=True))
        order = np.argsort(parts, kind="stable")
        edges = np.searchsorted(parts[order], np.arange(PARTS + 1))
        return [records[order[start:stop]] for start, stop in itertools.pairwise(edges)]

    def _remove(self) -> None:
        for file in self.files:
            file.unlink(missing_ok=True)


def numbered(keys: np.ndarray, numbers: np.ndarray | int) -> np.ndarray:
    """Keys [N] and their numbers, or the one of all, as records."""
    records = np.empty(len(keys), NUMBERED)
    records["key"], records["number"] = keys, numbers
    return records


def first_of_key(records: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The records sorted by their key, equal ones in their order; and where each has the first of its key [N]."""
    found = records[np.argsort(records["key"], kind="stable")]
    new = np.concatenate([[True], found["key"][1:] != found["key"][:-1]])[: len(found)]
    return found, np.maximum.accumulate(np.where(new, np.arange(len(found)), 0))


def once(records: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Keys, sorted, and numbers, each pair once."""
    keys, numbers = records["key"], records["number"]
    order = np.lexsort((numbers, keys))
    keys, numbers = keys[order], numbers[order]
    new = np.concatenate([[True], (keys[1:] != keys[:-1]) | (numbers[1:] != numbers[:-1])])[: len(keys)]
    return keys[new], numbers[new]
