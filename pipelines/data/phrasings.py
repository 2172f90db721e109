"""One intent in every phrasing that the recipe has for it: what the sensitivity to the prompt's wording is measured on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from pipelines.config.data import Prepare
from pipelines.data import phrasing, sources
from pipelines.data.plays import Speech
from pipelines.data.problems import BadRow, Ledger
from pipelines.data.templates import Phrasings

COLUMNS = ["intent", "template", "prompt"]


def of_plays(speeches: list[Speech], prepare: Prepare, wanted: list[str]) -> pd.DataFrame:
    """The speeches whose ids are ``wanted``, asked for in each of the four phrasings."""
    said = {speech.id: speech for speech in speeches}
    rows = [
        (id_, name, phrasing.prompt_of(name, said[id_].speaker, said[id_].text.split()[: prepare.prompt_words]))
        for id_ in wanted
        for name in sorted(phrasing.TEMPLATES)
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def of_sources(prepare: Prepare, root: Path, seed: int, wanted: list[str]) -> pd.DataFrame:
    """The records that were drawn as the prompts ``wanted``, in every template of their task that asks for the same answer.

    Sources without templates have one phrasing a record, and give no rows.
    """
    found: dict[str, dict[str, str]] = {}
    for name, source in prepare.sources.items():
        if not source.templates:
            continue
        known = Phrasings(root / source.templates, name, source, prepare.mixture, seed)
        left = {id_ for id_ in wanted if id_.rpartition("-")[0] == name}
        for number, (_, record, _) in enumerate(sources.records(name, source, root, Ledger(), prepare.max_row_bytes)):
            if not left:
                break
            id_ = f"{name}-{number:06d}"
            if id_ in left:
                left.remove(id_)
                found[id_] = _same_answer(known, record)
    rows = [(id_, name, prompt) for id_ in wanted for name, prompt in found.get(id_, {}).items()]
    return pd.DataFrame(rows, columns=COLUMNS)


def _same_answer(known: Phrasings, record: dict[str, Any]) -> dict[str, str]:
    """Template -> prompt of the templates that ask for the most common answer (an inverse one asks for the question)."""
    try:
        sides = known.every(record)
    except BadRow:
        return {}
    groups: dict[str, dict[str, str]] = {}
    for name, (prompt, answer) in sides.items():
        groups.setdefault(answer.strip(), {})[name] = prompt
    largest = max(groups.values(), key=len, default={})
    return largest if len(set(largest.values())) > 1 else {}
