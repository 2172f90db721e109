"""Near duplicates by MinHash and locality-sensitive hashing, and what of the test prompts is already in training rows.

Papers: Broder 1997 (MinHash); Lee et al. 2022 (arXiv:2107.06499), appendix A (bands); Brown et al. 2020, appendix C
(n-gram contamination). Signatures come from rensa.

Axes: D texts, P permutations.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rensa

from pipelines.data.grams import grams

PERMUTATIONS = 128
BANDS = 16
"""Bands of 8: a pair of similarity 0.8 becomes a candidate with probability 0.95, one of 0.5 with 0.06."""

SHINGLE = 5
GRAM = 8
COMMON = 10
"""A gram of more test prompts than that is a template's text, no sign of contamination (Brown et al. 2020, appendix C)."""

SEED = 1
_signed = rensa.RMinHash.digest_matrix_from_flat_token_hashes
CHUNK = 1024
"""Texts at once: hashing takes some forty bytes of memory a character."""


class Signatures:
    """The MinHash signature [D, P] of every text of a stream, in a file."""

    def __init__(self, path: Path) -> None:
        self.path, self.rows = path, 0
        path.write_bytes(b"")

    def add(self, normals: list[str]) -> None:
        """The next normalised texts."""
        with self.path.open("ab") as file:
            for start in range(0, len(normals), CHUNK):
                hashes, offsets = grams(normals[start : start + CHUNK], SHINGLE)
                matrix = _signed(hashes, offsets.astype(np.uint64), PERMUTATIONS, SEED)
                np.array(matrix.to_rows(), np.uint32).tofile(file)
        self.rows += len(normals)

    def near(self, similarity: float) -> np.ndarray:
        """[N, 2]: (row, an earlier row whose estimated Jaccard similarity of 5-word shingles is ``similarity`` or more)."""
        if not self.rows:
            return np.empty((0, 2), np.int64)
        signatures = np.memmap(self.path, np.uint32, mode="r", shape=(self.rows, PERMUTATIONS))
        width = PERMUTATIONS // BANDS
        first = np.full(self.rows, self.rows, np.int64)
        for band in range(BANDS):
            keys = _band_keys(signatures[:, band * width : (band + 1) * width])
            order = np.argsort(keys, kind="stable")
            same = np.concatenate([[False], keys[order][1:] == keys[order][:-1]])
            heads = np.maximum.accumulate(np.where(same, 0, np.arange(self.rows)))
            later, earlier = order[same], order[heads[same]]
            alike = _similarity(signatures, later, earlier) >= similarity
            np.minimum.at(first, later[alike], earlier[alike])
        found = np.flatnonzero(first < self.rows)
        return np.stack([found, first[found]], axis=1)


@dataclass(frozen=True)
class Overlap:
    """What training rows hold of the test prompts. ``shares`` [D]: of each test prompt; ``rows``: the training row at fault."""

    shares: np.ndarray
    rows: np.ndarray
    over: dict[int, tuple[int, float]]
    """Training rows at or over the limit: row -> (test number, share)."""


def overlaps(tests: list[str], blocks: Iterable[tuple[np.ndarray, list[str]]], limit: float) -> Overlap:
    """The largest share of every normalised test prompt's 8-grams that one training row holds.

    ``blocks`` are (row numbers, normalised texts) of the training rows; ``limit`` 0 collects no rows.
    """
    found = Overlap(np.zeros(len(tests)), np.full(len(tests), -1, np.int64), {})
    if not tests:
        return found
    hashes, offsets = grams(tests, GRAM)
    owner = np.repeat(np.arange(len(tests)), np.diff(offsets)).astype(np.uint64)
    pairs = np.unique(np.stack([hashes, owner], axis=1), axis=0)
    _, place, often = np.unique(pairs[:, 0], return_inverse=True, return_counts=True)
    pairs = pairs[often[place] <= COMMON]
    if not len(pairs):
        return found
    known, owners = np.ascontiguousarray(pairs[:, 0]), pairs[:, 1].astype(np.int64)
    sizes = np.bincount(owners, minlength=len(tests))
    for numbers, texts in _chunked(blocks):
        for row, test, share in _matches(known, owners, sizes, numbers, texts):
            if share > found.shares[test]:
                found.shares[test], found.rows[test] = share, row
            if limit and share >= limit and share > found.over.get(row, (0, 0.0))[1]:
                found.over[row] = (test, share)
    return found


def _chunked(blocks: Iterable[tuple[np.ndarray, list[str]]]) -> Iterator[tuple[np.ndarray, list[str]]]:
    for numbers, texts in blocks:
        for start in range(0, len(texts), CHUNK):
            yield numbers[start : start + CHUNK], texts[start : start + CHUNK]


def _matches(
    known: np.ndarray, owners: np.ndarray, sizes: np.ndarray, numbers: np.ndarray, texts: list[str]
) -> list[tuple[int, int, float]]:
    """(row, test, share) of every training row that shares a gram with a test prompt."""
    hashes, offsets = grams(texts, GRAM)
    place = np.searchsorted(known, hashes)
    hit = np.flatnonzero(known[np.minimum(place, len(known) - 1)] == hashes)
    if not len(hit):
        return []
    row = np.searchsorted(offsets, hit, side="right") - 1
    wanted = np.unique(np.stack([row.astype(np.uint64), hashes[hit]], axis=1), axis=0)
    lows, highs = (np.searchsorted(known, wanted[:, 1], side=side) for side in ("left", "right"))
    rows = np.repeat(wanted[:, 0].astype(np.int64), highs - lows)
    ranks = np.arange(len(rows)) - np.repeat(np.cumsum(highs - lows) - (highs - lows), highs - lows)
    tests = owners[np.repeat(lows, highs - lows) + ranks]
    both, counts = np.unique(np.stack([rows, tests], axis=1), axis=0, return_counts=True)
    return [(int(numbers[r]), int(t), float(c) / int(sizes[t])) for (r, t), c in zip(both, counts, strict=True)]


def _band_keys(band: np.ndarray) -> np.ndarray:
    keys = np.zeros(len(band), np.uint64)
    for column in range(band.shape[1]):
        keys = (keys ^ band[:, column]) * np.uint64(0x9E3779B97F4A7C15)
        keys ^= keys >> np.uint64(29)
    return keys


def _similarity(signatures: np.ndarray, ones: np.ndarray, others: np.ndarray, block: int = 65536) -> np.ndarray:
    """The share of equal places of two rows' signatures, which estimates their Jaccard similarity."""
    parts = [
        (signatures[ones[start : start + block]] == signatures[others[start : start + block]]).mean(axis=1)
        for start in range(0, len(ones), block)
    ]
    return np.concatenate(parts) if parts else np.empty(0)
