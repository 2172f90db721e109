"""``python -m pipelines challenge``: a policy's held-out answers against another model's, head to head.

Reads     artifacts/evaluations/POLICY/samples.parquet, prepared/prompts.parquet, and the opponent: its samples where they were
          drawn and judged in the same way, else its model, which answers the same prompts from the same seeds now
Writes    ``--out``: win rate with its 95 % interval by the judge, the same for every group of prompts, both models' figures
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from pipelines import config
from pipelines.context import Context, seed_for
from pipelines.data.schemas import PROMPTS
from pipelines.data.tables import read_table, write_json
from pipelines.evaluation.comparison import Comparison, compare
from pipelines.evaluation.figures import describe
from pipelines.evaluation.samples import SAMPLES
from pipelines.journal import Journal

DIGITS = 6


def main(arguments: Sequence[str], root: Path) -> None:
    """Compare and write."""
    parser = argparse.ArgumentParser(prog="python -m pipelines challenge")
    parser.add_argument("--policy", required=True)
    opponent = parser.add_mutually_exclusive_group(required=True)
    opponent.add_argument("--model", type=Path)
    opponent.add_argument("--samples", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    params = config.load()
    evaluations = root / "artifacts" / "evaluations"
    ours = read_table(evaluations / options.policy / "samples.parquet", SAMPLES)
    theirs = read_table(options.samples, SAMPLES) if options.samples else answers(root, params, options.policy, options.model)
    prompts = read_table(root / "artifacts" / "prepared" / "prompts.parquet", PROMPTS)
    groups = dict(zip(prompts["id"], prompts["group"], strict=True))
    write_json(options.out, head_to_head(ours, theirs, groups, params))


def head_to_head(ours: pd.DataFrame, theirs: pd.DataFrame, groups: dict[str, str], params: config.Params) -> dict[str, Any]:
    """Win rate of ``ours`` over ``theirs`` by the judge, in all and by group (``groups``: prompt id -> group); both's figures."""
    found = _shown(_compared(ours, theirs, params))
    by_group = {}
    for group in sorted(set(groups.values())):
        ids = {id_ for id_, name in groups.items() if name == group}
        mine, other = (table[table["prompt_id"].isin(ids)] for table in (ours, theirs))
        if len(mine):
            by_group[group] = _shown(_compared(mine, other, params)) | {"prompts": int(mine["prompt_id"].nunique())}
            if by_group[group]["prompts"] >= params.promotion.min_group_prompts:  # smaller ones are not judged
                by_group[group] |= {"challenger": describe(mine), "opponent": describe(other)}
    return found | {"groups": by_group, "challenger": describe(ours), "opponent": describe(theirs)}


def answers(root: Path, params: config.Params, policy: str, model: Path) -> pd.DataFrame:
    """The opponent's answers to the prompts on which ``policy`` was evaluated, drawn, scored and judged as those were."""
    from pipelines.adapters.cluster import connect
    from pipelines.evaluation.answers import answer, as_table
    from pipelines.judges import make_judge
    from pipelines.stages import evaluate

    with tempfile.TemporaryDirectory(prefix="prefloop-") as name:
        journal = Path(name) / "journal.jsonl"
        with connect(params.runtime, journal) as cluster:
            ctx = Context(f"evaluate@{policy}", params, root, Path(name), Journal(journal), cluster)
            job = replace(evaluate.job_of(ctx, policy), policy=model)
            rows = cluster.map(answer, job, evaluate.held_out(ctx))
            return as_table(rows, make_judge(params.preferences.judge, root, cluster))


def _compared(ours: pd.DataFrame, theirs: pd.DataFrame, params: config.Params) -> Comparison:
    evaluate = params.evaluate
    return compare(ours, theirs, "gold", evaluate.tie_margin, evaluate.bootstrap, seed_for(params.seed, "bootstrap"))


def _shown(compared: Comparison) -> dict[str, Any]:
    return {
        "win_rate": round(compared.win_rate, DIGITS),
        "interval": [round(end, DIGITS) for end in compared.interval],
        "win": round(compared.win, DIGITS),
        "lose": round(compared.lose, DIGITS),
        "tie": round(compared.tie, DIGITS),
        "comparisons": compared.comparisons,
    }
