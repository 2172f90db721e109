"""From a file of rows to tables, block by block: what is as long as the sources is never in memory.

The chosen answer of a pair is demonstrated; so is an answer that was found good. A *light* candidate is such a row
without its texts: ``number`` in the file, ``key`` of the prompt, ``order`` by seed, names as categories; some thirty bytes.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.data import texts
from pipelines.data.rows import Ingested
from pipelines.data.spill import Spill, first_of_key, numbered

WHOLE = ["id", "prompt", "completion", "reference", "template", "source", "group", "split", "task"]
TEXTS = ["id", "prompt", "completion", "chosen", "template", "source", "split_group", "split", "task"]
SHOWN = ["kind", "label"]
BROUGHT = {
    "pair": ["annotator", "weight", "chosen_grade", "rejected_grade", "template"],
    "label": ["annotator", "weight", "template"],
}
"""Optional columns."""

WHOLE_DRAW = 200_000
"""Rows from which on not all of them are candidates of a draw that takes few."""

SPARE = 8
"""So many times as many rows as are wanted: some rows share their prompt, and chance may give fewer."""

FEWEST = 500
"""Rows of a split at least, times ``SPARE``: then the first rows of all splits are a sample of all."""

LATEST = 2**64 - 1
FACTOR = np.uint64(0x9E3779B97F4A7C15)


def keys_of(*columns: Any) -> np.ndarray:
    """A 64-bit hash [N] of the texts of every row, over one or more columns."""
    found = np.zeros(len(columns[0]), np.uint64)
    for column in columns:
        found = found * FACTOR ^ pd.util.hash_array(np.asarray(column, object), categorize=False)
    return found


def asked_keys(prompts: Iterable[str]) -> np.ndarray:
    """The key [N] of every prompt: what differs in case, width or white space only is the same question."""
    return np.array([texts.key_of(prompt) for prompt in prompts], np.uint64)


def place_of(seed: int, id_: str) -> int:
    """The place of a row in the draw: a row that is added changes the place of no other."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{id_}".encode()).digest()[:8], "big")


def shown_once(found: Ingested) -> np.ndarray:
    """Whether each row of the file can be demonstrated or asked, each prompt with its answer once [rows of the file]."""
    used = np.zeros(len(found.kept), bool)
    with Spill(found.path.with_name("answers")) as answers:
        for numbers, block in _shown(found, ["prompt", "completion", "chosen"]):
            answers.add(numbered(keys_of(block["prompt"], _answer(block)), numbers))
        for part in answers.parts():
            rows, heads = first_of_key(part)
            used[rows["number"][heads == np.arange(len(rows))]] = True
    return used


def candidates_of(
    found: Ingested, used: np.ndarray, seed: int, wanted: Mapping[str, int] | None = None, asked: np.ndarray | None = None
) -> pd.DataFrame:
    """Light candidates: the rows that are ``used``.

    ``wanted`` says how many different prompts of each split will be drawn: of a long file those rows are left out that
    would come too late for that, unless their prompt is among the keys ``asked``. The table does not grow with the file then.
    """
    limits = _limits(found, used, wanted) if wanted is not None and used.sum() > WHOLE_DRAW else None
    light = _light(found, used, seed, limits, asked)
    if wanted is not None and limits is not None:
        ends = np.array([limits[split] for split in light["split"].cat.categories], np.uint64)[light["split"].cat.codes]
        different = light[light["order"] <= ends].groupby("split", observed=True)["key"].nunique()
        if any(different[split] < count and limits[split] < LATEST for split, count in wanted.items()):
            return _light(found, used, seed, None, asked)  # many rows of few prompts
    return light


def _limits(found: Ingested, used: np.ndarray, wanted: Mapping[str, int]) -> dict[str, int] | None:
    """The last place in the draw by split, before which some times as many rows lie as are wanted; None without such rows."""
    rows: Counter[str] = Counter()
    for numbers, block in found.blocks(["split"]):
        rows.update(block["split"].filter(pa.array(used[numbers])).to_pylist())
    if not all(rows[split] for split in wanted):
        return None
    return {split: min(LATEST * SPARE * max(count, FEWEST) // rows[split], LATEST) for split, count in wanted.items()}


def _light(found: Ingested, used: np.ndarray, seed: int, limits: dict[str, int] | None, asked: np.ndarray | None) -> pd.DataFrame:
    names: dict[str, dict[str, int]] = {"split": {}, "template": {}, "task": {}}
    parts: dict[str, list[np.ndarray]] = {name: [] for name in ("number", "key", "order", *names)}
    for numbers, block in _shown(found, ["id", "prompt_key", "split", "template", "task"]):
        numbers, block = numbers[used[numbers]], block.filter(pa.array(used[numbers]))
        order = np.array([place_of(seed, id_) for id_ in block["id"].to_pylist()], np.uint64)
        if limits is not None:
            inside = order <= np.array([limits[split] for split in block["split"].to_pylist()], np.uint64)
            if asked is not None and len(asked):
                inside |= np.isin(block["prompt_key"].to_numpy(), asked)
            numbers, order, block = numbers[inside], order[inside], block.filter(pa.array(inside))
        parts["number"].append(numbers)
        parts["key"].append(block["prompt_key"].to_numpy())
        parts["order"].append(order)
        for name, known in names.items():
            values = pc.fill_null(block[name], "as_given").dictionary_encode()
            own = np.array([known.setdefault(value, len(known)) for value in values.dictionary.to_pylist()], np.int32)
            parts[name].append(own[values.indices.to_numpy()])
    arrays = {name: np.concatenate(part) if part else np.empty(0, np.int64) for name, part in parts.items()}
    columns = {
        name: pd.Categorical.from_codes(array, pd.Index(list(names[name]), dtype=object)) if name in names else array
        for name, array in arrays.items()
    }
    return pd.DataFrame(columns).assign(askable=True, completion=True)


def whole(found: Ingested, candidates: pd.DataFrame) -> pd.DataFrame:
    """Light candidates as rows of the tables of demonstrations and prompts, in the same order."""
    wanted = candidates["number"].to_numpy()
    parts = [pd.DataFrame(columns=["number", *WHOLE])]
    for numbers, block in _shown(found, TEXTS):
        inside = np.isin(numbers, wanted)
        if inside.any():
            block = block.filter(pa.array(inside))
            answers = _joined(block["prompt"], _answer(block))
            columns = {name: block[name] for name in ("id", "prompt", "source", "split", "task")}
            columns |= {"completion": answers, "reference": answers, "group": block["split_group"]}
            columns |= {"template": pc.fill_null(block["template"], "as_given")}
            parts.append(pa.table(columns).to_pandas().assign(number=numbers[inside]))
    return pd.concat(parts[1:] or parts).set_index("number").loc[wanted].reset_index(drop=True)


def corpus_of(found: Ingested, used: np.ndarray) -> Iterator[pa.Table]:
    """The table of whole documents: every prompt with its answer."""
    for numbers, block in _shown(found, TEXTS):
        block = block.filter(pa.array(used[numbers]))
        text = pc.binary_join_element_wise(block["prompt"], _joined(block["prompt"], _answer(block)), "")
        yield pa.table({"id": block["id"], "group": block["split_group"], "split": block["split"], "text": text})


def optional_of(found: Ingested, kind: str) -> list[str]:
    """The columns of the table of pairs, or labels, that only some sources bring, and this one does."""
    names = BROUGHT[kind]
    brought = {name for block in _of_kind(found, kind, names) for name in names if block[name].null_count < block.num_rows}
    return [name for name in names if name in brought]


def pairs_of(found: Ingested) -> Iterator[pa.Table]:
    """Pairs of people. How much better the chosen answer is stays unknown where nobody said."""
    names = ["id", "split_group", "prompt", "chosen", "rejected", "group", "margin", "source", "split"]
    optional = optional_of(found, "pair")
    for block in _of_kind(found, "pair", names + optional):
        columns = {"id": block["id"], "prompt_id": block["split_group"], "prompt": block["prompt"]}
        columns |= {name: _joined(block["prompt"], block[name]) for name in ("chosen", "rejected")}
        columns |= {"judge": _same("people", block), "group": pc.fill_null(block["group"], "all")}
        columns |= {name: block[name] for name in ("margin", "source", "split")}
        columns |= {name: _same(True, block) for name in ("chosen_ended", "rejected_ended")}
        yield pa.table(columns | {name: block[name] for name in optional})


def labels_of(found: Ingested) -> Iterator[pa.Table]:
    """Single labels of people."""
    names = ["id", "split_group", "prompt", "completion", "label", "group", "source", "split"]
    optional = optional_of(found, "label")
    for block in _of_kind(found, "label", names + optional):
        columns = {"id": block["id"], "prompt_id": block["split_group"], "prompt": block["prompt"]}
        columns |= {"completion": _joined(block["prompt"], block["completion"]), "label": block["label"]}
        columns |= {"judge": _same("people", block), "group": pc.fill_null(block["group"], "all")}
        yield pa.table(columns | {name: block[name] for name in ("source", "split", *optional)})


def _shown(found: Ingested, columns: list[str]) -> Iterator[tuple[np.ndarray, pa.RecordBatch]]:
    for numbers, block in found.blocks(columns + SHOWN):
        shown = pc.or_(pc.not_equal(block["kind"], "label"), pc.fill_null(block["label"], False))
        yield numbers[shown.to_numpy(zero_copy_only=False)], block.filter(shown)


def _of_kind(found: Ingested, kind: str, columns: list[str]) -> Iterator[pa.RecordBatch]:
    for _, block in found.blocks(["kind", *columns]):
        yield block.filter(pc.equal(block["kind"], kind))


def _answer(block: pa.RecordBatch) -> pa.Array:
    return pc.coalesce(block["completion"], block["chosen"])


def _joined(prompts: pa.Array, answers: pa.Array) -> pa.Array:
    """Answers as they follow their prompts: with a space before them where neither brings one."""
    ends = pc.utf8_is_space(pc.utf8_slice_codeunits(prompts, -1))
    starts = pc.utf8_is_space(pc.utf8_slice_codeunits(answers, 0, 1))
    return pc.if_else(pc.or_(ends, starts), answers, pc.binary_join_element_wise(" ", answers, ""))


def _same(value: Any, block: pa.RecordBatch) -> pa.Array:
    return pa.repeat(value, block.num_rows)
