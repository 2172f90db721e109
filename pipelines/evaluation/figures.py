"""One model's figures from its samples table, and what a comparison with SFT adds."""

from __future__ import annotations

from typing import Any

import pandas as pd

from pipelines.config import Evaluate
from pipelines.context import seed_for
from pipelines.evaluation.comparison import GREEDY, compare, sampled
from pipelines.evaluation.metrics import cluster_mean, cluster_ratio, distinct_n, k1, perplexity, repetition

DIGITS = 6
"""Figures are rounded: the last bits depend on threads, and nobody reads them."""


def describe(samples: pd.DataFrame) -> dict[str, Any]:
    """What the answers of one model are like: scores, drift, language. Means are over the sampled answers."""
    drawn = sampled(samples)
    prompts = drawn["prompt_id"].tolist()
    texts = drawn["text"].tolist()
    gold, gold_se = cluster_mean(drawn["gold"], prompts)
    reward, reward_se = cluster_mean(drawn["reward"], prompts)
    drift = k1(drawn["logprob"], drawn["logprob_sft"])
    kl, kl_se = cluster_mean(drift, prompts)
    per_token, per_token_se = cluster_ratio(drift, drawn["tokens"], prompts)
    found = {
        "prompts": drawn["prompt_id"].nunique(),
        "answers": len(drawn),
        "gold_mean": gold,
        "gold_se": gold_se,
        "gold_mean_greedy": samples.loc[samples["answer"] == GREEDY, "gold"].mean(),
        "reward_mean": reward,
        "reward_se": reward_se,
        "kl": kl,
        "kl_se": kl_se,
        "kl_per_token": per_token,
        "kl_per_token_se": per_token_se,
        "length": drawn["tokens"].mean(),
        "entropy": (drawn["entropy"] * drawn["tokens"]).sum() / drawn["tokens"].sum(),
        "eos_rate": drawn["ended"].mean(),
        "distinct_1": distinct_n(texts, 1),
        "distinct_2": distinct_n(texts, 2),
        "distinct_3": distinct_n(texts, 3),
        "repetition": repetition(texts),
        "perplexity": perplexity(drawn["base_nll"], drawn["base_tokens"]),
    }
    return plain(found)


def against(ours: pd.DataFrame, theirs: pd.DataFrame, evaluate: Evaluate, seed: int) -> dict[str, Any]:
    """Win, lose, tie and win rate against SFT by the judge, by the reward model too, and the language's ratios to SFT's.

    The reward model's scores have no natural margin: only equal scores tie.
    """
    draw = seed_for(seed, "bootstrap")
    gold = compare(ours, theirs, "gold", evaluate.tie_margin, evaluate.bootstrap, draw)
    proxy = compare(ours, theirs, "reward", 0.0, evaluate.bootstrap, draw)
    us, them = describe(ours), describe(theirs)
    found = {
        "win": gold.win,
        "lose": gold.lose,
        "tie": gold.tie,
        "win_rate": gold.win_rate,
        "comparisons": gold.comparisons,
        "length_controlled_win_rate": gold.length_controlled,
        "prompts_won": gold.signs.won,
        "prompts_lost": gold.signs.lost,
        "sign_p": gold.signs.p,
        "reward_win_rate": proxy.win_rate,
        "perplexity_ratio": us["perplexity"] / them["perplexity"],
        "distinct_2_ratio": us["distinct_2"] / them["distinct_2"] if them["distinct_2"] else 1.0,
    }
    intervals = {
        "win_rate_ci": list(gold.interval),
        "reward_win_rate_ci": list(proxy.interval),
        "length_controlled_win_rate_ci": list(gold.length_controlled_interval),
    }
    return plain(found) | {key: [_plain(end) for end in ends] for key, ends in intervals.items()}


def plain(found: dict[str, Any]) -> dict[str, Any]:
    """Figures for JSON, rounded."""
    return {key: _plain(value) for key, value in found.items()}


def _plain(value: Any) -> Any:
    """A number for JSON: integers stay, the rest is rounded; what cannot be known (one prompt has no spread) is null."""
    if isinstance(value, int):
        return value
    value = round(float(value), DIGITS)
    return value if value == value else None
