"""prepare: demonstrations, prompts and preferences from the source, split by play (or by prompt).

Reads    the installed package ``prepare.package``, or the files and hub data sets under ``prepare.sources``;
         ``data/preferences/*.jsonl`` and ``*.parquet``, ``data/templates/``
Writes   artifacts/prepared/{corpus,demonstrations,prompts,phrasings,preferences,labels}.parquet, artifacts/prepared/quality.json,
         artifacts/prepared/quarantine.jsonl (bad rows that were put aside: code, place, reason)
Params   seed, prepare
Metrics  demonstrations, prompts, preferences, corpus, labels (rows); rows/RULE: read, quarantined, dropped by rule;
         quarantined/CODE; quality/...
Paper    Ouyang et al. 2022 (arXiv:2203.02155), section 3.2: the three data sets of SFT, reward model and PPO
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow

from pipelines.config.data import Mixture, Prepare, Source
from pipelines.context import Context
from pipelines.data import phrasings, schemas, streams
from pipelines.data.candidates import from_plays
from pipelines.data.mixture import draw, selected
from pipelines.data.plays import read_plays
from pipelines.data.quality import SAMPLE, languages, quality
from pipelines.data.rows import Ingested, ingest
from pipelines.data.splits import without_leaks
from pipelines.data.tables import read_blocks, read_table, write_json, write_stream, write_table
from pipelines.data.vetting import contamination_by, measured, vet, vet_rows
from pipelines.errors import DataError

POOL = Path("data/preferences")
OPTIONAL = {name for name, column in schemas.PAIRS.columns.items() if not column.required}
MEASURED = (
    "contamination", "golden_accuracy", "languages", "longer_wins", "near_duplicates", "personal_data", "pool_contamination"
)  # fmt: skip
TABLES = {
    "corpus": schemas.CORPUS,
    "demonstrations": schemas.DEMONSTRATIONS,
    "labels": schemas.LABELS,
    "preferences": schemas.PAIRS,
    "prompts": schemas.PROMPTS,
}


@dataclass(frozen=True)
class Material:
    """What the source gives beside its candidates: their texts (``whole``), and the tables that are written in blocks."""

    whole: Callable[[pd.DataFrame], pd.DataFrame]
    corpus: Iterable[pyarrow.Table]
    pairs: Iterable[pyarrow.Table] = ()
    labels: Iterable[pyarrow.Table] = ()
    optional: Mapping[str, list[str]] = field(default_factory=dict)
    """Optional columns of the pairs ("pair") and of the labels."""


def run(ctx: Context) -> dict[str, float]:
    """Read the sources, draw the tables by seed, check them, write them."""
    prepare, seed = _with_sources(ctx.params.prepare), ctx.params.seed
    quarantine = ctx.out("prepared/quarantine.jsonl")
    quarantine.write_text("", encoding="utf-8")
    facts: dict[str, Any] = {}
    weights: dict[str, float] = {}
    # 1. the sources: one row a possible demonstration or prompt; pairs and labels as they come
    if prepare.source == "plays":
        candidates, corpus = from_plays(read_plays(prepare.package), prepare, seed)
        candidates, leaked = without_leaks(candidates)
        material = Material(lambda drawn: drawn, [_arrow(corpus)])
        dropped = {"prompt_in_two_splits": leaked}
        facts = measured(candidates, prepare, ctx.scratch)
        pool, told = read_pool(ctx, quarantine)
    else:
        found, facts = _read(ctx, prepare, quarantine)
        pool, told = read_pool(ctx, quarantine)
        used, weights = streams.shown_once(found), found.weights
        asked_before = np.concatenate([np.empty(0, np.uint64), *(streams.asked_keys(pairs["prompt"]) for pairs in pool)])
        light = streams.candidates_of(found, used, seed, wanted_of(prepare), asked_before)
        tables = (streams.corpus_of(found, used), streams.pairs_of(found), streams.labels_of(found))
        optional = {kind: streams.optional_of(found, kind) for kind in streams.BROUGHT}
        material = Material(partial(streams.whole, found), *tables, optional)
        candidates, dropped = selected(light, prepare.mixture, seed)
    facts["pool"] = told

    # 2. a draw by seed: first prompts, then demonstrations that share no row with them
    candidates = candidates.sort_values("order", kind="stable", ignore_index=True)
    facts["languages"] = languages(material.whole(candidates.head(SAMPLE)))
    asked = draw_prompts(candidates, prepare, weights)
    shown = draw_demonstrations(candidates, asked, prepare, weights)

    # 3. the tables and what they are like
    paths = {name: ctx.out(f"prepared/{name}.parquet") for name in TABLES}
    frames = {"demonstrations": material.whole(shown), "prompts": material.whole(asked)}
    for name, rows in frames.items():
        write_table(_columns(rows, TABLES[name]), paths[name], TABLES[name])
    pool = [in_known_splits(pairs, candidates, material) for pairs in pool]
    facts["pool_contamination"] = contaminated_by(pool, frames["prompts"], ctx.scratch)
    known = [_arrow(pairs) for pairs in pool]
    of_pairs, of_labels = (material.optional.get(kind, []) for kind in ("pair", "label"))
    of_pairs = sorted({*of_pairs, *(name for table in known for name in table.column_names)} & OPTIONAL)
    sizes = {
        "corpus": write_stream(material.corpus, paths["corpus"], schemas.CORPUS),
        "labels": write_stream(material.labels, paths["labels"], schemas.LABELS, of_labels),
        "preferences": write_stream(chain(material.pairs, known), paths["preferences"], schemas.PAIRS, of_pairs),
    } | {name: len(rows) for name, rows in frames.items()}
    drawn = {name: read_blocks(path) for name, path in paths.items() if name != "labels" or sizes["labels"]}
    told = quality(drawn, dropped | unused(candidates), ctx.scratch)
    facts = told | {name: value for name, value in facts.items() if value}
    if facts["prompts_in_two_splits"]:
        raise DataError(f"{facts['prompts_in_two_splits']} prompts stand in two splits; name their rows' groups alike")
    write_table(phrased(ctx, frames["prompts"], prepare), ctx.out("prepared/phrasings.parquet"), schemas.PHRASINGS)
    write_json(ctx.out("prepared/quality.json"), facts)
    return {name: float(sizes[name]) for name in drawn} | counts(facts)


def draw_prompts(candidates: pd.DataFrame, prepare: Prepare, weights: dict[str, float]) -> pd.DataFrame:
    """The first askable rows of every split, each prompt once."""
    wanted = {"train": prepare.train_prompts, "validation": prepare.validation_prompts, "test": prepare.test_prompts}
    asked = candidates[candidates["askable"]].drop_duplicates("key")
    drawn = [_first(asked, split, count, "prompts", prepare, weights) for split, count in wanted.items()]
    return pd.concat(drawn)


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
    return pd.concat(drawn)


def wanted_of(prepare: Prepare) -> dict[str, int] | None:
    """How many prompts and demonstrations of each split are drawn; None where the draw asks what else there is."""
    if prepare.mixture != Mixture():
        return None
    held_out = {"validation": prepare.validation_prompts, "test": prepare.test_prompts}
    return {"train": max(prepare.train_prompts, prepare.demonstrations), **held_out}


def read_pool(ctx: Context, quarantine: Path) -> tuple[list[pd.DataFrame], dict[str, Any]]:
    """The pairs under data/preferences/, and each file's counts: people's files, and tables that the loop has collected."""
    pool, facts = [], {}
    for path in sorted([*(ctx.root / POOL).glob("*.jsonl"), *(ctx.root / POOL).glob("*.parquet")]):
        if path.suffix == ".parquet":
            pairs = read_table(path, schemas.PAIRS)
            facts[path.stem] = {"read": len(pairs)}
        else:
            pairs, facts[path.stem] = _from_people(ctx, path, quarantine)
        pool.append(pairs)
    return pool, facts


def in_known_splits(pairs: pd.DataFrame, candidates: pd.DataFrame, material: Material) -> pd.DataFrame:
    """Pairs of the pool. A prompt of the source keeps its split, another is split by its hash (a collected one as it was when
    it was asked)."""
    keys = streams.asked_keys(pairs["prompt"])
    rows = candidates[candidates["key"].isin(keys)]
    known = material.whole(rows)
    for column, name in (("split", "split"), ("prompt_id", "id")):
        values = dict(zip(rows["key"].tolist(), known[name], strict=True))
        pairs[column] = [values.get(key, own) for key, own in zip(keys.tolist(), pairs[column], strict=True)]
    return pairs


def contaminated_by(pool: list[pd.DataFrame], prompts: pd.DataFrame, folder: Path) -> dict[str, Any]:
    """How much of the test prompts is in prompts of the pool that are trained on; nothing without a pool."""
    training = [prompt for pairs in pool for prompt in pairs["prompt"][pairs["split"] == "train"].unique()]
    return contamination_by(prompts["prompt"][prompts["split"] == "test"].tolist(), training, folder) if pool else {}


def unused(candidates: pd.DataFrame) -> dict[str, int]:
    """What cannot be demonstrated, because no clause ends within the budget."""
    return {"no_clause_end_within_budget": int(candidates["completion"].isna().sum())}


def counts(facts: dict[str, Any]) -> dict[str, float]:
    """Rows read, put aside and dropped by rule, for the tracker."""
    rows = facts.get("rows", {})
    found = {f"rows/{rule}": float(count) for rule, count in (rows.get("dropped", {}) | facts["dropped"]).items()}
    found |= {f"quality/{name}": value for name, value in _numbers({key: facts.get(key, {}) for key in MEASURED})}
    if rows:
        found |= {"rows/read": float(rows["read"]), "rows/quarantined": float(sum(rows["quarantined"].values()))}
        found |= {f"quarantined/{code}": float(count) for code, count in rows["quarantined"].items()}
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


def _from_people(ctx: Context, path: Path, quarantine: Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The pairs of a file that people have written, checked row by row, and its counts."""
    source = Source(path=f"{POOL}/{path.name}", format="preference")
    settings = ctx.params.prepare.model_copy(update={"sources": {path.stem: source}})
    found = ingest(settings, ctx.root, ctx.scratch / "pool", ctx.params.seed, quarantine)
    vet_rows(found, settings, source.path)
    facts = found.ledger.facts() | {"personal_data": dict(sorted(found.personal.items()))}
    return pyarrow.concat_tables(streams.pairs_of(found)).to_pandas(), facts


def _arrow(rows: pd.DataFrame) -> pyarrow.Table:
    return pyarrow.Table.from_pandas(rows, preserve_index=False)


def _columns(rows: pd.DataFrame, schema: Any) -> pd.DataFrame:
    return rows[[name for name in schema.columns if name in rows]].reset_index(drop=True)


def _first(rows: pd.DataFrame, split: str, count: int, table: str, prepare: Prepare, weights: dict[str, float]) -> pd.DataFrame:
    there = rows[rows["split"] == split]
    if there.empty:
        source = f"package {prepare.package}" if prepare.source == "plays" else prepare.learns_from
        remedy = "add rows" if split == "train" else f"add rows or raise prepare.{split}_fraction"
        raise DataError(f"{source}: 0 rows in split {split} for the {table} ({len(rows)} in all splits); {remedy}")
    return draw(there, count, weights, prepare.mixture)
