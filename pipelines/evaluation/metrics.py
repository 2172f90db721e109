"""What can be measured on answers: pure functions of arrays and texts.

Legend of shapes: N answers, P prompts (clusters of answers), R bootstrap resamples. Log-probabilities are in nats.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

_WORD = re.compile(r"[\w']+")


def words(text: str) -> list[str]:
    """The lower-case words of a text; punctuation is left out."""
    return _WORD.findall(text.lower())


def ngrams(text: str, n: int) -> list[tuple[str, ...]]:
    """All runs of ``n`` neighbouring words."""
    tokens = words(text)
    return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]


def distinct_n(texts: Sequence[str], n: int) -> float:
    """Share of different n-grams among all n-grams of all texts together (Li et al. 2016, section 5.2); 0 when there are none.

    It falls as the number of texts grows: compare only sets of equal size.
    """
    grams = [gram for text in texts for gram in ngrams(text, n)]
    return len(set(grams)) / len(grams) if grams else 0.0


def repetition(texts: Sequence[str], n: int = 3) -> float:
    """Mean over the texts of the share of a text's n-grams that it has said before; a text without n-grams counts as 0."""
    shares = []
    for text in texts:
        grams = ngrams(text, n)
        shares.append(1.0 - len(set(grams)) / len(grams) if grams else 0.0)
    return float(np.mean(shares)) if shares else 0.0


def k1(logprob_policy: ArrayLike, logprob_reference: ArrayLike) -> Floats:
    """Per answer [N], log pi(y|x) - log pi_ref(y|x), in nats a sequence.

    Its mean over answers sampled from pi is an unbiased estimate of KL(pi || pi_ref) (k1 in Schulman, "Approximating KL
    divergence", 2020); single values may be negative.
    """
    return np.asarray(logprob_policy, dtype=np.float64) - np.asarray(logprob_reference, dtype=np.float64)


def perplexity(nll: ArrayLike, tokens: ArrayLike) -> float:
    """exp(total negative log-likelihood / total tokens) over all answers ([N] nats, [N] counts); 1 when there is no token."""
    total = float(np.sum(np.asarray(tokens)))
    return float(np.exp(np.sum(np.asarray(nll, dtype=np.float64)) / total)) if total else 1.0


def cluster_sums(values: ArrayLike, clusters: Sequence[Hashable]) -> tuple[Floats, Floats]:
    """Sum and count of ``values`` [N] by cluster, clusters in the order of their first appearance: ([P], [P])."""
    index: dict[Hashable, int] = {}
    rows = np.array([index.setdefault(cluster, len(index)) for cluster in clusters], dtype=np.int64)
    values = np.asarray(values, dtype=np.float64)
    if len(rows) != len(values) or not len(rows):
        raise ValueError(f"{len(values)} values for {len(rows)} cluster names; both must be equal and not 0")
    return np.bincount(rows, weights=values).astype(np.float64), np.bincount(rows).astype(np.float64)


def cluster_mean(values: ArrayLike, clusters: Sequence[Hashable]) -> tuple[float, float]:
    """Mean of ``values`` [N] and its standard error, robust to answers of one prompt being alike (clusters = prompts).

    SE = sqrt(P / (P - 1) * sum_p (S_p - m n_p)^2) / N (Cameron and Miller 2015, equation 11, for a mean); it is
    sd(cluster means) / sqrt(P) when all clusters have one size, and nan for a single cluster.
    """
    sums, counts = cluster_sums(values, clusters)
    total, p = counts.sum(), len(sums)
    mean = sums.sum() / total
    if p < 2:
        return float(mean), float("nan")
    spread = np.sqrt(p / (p - 1) * np.sum((sums - mean * counts) ** 2)) / total
    return float(mean), float(spread)


def cluster_ratio(above: ArrayLike, below: ArrayLike, clusters: Sequence[Hashable]) -> tuple[float, float]:
    """sum(above) / sum(below) of [N] values and its standard error, robust to clusters.

    SE = sqrt(P / (P - 1) * sum_p (A_p - r B_p)^2) / sum(below), the delta method for a ratio of sums (Cochran 1977, equation
    6.13); with ``below`` all 1 it is ``cluster_mean``'s, and nan for a single cluster.
    """
    top, bottom = cluster_sums(above, clusters)[0], cluster_sums(below, clusters)[0]
    p, ratio = len(top), top.sum() / bottom.sum()
    if p < 2:
        return float(ratio), float("nan")
    return float(ratio), float(np.sqrt(p / (p - 1) * np.sum((top - ratio * bottom) ** 2)) / bottom.sum())


def exact_match(text: str, reference: str) -> float:
    """1 where two texts have the same words in the same order (case and punctuation aside), else 0."""
    return float(words(text) == words(reference))


def rouge_l(text: str, reference: str) -> float:
    """ROUGE-L of two texts: F1 of their longest common subsequence of words (Lin 2004, equations 2 to 4 with beta 1)."""
    ours, theirs = words(text), words(reference)
    common = _common_subsequence(ours, theirs)
    return 2.0 * common / (len(ours) + len(theirs)) if common else 0.0


def _common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    """The length of the longest common subsequence, a bit a word of ``a`` (Hyyro 2004)."""
    places: dict[str, int] = {}
    for place, word in enumerate(a):
        places[word] = places.get(word, 0) | 1 << place
    state = full = (1 << len(a)) - 1
    for word in b:
        matched = state & places.get(word, 0)
        state = (state + matched) | (state - matched)
    return (~state & full).bit_count()


def bootstrap_interval(
    values: ArrayLike, clusters: Sequence[Hashable], resamples: int, seed: int, level: float = 0.95
) -> tuple[float, float]:
    """Percentile interval of the mean of ``values`` [N] under resampling whole clusters (Davison and Hinkley 1997, 3.8).

    Prompts are drawn with replacement, each with all its answers, so answers of one prompt do not count as independent.
    """
    sums, counts = cluster_sums(values, clusters)
    drawn = np.random.default_rng(seed).integers(0, len(sums), size=(resamples, len(sums)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(means, [tail, 1.0 - tail], method="inverted_cdf")
    return float(low), float(high)


def rank_correlation(a: ArrayLike, b: ArrayLike) -> float:
    """Spearman's rank correlation of two scores [N], equal values sharing their mean rank; nan where one does not vary."""
    ranks = [_mean_ranks(np.asarray(values, dtype=np.float64)) for values in (a, b)]
    centred = [rank - rank.mean() for rank in ranks]
    scale = float(np.sqrt((centred[0] ** 2).sum() * (centred[1] ** 2).sum()))
    return float((centred[0] * centred[1]).sum() / scale) if scale > 0 else float("nan")


def _mean_ranks(values: Floats) -> Floats:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts).astype(np.float64)
    return (last - (counts - 1) / 2.0)[inverse]
