"""Which rows of a long stream are the same, found on disk: 25 bytes a row in files, a part of them in memory at a time."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipelines.data.spill import Spill

RECORD = np.dtype([("key", "<u8"), ("rest", "<u8"), ("row", "<u8"), ("way", "u1")])
FLUSH = 2**20


class Seen:
    """Remembers what was asked and answered in every row; finds rows that repeat, and pairs preferred both ways."""

    def __init__(self, path: Path) -> None:
        self.rows = 0
        self._spill = Spill(path, RECORD)
        self._buffer = bytearray()

    def add(self, parts: tuple[str, ...], way: int = 0) -> None:
        """The next row. Rows with equal parts and ``way`` repeat; with equal parts and another way they contradict."""
        digest = hashlib.blake2b("\x1f".join(parts).encode(), digest_size=16).digest()
        self._buffer += digest + struct.pack("<QB", self.rows, way)
        self.rows += 1
        if len(self._buffer) >= FLUSH:
            self._flush()

    def find(self) -> tuple[np.ndarray, np.ndarray]:
        """``repeats`` [R, 2]: (row, the first like it); ``conflicts`` [C, 2]: the first rows of both ways. Sorted by row.

        Its files are gone then.
        """
        self._flush()
        with self._spill as spill:
            repeats, conflicts = zip(*map(_of_part, spill.parts()), strict=True)
        return _sorted(repeats), _sorted(conflicts)

    def _flush(self) -> None:
        self._spill.add(np.frombuffer(bytes(self._buffer), RECORD))
        self._buffer.clear()


def _of_part(found: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if not len(found):
        return np.empty((0, 2), np.uint64), np.empty((0, 2), np.uint64)
    found = found[np.lexsort((found["row"], found["way"], found["rest"], found["key"]))]
    same = (found["key"][1:] == found["key"][:-1]) & (found["rest"][1:] == found["rest"][:-1])
    same_way = same & (found["way"][1:] == found["way"][:-1])
    start_of_way = np.maximum.accumulate(np.where(np.concatenate([[True], ~same_way]), np.arange(len(found)), 0))
    later = np.flatnonzero(same_way) + 1
    repeats = np.stack([found["row"][later], found["row"][start_of_way[later]]], axis=1)
    turned = np.flatnonzero(same & ~same_way) + 1
    conflicts = np.stack([found["row"][start_of_way[turned - 1]], found["row"][turned]], axis=1)
    return repeats, conflicts


def _sorted(parts: Sequence[np.ndarray]) -> np.ndarray:
    found = np.concatenate(parts).astype(np.int64).reshape(-1, 2)
    return found[np.argsort(found[:, 0], kind="stable")]
