"""A reward model that orders answers as the pairs do: the SFT model's trunk with a linear head. One for each group where asked.

Reads:   preferences/pairs.parquet, sft
Writes:  reward/{head.safetensors, reward.json, adapter/ or trunk.safetensors, history.parquet, metrics.json};
         further members of an ensemble the same in reward/members/N/, the groups' own models in reward/groups/N/;
         reward/groups.json and group_scores.parquet name the groups and show how each sees the held-out answers
Params:  seed, reward
Metrics: loss, eval_loss, eval_accuracy while training; pair_accuracy, log_loss, longer_wins on the pairs of the test split;
         prompt_tokens_QUANTILE, chosen_tokens_QUANTILE, rejected_tokens_QUANTILE of the pairs trained on;
         ensemble_accuracy and members_split of an ensemble
Paper:   Bradley and Terry 1952; Stiennon et al. 2020, section 3.4; Chakraborty et al. 2024 (a model for each group)
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from pipelines.context import Context, seed_for
from pipelines.data.schemas import GROUP_SCORES, PAIRS
from pipelines.data.tables import read_table, write_json, write_table

if TYPE_CHECKING:
    from pipelines.models.scoring import Job


def run(ctx: Context) -> dict[str, float]:
    """Beats: every member, every group. The first member's figures on held-out pairs are the stage's metrics."""
    from pipelines.models.reward import member_folder

    # 1. the members of the ensemble, on all pairs
    out, pairs = ctx.out("reward"), ctx.artifacts / "preferences" / "pairs.parquet"
    for member in range(ctx.params.reward.members):
        # the first is as if it were alone
        seed = seed_for(ctx.params.seed, "reward", *([member] if member else []))
        _train(ctx, pairs, member_folder(out, member), member_folder(ctx.scratch, member), seed)
    if ctx.params.reward.members > 1:
        _compare_members(ctx, read_table(pairs, PAIRS), out)

    # 2. a model for each group, on the group's pairs
    if ctx.params.reward.groups != "none":
        _train_groups(ctx, read_table(pairs, PAIRS), out)
    return json.loads((out / "metrics.json").read_text(encoding="utf-8"))


def _train(ctx: Context, pairs: Path, out: Path, scratch: Path, seed: int) -> None:
    from pipelines.training import reward

    job = reward.Job(ctx.artifacts / "sft" / "model", pairs, out, scratch, ctx.params.reward, seed)
    ctx.cluster.train(reward.train, job, scratch)


def _compare_members(ctx: Context, pairs: pd.DataFrame, out: Path) -> None:
    """How far the members agree on the pairs of the test split, added to the metrics."""
    from pipelines.models import scoring
    from pipelines.models.reward import member_folder
    from pipelines.training.reward import disagreement

    tested = pairs[pairs["split"] == "test"]
    answers = scoring.answers_of(tested)
    job = _scoring(ctx, *(member_folder(out, member) for member in range(ctx.params.reward.members)))
    worth = dict(zip(answers, ctx.cluster.map(scoring.scores, job, answers), strict=True))
    chosen, rejected = ([worth[answer] for answer in side] for side in scoring.sides_of(tested))
    figures = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    write_json(out / "metrics.json", figures | disagreement(chosen, rejected))


def _train_groups(ctx: Context, pairs: pd.DataFrame, out: Path) -> None:
    from pipelines.models import scoring
    from pipelines.models.reward import group_folder
    from pipelines.training import groups

    settings = ctx.params.reward
    found: dict[str, str] = {}
    belongs = pairs["group"]
    if settings.groups == "found":
        train = pairs[pairs["split"] == "train"]
        answers = scoring.answers_of(train)
        worth = dict(zip(answers, ctx.cluster.map(scoring.features, _scoring(ctx), answers), strict=True))
        found = groups.found_groups(train, worth, settings.clusters, seed_for(ctx.params.seed, "groups"))
        belongs = groups.annotators(pairs).astype(str).map(found)  # who is in no training pair belongs nowhere
    parts = groups.parts(pairs, belongs)
    for number, (name, part) in enumerate(parts.items()):
        scratch = group_folder(ctx.scratch, number)
        write_table(part, scratch / "pairs.parquet", PAIRS)
        seed = seed_for(ctx.params.seed, "reward", "group", name)
        _train(ctx, scratch / "pairs.parquet", group_folder(out, number), scratch, seed)
    _compare_groups(ctx, pairs, belongs, found, out)


def _compare_groups(ctx: Context, pairs: pd.DataFrame, belongs: pd.Series, annotators: dict[str, str], out: Path) -> None:
    """Who the groups are, and every group's scores of the held-out answers.

    Each group's mean over all of these answers becomes its 0: what remains can be compared between groups, as MaxMin does.
    """
    from pipelines.models import scoring
    from pipelines.models.reward import GROUPS, group_folder, recentre
    from pipelines.training.groups import agreement

    names = sorted(belongs.dropna().unique())
    answers = scoring.answers_of(pairs[pairs["split"] != "train"])
    job = _scoring(ctx, *(group_folder(out, number) for number in range(len(names))))
    scores = pd.DataFrame(ctx.cluster.map(scoring.scores, job, answers), columns=names)
    for number, mean in enumerate(scores.mean()):
        recentre(group_folder(out, number), float(mean))
    test = pairs["split"] == "test"
    worth = {answer: dict(zip(names, row, strict=True)) for answer, row in zip(answers, scores.to_numpy().tolist(), strict=True)}
    chosen, rejected = ([worth[answer] for answer in side] for side in scoring.sides_of(pairs[test]))
    agreed = agreement(chosen, rejected, belongs[test], names)
    write_json(out / GROUPS, {"groups": names, "annotators": annotators, "agreement": agreed})
    tested = set(scoring.answers_of(pairs[test]))
    table = pd.DataFrame(answers, columns=["prompt", "answer", "ended"])
    columns = [table.assign(group=name, score=scores[name] - scores[name].mean()) for name in names]
    shown = [answer in tested for answer in answers]
    write_table(pd.concat([column[shown] for column in columns], ignore_index=True), out / "group_scores.parquet", GROUP_SCORES)


def _scoring(ctx: Context, *folders: Path) -> Job:
    from pipelines.models.scoring import Job

    settings, sft = ctx.params.reward, ctx.artifacts / "sft" / "model"
    return Job(sft, folders, settings.batch_size, settings.precision, settings.pooling, settings.layers)
