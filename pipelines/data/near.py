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
from pipelines.data.spill import PARTS, Spill, first_of_key, numbered, once

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

MOST_MARKS = 29
"""The table of marks has at most 2**29 bits, 64 MiB."""


class Signatures:
    """The MinHash signature [D, P] of every text of a stream in a file, and the keys of its bands. A block removes the file."""

    def __init__(self, path: Path) -> None:
        self.path, self.rows = path, 0
        self.bands = Spill(path.with_suffix(".bands"))
        path.write_bytes(b"")

    def add(self, normals: list[str]) -> None:
        """The next normalised texts."""
        for start in range(0, len(normals), CHUNK):
            hashes, offsets = grams(normals[start : start + CHUNK], SHINGLE)
            matrix = np.array(_signed(hashes, offsets.astype(np.uint64), PERMUTATIONS, SEED).to_rows(), np.uint32)
            with self.path.open("ab") as file:
                matrix.tofile(file)
            numbers = np.arange(self.rows, self.rows + len(matrix))
            for band, columns in enumerate(np.split(matrix, BANDS, axis=1)):
                self.bands.add(numbered(_band_keys(columns, band), numbers))
            self.rows += len(matrix)

    def near(self, similarity: float) -> np.ndarray:
        """[N, 2]: (row, an earlier row whose estimated Jaccard similarity of 5-word shingles is ``similarity`` or more)."""
        if not self.rows:
            return np.empty((0, 2), np.int64)
        signatures = np.memmap(self.path, np.uint32, mode="r", shape=(self.rows, PERMUTATIONS))
        first = np.full(self.rows, self.rows, np.uint32)
        for part in self.bands.parts():
            found, heads = first_of_key(part)
            again = np.flatnonzero(heads < np.arange(len(found)))
            later, earlier = found["number"][again], found["number"][heads[again]]
            alike = _similarity(signatures, later, earlier) >= similarity
            np.minimum.at(first, later[alike], earlier[alike])
        rows = np.flatnonzero(first < self.rows)
        return np.stack([rows, first[rows].astype(np.int64)], axis=1)

    def __enter__(self) -> Signatures:
        return self

    def __exit__(self, *error: object) -> None:
        self.path.unlink()
        self.bands.__exit__(*error)


@dataclass(frozen=True)
class Overlap:
    """What training rows hold of the test prompts. ``shares`` [D]: of each test prompt; ``rows`` [D]: the row at fault, or -1."""

    shares: np.ndarray
    rows: np.ndarray
    over: dict[int, tuple[int, float]]
    """Training rows at or over the limit: row -> (test number, share)."""


def overlaps(tests: Iterable[list[str]], training: Iterable[tuple[np.ndarray, list[str]]], limit: float, folder: Path) -> Overlap:
    """The largest share of every normalised test prompt's 8-grams that one training row holds.

    ``training`` are (row numbers, normalised texts); ``limit`` 0 collects no rows. Grams and matches lie in files below
    ``folder`` meanwhile, a part of which is in memory at a time.
    """
    with Spill(folder / "tested") as asked, Spill(folder / "held") as held, Spill(folder / "common") as common:
        # 1. the grams of the test prompts, and a bit for each: there the search for most grams of training rows ends
        count = 0
        for texts in _chunked(tests):
            hashes, offsets = grams(texts, GRAM)
            asked.add(numbered(hashes, np.repeat(np.arange(count, count + len(texts)), np.diff(offsets))))
            count += len(texts)
        marks = _marks(asked)

        # 2. the grams of training rows that may be among them
        for numbers, texts in training:
            for start in range(0, len(texts), CHUNK):
                hashes, offsets = grams(texts[start : start + CHUNK], GRAM)
                rows = np.repeat(numbers[start : start + CHUNK], np.diff(offsets))
                hit = _marked(marks, hashes)
                held.add(numbered(hashes[hit], rows[hit]))

        # 3. how many grams every row and test prompt have in common, part by part of the grams
        sizes = np.zeros(count, np.int64)
        for test_part, row_part in zip(asked.parts(), held.parts(), strict=True):
            known, owners = _rare(*once(test_part))
            sizes += np.bincount(owners, minlength=count)
            pairs, often = np.unique(_met(known, owners, *once(row_part)), return_counts=True)
            common.add(numbered(pairs, often), (pairs >> np.uint64(32)) % np.uint64(PARTS))

        # 4. the shares, part by part of the test prompts
        found = Overlap(np.zeros(count), np.full(count, -1, np.int64), {})
        for part in common.parts():
            _share(part, sizes, limit, found)
    return found


def _marks(asked: Spill) -> np.ndarray:
    """Some ten bits a key, packed: one is set where a key begins as its place does."""
    size = 1 << min(max(asked.rows.bit_length() + 3, 10), MOST_MARKS)
    found = []
    for number, part in enumerate(asked.parts()):
        there = np.zeros(size // PARTS, bool)
        there[_places(part["key"], size) - np.uint64(number * len(there))] = True
        found.append(np.packbits(there, bitorder="little"))
    return np.concatenate(found)


def _marked(marks: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Whether each key's bit is set [G]: of keys that were never asked about a tenth or so."""
    places = _places(keys, 8 * len(marks))
    return (marks[places >> np.uint64(3)] >> (places & np.uint64(7)).astype(np.uint8) & 1).astype(bool)


def _places(keys: np.ndarray, size: int) -> np.ndarray:
    return keys >> np.uint64(64 - size.bit_length() + 1)


def _rare(known: np.ndarray, owners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The grams of no more than ``COMMON`` test prompts."""
    starts = np.flatnonzero(np.concatenate([[True], known[1:] != known[:-1]])[: len(known)])
    often = np.diff(np.append(starts, len(known)))
    rare = np.repeat(often <= COMMON, often)
    return known[rare], owners[rare]


def _met(known: np.ndarray, owners: np.ndarray, hashes: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The test prompt's number (upper half) and the row's (lower half) for every gram that both have."""
    lows, highs = (np.searchsorted(known, hashes, side=side) for side in ("left", "right"))
    often = highs - lows
    ranks = np.arange(often.sum()) - np.repeat(np.cumsum(often) - often, often)
    tests = owners[np.repeat(lows, often) + ranks]
    return (tests.astype(np.uint64) << np.uint64(32)) | np.repeat(rows, often).astype(np.uint64)


def _share(part: np.ndarray, sizes: np.ndarray, limit: float, found: Overlap) -> None:
    """Note the largest share of every test prompt, and the rows at or over the limit."""
    pairs, place = np.unique(part["key"], return_inverse=True)
    tests, rows = (pairs >> np.uint64(32)).astype(np.int64), (pairs & np.uint64(2**32 - 1)).astype(np.int64)
    shares = np.bincount(place, part["number"], len(pairs)) / sizes[tests]
    order = np.lexsort((rows, -shares, tests))
    best = order[np.concatenate([[True], tests[order][1:] != tests[order][:-1]])[: len(order)]]
    found.shares[tests[best]], found.rows[tests[best]] = shares[best], rows[best]
    for index in np.flatnonzero(shares >= limit).tolist() if limit else ():
        row, known = int(rows[index]), found.over.get(int(rows[index]))
        if known is None or (shares[index], -tests[index]) > (known[1], -known[0]):
            found.over[row] = (int(tests[index]), float(shares[index]))


def _chunked(texts: Iterable[list[str]]) -> Iterator[list[str]]:
    return (some[start : start + CHUNK] for some in texts for start in range(0, len(some), CHUNK))


def _band_keys(columns: np.ndarray, band: int) -> np.ndarray:
    """A key [D] of the columns of each signature that make a band; the bands' numbers keep them apart."""
    keys = np.full(len(columns), band, np.uint64)
    for column in columns.T:
        keys = (keys ^ column) * np.uint64(0x9E3779B97F4A7C15)
        keys ^= keys >> np.uint64(29)
    return keys


def _similarity(signatures: np.ndarray, ones: np.ndarray, others: np.ndarray, block: int = 65536) -> np.ndarray:
    """The share of equal places of two rows' signatures, which estimates their Jaccard similarity."""
    parts = [
        (signatures[ones[start : start + block]] == signatures[others[start : start + block]]).mean(axis=1)
        for start in range(0, len(ones), block)
    ]
    return np.concatenate(parts) if parts else np.empty(0)
