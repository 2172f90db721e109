"""What is asked of all rows together: repeats, contradictions, leaks, contamination, golden labels.

What must not be is refused, or dropped by a rule that the settings name, and counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence, Sized
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.config.data import Prepare, Source
from pipelines.data import rows, texts
from pipelines.data.near import Overlap, Signatures, overlaps
from pipelines.data.problems import EXAMPLES, BadRow
from pipelines.data.rows import Ingested
from pipelines.data.spill import Spill, first_of_key
from pipelines.data.splits import SPLITS
from pipelines.errors import DataError

FEWEST = 20
SHOWN = 3
"""Near duplicates that quality.json names."""

ONE_SIDED = 0.9
ASKED = np.dtype([("key", "<u8"), ("row", "<u4"), ("rank", "u1")])
"""The prompt of a row, and the number of its split."""


def vet_rows(found: Ingested, prepare: Prepare, shown: str) -> None:
    """Check the rows one by one and for repeats; those that can be used are kept."""
    _contradictions(found)
    found.ledger.settle(prepare.max_bad_fraction, shown)
    conflicted = np.unique(found.conflicts.reshape(-1))
    found.kept[np.concatenate([conflicted, _repeats(found, prepare, conflicted)])] = False
    if not found.rows:
        rules = ", ".join(f"{rule} {count}" for rule, count in sorted(found.ledger.dropped.items())) or "none"
        raise DataError(f"all-filtered {shown}: 0 of {found.ledger.rows} rows left: {rules} | limit 1 | mend the rows")


def vet(found: Ingested, prepare: Prepare, root: Path, shown: str) -> dict[str, Any]:
    """Check the rows, take out what is dropped by rule, and return the facts for quality.json.

    Raises DataError with the message of the contract for everything that must not be.
    """
    ledger = found.ledger

    # 1. bad rows, contradictions, repeats
    vet_rows(found, prepare, shown)

    # 2. enough rows to split
    hashed = any(source.split == "hash" for source in prepare.sources.values())
    if hashed and found.rows < FEWEST:
        raise DataError(f"few-rows {shown}: {found.rows} rows, need >= {FEWEST} for split | limit {FEWEST} | add rows")

    # 3. no prompt in two splits, no test prompt inside a training row
    leaked = _leaks(found, prepare)
    found.kept[leaked] = False
    ledger.dropped.update({"prompt_in_two_splits": len(leaked)} if len(leaked) else {})
    facts = {"contamination": contamination(found, prepare), "near_duplicates": near_duplicates(found, prepare)}

    # 4. what the labels are like
    facts |= {"longer_wins": _longer(found), "personal_data": dict(sorted(found.personal.items())), "rows": ledger.facts()}
    if prepare.golden:
        facts["golden_accuracy"] = _golden(found, prepare, root)
    return facts


def measured(candidates: pd.DataFrame, prepare: Prepare, folder: Path) -> dict[str, Any]:
    """The facts that ``vet`` finds in files, of speeches: they all stay, since nobody can mend an installed package."""
    asked, said = candidates["prompt"], candidates["reference"]
    with Signatures(folder / "signatures.bin") as signatures:
        signatures.add([texts.normal(text) for text in asked + said])
        near = signatures.near(prepare.near_duplicate_similarity)
    first = candidates["id"].to_numpy()[near[:SHOWN]].tolist()
    kinds = Counter(kind for text in chain(asked, said) if not texts.unremarkable(text) for kind, *_ in texts.personal(text))
    tests, training = (asked[candidates["split"] == split].unique().tolist() for split in ("test", "train"))
    return {
        "contamination": contamination_by(tests, training, folder),
        "near_duplicates": _near(near, prepare, first),
        "personal_data": dict(sorted(kinds.items())),
    }


def named(found: Ingested, numbers: list[int]) -> list[tuple[str, str]]:
    """(id, place) of rows that are used, by their number in the file."""
    names: dict[int, tuple[str, str]] = {}
    for own, block in found.blocks(["id", "place"]):
        for index in np.flatnonzero(np.isin(own, numbers)).tolist():
            names[int(own[index])] = (block["id"][index].as_py(), block["place"][index].as_py())
    return [names[number] for number in numbers]


def _contradictions(found: Ingested) -> None:
    if not len(found.conflicts):
        return
    places = named(found, found.conflicts.reshape(-1).tolist())
    for one, two in zip(places[::2], places[1::2], strict=True):
        what = f"contradictory preference: {one[0]} and {two[0]} say the opposite"
        found.ledger.refuse(f"{one[1]} and {two[1]}", BadRow("contradictory-preference", what, "keep one of the two"))
    found.ledger.bad["contradictory-preference"].count = found.conflicts.size


def _repeats(found: Ingested, prepare: Prepare, conflicted: np.ndarray) -> np.ndarray:
    again = found.repeats[~np.isin(found.repeats[:, 0], conflicted)]
    if not len(again):
        return again[:, 0]
    if prepare.duplicates == "fail":
        pairs = named(found, again[:EXAMPLES].reshape(-1).tolist())
        shown = ", ".join(f"{later[1]} like {first[1]}" for later, first in zip(pairs[::2], pairs[1::2], strict=True))
        raise DataError(
            f"duplicate-rows {pairs[0][1]} duplicate rows: {len(again)} of {found.rows} rows: {shown}{_more(again)}"
            " | prepare.duplicates: fail | remove them, or set duplicates: drop"
        )
    found.ledger.dropped["duplicate"] += len(again)
    return again[:, 0]


def _leaks(found: Ingested, prepare: Prepare) -> np.ndarray:
    """Rows whose prompt also stands in a later split (test before validation before train)."""
    with Spill(found.path.with_name("prompts"), ASKED) as asked:
        for numbers, block in found.blocks(["split", "prompt_key"]):
            records = np.empty(len(numbers), ASKED)
            records["key"], records["row"] = block["prompt_key"].to_numpy(), numbers
            records["rank"] = pc.index_in(block["split"], value_set=pa.array(SPLITS)).to_numpy()
            asked.add(records)
        earlier, later = (np.concatenate(sides) for sides in zip(*map(_in_two_splits, asked.parts()), strict=True))
    order = np.argsort(earlier["row"])
    earlier, later = earlier[order], later[order]
    if len(earlier) and prepare.leaks == "fail":
        names = named(found, np.stack([earlier["row"], later["row"]], axis=1)[:EXAMPLES].reshape(-1).tolist())
        both = zip(names[::2], names[1::2], strict=True)
        shown = ", ".join(f"{id_} at {place} like {other} at {there}" for (id_, place), (other, there) in both)
        raise DataError(
            f"leak {names[0][1]} prompt appears in {SPLITS[earlier['rank'][0]]} and {SPLITS[later['rank'][0]]}:"
            f" {len(np.unique(earlier['key']))} prompts, {len(earlier)} rows: {shown}{_more(earlier)}"
            " | limit 0 | remove them, or set leaks: drop"
        )
    return earlier["row"].astype(np.int64)


def _in_two_splits(asked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The records whose prompt also stands in a later split, and for each the first record of the latest one."""
    asked, heads = first_of_key(asked[np.argsort(-asked["rank"].astype(np.int8), kind="stable")])
    before = asked["rank"] < asked["rank"][heads]
    return asked[before], asked[heads[before]]


def contamination(found: Ingested, prepare: Prepare) -> dict[str, Any]:
    """How much of the test prompts is in training rows; at or over ``max_overlap`` the training row goes, or the stage stops."""
    tests = _different_prompts(found, "test")
    inside = np.zeros(len(found.kept), bool)
    inside[tests] = True
    asked = (
        [texts.normal(prompt) for prompt in block["prompt"].filter(pa.array(inside[numbers])).to_pylist()]
        for numbers, block in _of_split(found, "test", ["prompt"])
    )
    training = (
        (numbers, [texts.normal(prompt) for prompt in block["prompt"].to_pylist()])
        for numbers, block in _of_split(found, "train", ["prompt"])
    )
    seen = overlaps(asked, training, prepare.max_overlap, found.path.parent)
    over = sorted(seen.over)
    if over and prepare.leaks == "fail":
        worst = sorted(over, key=lambda number: (-seen.over[number][1], number))
        test, share = seen.over[worst[0]]
        (other, _), (id_, place), *others = named(found, [int(tests[test]), *worst[:EXAMPLES]])
        also = f": also {', '.join(each[1] for each in others)}{_more(worst)}" if others else ""
        raise DataError(
            f"near-leak {place} 8-gram overlap {share:.2f} >= {prepare.max_overlap:.2f} between training row {id_} and test row "
            f"{other} ({len(over)} training rows{also}) | prepare.max_overlap | remove them, or set leaks: drop"
        )
    found.kept[over] = False
    found.ledger.dropped.update({"overlaps_test_prompt": len(over)} if over else {})
    return _contaminated(seen)


def contamination_by(prompts: list[str], training: list[str], folder: Path) -> dict[str, Any]:
    """How much of these test prompts is in prompts that are trained on beside the sources'."""
    rows = [(np.arange(len(training)), [texts.normal(prompt) for prompt in training])]
    return _contaminated(overlaps([[texts.normal(prompt) for prompt in prompts]], rows, 0.0, folder))


def _contaminated(seen: Overlap) -> dict[str, Any]:
    shares = seen.shares
    return {
        "test_prompts": len(shares),
        "at_or_over_0.5": int((shares >= 0.5).sum()),
        "largest_8_gram_overlap": round(float(shares.max()), 4) if len(shares) else 0.0,
        "mean_8_gram_overlap": round(float(shares.mean()), 4) if len(shares) else 0.0,
    }


def _different_prompts(found: Ingested, split: str) -> np.ndarray:
    """The number of the first row of every prompt of a split."""
    numbers, keys = [np.empty(0, np.int64)], [np.empty(0, np.uint64)]
    for own, block in _of_split(found, split, ["prompt_key"]):
        numbers.append(own)
        keys.append(block["prompt_key"].to_numpy())
    return np.sort(np.concatenate(numbers)[np.unique(np.concatenate(keys), return_index=True)[1]])


def _more(rows: Sized) -> str:
    """What stands behind the examples in a message."""
    return f" and {len(rows) - EXAMPLES} more" if len(rows) > EXAMPLES else ""


def _of_split(found: Ingested, split: str, columns: list[str]) -> Iterator[tuple[np.ndarray, pa.RecordBatch]]:
    for numbers, block in found.blocks(["split", *columns]):
        inside = pc.equal(block["split"], split)
        yield numbers[inside.to_numpy(zero_copy_only=False)], block.filter(inside)


def near_duplicates(found: Ingested, prepare: Prepare) -> dict[str, Any]:
    """Rows that are almost the same, by MinHash over prompt and answers. Never across prompts' splits alone: all rows."""
    with Signatures(found.path.with_name("signatures.bin")) as signatures:
        for _, block in found.blocks(list(rows.TEXTS)):
            parts = zip(*(block[name].to_pylist() for name in rows.TEXTS), strict=True)
            signatures.add([texts.normal(" ".join(part for part in each if part)) for each in parts])
        near = found.numbers[signatures.near(prepare.near_duplicate_similarity)]
    examples = [id_ for id_, _ in named(found, near[:SHOWN].reshape(-1).tolist())]
    if prepare.near_duplicates == "drop":
        found.kept[near[:, 0]] = False
        found.ledger.dropped.update({"near_duplicate": len(near)} if len(near) else {})
    return _near(near, prepare, list(zip(examples[::2], examples[1::2], strict=True)))


def _near(near: np.ndarray, prepare: Prepare, examples: Sequence[Sequence[str]]) -> dict[str, Any]:
    first = [f"{later} like {earlier}" for later, earlier in examples]
    return {"rows": len(near), "similarity": prepare.near_duplicate_similarity, "first": first}


def _longer(found: Ingested) -> dict[str, Any]:
    """The accuracy of "the longer answer wins" (in characters, a tie counts half): what a reward model must beat."""
    pairs, wins = 0, 0.0
    for _, block in found.blocks(["chosen", "rejected"]):
        gaps = pc.subtract(pc.utf8_length(block["chosen"]), pc.utf8_length(block["rejected"])).drop_null().to_numpy()
        pairs, wins = pairs + len(gaps), wins + float((gaps > 0).sum() + 0.5 * (gaps == 0).sum())
    if not pairs:
        return {"pairs": 0}
    accuracy = wins / pairs
    if pairs >= FEWEST and max(accuracy, 1 - accuracy) >= ONE_SIDED:
        word, share = ("longer", accuracy) if accuracy > 0.5 else ("shorter", 1 - accuracy)
        what = f"chosen {word} in {100 * share:.0f}% of pairs"
        found.ledger.warn("all pairs", "length-bias", what, "a model can learn length alone: balance the pairs")
    return {"pairs": pairs, "accuracy": round(accuracy, 4)}


def _golden(found: Ingested, prepare: Prepare, root: Path) -> dict[str, Any]:
    """How many labels agree with a trusted set on the pairs that stand in both, in whatever order they were shown."""
    trusted = _pairs_of(prepare.golden, prepare, root, found.path.parent / "golden")
    agreed = both = 0
    for prompt, chosen, rejected in _pairs(found):
        way = trusted.get(_unordered(prompt, chosen, rejected))
        if way is not None:
            both, agreed = both + 1, agreed + (way == chosen.strip())
    if not both:
        raise DataError(
            f"no-golden {prepare.golden}: 0 pairs in common with the sources | limit 1 | give trusted labels of the same pairs"
        )
    accuracy = agreed / both
    if accuracy < prepare.min_golden_accuracy:
        raise DataError(
            f"flipped-labels {prepare.golden}: golden-set accuracy {accuracy:.2f} ({agreed} of {both} pairs): labels may be"
            f" flipped | limit {prepare.min_golden_accuracy:.2f} (prepare.min_golden_accuracy) | check which side is chosen"
        )
    return {"pairs": both, "accuracy": round(accuracy, 4)}


def _pairs_of(path: str, prepare: Prepare, root: Path, folder: Path) -> dict[tuple[str, str, str], str]:
    settings = prepare.model_copy(update={"sources": {"golden": Source(path=path)}})
    golden = rows.ingest(settings, root, folder, 0)
    golden.ledger.settle(0.0, path)
    return {_unordered(prompt, chosen, rejected): chosen.strip() for prompt, chosen, rejected in _pairs(golden)}


def _pairs(found: Ingested) -> Iterator[tuple[str, str, str]]:
    for _, block in found.blocks(["prompt", "chosen", "rejected"]):
        pairs = zip(*(block[name].to_pylist() for name in ("prompt", "chosen", "rejected")), strict=True)
        yield from (pair for pair in pairs if pair[1] is not None)


def _unordered(prompt: str, one: str, other: str) -> tuple[str, str, str]:
    low, high = sorted((one.strip(), other.strip()))
    return texts.normal(prompt), low, high
