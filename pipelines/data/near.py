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

PARTS = 64
TOP = np.uint64(58)
"""A hash shifted by so many bits is the number of its part."""

SPILLED = np.dtype([("key", "<u8"), ("number", "<u4")])
SEED = 1
_signed = rensa.RMinHash.digest_matrix_from_flat_token_hashes
CHUNK = 1024
"""Texts at once: hashing takes some forty bytes of memory a character."""


class Signatures:
    """The MinHash signature [D, P] of every text of a stream in a file, and the key [D] of each of its bands in another."""

    def __init__(self, path: Path) -> None:
        self.path, self.rows = path, 0
        self.bands = [path.with_suffix(f".{band}") for band in range(BANDS)]
        for file in (path, *self.bands):
            file.write_bytes(b"")

    def add(self, normals: list[str]) -> None:
        """The next normalised texts."""
        width = PERMUTATIONS // BANDS
        for start in range(0, len(normals), CHUNK):
            hashes, offsets = grams(normals[start : start + CHUNK], SHINGLE)
            matrix = np.array(_signed(hashes, offsets.astype(np.uint64), PERMUTATIONS, SEED).to_rows(), np.uint32)
            _append(self.path, matrix)
            for band, file in enumerate(self.bands):
                _append(file, _band_keys(matrix[:, band * width : (band + 1) * width]))
        self.rows += len(normals)

    def near(self, similarity: float) -> np.ndarray:
        """[N, 2]: (row, an earlier row whose estimated Jaccard similarity of 5-word shingles is ``similarity`` or more)."""
        if not self.rows:
            return np.empty((0, 2), np.int64)
        signatures = np.memmap(self.path, np.uint32, mode="r", shape=(self.rows, PERMUTATIONS))
        first = np.full(self.rows, self.rows, np.int64)
        for file in self.bands:
            keys = np.fromfile(file, np.uint64)
            order = np.argsort(keys, kind="stable")
            same = np.concatenate([[False], keys[order][1:] == keys[order][:-1]])
            heads = np.maximum.accumulate(np.where(same, 0, np.arange(self.rows)))
            later, earlier = order[same], order[heads[same]]
            alike = _similarity(signatures, later, earlier) >= similarity
            np.minimum.at(first, later[alike], earlier[alike])
        found = np.flatnonzero(first < self.rows)
        return np.stack([found, first[found]], axis=1)

    def close(self) -> None:
        """Remove the files."""
        for file in (self.path, *self.bands):
            file.unlink()


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
    # 1. the grams of the test prompts, and a table of bits of each: there the search for most grams of training rows ends
    asked, count = Spill(folder / "asked"), 0
    for texts in _chunked(tests):
        hashes, offsets = grams(texts, GRAM)
        asked.add(hashes, np.repeat(np.arange(count, count + len(texts)), np.diff(offsets)), hashes >> TOP)
        count += len(texts)
    marked = np.zeros(1 << min(max(asked.rows.bit_length() + 3, 10), 28), bool)
    marks = np.uint64(64 - len(marked).bit_length() + 1)
    for part in asked.parts():
        marked[part["key"] >> marks] = True

    # 2. the grams of training rows that may be among them
    held = Spill(folder / "held")
    for numbers, texts in training:
        for start in range(0, len(texts), CHUNK):
            hashes, offsets = grams(texts[start : start + CHUNK], GRAM)
            rows = np.repeat(numbers[start : start + CHUNK], np.diff(offsets))
            hit = marked[hashes >> marks]
            held.add(hashes[hit], rows[hit], hashes[hit] >> TOP)

    # 3. how many grams every row and test prompt have in common, part by part of the grams
    sizes, common = np.zeros(count, np.int64), Spill(folder / "common")
    for test_part, row_part in zip(asked.parts(), held.parts(), strict=True):
        known, owners = _rare(*_once(test_part))
        sizes += np.bincount(owners, minlength=count)
        pairs, often = np.unique(_met(known, owners, *_once(row_part)), return_counts=True)
        common.add(pairs, often, (pairs >> np.uint64(32)) % np.uint64(PARTS))

    # 4. the shares, part by part of the test prompts
    found = Overlap(np.zeros(count), np.full(count, -1, np.int64), {})
    for part in common.parts():
        _share(part, sizes, limit, found)
    for spill in (asked, held, common):
        spill.close()
    return found


class Spill:
    """Pairs of a 64-bit key and a number in files, parted so that one part at a time is in memory."""

    def __init__(self, path: Path) -> None:
        self.files = [path.with_suffix(f".{part}") for part in range(PARTS)]
        self.rows = 0
        self.close()  # what a run that was killed has left

    def add(self, keys: np.ndarray, numbers: np.ndarray, parts: np.ndarray) -> None:
        """The next pairs, and the part of each."""
        order = np.argsort(parts.astype(np.uint8), kind="stable")
        records = np.empty(len(keys), SPILLED)
        records["key"], records["number"] = keys[order], numbers[order]
        edges = np.searchsorted(parts[order], np.arange(PARTS + 1, dtype=np.uint64))
        for file, start, stop in zip(self.files, edges[:-1], edges[1:], strict=True):
            if stop > start:
                _append(file, records[start:stop])
        self.rows += len(keys)

    def parts(self) -> Iterator[np.ndarray]:
        """The pairs of every part."""
        return (np.fromfile(file, SPILLED) if file.exists() else np.empty(0, SPILLED) for file in self.files)

    def close(self) -> None:
        """Remove the files."""
        for file in self.files:
            file.unlink(missing_ok=True)


def _once(records: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Keys, sorted, and numbers, each pair once."""
    keys, numbers = records["key"], records["number"]
    order = np.lexsort((numbers, keys))
    keys, numbers = keys[order], numbers[order]
    new = np.concatenate([[True], (keys[1:] != keys[:-1]) | (numbers[1:] != numbers[:-1])])[: len(keys)]
    return keys[new], numbers[new]


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


def _append(path: Path, values: np.ndarray) -> None:
    with path.open("ab") as file:
        values.tofile(file)


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
