"""A model on held-out prompts; a policy also against the SFT model, answer by answer.

Reads:   prepared/prompts.parquet (split test), base, sft, reward, policies/NAME, and for a policy evaluations/sft
Writes:  evaluations/NAME/{samples.parquet, metrics.json} (NAME is ``sft`` for the stage evaluate_sft)
Params:  seed, preferences.judge, evaluate
Metrics: gold_mean, reward_mean, kl, win, lose, tie, win_rate, reward_win_rate, length, entropy, eos_rate, distinct_1..3,
         repetition, perplexity (of the answers under the base model) and its ratio to that of SFT's answers
Paper:   Stiennon et al. 2020 (win rate and KL to SFT), Gao et al. 2022 (gold against proxy), Li et al. 2016 (distinct-n)
"""

from __future__ import annotations

from typing import Any

from pipelines.config import Judge
from pipelines.context import Context
from pipelines.data.schemas import PROMPTS
from pipelines.data.tables import read_table, write_json, write_table
from pipelines.errors import DataError
from pipelines.evaluation.answers import Job, Prompt, answer, as_table
from pipelines.evaluation.figures import against, describe
from pipelines.evaluation.samples import SAMPLES
from pipelines.judges import make_judge, name_of

SFT = "sft"


def run(ctx: Context) -> dict[str, float]:
    """Beats: prompts, answers and their scores, the judge, figures, outputs."""
    # 1. the held-out prompts
    name = ctx.name or SFT
    prompts = held_out(ctx)

    # 2. answers and what the models say of them, on the workers where there are some
    rows = ctx.cluster.map(answer, job_of(ctx, name), prompts)

    # 3. the judge
    judge = ctx.params.preferences.judge
    samples = as_table(rows, make_judge(judge))

    # 4. figures; a policy's are compared with those of the SFT model on the same prompts
    metrics = describe(samples) | _judged_by(judge)
    if name != SFT:
        baseline = read_table(ctx.artifacts / "evaluations" / SFT / "samples.parquet", SAMPLES)
        metrics |= against(samples, baseline, ctx.params.evaluate, ctx.params.seed)

    # 5. outputs
    write_table(samples, ctx.out(f"evaluations/{name}/samples.parquet"), SAMPLES)
    write_json(ctx.out(f"evaluations/{name}/metrics.json"), metrics)
    return numbers(metrics)


def numbers(metrics: dict[str, Any]) -> dict[str, float]:
    """The figures as flat numbers for the tracker: an interval becomes ``..._low`` and ``..._high``."""
    flat: dict[str, float] = {}
    for key, value in metrics.items():
        if isinstance(value, list):
            flat |= {f"{key}_low": float(value[0]), f"{key}_high": float(value[1])}
        elif isinstance(value, int | float) and not isinstance(value, bool):
            flat[key] = float(value)
    return flat


def held_out(ctx: Context) -> list[Prompt]:
    """The prompts of the split test."""
    table = read_table(ctx.artifacts / "prepared" / "prompts.parquet", PROMPTS)
    table = table[table["split"] == "test"]
    if table.empty:
        raise DataError("prompts.parquet: no prompt in the split test, nothing to evaluate on; raise prepare.test_prompts")
    return [Prompt(id_, text) for id_, text in zip(table["id"], table["prompt"], strict=True)]


def job_of(ctx: Context, name: str) -> Job:
    """What a worker needs to answer as the SFT model or as a policy."""
    evaluate, artifacts = ctx.params.evaluate, ctx.artifacts
    sft = artifacts / SFT / "model"
    return Job(
        policy=sft if name == SFT else artifacts / "policies" / name / "model",
        sft=sft,
        base=artifacts / "base",
        reward=artifacts / "reward",
        generation=evaluate.generation,
        answers=evaluate.answers,
        precision=evaluate.precision,
        seed=ctx.params.seed,
    )


def _judged_by(judge: Judge) -> dict[str, Any]:
    """Who judged, for the report, which does not read this parameter itself."""
    return {"judge": name_of(judge), "judge_is_gold": judge.gold}
