"""A model on held-out prompts; a policy also against the SFT model, answer by answer.

Reads:   prepared/{prompts, phrasings, demonstrations}.parquet, base, sft, reward, data/suites; preferences/pairs.parquet for
         the SFT model; policies/NAME and evaluations/sft for a policy. Only the test split is evaluated on.
Writes:  evaluations/NAME/{samples.parquet, metrics.json} (NAME is ``sft`` for the stage evaluate_sft);
         evaluations/NAME/optimisation.csv: reward model and judge against KL, over best-of-n (sft) or a policy's snapshots;
         evaluations/sft/pairs.parquet: the reward model's scores of the held-out pairs
Params:  seed, preferences.judge, evaluate
Metrics: gold_mean, reward_mean, kl, win, lose, tie, win_rate, reward_win_rate, length, entropy, eos_rate, distinct_1..3,
         repetition, perplexity (of the answers under the base model) and its ratio to that of SFT's answers,
         demonstration_perplexity, copied, exact_match, rouge_l, posix, groups (docs/evaluation.md has all)
Paper:   Stiennon et al. 2020 (win rate and KL to SFT), Gao et al. 2022 (gold against proxy), Li et al. 2016 (distinct-n)
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from pipelines.config import Judge
from pipelines.context import Context
from pipelines.data.schemas import DEMONSTRATIONS, PAIRS, PHRASINGS, PROMPTS, empty
from pipelines.data.tables import read_table, whole_file, write_json, write_table
from pipelines.errors import DataError
from pipelines.evaluation import groups, language, optimisation, scored_pairs, sensitivity, suites
from pipelines.evaluation.answers import Job, Prompt, answer, as_table
from pipelines.evaluation.comparison import sampled
from pipelines.evaluation.figures import against, describe, plain
from pipelines.evaluation.metrics import cluster_mean, perplexity
from pipelines.evaluation.samples import SAMPLES, SCORED_PAIRS
from pipelines.journal import metric_name
from pipelines.judges import make_judge, name_of
from pipelines.models import scoring
from pipelines.models.adapters import CONFIG, load_adapter, merge
from pipelines.models.loading import load_causal_lm, load_tokenizer, save_model
from pipelines.models.reward import group_folder, group_names

SFT = "sft"


def run(ctx: Context) -> dict[str, float]:
    """Beats: prompts, answers and their scores, figures, outputs."""
    # 1. the held-out prompts
    name = ctx.name or SFT
    prompts = held_out(ctx)
    for suite, settings in ctx.params.evaluate.suites.items():
        if settings.tasks:
            suites.check_harness(suite)

    # 2. answers, what the models say of them, and the judge, on the workers where there are some
    judge = ctx.params.preferences.judge
    samples = as_table(ctx.cluster.map(answer, job_of(ctx, name), prompts), make_judge(judge, ctx.root, ctx.cluster))

    # 3. figures; a policy's are compared with those of the SFT model on the same prompts
    metrics = describe(samples) | _judged_by(judge) | _language(ctx, job_of(ctx, name).policy, samples)
    metrics |= _suites(ctx, job_of(ctx, name).policy)
    if name == SFT:
        _score_pairs(ctx)
        curve = optimisation.best_of(_many(ctx, prompts, samples))
    else:
        baseline = read_table(ctx.artifacts / "evaluations" / SFT / "samples.parquet", SAMPLES)
        metrics |= against(samples, baseline, ctx.params.evaluate, ctx.params.seed)
        metrics |= by_group(ctx, samples, baseline)
        curve = optimisation.curve(_over_steps(ctx, prompts) | {0: baseline, _last_step(ctx): samples})

    # 4. outputs
    write_table(samples, ctx.out(f"evaluations/{name}/samples.parquet"), SAMPLES)
    write_json(ctx.out(f"evaluations/{name}/metrics.json"), metrics)
    with whole_file(ctx.out(f"evaluations/{name}/optimisation.csv")) as partial:
        curve.to_csv(partial, index=False, lineterminator="\n")
    return numbers(metrics)


def numbers(metrics: dict[str, Any]) -> dict[str, float]:
    """Flat numbers for the tracker: an interval becomes ``..._low`` and ``..._high``, a suite's ``suites/NAME/...``."""
    flat: dict[str, float] = {}
    for key, value in metrics.items():
        if isinstance(value, dict):
            flat |= {f"{metric_name(key)}/{name}": number for name, number in numbers(value).items()}
        elif isinstance(value, list):
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


def _many(ctx: Context, prompts: list[Prompt], samples: pd.DataFrame) -> pd.DataFrame:
    """The SFT model's answers for best-of-n: those that are compared, and further ones where ``best_of`` asks for more."""
    evaluate = ctx.params.evaluate
    if evaluate.best_of <= evaluate.answers:
        return samples
    job = replace(job_of(ctx, SFT), answers=evaluate.best_of, known=evaluate.answers, brief=True)
    more = as_table(ctx.cluster.map(answer, job, prompts), make_judge(ctx.params.preferences.judge, ctx.root, ctx.cluster))
    return pd.concat([samples, more], ignore_index=True)


def _over_steps(ctx: Context, prompts: list[Prompt]) -> dict[int, pd.DataFrame]:
    """Answers of every snapshot that the training has kept, by step. A snapshot becomes a plain model for a while."""
    sft, place = ctx.artifacts / SFT / "model", ctx.scratch / "snapshot"
    found = {}
    for snapshot in sorted((ctx.artifacts / "policies" / ctx.name / "snapshots").glob("step-*")):
        step = int(snapshot.name.removeprefix("step-"))
        if step == _last_step(ctx):
            continue
        adapted = (snapshot / CONFIG).is_file()
        model = merge(load_adapter(load_causal_lm(sft), snapshot)) if adapted else load_causal_lm(snapshot)
        save_model(model, load_tokenizer(sft), place)
        job = replace(job_of(ctx, ctx.name), policy=place, brief=True)
        found[step] = as_table(
            ctx.cluster.map(answer, job, prompts), make_judge(ctx.params.preferences.judge, ctx.root, ctx.cluster)
        )
        shutil.rmtree(place)
    return found


def _last_step(ctx: Context) -> int:
    """The step at which the policy's training ended."""
    return int(read_table(ctx.artifacts / "policies" / ctx.name / "history.parquet")["step"].max())


def _language(ctx: Context, model: Path, samples: pd.DataFrame) -> dict[str, Any]:
    """What a model makes of held-out demonstrations, how far it copies those it learnt from, and whether it follows."""
    evaluate, prepared = ctx.params.evaluate, ctx.artifacts / "prepared"
    demonstrations = read_table(prepared / "demonstrations.parquet", DEMONSTRATIONS)
    test, train = (demonstrations[demonstrations["split"] == split] for split in ("test", "train"))
    texts = list(zip(test["prompt"], test["completion"], strict=True))[: evaluate.demonstrations]
    job = language.Job(model, evaluate.generation.batch_size, evaluate.precision)
    read = ctx.cluster.map(language.read_texts, job, texts)
    found = language.following(samples, read_table(prepared / "prompts.parquet", PROMPTS), demonstrations)
    found["copied"] = language.copied(sampled(samples)["text"].tolist(), (train["prompt"] + train["completion"]).tolist())
    if read:
        found["demonstration_perplexity"] = perplexity(*zip(*read, strict=True))
    return plain(found | _sensitivity(ctx, job))


def _sensitivity(ctx: Context, job: language.Job) -> dict[str, Any]:
    """POSIX over the intents that stand in several phrasings; {} without any."""
    table = read_table(ctx.artifacts / "prepared" / "phrasings.parquet", PHRASINGS)
    intents = [group["prompt"].drop_duplicates().tolist() for _, group in table.groupby("intent", sort=False)]
    asked = sensitivity.Job(job.model, ctx.params.evaluate.generation, job.precision)
    found = ctx.cluster.map(sensitivity.ask, asked, intents)
    if not found:
        return {}
    mean, error = cluster_mean(found, range(len(found)))
    return {"posix": mean, "posix_se": error, "posix_intents": len(found)}


def _suites(ctx: Context, model: Path) -> dict[str, Any]:
    """The sets from outside, each with its figures. The reward model is asked about pairs where the SFT model is evaluated."""
    evaluate, sft = ctx.params.evaluate, ctx.artifacts / SFT / "model"
    reward = ctx.artifacts / "reward" if model == sft else None
    job = suites.Job(model, sft, reward, evaluate.generation, evaluate.precision)
    found = {}
    for name, suite in sorted(evaluate.suites.items()):
        if suite.tasks:
            found[name] = suites.harness(name, suite, model, ctx.root / "data" / "suites", evaluate.generation.batch_size)
        else:
            rows = suites.read_rows(ctx.root / suite.path, suite.path, suite.limit)
            found[name] = suites.figures(ctx.cluster.map(suites.ask, job, rows))
    return {"suites": {name: plain(figures) for name, figures in found.items()}} if found else {}


def by_group(ctx: Context, samples: pd.DataFrame, baseline: pd.DataFrame) -> dict[str, Any]:
    """A policy and SFT by the reward model of every group that has one of its own, from their texts; {} where none has."""
    names = group_names(ctx.artifacts / "reward")
    if not names:
        return {}
    evaluate = ctx.params.evaluate
    folders = tuple(group_folder(ctx.artifacts / "reward", number) for number in range(len(names)))
    job = scoring.Job(ctx.artifacts / SFT / "model", folders, evaluate.generation.batch_size, evaluate.precision)
    answers = list(dict.fromkeys(answer for table in (samples, baseline) for answer in groups.answers_of(sampled(table))))
    worth = dict(zip(answers, ctx.cluster.map(scoring.scores, job, answers), strict=True))
    scores = {name: {answer: own[number] for answer, own in worth.items()} for number, name in enumerate(names)}
    found = groups.by_group(samples, baseline, scores, evaluate, ctx.params.seed)
    worst = groups.worst_group(found)
    return {"groups": found, "worst_group": worst, "worst_group_win_rate": found[worst]["win_rate"]}


def _score_pairs(ctx: Context) -> None:
    """The reward model on the pairs of the test split; what its scores are worth is worked out by the report."""
    pairs = read_table(ctx.artifacts / "preferences" / "pairs.parquet", PAIRS)
    evaluate = ctx.params.evaluate
    sft, reward = ctx.artifacts / SFT / "model", ctx.artifacts / "reward"
    job = scored_pairs.Job(sft, reward, evaluate.generation.batch_size, evaluate.precision)
    rows = ctx.cluster.map(scored_pairs.score_pairs, job, pairs[pairs["split"] == "test"].to_dict("records"))
    scored = pd.DataFrame(rows) if rows else empty(SCORED_PAIRS)
    write_table(scored, ctx.out("evaluations/sft/pairs.parquet"), SCORED_PAIRS)


def _judged_by(judge: Judge) -> dict[str, Any]:
    """Who judged, for the report, which does not read this parameter itself."""
    return {"judge": name_of(judge), "judge_is_gold": judge.gold}
