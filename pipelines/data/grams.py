"""Hashes of the word n-grams of many texts at once, without a Python object a word: a gigabyte takes a minute or so.

Axes: D texts, W words, G grams.
"""

from __future__ import annotations

import numpy as np

SPACE, END = 32, 10
LONGEST = 4096
BASE = np.uint64(0x9E3779B97F4A7C15)
SHORT = np.uint64(0xC2B2AE3D27D4EB4F)


def grams(texts: list[str], width: int) -> tuple[np.ndarray, np.ndarray]:
    """The hash [G] of every run of ``width`` words, and where each text's grams start [D + 1].

    Texts come normalised (``texts.normal``: words parted by one space). One with fewer words has one gram, all its words.
    """
    words, starts = _words(texts)
    counts = np.diff(starts)
    full = np.maximum(counts - width + 1, np.minimum(counts, 1))
    offsets = np.concatenate([[0], np.cumsum(full)])
    first = np.repeat(starts[:-1] - offsets[:-1], full) + np.arange(offsets[-1])
    lengths = np.repeat(np.minimum(counts, width), full)
    hashes = np.zeros(len(first), np.uint64)
    for place in range(width):
        inside = lengths > place
        hashes[inside] = hashes[inside] * BASE + words[first[inside] + place]
    return _mixed(hashes + lengths.astype(np.uint64) * SHORT), offsets


def _words(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """The hash [W] of every word and where each text's words start [D + 1]."""
    chars = np.frombuffer(("\n".join(texts) + "\n").encode(errors="surrogatepass"), np.uint8)
    gap = (chars == SPACE) | (chars == END)
    before = np.concatenate([[True], gap[:-1]])
    starts = np.flatnonzero(~gap & before)
    ends = np.flatnonzero(gap & ~before)
    anchors = np.concatenate([[0], starts])
    place = np.arange(len(chars)) - np.repeat(anchors, np.diff(np.append(anchors, len(chars))))
    sums = np.concatenate([[np.uint64(0)], np.cumsum((chars.astype(np.uint64) + np.uint64(1)) * _powers()[place % LONGEST])])
    closed = np.flatnonzero(chars == END)
    return _mixed(sums[ends] - sums[starts]), np.concatenate([[0], np.searchsorted(starts, closed)])


def _powers() -> np.ndarray:
    return np.cumprod(np.full(LONGEST, BASE | np.uint64(1), np.uint64))


def _mixed(values: np.ndarray) -> np.ndarray:
    """The finaliser of MurmurHash3, which spreads every bit."""
    values = (values ^ (values >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    values = (values ^ (values >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
    return values ^ (values >> np.uint64(33))
