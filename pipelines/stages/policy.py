"""A policy that learns from the preferences by one of the methods of docs/methods.md.

On-policy against the reward model (ppo and its relatives), by the best of the SFT model's own answers (rejection), or straight
from pairs or labelled answers (dpo, orpo, kto).

Reads:   sft, prepared/prompts.parquet, and what the entry names under learns_from: reward, preferences/pairs.parquet or
         prepared/labels.parquet
Writes:  policies/NAME/{model/, adapter/ (LoRA only), history.parquet, metrics.json, snapshots/}, plots/NAME.csv
Params:  seed, policies.NAME
Metrics: objective/scores, objective/kl, policy/entropy ... (ppo, docs/ppo.md); best_score, sft_score (rejection);
         rewards/margins, rewards/accuracies ... and the same with eval_ (dpo, orpo, kto)
Paper:   Schulman et al. 2017, Ouyang et al. 2022 (ppo); Rafailov et al. 2023 (dpo); docs/methods.md has the others'
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pandas as pd

from pipelines.config import LABELS_FILE, PAIRS_FILE, HeldOut, Judge, Kto, Offline, Orpo, Ppo, Rejection, RewardTerm, Scored
from pipelines.context import Context, seed_for
from pipelines.data.schemas import PROMPTS
from pipelines.data.tables import read_table, whole_file, write_table
from pipelines.errors import ConfigurationError, DataError

if TYPE_CHECKING:
    from pipelines.training.rewards import Term

REWARD = "artifacts/reward"
RULES = "artifacts/prepared/prompts.parquet"
"""What a policy learns from whose rewards are all rules: nothing but the prompts."""


def run(ctx: Context) -> dict[str, float]:
    """Train with the entry's method on the workers; the results' figures are the stage's metrics."""
    entry = ctx.params.policies[ctx.name]
    out = ctx.out(f"policies/{ctx.name}")
    if isinstance(entry, Ppo):
        _ppo(ctx, entry)
    elif isinstance(entry, Rejection):
        _rejection(ctx, entry)
    else:
        _offline(ctx, entry)
    return json.loads((out / "metrics.json").read_text(encoding="utf-8"))


def _ppo(ctx: Context, entry: Ppo) -> None:
    """On-policy: answers are sampled while training and scored by the reward model, by judges, or by a sum of them."""
    from pipelines.training import ppo

    _check_scored(ctx, entry)
    job = ppo.Job(
        sft=ctx.artifacts / "sft" / "model",
        prompts=[tokens for _, tokens in _prompts(ctx)],
        rewards=_terms(ctx, entry),
        params=entry,
        seed=_seed(ctx),
        out=ctx.out(f"policies/{ctx.name}"),
        scratch=ctx.scratch,
        plot=ctx.out(f"plots/{ctx.name}.csv"),
        held_out=_held_out(ctx, entry),
    )
    ctx.cluster.train(ppo.train, job, ctx.scratch)


def _rejection(ctx: Context, entry: Rejection) -> None:
    """Answers are drawn once, on the workers where there are some, and kept with the checkpoints; then the best are learnt."""
    from pipelines.training import rejection

    _check_scored(ctx, entry)
    sft, best, out = ctx.artifacts / "sft" / "model", ctx.scratch / "best.parquet", ctx.out(f"policies/{ctx.name}")
    if not best.exists():
        sampling = rejection.Sampling(sft, _terms(ctx, entry), entry, _seed(ctx))
        write_table(pd.DataFrame(ctx.cluster.map(rejection.best_answers, sampling, _prompts(ctx))), best)
    ctx.cluster.train(rejection.train, rejection.Job(sft, best, out, ctx.scratch, entry, _seed(ctx)), ctx.scratch)
    _plot(ctx)


def _offline(ctx: Context, entry: Offline) -> None:
    """The table is all that it sees."""
    from pipelines.training import dpo, kto, offline, orpo

    module: Any = kto if isinstance(entry, Kto) else orpo if isinstance(entry, Orpo) else dpo
    _check_source(ctx, entry.learns_from, PAIRS_FILE, *([LABELS_FILE] if isinstance(entry, Kto) else []))
    job = offline.Job(
        sft=ctx.artifacts / "sft" / "model",
        pairs=ctx.root / entry.learns_from,
        out=ctx.out(f"policies/{ctx.name}"),
        scratch=ctx.scratch,
        training=entry,
        seed=_seed(ctx),
    )
    ctx.cluster.train(module.train, job, ctx.scratch)
    _plot(ctx)


def _prompts(ctx: Context) -> list[tuple[str, list[int]]]:
    """The id and the tokens of every training prompt."""
    from pipelines.data.tokens import encode_prompts
    from pipelines.models.loading import load_tokenizer

    prompts = read_table(ctx.artifacts / "prepared" / "prompts.parquet", PROMPTS)
    train = prompts[prompts["split"] == "train"]
    if train.empty:
        raise DataError("prompts.parquet: 0 rows in the split train; raise prepare.train_prompts")
    tokens = encode_prompts(load_tokenizer(ctx.artifacts / "sft" / "model"), list(train["prompt"]))
    return list(zip(train["id"], tokens, strict=True))


def _terms(ctx: Context, entry: Scored) -> tuple[Term, ...]:
    from pipelines.training.rewards import JudgeReward, LearnedReward, MaxMinReward, Term

    def source(term: RewardTerm) -> LearnedReward | MaxMinReward | JudgeReward:
        sft, size = ctx.artifacts / "sft" / "model", entry.generation.batch_size
        if term.kind == "model":
            return LearnedReward(ctx.artifacts / "reward", sft, size, entry.precision, term.deviations)
        if term.kind == "maxmin":
            return MaxMinReward(ctx.artifacts / "reward", sft, size, entry.precision)
        return JudgeReward(_judge(term), ctx.root)

    return tuple(Term(term.name, term.weight, source(term)) for term in entry.rewards)


def _held_out(ctx: Context, entry: Ppo) -> Term | None:
    """The judge that watches, where the entry names one."""
    from pipelines.training.rewards import JudgeReward, Term

    watching = entry.diagnosis.held_out
    return Term("held_out", 1.0, JudgeReward(_judge(watching), ctx.root)) if watching else None


def _judge(scorer: RewardTerm | HeldOut) -> Judge:
    return Judge.model_validate(scorer.content)


def _plot(ctx: Context) -> None:
    """The history as DVC's plots read it."""
    history = read_table(ctx.out(f"policies/{ctx.name}") / "history.parquet")
    with whole_file(ctx.out(f"plots/{ctx.name}.csv")) as partial:
        history.to_csv(partial, index=False, lineterminator="\n")


def _seed(ctx: Context) -> int:
    """By method, not by name: two entries with the same settings give the same policy."""
    return seed_for(ctx.params.seed, "policy", ctx.params.policies[ctx.name].method)


def _check_scored(ctx: Context, entry: Scored) -> None:
    _check_source(ctx, entry.learns_from, REWARD if any(term.kind in ("model", "maxmin") for term in entry.rewards) else RULES)


def _check_source(ctx: Context, named: str, *expected: str) -> None:
    if named.rstrip("/") not in expected:
        method = ctx.params.policies[ctx.name].method
        raise ConfigurationError(
            f"policies.{ctx.name}.learns_from: {named}: the method {method} learns from {' or '.join(expected)}"
        )
