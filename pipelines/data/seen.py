"""Which rows of a long stream are the same, found on disk: 25 bytes a row in a file, a bounded part in memory at a time."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path

import numpy as np

RECORD = np.dtype([("key", "<u8"), ("rest", "<u8"), ("row", "<u8"), ("way", "u1")])
PART = 4_000_000
"""Rows that are sorted at once: 100 MB."""

FLUSH = 2**20


class Seen:
    """Remembers what was asked and answered in every row; finds rows that repeat, and pairs preferred both ways."""

    def __init__(self, path: Path) -> None:
        self.path, self.rows = path, 0
        self._buffer = bytearray()
        path.write_bytes(b"")

    def add(self, parts: tuple[str, ...], way: int = 0) -> None:
        """The next row. Rows with equal parts and ``way`` repeat; with equal parts and another way they contradict."""
        digest = hashlib.blake2b("\x1f".join(parts).encode(), digest_size=16).digest()
        self._buffer += digest + struct.pack("<QB", self.rows, way)
        self.rows += 1
        if len(self._buffer) >= FLUSH:
            self._flush()

    def find(self) -> tuple[np.ndarray, np.ndarray]:
        """``repeats`` [R, 2]: (row, the first like it); ``conflicts`` [C, 2]: the first rows of both ways. Sorted by row."""
        self._flush()
        parts = max(1, -(-self.rows // PART))
        repeats, conflicts = [], []
        for part in range(parts):
            again, against = _of_part(self._read(part, parts))
            repeats.append(again)
            conflicts.append(against)
        return _sorted(repeats), _sorted(conflicts)

    def _read(self, part: int, parts: int) -> np.ndarray:
        if not self.rows:
            return np.empty(0, RECORD)
        if parts == 1:
            return np.fromfile(self.path, RECORD)
        mapped = np.memmap(self.path, RECORD, mode="r")
        blocks = (mapped[start : start + FLUSH] for start in range(0, len(mapped), FLUSH))
        return np.concatenate([block[block["key"] % parts == part] for block in blocks])

    def _flush(self) -> None:
        with self.path.open("ab") as file:
            file.write(self._buffer)
        self._buffer.clear()


def _of_part(found: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if not len(found):
        return np.empty((0, 2)), np.empty((0, 2))
    found = found[np.lexsort((found["row"], found["way"], found["rest"], found["key"]))]
    same = (found["key"][1:] == found["key"][:-1]) & (found["rest"][1:] == found["rest"][:-1])
    same_way = same & (found["way"][1:] == found["way"][:-1])
    start_of_way = np.maximum.accumulate(np.where(np.concatenate([[True], ~same_way]), np.arange(len(found)), 0))
    later = np.flatnonzero(same_way) + 1
    repeats = np.stack([found["row"][later], found["row"][start_of_way[later]]], axis=1)
    turned = np.flatnonzero(same & ~same_way) + 1
    conflicts = np.stack([found["row"][start_of_way[turned - 1]], found["row"][turned]], axis=1)
    return repeats, conflicts


def _sorted(parts: list[np.ndarray]) -> np.ndarray:
    found = np.concatenate(parts).astype(np.int64).reshape(-1, 2)
    return found[np.argsort(found[:, 0], kind="stable")]
