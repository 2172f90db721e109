"""Answers of the SFT model, ordered by the judge into pairs, and the people's pairs.

Reads:   sft, prepared/prompts.parquet, prepared/preferences.parquet; what the judge needs: base, data/judges, data/constitutions
Writes:  preferences/pairs.parquet; preferences/gold.parquet (every answer with its true reward; empty without gold judge)
Params:  seed, preferences
Metrics: pairs, answers, eos_rate, score_mean, label_agreement (share of judged pairs labelled in the judge's own order),
         duplicates and within_margin (what made no pair); position_bias, position_decided, judge_..._tokens (constitution)
Paper:   Bradley and Terry 1952: p(a beats b) = sigmoid((s_a - s_b) / temperature); Gao et al. 2022 (a known gold)
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from pipelines.config import Generation, Precision, Preferences
from pipelines.context import Context, Worker, seed_for
from pipelines.data.pairing import Scored, comparable, pair_up
from pipelines.data.schemas import GOLD, PAIRS, PROMPTS
from pipelines.data.tables import read_table, write_table
from pipelines.errors import DataError
from pipelines.judges import compare, compares, make_judge, name_of

Differences = dict[str, dict[tuple[int, int], float]]
"""Prompt -> the numbers of two of its answers -> by how much the first is better."""


@dataclass(frozen=True)
class Job:
    """What a worker needs to answer prompts: the SFT model's folder and how to sample."""

    sft: Path
    generation: Generation
    precision: Precision
    answers: int
    seed: int


def run(ctx: Context) -> dict[str, float]:
    """Beats: people's pairs, the model's answers, the judge's scores, pairs, outputs."""
    settings = ctx.params.preferences
    people = read_table(ctx.artifacts / "prepared" / "preferences.parquet", PAIRS)
    if settings.source == "pool":
        return _write(ctx, people, _no_answers(), {"pairs": float(len(people))})

    # 1. the SFT model answers every prompt several times, on the workers where there are some
    prompts = read_table(ctx.artifacts / "prepared" / "prompts.parquet", PROMPTS)
    job = Job(ctx.artifacts / "sft" / "model", settings.generation, settings.precision, settings.answers, ctx.params.seed)
    rows = ctx.cluster.map(answer, job, list(zip(prompts["id"], prompts["prompt"], strict=True)))

    # 2. the judge scores them, or compares a prompt's answers two by two
    answers = pd.DataFrame(rows).merge(prompts[["id", "group", "split"]], left_on="prompt_id", right_on="id")
    differences: Differences | None = None
    figures: dict[str, float] = {}
    if compares(settings.judge):
        answers["gold"] = float("nan")
        differences, figures = compared(ctx, answers)
    else:
        scores = make_judge(settings.judge, ctx.root, ctx.cluster)(answers["prompt"].tolist(), answers["answer"].tolist())
        answers["gold"] = scores
        figures["score_mean"] = float(answers["gold"].mean())

    # 3. pairs, prompt by prompt
    judged, counts = judged_pairs(answers, settings, ctx.params.seed, differences)
    kept = people if settings.source == "both" else people.iloc[:0]
    pairs = pd.concat([frame for frame in (judged, kept) if len(frame)], ignore_index=True) if len(kept) else judged
    pairs = pairs[[name for name in PAIRS.columns if name in pairs]]

    # 4. outputs; the true reward stays apart from what a training stage reads
    figures |= counts | {
        "pairs": float(len(pairs)),
        "answers": float(len(answers)),
        "eos_rate": float(answers["ended"].mean()),
    }
    return _write(ctx, pairs, answers if settings.judge.gold else _no_answers(), figures)


def answer(job: Job, prompts: Sequence[tuple[str, str]], worker: Worker) -> list[dict[str, Any]]:
    """The answers to each (id, text), in the order of the prompts. An answer depends on its prompt and number only."""
    from pipelines.data.tokens import decode, encode_prompts
    from pipelines.models.generation import sample
    from pipelines.models.loading import load_causal_lm, load_tokenizer

    tokenizer, model = load_tokenizer(job.sft), load_causal_lm(job.sft, worker.device)
    rows: list[dict[str, Any]] = []
    for start in range(0, len(prompts), job.generation.batch_size):
        block = prompts[start : start + job.generation.batch_size]
        asked = [(id, text, number) for id, text in block for number in range(job.answers)]
        drawn = sample(
            model,
            tokenizer.eos_token_id,
            tokenizer.pad_token_id,
            encode_prompts(tokenizer, [text for _, text, _ in asked]),
            job.generation,
            [seed_for(job.seed, "preferences", id, number) for id, _, number in asked],
            job.precision,
        )
        for (id, text, number), tokens, ended in zip(asked, drawn.tokens, drawn.ended, strict=True):
            words = decode(tokenizer, tokens)
            rows.append({"prompt_id": id, "prompt": text, "answer_index": number, "answer": words, "ended": ended})
        worker.journal.log(start + len(block), len(prompts), {"eos_rate": sum(drawn.ended) / len(drawn.ended)})
    return rows


def compared(ctx: Context, answers: pd.DataFrame) -> tuple[Differences, dict[str, float]]:
    """The judge's comparisons of each prompt's answers, and its figures. Where one pair is wanted, one is compared."""
    settings = ctx.params.preferences
    asked: list[tuple[str, str, Scored, Scored]] = []
    for prompt_id, own in answers.groupby("prompt_id", sort=False):
        two = comparable(_scored(own))
        if two and settings.pairing == "random":
            two = [random.Random(seed_for(ctx.params.seed, "compared", prompt_id)).choice(two)]
        asked += [(str(prompt_id), own["prompt"].iloc[0], first, second) for first, second in two]
    found = compare(
        settings.judge,
        ctx.root,
        ctx.cluster,
        [prompt for _, prompt, _, _ in asked],
        [first.text for _, _, first, _ in asked],
        [second.text for _, _, _, second in asked],
    )
    differences: Differences = {}
    for (prompt_id, _, first, second), difference in zip(asked, found.differences, strict=True):
        differences.setdefault(prompt_id, {})[first.number, second.number] = difference
    return differences, found.figures


def judged_pairs(
    answers: pd.DataFrame, settings: Preferences, seed: int, differences: Differences | None = None
) -> tuple[pd.DataFrame, dict[str, float]]:
    """The table of pairs, and what became of the answers.

    Margin and grades stay unknown where the judge is gold, grades also where it compares.
    """
    graded = differences is None and not settings.judge.gold
    rows: list[dict[str, Any]] = []
    counts = {"duplicates": 0.0, "within_margin": 0.0}
    for prompt_id, own in answers.groupby("prompt_id", sort=False):
        by_pair = None if differences is None else differences.get(str(prompt_id), {})
        made = pair_up(_scored(own), settings, seed_for(seed, "pairs", prompt_id), by_pair)
        counts["duplicates"] += made.duplicates
        counts["within_margin"] += made.within_margin
        first = own.iloc[0]
        ended = dict(zip(own["answer_index"], own["ended"], strict=True))
        for chosen, rejected in made.pairs:
            margin = _margin(chosen, rejected, by_pair)
            rows.append(
                {
                    "id": f"{prompt_id}-{chosen.number}-{rejected.number}",
                    "prompt_id": prompt_id,
                    "prompt": first["prompt"],
                    "chosen": chosen.text,
                    "rejected": rejected.text,
                    "judge": name_of(settings.judge),
                    "group": first["group"],
                    "margin": float("nan") if settings.judge.gold else margin,
                    "source": "judge",
                    "split": first["split"],
                    "chosen_ended": bool(ended[chosen.number]),
                    "rejected_ended": bool(ended[rejected.number]),
                    "agrees": margin > 0.0,
                    **({"chosen_grade": chosen.score, "rejected_grade": rejected.score} if graded else {}),
                }
            )
    if not rows:
        raise DataError(
            "preferences: no two answers to a prompt are further apart than min_margin, so there is no pair to learn from; "
            "lower preferences.min_margin, raise preferences.answers, or check the judge"
        )
    frame = pd.DataFrame(rows)
    return frame[[name for name in PAIRS.columns if name in frame]], counts | {"label_agreement": float(frame["agrees"].mean())}


def _scored(own: pd.DataFrame) -> list[Scored]:
    return [Scored(n, text, s) for n, text, s in zip(own["answer_index"], own["answer"], own["gold"], strict=True)]


def _margin(chosen: Scored, rejected: Scored, by_pair: dict[tuple[int, int], float] | None) -> float:
    """By how much the judge itself finds the chosen answer better; below 0 where noise has turned the label round."""
    if by_pair is None:
        return chosen.score - rejected.score
    forward = by_pair.get((chosen.number, rejected.number))
    return -by_pair[rejected.number, chosen.number] if forward is None else forward


def _no_answers() -> pd.DataFrame:
    return pd.DataFrame(columns=list(GOLD.columns))


def _write(ctx: Context, pairs: pd.DataFrame, gold: pd.DataFrame, figures: dict[str, float]) -> dict[str, float]:
    if not len(pairs):
        raise DataError("preferences: 0 pairs; prepared/preferences.parquet is empty, so set preferences.source: judge")
    write_table(pairs, ctx.out("preferences/pairs.parquet"), PAIRS)
    write_table(gold[list(GOLD.columns)], ctx.out("preferences/gold.parquet"), GOLD)
    return figures
