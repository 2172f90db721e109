"""Metrics against closed forms and hand-worked cases."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.evaluation.metrics import (
    bootstrap_interval,
    cluster_mean,
    cluster_ratio,
    distinct_n,
    exact_match,
    k1,
    perplexity,
    rank_correlation,
    repetition,
    rouge_l,
    words,
)


def test_words_are_lower_case_without_punctuation() -> None:
    assert words("O, 'tis a Good -- day; Good-night!") == ["o", "'tis", "a", "good", "day", "good", "night"]


@pytest.mark.parametrize(
    ("n", "expected"),
    [
        (1, 4 / 7),  # to be or be | not to be: to, be, or, not among 7 words
        (2, 4 / 5),  # to-be be-or or-be | not-to to-be: 4 different among 5
        (3, 3 / 3),
        (4, 1 / 1),
        (5, 0.0),  # no run of five words
    ],
)
def test_distinct_n_by_hand(n: int, expected: float) -> None:
    assert distinct_n(["To be, or be", "not to be!"], n) == pytest.approx(expected, abs=1e-12)


def test_repetition_by_hand() -> None:
    # "a b c a b c": abc bca cab abc = 3 different of 4 -> 1/4; "a b c": none repeated; "a": no 3-gram, counts as 0
    assert repetition(["a b c a b c", "a b c", "a"]) == pytest.approx((0.25 + 0 + 0) / 3, abs=1e-12)
    assert repetition([]) == 0.0


def test_perplexity_weighs_tokens_not_answers() -> None:
    # 2 tokens of probability 1/2 and 1 token of probability 1/16: (2 ln 2 + 4 ln 2) / 3 = 2 ln 2 -> 4
    assert perplexity([2 * math.log(2), math.log(16)], [2, 1]) == pytest.approx(4.0, abs=1e-12)
    assert perplexity([0.0], [0]) == 1.0


def test_k1_on_an_enumerable_model_against_the_exact_kl() -> None:
    """4 tokens, 3 steps, 64 sequences: the exact mean of k1 is the KL, and its sampled mean is within 4 standard errors."""
    rng = np.random.default_rng(0)
    policy, reference = (_sequence_logprobs(rng.normal(size=(21, 4))) for _ in range(2))
    exact = float(np.sum(np.exp(policy) * (policy - reference)))
    assert np.sum(np.exp(policy) * k1(policy, reference)) == pytest.approx(exact, abs=1e-12)

    drawn = rng.choice(64, size=20_000, p=np.exp(policy) / np.exp(policy).sum())
    mean, error = cluster_mean(k1(policy[drawn], reference[drawn]), list(range(20_000)))
    exact_sd = math.sqrt(np.sum(np.exp(policy) * (policy - reference - exact) ** 2))
    assert error == pytest.approx(exact_sd / math.sqrt(20_000), rel=0.03)
    assert abs(mean - exact) < 4 * error


def test_the_standard_error_of_equal_clusters_is_that_of_their_means() -> None:
    # cluster means 1, 3, 5: sd 2, / sqrt(3)
    mean, error = cluster_mean([0, 2, 3, 3, 4, 6], ["a", "a", "b", "b", "c", "c"])
    assert mean == 3.0
    assert error == pytest.approx(2 / math.sqrt(3), abs=1e-12)


def test_the_standard_error_of_unequal_clusters_by_hand() -> None:
    # mean 2; residual sums a: 1 - 2 = -1, b: (2 + 3) - 2 * 2 = 1; sqrt(2 / 1 * (1 + 1)) / 3 = 2 / 3
    mean, error = cluster_mean([1, 2, 3], ["a", "b", "b"])
    assert (mean, error) == (2.0, pytest.approx(2 / 3, abs=1e-12))


def test_one_cluster_has_no_standard_error_and_none_is_refused() -> None:
    assert math.isnan(cluster_mean([1, 2], ["a", "a"])[1])
    with pytest.raises(ValueError, match="0 values"):
        cluster_mean([], [])
    with pytest.raises(ValueError, match="2 values for 1"):
        cluster_mean([1, 2], ["a"])


def test_the_bootstrap_of_two_clusters_by_hand() -> None:
    """Means 0, 1/2, 1 with probability 1/4, 1/2, 1/4, whatever the number of answers within a cluster."""
    values, clusters = [0.0] * 5 + [1.0] * 5, ["a"] * 5 + ["b"] * 5
    assert bootstrap_interval(values, clusters, 2000, seed=3) == (0.0, 1.0)
    assert bootstrap_interval(values, clusters, 2000, seed=3, level=0.4) == (0.5, 0.5)


def test_the_bootstrap_of_zeros_and_ones_is_a_binomial() -> None:
    """P clusters of one value each, k of them 1: resampled sums are Binomial(P, k / P); compare the exact quantiles."""
    p, k = 40, 26
    values = [1.0] * k + [0.0] * (p - k)
    low, high = bootstrap_interval(values, list(range(p)), 20_000, seed=1)
    assert low * p == pytest.approx(_binomial_quantile(0.025, p, k / p), abs=1e-9)
    assert high * p == pytest.approx(_binomial_quantile(0.975, p, k / p), abs=1e-9)


def test_answers_of_one_prompt_do_not_narrow_the_interval() -> None:
    once = bootstrap_interval([1.0, 0.0, 1.0, 0.5], list("abcd"), 1000, seed=5)
    thrice = bootstrap_interval(np.repeat([1.0, 0.0, 1.0, 0.5], 3), list("aaabbbcccddd"), 1000, seed=5)
    assert once == thrice


def test_the_bootstrap_is_deterministic_and_covers() -> None:
    """In about 95 % of 300 samples of 30 clusters (a bit less: the percentile method) the interval covers the mean."""
    covered = 0
    for seed in range(300):
        rng = np.random.default_rng(seed)
        values = (rng.normal(0.3, 1.0, (30, 1)) + rng.normal(0, 0.5, (30, 3))).ravel()
        low, high = bootstrap_interval(values, np.repeat(np.arange(30), 3).tolist(), 500, seed=seed)
        covered += low <= 0.3 <= high
    assert 0.90 <= covered / 300 <= 0.98
    assert bootstrap_interval([0.1, 0.7, 0.4], list("abc"), 100, 9) == bootstrap_interval([0.1, 0.7, 0.4], list("abc"), 100, 9)


def test_rank_correlation_by_hand() -> None:
    assert rank_correlation([1, 2, 3], [10, 20, 90]) == pytest.approx(1.0, abs=1e-12)
    # ranks 1 2.5 2.5 4 and 4 3 2 1: centred products -2.25 + 0 + 0 - 2.25 = -4.5; norms sqrt(4.5 * 5)
    assert rank_correlation([1, 2, 2, 9], [4, 3, 2, 1]) == pytest.approx(-4.5 / math.sqrt(22.5), abs=1e-12)
    assert math.isnan(rank_correlation([1, 1, 1], [1, 2, 3]))


def _sequence_logprobs(logits: np.ndarray) -> np.ndarray:
    """Log-probability of the 64 sequences of a language model: a row of ``logits`` [21, 4] for each of 21 prefixes."""
    logps = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    found = []
    for a, b, c in itertools.product(range(4), repeat=3):
        found.append(logps[0, a] + logps[1 + a, b] + logps[5 + 4 * a + b, c])
    return np.array(found)


def _binomial_quantile(q: float, n: int, p: float) -> int:
    total = 0.0
    for successes in range(n + 1):
        total += math.comb(n, successes) * p**successes * (1 - p) ** (n - successes)
        if total >= q:
            return successes
    return n


def test_the_error_of_a_ratio_by_hand() -> None:
    """Clusters (A, B): (6, 2), (2, 2), (4, 4): r = 12/8; residuals 3, -1, -2; SE = sqrt(3/2 (9 + 1 + 4)) / 8."""
    above, below, clusters = [4.0, 2.0, 2.0, 1.0, 3.0], [1, 1, 2, 1, 3], list("aabcc")
    ratio, error = cluster_ratio(above, below, clusters)
    assert ratio == pytest.approx(1.5, abs=1e-12)
    assert error == pytest.approx(math.sqrt(1.5 * 14) / 8, abs=1e-12)
    assert cluster_ratio(above, np.ones(5), clusters) == pytest.approx(cluster_mean(above, clusters), abs=1e-12)
    assert math.isnan(cluster_ratio([1.0], [2.0], "a")[1])


def test_rouge_l_by_hand() -> None:
    # Lin 2004, section 3: police killed the gunman; S2 shares police, the, gunman; S3 the, gunman
    reference = "police killed the gunman"
    assert rouge_l("police kill the gunman", reference) == pytest.approx(0.75, abs=1e-12)
    assert rouge_l("the gunman kill police", reference) == pytest.approx(0.5, abs=1e-12)
    assert rouge_l("The gunman!", reference) == pytest.approx(2 * 2 / 6, abs=1e-12)
    assert rouge_l("", reference) == rouge_l("nobody", reference) == 0.0


@given(st.lists(st.sampled_from("abc"), max_size=7), st.lists(st.sampled_from("abc"), max_size=7))
def test_the_common_subsequence_is_the_longest_of_all(a: list[str], b: list[str]) -> None:
    """Against every subsequence of the one, looked for in the other."""

    def inside(part: tuple[str, ...]) -> bool:
        rest = iter(b)
        return all(word in rest for word in part)

    longest = max(len(part) for n in range(len(a) + 1) for part in itertools.combinations(a, n) if inside(part))
    expected = 2 * longest / (len(a) + len(b)) if longest else 0.0
    assert rouge_l(" ".join(a), " ".join(b)) == pytest.approx(expected, abs=1e-12)


def test_an_exact_match_is_of_words() -> None:
    assert exact_match(" Sweet sorrow,", "sweet Sorrow") == 1.0
    assert exact_match("sweet", "sweet sorrow") == 0.0
