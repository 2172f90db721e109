"""Is served traffic still what the model was evaluated on? PSI, KS and MMD against a reference, with limits that know its size.

Legend: N rows of the reference in P clusters (answers of one prompt are alike), W rows of the window, R resamples.
A limit is the larger of the table's (RELIABILITY, D21 to D23) and the 99th percentile of the statistic between two resamples
of the reference: one of whole clusters, of its own size, and one of W rows. Both kinds of noise are thus in it.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist
from scipy.stats import ks_2samp, permutation_test

from pipelines.config_promotion import Monitor

Floats = NDArray[np.float64]
Level = Literal["none", "warning", "alarm"]
BINS = 10
EPSILON = 1e-4
PERCENTILE = 0.99


@dataclass(frozen=True)
class Finding:
    """One statistic of one signal. ``p`` is None where the statistic has none."""

    signal: str
    test: Literal["psi", "ks", "mmd"]
    value: float
    limit: float
    p: float | None
    level: Level


def psi(reference: Floats, window: Floats) -> float:
    """Population stability index over 10 quantile bins of the reference: sum (w - r) ln(w / r), shares at least 1e-4."""
    edges = np.unique(np.quantile(reference, np.linspace(0.0, 1.0, BINS + 1)[1:-1]))
    r, w = (np.bincount(np.searchsorted(edges, values, side="left"), minlength=len(edges) + 1) for values in (reference, window))
    r_B, w_B = (np.maximum(counts / counts.sum(), EPSILON) for counts in (r, w))
    return float(np.sum((w_B - r_B) * np.log(w_B / r_B)))


def kernel(points: Floats) -> Floats:
    """RBF kernel [M, M] of points [M, H] with the median distance as bandwidth (Gretton et al. 2012, section 8)."""
    squared = cdist(points, points, "sqeuclidean")
    median = float(np.median(squared[np.triu_indices_from(squared, 1)])) if len(points) > 1 else 1.0
    return np.exp(-squared / (median or 1.0))


def mmd2(gram: Floats, ours: Any, theirs: Any) -> Any:
    """Squared maximum mean discrepancy (biased, Gretton et al. 2012, equation 5): rows ``ours`` [..., n] and ``theirs`` [..., m].

    With s = 1/n on ours and -1/m on theirs it is s' K s, for many drawings of rows at once.
    """
    weights = np.zeros((*np.shape(ours)[:-1], len(gram))).reshape(-1, len(gram))
    for rows, sign in ((ours, 1.0), (theirs, -1.0)):
        flat = np.reshape(rows, (len(weights), -1))
        np.add.at(weights, (np.arange(len(weights))[:, None], flat), sign / flat.shape[1])
    found = np.einsum("ri,ri->r", weights @ gram, weights)
    return found.reshape(np.shape(ours)[:-1])


@dataclass(frozen=True)
class Noise:
    """The 99th percentile of every statistic between two resamples of a reference; by signal, and for the embeddings."""

    psi: dict[str, float]
    ks: dict[str, float]
    mmd: float


def noise_of(
    reference: Mapping[str, Floats], clusters: Sequence[Hashable], embeddings: Floats | None, size: int, resamples: int, seed: int
) -> Noise:
    """What a window of ``size`` rows may show by chance alone. Signals are [N], ``embeddings`` [N, H]."""
    draws = _draws(clusters, size, resamples, np.random.default_rng(seed))
    gram = kernel(embeddings) if embeddings is not None else np.zeros((0, 0))
    return Noise(
        psi={name: _percentile([psi(ours[a], ours[b]) for a, b in draws]) for name, ours in reference.items()},
        ks={name: _percentile([_ks(ours[a], ours[b])[0] for a, b in draws]) for name, ours in reference.items()},
        mmd=_percentile([float(mmd2(gram, a, b)) for a, b in draws]) if embeddings is not None else 0.0,
    )


def findings(
    reference: Mapping[str, Floats],
    window: Mapping[str, Floats],
    clusters: Sequence[Hashable],
    embeddings: tuple[Floats, Floats] | None,
    noise: Noise,
    settings: Monitor,
    seed: int,
) -> list[Finding]:
    """Every signal's statistics. Signals are [N] and [W]; ``embeddings`` [N, H] and [W, H].

    p-values are judged at their level divided by the number of tests (Bonferroni), PSI and MMD counted in. What is the same
    in all rows of a cluster (a prompt's length) counts once: its rows are no independent observations.
    """
    tests = 2 * len(reference) + (embeddings is not None)
    found = []
    for name, ours in reference.items():
        value, limit = psi(ours, window[name]), max(settings.psi_alarm, noise.psi[name])
        warned = value > max(settings.psi_warning, noise.psi[name])
        level: Level = "alarm" if value > limit else "warning" if warned else "none"
        found.append(Finding(name, "psi", value, limit, None, level))
        distance, p = _ks(_independent(ours, clusters), window[name])
        limit = max(settings.ks_distance, noise.ks[name])
        level = "alarm" if distance > limit and p < settings.ks_p / tests else "none"
        found.append(Finding(name, "ks", distance, limit, p, level))
    if embeddings is not None:
        value, p = _mmd(*embeddings, settings.mmd_permutations, seed)
        level = "alarm" if p < settings.mmd_p and value > noise.mmd else "none"
        found.append(Finding("embedding", "mmd", value, noise.mmd, p, level))
    return found


def level_of(found: list[Finding]) -> Level:
    """The worst level of all."""
    levels = {finding.level for finding in found}
    return "alarm" if "alarm" in levels else "warning" if "warning" in levels else "none"


def _independent(values: Floats, clusters: Sequence[Hashable]) -> Floats:
    """One value a cluster where clusters do not vary inside, else all values."""
    first = dict(zip(reversed(clusters), reversed(values.tolist()), strict=True))
    if any(first[cluster] != value for cluster, value in zip(clusters, values.tolist(), strict=True)):
        return values
    return np.array(list(first.values()))


def _ks(ours: Floats, theirs: Floats) -> tuple[float, float]:
    tested = ks_2samp(ours, theirs, method="asymp")
    return float(tested.statistic), float(tested.pvalue)


def _mmd(ours: Floats, theirs: Floats, permutations: int, seed: int) -> tuple[float, float]:
    """The statistic and its p-value under permutation."""
    gram = kernel(np.concatenate([ours, theirs]))
    rows = np.arange(len(ours)), np.arange(len(ours), len(gram))
    tested = permutation_test(
        rows,
        lambda a, b, axis: mmd2(gram, np.asarray(a, dtype=np.int64), np.asarray(b, dtype=np.int64)),
        n_resamples=permutations,
        vectorized=True,
        alternative="greater",
        axis=-1,
        rng=np.random.default_rng(seed),
    )
    return float(tested.statistic), float(tested.pvalue)


def _draws(clusters: Sequence[Hashable], size: int, resamples: int, rng: np.random.Generator) -> list[tuple[Any, Any]]:
    """Row numbers of pairs of resamples: whole clusters (about N rows), and ``size`` rows one by one."""
    index: dict[Hashable, list[int]] = {}
    for row, cluster in enumerate(clusters):
        index.setdefault(cluster, []).append(row)
    members = [np.array(rows) for rows in index.values()]
    return [
        (
            np.concatenate([members[i] for i in rng.integers(0, len(members), len(members))]),
            rng.integers(0, len(clusters), size),
        )
        for _ in range(resamples)
    ]


def _percentile(values: list[float]) -> float:
    return float(np.quantile(values, PERCENTILE, method="higher"))
