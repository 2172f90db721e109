"""Trailing windows over a column [S]; a window that is not full yet gives NaN or False."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from pipelines.diagnosis.finding import Floats

Flags = NDArray[np.bool_]


def mean_of_last(values_S: Floats, window: int) -> Floats:
    """Mean of the last ``window`` values, this one included, [S]."""
    means_S = np.full(len(values_S), np.nan)
    if len(values_S) >= window:
        means_S[window - 1 :] = np.lib.stride_tricks.sliding_window_view(values_S, window).mean(axis=1)
    return means_S


def often(flags_S: Flags, count: int, window: int) -> Flags:
    """Whether this flag is set and at least ``count`` of the last ``window`` are, [S]; fires as soon as ``count`` are there."""
    if not len(flags_S):
        return flags_S
    padded = np.concatenate([np.zeros(window - 1, dtype=bool), flags_S])
    sums_S = np.lib.stride_tricks.sliding_window_view(padded, window).sum(axis=1)
    return flags_S & (sums_S >= count)


def where(flags_S: Flags) -> list[int]:
    """The places at which a flag is set."""
    return [int(place) for place in np.flatnonzero(flags_S)]


def above_sigmas(values_S: Floats, sigmas: float, window: int, least: int, times: float = 0.0) -> tuple[Flags, Floats]:
    """Whether a value exceeds both mean + ``sigmas`` standard deviations and ``times`` the mean of the last ``window`` values
    before it, and that limit, [S].

    The first ``least`` values are never judged. A value that was above its limit is left out of later windows.
    """
    flags_S, limits_S = np.zeros(len(values_S), dtype=bool), np.full(len(values_S), np.nan)
    kept: deque[float] = deque(maxlen=window)
    for place, value in enumerate(values_S.tolist()):
        if len(kept) >= least:
            limits_S[place] = sigma_limit(kept, sigmas, times)
            flags_S[place] = value > limits_S[place]
        if not flags_S[place]:
            kept.append(value)
    return flags_S, limits_S


def sigma_limit(values: Iterable[float], sigmas: float, times: float) -> float:
    """The larger of mean + ``sigmas`` standard deviations and ``times`` the mean's size."""
    before = list(values)
    mean = math.fsum(before) / len(before)
    variance = math.fsum((value - mean) ** 2 for value in before) / (len(before) - 1)
    return max(mean + sigmas * math.sqrt(variance), times * abs(mean))
