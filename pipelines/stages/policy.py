"""A policy that learns from the preferences: on-policy against the reward model (ppo), or straight from pairs (dpo).

Reads:   sft, prepared/prompts.parquet, and what the entry names under learns_from: reward, or preferences/pairs.parquet
Writes:  policies/NAME/{model/, adapter/ (LoRA only), history.parquet, metrics.json, snapshots/}, plots/NAME.csv
Params:  seed, policies.NAME
Metrics: objective/scores, objective/kl, policy/entropy ... (ppo, docs/ppo.md); rewards/accuracies, rewards/margins ... (dpo)
Paper:   Schulman et al. 2017, Ouyang et al. 2022 (ppo); Rafailov et al. 2023 (dpo)
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from pipelines.config import Dpo, Judge, Ppo, RewardTerm
from pipelines.context import Context, seed_for
from pipelines.data.schemas import PROMPTS
from pipelines.data.tables import read_table, whole_file
from pipelines.errors import ConfigurationError, DataError

if TYPE_CHECKING:
    from pipelines.training.rewards import Term

REWARD, PAIRS_FILE = "artifacts/reward", "artifacts/preferences/pairs.parquet"
RULES = "artifacts/prepared/prompts.parquet"
"""What a policy learns from whose rewards are all rules: nothing but the prompts."""


def run(ctx: Context) -> dict[str, float]:
    """Train with the entry's method on the workers; the results' figures are the stage's metrics."""
    entry = ctx.params.policies[ctx.name]
    out = ctx.out(f"policies/{ctx.name}")
    if isinstance(entry, Ppo):
        _ppo(ctx, entry)
    else:
        _dpo(ctx, entry)
    return json.loads((out / "metrics.json").read_text(encoding="utf-8"))


def _ppo(ctx: Context, entry: Ppo) -> None:
    """On-policy: answers are sampled while training and scored by the reward model, by judges, or by a sum of them."""
    from pipelines.data.tokens import encode_prompts
    from pipelines.models.loading import load_tokenizer
    from pipelines.training import ppo

    learnt = any(term.kind in ("model", "maxmin") for term in entry.rewards)
    _check_source(ctx, entry.learns_from, REWARD if learnt else RULES)
    sft = ctx.artifacts / "sft" / "model"
    tokenizer = load_tokenizer(sft)
    prompts = read_table(ctx.artifacts / "prepared" / "prompts.parquet", PROMPTS)
    train = prompts[prompts["split"] == "train"]
    if train.empty:
        raise DataError("prompts.parquet: 0 rows in the split train; raise prepare.train_prompts")
    job = ppo.Job(
        sft=sft,
        prompts=encode_prompts(tokenizer, list(train["prompt"])),
        rewards=_terms(ctx, entry),
        params=entry,
        seed=_seed(ctx),
        out=ctx.out(f"policies/{ctx.name}"),
        scratch=ctx.scratch,
        plot=ctx.out(f"plots/{ctx.name}.csv"),
        held_out=_held_out(entry),
    )
    ctx.cluster.train(ppo.train, job, ctx.scratch)


def _terms(ctx: Context, entry: Ppo) -> tuple[Term, ...]:
    from pipelines.training.rewards import JudgeReward, LearnedReward, MaxMinReward, Term

    def source(term: RewardTerm) -> LearnedReward | MaxMinReward | JudgeReward:
        sft, size = ctx.artifacts / "sft" / "model", entry.generation.batch_size
        if term.kind == "model":
            return LearnedReward(ctx.artifacts / "reward", sft, size, entry.precision, term.deviations)
        if term.kind == "maxmin":
            return MaxMinReward(ctx.artifacts / "reward", sft, size, entry.precision)
        return JudgeReward(Judge(kind=term.kind, callable=term.callable))

    return tuple(Term(term.name, term.weight, source(term)) for term in entry.rewards)


def _held_out(entry: Ppo) -> Term | None:
    """The judge that watches, where the entry names one."""
    from pipelines.training.rewards import JudgeReward, Term

    watching = entry.diagnosis.held_out
    return Term("held_out", 1.0, JudgeReward(Judge(kind=watching.kind, callable=watching.callable))) if watching else None


def _dpo(ctx: Context, entry: Dpo) -> None:
    """Offline: the pairs are all it sees."""
    from pipelines.training import dpo

    _check_source(ctx, entry.learns_from, PAIRS_FILE)
    out = ctx.out(f"policies/{ctx.name}")
    job = dpo.Job(
        sft=ctx.artifacts / "sft" / "model",
        pairs=ctx.root / entry.learns_from,
        out=out,
        scratch=ctx.scratch,
        training=entry,
        seed=_seed(ctx),
    )
    ctx.cluster.train(dpo.train, job, ctx.scratch)
    history = read_table(out / "history.parquet")
    with whole_file(ctx.out(f"plots/{ctx.name}.csv")) as partial:
        history.to_csv(partial, index=False, lineterminator="\n")


def _seed(ctx: Context) -> int:
    """By method, not by name: two entries with the same settings give the same policy."""
    return seed_for(ctx.params.seed, "policy", ctx.params.policies[ctx.name].method)


def _check_source(ctx: Context, named: str, expected: str) -> None:
    if named.rstrip("/") != expected:
        raise ConfigurationError(
            f"policies.{ctx.name}.learns_from: {named}: the method {ctx.params.policies[ctx.name].method} learns from {expected}"
        )
