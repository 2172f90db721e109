"""prepare: demonstrations, prompts and preferences from the source, split by play (or by prompt).

Reads    the installed package ``prepare.package`` or the file ``prepare.learns_from``; ``data/preferences/*.jsonl``
Writes   artifacts/prepared/{corpus,demonstrations,prompts,preferences}.parquet, artifacts/prepared/quality.json
Params   seed, prepare
Metrics  demonstrations, prompts, preferences, corpus (rows)
Paper    Ouyang et al. 2022 (arXiv:2203.02155), section 3.2: the three data sets of SFT, reward model and PPO
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import pandas as pd

from pipelines.config import Prepare
from pipelines.context import Context
from pipelines.data import jsonl, schemas
from pipelines.data.candidates import as_pairs, from_jsonl, from_plays
from pipelines.data.plays import read_plays
from pipelines.data.quality import quality
from pipelines.data.splits import without_leaks
from pipelines.data.tables import write_json, write_table
from pipelines.errors import DataError

POOL = Path("data/preferences")


def run(ctx: Context) -> dict[str, float]:
    """Read the source, draw the tables by seed, check them, write them."""
    prepare = ctx.params.prepare
    # 1. the source: one row a possible demonstration or prompt
    if prepare.source == "plays":
        candidates, corpus = from_plays(read_plays(prepare.package), prepare)
        own_pairs = as_pairs([], prepare.package, {}, {}, prepare)
    else:
        candidates, corpus, own_pairs = from_jsonl(ctx.root / prepare.learns_from, ctx.root, prepare)

    # 2. no prompt in two splits, then a draw by seed: first prompts, then demonstrations that share no row with them
    candidates, leaked = without_leaks(candidates)
    candidates = shuffled(candidates, ctx.params.seed)
    prompts = draw_prompts(candidates, prepare)
    demonstrations = draw_demonstrations(candidates, prompts, prepare)
    pairs = joined([own_pairs, *read_pool(ctx.root, candidates, prepare)])

    # 3. the tables and what they are like
    tables = {"corpus": corpus, "demonstrations": demonstrations, "preferences": pairs, "prompts": prompts}
    facts = quality(tables, {"prompt_in_two_splits": leaked, **unused(candidates)})
    if facts["prompts_in_two_splits"]:
        raise DataError(f"{facts['prompts_in_two_splits']} prompts stand in two splits; name their rows' groups alike")
    checks = {
        "corpus": schemas.CORPUS,
        "demonstrations": schemas.DEMONSTRATIONS,
        "preferences": schemas.PAIRS,
        "prompts": schemas.PROMPTS,
    }
    for name, rows in tables.items():
        write_table(rows, ctx.out(f"prepared/{name}.parquet"), checks[name])
    write_json(ctx.out("prepared/quality.json"), facts)
    return {name: float(len(rows)) for name, rows in tables.items()}


def shuffled(rows: pd.DataFrame, seed: int) -> pd.DataFrame:
    """The rows in the order of a hash of seed and id: a row that is added changes the place of no other."""
    order = rows["id"].map(lambda row: hashlib.sha256(f"{seed}:{row}".encode()).hexdigest())
    return rows.assign(order=order).sort_values("order").drop(columns="order").reset_index(drop=True)


def draw_prompts(candidates: pd.DataFrame, prepare: Prepare) -> pd.DataFrame:
    """The first askable rows of every split, each prompt once."""
    wanted = {"train": prepare.train_prompts, "validation": prepare.validation_prompts, "test": prepare.test_prompts}
    asked = candidates[candidates["askable"]].drop_duplicates("prompt")
    drawn = [_first(asked, split, count, "prompts", prepare) for split, count in wanted.items()]
    return pd.concat(drawn)[list(schemas.PROMPTS.columns)].reset_index(drop=True)


def draw_demonstrations(candidates: pd.DataFrame, prompts: pd.DataFrame, prepare: Prepare) -> pd.DataFrame:
    """The first rows that end well. Those that are prompts are left out where enough others are there (plays)."""
    wanted = {
        "train": prepare.demonstrations,
        "validation": prepare.validation_prompts,
        "test": prepare.test_prompts,
    }
    ending = candidates[candidates["completion"].notna()]
    if prepare.source == "plays":
        ending = ending[~ending["id"].isin(prompts["id"])]
    drawn = [_first(ending, split, count, "demonstrations", prepare) for split, count in wanted.items()]
    return pd.concat(drawn)[list(schemas.DEMONSTRATIONS.columns)].reset_index(drop=True)


def read_pool(root: Path, candidates: pd.DataFrame, prepare: Prepare) -> list[pd.DataFrame]:
    """People's pairs under data/preferences/. A prompt of the source keeps its split, another is split by its hash."""
    splits = dict(zip(candidates["prompt"], candidates["split"], strict=True))
    ids = dict(zip(candidates["prompt"], candidates["id"], strict=True))
    files = sorted((root / POOL).glob("*.jsonl"))
    return [as_pairs(jsonl.read_jsonl(path, root, (jsonl.PREFERENCE,)), path.stem, splits, ids, prepare) for path in files]


def joined(tables: list[pd.DataFrame]) -> pd.DataFrame:
    """One table of several; the empty ones are left out, because their columns have no types."""
    return pd.concat([table for table in tables if len(table)] or tables[:1], ignore_index=True)


def unused(candidates: pd.DataFrame) -> dict[str, int]:
    """What cannot be demonstrated, because no clause ends within the budget."""
    return {"no_clause_end_within_budget": int(candidates["completion"].isna().sum())}


def _first(rows: pd.DataFrame, split: str, count: int, table: str, prepare: Prepare) -> pd.DataFrame:
    there = rows[rows["split"] == split]
    if there.empty:
        source = f"package {prepare.package}" if prepare.source == "plays" else prepare.learns_from
        remedy = "add rows" if split == "train" else f"add rows or raise prepare.{split}_fraction"
        raise DataError(f"{source}: 0 rows in split {split} for the {table} ({len(rows)} in all splits); {remedy}")
    return there.head(count)
