"""prepare: demonstrations, prompts and preferences from the source, split by play (or by prompt).

Reads    the installed package ``prepare.package``, or the files and hub data sets under ``prepare.sources``;
         ``data/preferences/*.jsonl``, ``data/templates/``
Writes   artifacts/prepared/{corpus,demonstrations,prompts,phrasings,preferences,labels}.parquet, artifacts/prepared/quality.json,
         artifacts/prepared/quarantine.jsonl (bad rows that were put aside: code, place, reason)
Params   seed, prepare
Metrics  demonstrations, prompts, preferences, corpus, labels (rows); rows/RULE: read, quarantined, dropped by rule
Paper    Ouyang et al. 2022 (arXiv:2203.02155), section 3.2: the three data sets of SFT, reward model and PPO
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq

from pipelines.config.data import Prepare, Source
from pipelines.context import Context
from pipelines.data import phrasings, schemas
from pipelines.data.candidates import as_pairs, from_plays, from_rows
from pipelines.data.mixture import draw, selected
from pipelines.data.plays import read_plays
from pipelines.data.quality import languages, quality
from pipelines.data.rows import Ingested, ingest
from pipelines.data.splits import without_leaks
from pipelines.data.tables import write_json, write_table
from pipelines.data.vetting import vet, vet_rows
from pipelines.errors import DataError

POOL = Path("data/preferences")
MEASURED = ("contamination", "golden_accuracy", "languages", "longer_wins", "near_duplicates", "personal_data")
TABLES = {
    "corpus": schemas.CORPUS,
    "demonstrations": schemas.DEMONSTRATIONS,
    "labels": schemas.LABELS,
    "preferences": schemas.PAIRS,
    "prompts": schemas.PROMPTS,
}


def run(ctx: Context) -> dict[str, float]:
    """Read the sources, draw the tables by seed, check them, write them."""
    prepare, seed = _with_sources(ctx.params.prepare), ctx.params.seed
    quarantine = ctx.out("prepared/quarantine.jsonl")
    quarantine.write_text("", encoding="utf-8")
    facts: dict[str, Any] = {}
    # 1. the sources: one row a possible demonstration or prompt; pairs and labels as they come
    if prepare.source == "plays":
        candidates, corpus = from_plays(read_plays(prepare.package), prepare)
        candidates, leaked = without_leaks(candidates)
        pairs, labels, weights = schemas.empty(schemas.PAIRS), schemas.empty(schemas.LABELS), {}
        dropped = {"prompt_in_two_splits": leaked}
    else:
        found, facts = _read(ctx, prepare, quarantine)
        tables = from_rows(found.path)
        candidates, dropped = selected(tables.candidates, prepare.mixture, seed)
        facts["languages"] = languages(candidates, seed)
        corpus, pairs, labels, weights = tables.corpus, tables.pairs, tables.labels, found.weights

    # 2. a draw by seed: first prompts, then demonstrations that share no row with them
    candidates = shuffled(candidates, seed)
    prompts = draw_prompts(candidates, prepare, weights)
    demonstrations = draw_demonstrations(candidates, prompts, prepare, weights)
    pool, facts["pool"] = read_pool(ctx, candidates, prepare, quarantine)
    pairs = joined([pairs, *pool])

    # 3. the tables and what they are like
    drawn = {"corpus": corpus, "demonstrations": demonstrations, "preferences": pairs, "prompts": prompts}
    drawn |= {"labels": labels} if len(labels) else {}
    facts = quality(drawn, dropped | unused(candidates)) | {name: value for name, value in facts.items() if value}
    if facts["prompts_in_two_splits"]:
        raise DataError(f"{facts['prompts_in_two_splits']} prompts stand in two splits; name their rows' groups alike")
    for name, rows in (drawn | {"labels": labels}).items():
        write_table(rows, ctx.out(f"prepared/{name}.parquet"), TABLES[name])
    write_table(phrased(ctx, prompts, prepare), ctx.out("prepared/phrasings.parquet"), schemas.PHRASINGS)
    write_json(ctx.out("prepared/quality.json"), facts)
    return {name: float(len(rows)) for name, rows in drawn.items()} | counts(facts)


def shuffled(rows: pd.DataFrame, seed: int) -> pd.DataFrame:
    """The rows in the order of a hash of seed and id: a row that is added changes the place of no other."""
    order = rows["id"].map(lambda row: hashlib.sha256(f"{seed}:{row}".encode()).hexdigest())
    return rows.assign(order=order).sort_values("order").drop(columns="order").reset_index(drop=True)


def draw_prompts(candidates: pd.DataFrame, prepare: Prepare, weights: dict[str, float]) -> pd.DataFrame:
    """The first askable rows of every split, each prompt once."""
    wanted = {"train": prepare.train_prompts, "validation": prepare.validation_prompts, "test": prepare.test_prompts}
    asked = candidates[candidates["askable"]].drop_duplicates("prompt")
    drawn = [_first(asked, split, count, "prompts", prepare, weights) for split, count in wanted.items()]
    return _columns(pd.concat(drawn), schemas.PROMPTS)


def phrased(ctx: Context, prompts: pd.DataFrame, prepare: Prepare) -> pd.DataFrame:
    """The first test prompts in every phrasing that the recipe has for them."""
    wanted = prompts[prompts["split"] == "test"]["id"].head(prepare.phrasings).tolist()
    if prepare.source == "plays":
        return phrasings.of_plays(read_plays(prepare.package), prepare, wanted)
    return phrasings.of_sources(prepare, ctx.root, ctx.params.seed, wanted)


def draw_demonstrations(
    candidates: pd.DataFrame, prompts: pd.DataFrame, prepare: Prepare, weights: dict[str, float]
) -> pd.DataFrame:
    """The first rows that end well. Those that are prompts are left out where enough others are there (plays)."""
    wanted = {
        "train": prepare.demonstrations,
        "validation": prepare.validation_prompts,
        "test": prepare.test_prompts,
    }
    ending = candidates[candidates["completion"].notna()]
    if prepare.source == "plays":
        ending = ending[~ending["id"].isin(prompts["id"])]
    drawn = [_first(ending, split, count, "demonstrations", prepare, weights) for split, count in wanted.items()]
    return _columns(pd.concat(drawn), schemas.DEMONSTRATIONS)


def read_pool(
    ctx: Context, candidates: pd.DataFrame, prepare: Prepare, quarantine: Path
) -> tuple[list[pd.DataFrame], dict[str, Any]]:
    """People's pairs under data/preferences/, and each file's counts.

    A prompt of the source keeps its split, another is split by its hash.
    """
    splits = dict(zip(candidates["prompt"], candidates["split"], strict=True))
    ids = dict(zip(candidates["prompt"], candidates["id"], strict=True))
    pool, facts = [], {}
    for path in sorted((ctx.root / POOL).glob("*.jsonl")):
        source = Source(path=f"{POOL}/{path.name}", format="preference")
        settings = prepare.model_copy(update={"sources": {path.stem: source}})
        found = ingest(settings, ctx.root, ctx.scratch / "pool", ctx.params.seed, quarantine)
        vet_rows(found, settings, source.path)
        pairs = as_pairs(pq.read_table(found.path).to_pandas())
        pairs["split"] = pairs["prompt"].map(splits).fillna(pairs["split"])
        pairs["prompt_id"] = pairs["prompt"].map(ids).fillna(pairs["prompt_id"])
        pool.append(pairs)
        facts[path.stem] = found.ledger.facts()
    return pool, facts


def joined(tables: list[pd.DataFrame]) -> pd.DataFrame:
    """One table of several; the empty ones are left out, because their columns have no types."""
    return pd.concat([table for table in tables if len(table)] or tables[:1], ignore_index=True)


def unused(candidates: pd.DataFrame) -> dict[str, int]:
    """What cannot be demonstrated, because no clause ends within the budget."""
    return {"no_clause_end_within_budget": int(candidates["completion"].isna().sum())}


def counts(facts: dict[str, Any]) -> dict[str, float]:
    """Rows read, put aside and dropped by rule, for the tracker."""
    rows = facts.get("rows", {})
    found = {f"rows/{rule}": float(count) for rule, count in (rows.get("dropped", {}) | facts["dropped"]).items()}
    if rows:
        found |= {f"quality/{name}": value for name, value in _numbers({key: facts.get(key, {}) for key in MEASURED})}
        found |= {"rows/read": float(rows["read"]), "rows/quarantined": float(sum(rows["quarantined"].values()))}
    return found


def _numbers(tree: dict[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    """Every number in nested facts with its path."""
    found: list[tuple[str, float]] = []
    for key, value in sorted(tree.items()):
        if isinstance(value, dict):
            found += _numbers(value, f"{prefix}{key}/")
        elif isinstance(value, int | float):
            found.append((f"{prefix}{key}", float(value)))
    return found


def _with_sources(prepare: Prepare) -> Prepare:
    """``source: jsonl`` is one source of the file's name."""
    if prepare.source != "jsonl":
        return prepare
    name = prepare.learns_from.rpartition("/")[2].partition(".")[0]
    return prepare.model_copy(update={"sources": {name: Source(path=prepare.learns_from)}})


def _read(ctx: Context, prepare: Prepare, quarantine: Path) -> tuple[Ingested, dict[str, Any]]:
    """The rows of all sources, vetted. The list of bad rows stays below .runs/ when they stop the stage."""
    found = ingest(prepare, ctx.root, ctx.scratch / "rows", ctx.params.seed, quarantine)
    try:
        return found, vet(found, prepare, ctx.root, prepare.learns_from)
    except DataError as error:
        if not found.ledger.bad_rows:
            raise
        kept = ctx.root / ".runs" / "prepare" / quarantine.name
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(quarantine, kept)
        raise DataError(f"{error}; every bad row is listed in .runs/prepare/{quarantine.name}") from error


def _columns(rows: pd.DataFrame, schema: Any) -> pd.DataFrame:
    return rows[[name for name in schema.columns if name in rows]].reset_index(drop=True)


def _first(rows: pd.DataFrame, split: str, count: int, table: str, prepare: Prepare, weights: dict[str, float]) -> pd.DataFrame:
    there = rows[rows["split"] == split]
    if there.empty:
        source = f"package {prepare.package}" if prepare.source == "plays" else prepare.learns_from
        remedy = "add rows" if split == "train" else f"add rows or raise prepare.{split}_fraction"
        raise DataError(f"{source}: 0 rows in split {split} for the {table} ({len(rows)} in all splits); {remedy}")
    return draw(there, count, weights, prepare.mixture)
