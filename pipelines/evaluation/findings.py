"""Everything that the report shows, read from finished artifacts into one value."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from pipelines.config import Evaluate
from pipelines.context import seed_for
from pipelines.data.schemas import GOLD, GROUP_SCORES, PAIRS, empty
from pipelines.data.tables import read_table
from pipelines.evaluation import optimisation
from pipelines.evaluation.comparison import ratings, sampled
from pipelines.evaluation.metrics import rank_correlation
from pipelines.evaluation.reward_quality import quality
from pipelines.evaluation.samples import SAMPLES, SCORED_PAIRS

SFT = "sft"
DIGITS = 6


@dataclass(frozen=True)
class Findings:
    """A finished run. ``samples`` and ``histories`` are in the order in which the page shows them, SFT first."""

    seed: int
    methods: Mapping[str, str]
    metrics: dict[str, Any]
    samples: dict[str, pd.DataFrame]
    histories: dict[str, pd.DataFrame]
    quality: dict[str, Any]
    tokens: dict[str, float]
    """Quantiles of the tokens of what SFT and the reward model were trained on."""
    pairs: pd.DataFrame
    scored_pairs: pd.DataFrame
    group_scores: pd.DataFrame
    """What each group's own reward model gives to held-out answers (GROUP_SCORES); empty where no group has one."""
    curves: dict[str, pd.DataFrame]
    """Reward model and judge against KL: best-of-n under ``sft``, each policy's steps under its name."""
    actions: dict[str, list[dict[str, Any]]]
    """What the detectors have done about a policy's training, where they have."""

    @property
    def policies(self) -> list[str]:
        """The names of the policies."""
        return list(self.methods)


def gather(artifacts: Path, methods: Mapping[str, str], evaluate: Evaluate, seed: int) -> Findings:
    """Read what the page shows for the SFT model and the policies named in ``methods`` (name -> method)."""
    names = [SFT, *methods]
    pairs = read_table(artifacts / "preferences" / "pairs.parquet", PAIRS)
    gold = read_table(artifacts / "preferences" / "gold.parquet", GOLD)
    samples = {name: read_table(artifacts / "evaluations" / name / "samples.parquet", SAMPLES) for name in names}
    reward = _json(artifacts / "reward" / "metrics.json") | labels(pairs, gold)
    reward["gold_rank_correlation"] = _agreement(samples[SFT])
    scored = read_table(artifacts / "evaluations" / SFT / "pairs.parquet", SCORED_PAIRS)
    reward |= quality(scored, evaluate.bootstrap, seed_for(seed, "bootstrap"))
    grouped = artifacts / "reward" / "group_scores.parquet"
    if grouped.is_file():
        reward["groups"] = _json(artifacts / "reward" / "groups.json")
    evaluations = {name: _json(artifacts / "evaluations" / name / "metrics.json") for name in names}
    for name, (rating, interval) in rated(samples, evaluate, seed).items():
        evaluations[name] |= {"rating": rating, "rating_ci": interval}
    curves = {name: pd.read_csv(artifacts / "evaluations" / name / "optimisation.csv") for name in names}
    for name, points in curves.items():
        evaluations[name]["optimisation"] = optimisation.summary("best_of" if name == SFT else "policy", points)
    return Findings(
        seed=seed,
        methods=methods,
        metrics={
            "sft": evaluations[SFT],
            "reward": reward,
            "policies": {name: evaluations[name] | {"method": method} for name, method in methods.items()},
        },
        samples=samples,
        histories={
            SFT: read_table(artifacts / SFT / "history.parquet"),
            "reward": read_table(artifacts / "reward" / "history.parquet"),
            **{name: read_table(artifacts / "policies" / name / "history.parquet") for name in methods},
        },
        quality=_json(artifacts / "prepared" / "quality.json"),
        tokens={
            name: value
            for stage in (SFT, "reward")
            for name, value in _json(artifacts / stage / "metrics.json").items()
            if "tokens" in name
        },
        pairs=pairs,
        scored_pairs=scored,
        group_scores=read_table(grouped, GROUP_SCORES) if grouped.is_file() else empty(GROUP_SCORES),
        curves=curves,
        actions=actions_of(artifacts, methods),
    )


def actions_of(artifacts: Path, policies: Iterable[str]) -> dict[str, list[dict[str, Any]]]:
    """What the detectors have done while each policy learnt; without those about which nothing was done."""
    files = {name: artifacts / "policies" / name / "actions.json" for name in policies}
    return {name: json.loads(path.read_text(encoding="utf-8")) for name, path in files.items() if path.exists()}


def rated(samples: Mapping[str, pd.DataFrame], evaluate: Evaluate, seed: int) -> dict[str, tuple[float, list[float]]]:
    """The Bradley-Terry rating of every model by the judge, in Elo points above SFT, with its 95 % interval."""
    found = ratings(samples, "gold", evaluate.tie_margin, evaluate.bootstrap, seed_for(seed, "bootstrap"))
    return {name: (round(points, 1), [round(end, 1) for end in interval]) for name, (points, interval) in found.items()}


def labels(pairs: pd.DataFrame, gold: pd.DataFrame) -> dict[str, Any]:
    """How far the labels can be learnt, on held-out pairs (split test).

    ``pair_accuracy_ceiling``: share of pairs with a known gold that are labelled in the gold order: what a perfect reward
    model would reach. ``label_agreement``: the same over all pairs. None where no pair has a known gold.
    """
    test = pairs[pairs["split"] == "test"]
    return {
        "test_pairs": len(test),
        "pair_accuracy_ceiling": _in_gold_order(test, gold),
        "label_agreement": _in_gold_order(pairs, gold),
    }


def in_hash_order(prompt_ids: Iterable[str]) -> list[str]:
    """Prompt ids in the order of their SHA-256: a fixed order that nobody has chosen."""
    return sorted(set(prompt_ids), key=lambda id_: hashlib.sha256(id_.encode()).hexdigest())


def _in_gold_order(pairs: pd.DataFrame, gold: pd.DataFrame) -> float | None:
    known = {(row["prompt_id"], row["answer"]): row["gold"] for row in gold.to_dict("records")}
    agreed = []
    for pair in pairs.to_dict("records"):
        better, worse = (known.get((pair["prompt_id"], pair[side])) for side in ("chosen", "rejected"))
        if better is not None and worse is not None:
            agreed.append(1.0 if better > worse else 0.5 if better == worse else 0.0)
    return round(sum(agreed) / len(agreed), DIGITS) if agreed else None


def _agreement(samples: pd.DataFrame) -> float | None:
    """Spearman's correlation of reward model and judge on the SFT model's answers; None where one does not vary."""
    drawn = sampled(samples)
    value = round(rank_correlation(drawn["gold"].to_numpy(), drawn["reward"].to_numpy()), DIGITS)
    return value if value == value else None


def _json(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8")))
