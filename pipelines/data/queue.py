"""Pairs that wait for people: a file of JSON lines in which a person writes who has won, and what comes back from it.

A line is ``{"id", "prompt", "first", "second", "winner", "annotator", "about"}``; ``winner`` is empty, and the person writes
``first``, ``second`` or ``tie`` there. Which of the two answers comes first is drawn, and nothing says who gave them.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pandas as pd

from pipelines.data import jsonl
from pipelines.data.tables import whole_file
from pipelines.errors import DataError

MAX_BYTES = 2**22
WINNERS = ("first", "second", "tie")


def write_queue(path: Path, rows: list[dict[str, Any]]) -> None:
    """One line a pair. ``rows``: prompt, first, second, and ``about`` (what the pool has to know of the pair)."""
    with whole_file(path) as partial, partial.open("w", encoding="utf-8") as file:
        for row in rows:
            fixed = {name: row[name] for name in ("prompt", "first", "second", "about")}
            line = {"id": _digest(fixed), **fixed, "winner": "", "annotator": ""}
            shown = ("id", "prompt", "first", "second", "winner", "annotator", "about")
            file.write(json.dumps({name: line[name] for name in shown}, ensure_ascii=False) + "\n")


def read_queue(path: Path) -> tuple[pd.DataFrame, int]:
    """What people have answered: prompt, chosen, rejected, annotator, chosen_ended, rejected_ended and the rest of ``about``,
    a row a line that is no tie; and the number of ties.

    A line may be taken out. Raises DataError with file and line where one is changed, twice by one person, or not answered.
    """
    rows, ties, open_, seen = [], 0, [], set()
    for number, line in jsonl.records(path, path.name, MAX_BYTES):
        fixed = {name: line.get(name) for name in ("prompt", "first", "second", "about")}
        if line.get("id") != _digest(fixed):
            raise DataError(
                f"changed {path.name}:{number}: prompt, answers or id are not as they were written | write winner and annotator"
                " only | restore the line, or take it out"
            )
        winner, annotator = (str(line.get(name, "")).strip() for name in ("winner", "annotator"))
        if not winner:
            open_.append(number)
            continue
        if winner not in WINNERS:
            raise DataError(f"unknown-winner {path.name}:{number} [winner] {winner!r} | {', '.join(WINNERS)} | mend it")
        if (line["id"], annotator) in seen:
            who = annotator or "the same person"
            raise DataError(f"duplicate {path.name}:{number}: answered twice by {who} | once a person | take one out")
        seen.add((line["id"], annotator))
        if winner == "tie":
            ties += 1
            continue
        loser = "second" if winner == "first" else "first"
        about = fixed["about"] or {}
        ended = {f"{role}_ended": bool(about[f"{side}_ended"]) for role, side in (("chosen", winner), ("rejected", loser))}
        kept = {name: about[name] for name in ("prompt_id", "group", "split", "source")}
        texts = {"prompt": line["prompt"], "chosen": line[winner], "rejected": line[loser]}
        rows.append({**kept, **texts, **ended, "annotator": annotator or "unnamed"})
    if open_:
        raise DataError(
            f"unanswered {path.name}:{open_[0]}: {len(open_)} lines have no winner yet | {', '.join(WINNERS)} | answer them, or "
            "take them out"
        )
    return pd.DataFrame(rows), ties


def _digest(fixed: dict[str, Any]) -> str:
    """What a line's id says of the rest of it."""
    return hashlib.sha256(json.dumps(fixed, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:12]
