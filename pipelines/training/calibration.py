"""How far the reward model's confidence in a pair's order is right, and how far chance alone would let it look wrong."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

BINS, RESAMPLES, PERCENTILE = 10, 1000, 0.99
Floats = NDArray[np.float64]


def calibration(margins: list[float]) -> dict[str, float]:
    """Expected calibration error over 10 equal bins of confidence (Guo et al. 2017, eq. 3), and its noise.

    ``margins``: score of chosen minus rejected, a pair each; sigmoid(|margin|) is the confidence that the order is right. The
    noise is the 99th percentile of the error of a model whose confidence is exactly right, on as many pairs: on few pairs
    the error is far from 0 for everyone.
    """
    margins_N = np.asarray(margins, dtype=np.float64)
    confidence_N = 1.0 / (1.0 + np.exp(-np.abs(margins_N)))
    right_N = (margins_N > 0) + 0.5 * (margins_N == 0)
    drawn_RN = np.random.default_rng(0).random((RESAMPLES, len(margins))) < confidence_N
    noise_R = [_error(confidence_N, row_N.astype(np.float64)) for row_N in drawn_RN]
    noise = float(np.quantile(noise_R, PERCENTILE))
    return {"calibration_error": _error(confidence_N, right_N), "calibration_noise": noise}


def _error(confidence_N: Floats, right_N: Floats) -> float:
    """sum over bins of |sum of right - sum of confidence| / N; confidence lies between 0.5 and 1."""
    bins_N = np.minimum(((confidence_N - 0.5) * 2 * BINS).astype(np.int64), BINS - 1)
    gaps_B = np.bincount(bins_N, weights=right_N - confidence_N, minlength=BINS)
    return float(np.abs(gaps_B).sum() / len(confidence_N))
