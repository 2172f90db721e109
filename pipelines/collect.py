"""``python -m pipelines collect``: a policy's answers in pairs, labelled by the judge or written down for people; no training.

Reads     ``--model`` (the policy's folder), artifacts/{sft, reward, prepared/prompts.parquet};
          or ``--answered``: a file that people have filled in
Writes    ``--out``: pairs.parquet (rows of PAIRS), or queue.jsonl where people label; facts.json
Paper     Christiano et al. 2017, section 2.2.4 (ask where an ensemble disagrees); Stiennon et al. 2020 (rounds of collecting)
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import pandas as pd

from pipelines import config
from pipelines.context import Cluster, Worker, seed_for
from pipelines.data.pairing import Scored, labelled
from pipelines.data.queue import read_queue, write_queue
from pipelines.data.schemas import PAIRS, PROMPTS
from pipelines.data.tables import read_table, write_json, write_table
from pipelines.errors import DataError

PAIRS_FILE, QUEUE_FILE, FACTS_FILE = "pairs.parquet", "queue.jsonl", "facts.json"


def main(arguments: Sequence[str], root: Path) -> None:
    """Collect one round, or read back what people have answered."""
    parser = argparse.ArgumentParser(prog="python -m pipelines collect")
    parser.add_argument("--name", required=True, help="of the round")
    parser.add_argument("--out", type=Path, required=True)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--model", type=Path)
    source.add_argument("--answered", type=Path)
    options = parser.parse_args(arguments)
    params = config.load()
    if options.answered:
        facts = read_back(options.answered, options.name, options.out)
    else:
        facts = collect(root, params, options.model, options.name, options.out)
    write_json(options.out / FACTS_FILE, facts)


def collect(root: Path, params: config.Params, model: Path, name: str, out: Path) -> dict[str, Any]:
    """Beats: answers, what the reward model is unsure of, the pairs, their labels. Returns counts."""
    from pipelines.adapters.cluster import connect
    from pipelines.algorithms.active import choose
    from pipelines.context import make_deterministic

    settings, seed = params.collect, seed_for(params.seed, "collect", name)
    out.mkdir(parents=True, exist_ok=True)
    make_deterministic(seed, params.runtime.threads)
    with connect(params.runtime, out / "journal.jsonl") as cluster:
        # 1. the policy answers the round's prompts
        prompts = drawn_prompts(root, params, name)
        _say(name, f"{len(prompts)} prompts, {settings.answers} answers each")
        answers = _answers(params, model, seed, prompts, cluster)

        # 2. every two answers of a prompt, and how unsure the reward model is of them
        pairs = candidates(answers)
        _say(name, f"{len(pairs)} pairs of different answers")
        doubts = _doubts(root, params, answers, pairs, cluster) if settings.uncertain else [0.0] * len(pairs)

    # 3. those that are labelled
    doubtful, others = choose(doubts, settings.pairs, settings.uncertain, seed)
    chosen = [pairs[place] for place in sorted([*doubtful, *others])]
    facts = {"answers": len(answers), "candidates": len(pairs), "asked": len(chosen), "uncertain": len(doubtful)}
    if not chosen:
        raise DataError(f"{name}: no prompt has two different answers; raise collect.prompts or collect.answers")

    # 4. the judge labels them, or people will
    seed = seed_for(seed, "labels")
    if settings.labels == "people":
        write_queue(out / QUEUE_FILE, asked(answers, chosen, name, seed))
        return facts
    with connect(params.runtime, out / "journal.jsonl") as cluster:
        table = judged(root, cluster, answers, chosen, params.preferences, name, seed)
    _say(name, f"{len(table)} pairs labelled, {len(chosen) - len(table)} ties")
    return facts | _kept(table, len(chosen) - len(table), out, name)


def read_back(path: Path, name: str, out: Path) -> dict[str, Any]:
    """What people have answered as rows of the pool. Returns counts."""
    found, ties = read_queue(path)
    table = _finished(found, "people", name)
    return {"asked": len(table) + ties, "uncertain": 0} | _kept(table, ties, out, path.name)


def drawn_prompts(root: Path, params: config.Params, name: str) -> pd.DataFrame:
    """The prompts of a round, of every split, so that the pool alone can train a reward model and measure it; by seed."""
    table = read_table(root / "artifacts" / "prepared" / "prompts.parquet", PROMPTS)
    order = sorted(range(len(table)), key=lambda row: seed_for(params.seed, "collect", name, table["id"].iloc[row]))
    return table.iloc[sorted(order[: params.collect.prompts])].reset_index(drop=True)


def candidates(answers: pd.DataFrame) -> list[tuple[int, int]]:
    """The row numbers of every two different answers to one prompt."""
    found: list[tuple[int, int]] = []
    for rows in answers.reset_index(drop=True).groupby("prompt_id", sort=False).groups.values():
        distinct = {answers["answer"].iloc[row]: row for row in reversed(list(rows))}
        found += combinations(sorted(distinct.values()), 2)
    return found


def judged(
    root: Path,
    cluster: Cluster,
    answers: pd.DataFrame,
    pairs: Sequence[tuple[int, int]],
    settings: config.Preferences,
    name: str,
    seed: int,
) -> pd.DataFrame:
    """Rows of PAIRS as the judge labels them, with its noise; what is within ``min_margin`` is a tie and left out."""
    from pipelines.judges import compare, name_of

    prompts, first, second = (
        [answers[column].iloc[pair[side]] for pair in pairs] for column, side in (("prompt", 0), ("answer", 0), ("answer", 1))
    )
    found = compare(settings.judge, root, cluster, prompts, first, second).differences
    draw, rows = random.Random(seed), []
    for pair, difference in zip(pairs, found, strict=True):
        if abs(difference) <= settings.min_margin:
            continue
        one, other = (Scored(row, answers["answer"].iloc[row], 0.0) for row in pair)
        won, lost = labelled(one, other, difference, settings, draw)
        margin = float("nan") if settings.judge.gold else difference if won is one else -difference
        rows.append(_about(answers, won.number, lost.number, "chosen", "rejected") | {"margin": margin})
    return _finished(pd.DataFrame(rows), name_of(settings.judge), name)


def asked(answers: pd.DataFrame, pairs: Sequence[tuple[int, int]], name: str, seed: int) -> list[dict[str, Any]]:
    """The pairs as people see them: which answer comes first is drawn."""
    draw, rows = random.Random(seed), []
    for pair in pairs:
        one, other = pair if draw.random() < 0.5 else pair[::-1]
        row = _about(answers, one, other, "first", "second")
        shown = {key: row.pop(key) for key in ("prompt", "first", "second")}
        rows.append({**shown, "about": {**row, "source": name}})
    return rows


@dataclass(frozen=True)
class Doubts:
    """What a worker needs to score answers by every member of the reward model."""

    sft: Path
    reward: Path
    batch_size: int
    precision: config.Precision


def scored(job: Doubts, answers: Sequence[tuple[str, str, bool]], worker: Worker) -> list[list[float]]:
    """The members' scores of each (prompt, answer, whether it ended)."""
    from pipelines.evaluation.reading import context_of, tokens_of
    from pipelines.models.loading import load_tokenizer
    from pipelines.models.reward import load_members, score_members

    tokenizer, members = load_tokenizer(job.sft), load_members(job.reward, job.sft, worker.device)
    context = context_of(members[0])
    tokens = [tokens_of(tokenizer, prompt, answer, context, ended) for prompt, answer, ended in answers]
    prompts, said = [row[0] for row in tokens], [row[1] for row in tokens]
    return score_members(members, prompts, said, job.batch_size, job.precision).T.tolist()


def _answers(params: config.Params, model: Path, seed: int, prompts: pd.DataFrame, cluster: Cluster) -> pd.DataFrame:
    """The policy's answers, as the stage ``preferences`` draws those of the SFT model; with the prompts' group and split."""
    from pipelines.stages.preferences import Job, answer

    settings = params.preferences
    job = Job(model, settings.generation, settings.precision, params.collect.answers, seed)
    rows = cluster.map(answer, job, list(zip(prompts["id"], prompts["prompt"], strict=True)))
    return pd.DataFrame(rows).merge(prompts[["id", "group", "split"]], left_on="prompt_id", right_on="id")


def _doubts(
    root: Path, params: config.Params, answers: pd.DataFrame, pairs: Sequence[tuple[int, int]], cluster: Cluster
) -> list[float]:
    import torch

    from pipelines.algorithms.active import doubt

    settings, artifacts = params.preferences, root / "artifacts"
    job = Doubts(artifacts / "sft" / "model", artifacts / "reward", settings.generation.batch_size, settings.precision)
    texts = list(zip(answers["prompt"], answers["answer"], answers["ended"].astype(bool), strict=True))
    scores_MN = torch.tensor(cluster.map(scored, job, texts)).T
    first, second = (torch.tensor([pair[side] for pair in pairs], dtype=torch.long) for side in (0, 1))
    return doubt(scores_MN[:, first], scores_MN[:, second]).tolist()


def _about(answers: pd.DataFrame, one: int, other: int, first: str, second: str) -> dict[str, Any]:
    """What the pool has to know of two answers to a prompt."""
    row = answers.iloc[one]
    texts = {name: answers["answer"].iloc[place] for name, place in ((first, one), (second, other))}
    ended = {f"{name}_ended": bool(answers["ended"].iloc[place]) for name, place in ((first, one), (second, other))}
    return {name: row[name] for name in ("prompt_id", "prompt", "group", "split")} | texts | ended


def _finished(rows: pd.DataFrame, judge: str, name: str) -> pd.DataFrame:
    """Rows of PAIRS in its columns' order."""
    if rows.empty:
        raise DataError(
            f"{name}: no pair has a winner, so there is nothing to learn from; lower preferences.min_margin, ask for more"
            " (collect.pairs), or check the judge"
        )
    table = rows.assign(judge=judge, source=name)
    table["id"] = [f"{name}-{place:05d}" for place in range(len(table))]
    if "margin" not in table:
        table["margin"] = float("nan")
    return table[[column for column in PAIRS.columns if column in table]]


def _kept(table: pd.DataFrame, ties: int, out: Path, name: str) -> dict[str, Any]:
    """Write the rows, checked by the schema; counts."""
    out.mkdir(parents=True, exist_ok=True)
    write_table(table, out / PAIRS_FILE, PAIRS)
    splits = {split: int((table["split"] == split).sum()) for split in ("train", "validation", "test")}
    return {"pairs": len(table), "ties": ties, "judge": str(table["judge"].iloc[0]), "splits": splits}


def _say(name: str, text: str) -> None:
    print(f"{name}  {text}", flush=True)
