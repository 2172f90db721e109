"""Served replies, as whoever serves logs them: JSONL or Parquet with prompt, reply, model_version, time, and optionally vote."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pandas as pd

from pipelines.errors import DataError

NEEDED = ("prompt", "reply", "model_version", "time")
VERSION = re.compile(r"(\d+)$")


def read_replies(path: Path) -> pd.DataFrame:
    """The replies in the order of their time: ``prompt``, ``reply``, ``version`` (a number as text), ``time``, ``vote``.

    ``vote`` is 1, 0 or missing (thumb up, down, none). Raises DataError that names the line, or the column, at fault.
    """
    if not path.is_file():
        raise DataError(f"{path.name}: no such log of replies; docs/serving.md shows how to write one")
    table = _parquet(path) if path.suffix == ".parquet" else _jsonl(path)
    missing = [name for name in NEEDED if name not in table.columns]
    if missing:
        raise DataError(f"{path.name}: missing: {', '.join(missing)}; found: {', '.join(map(str, table.columns)) or 'nothing'}")
    for name in ("prompt", "reply", "model_version"):
        wrong = [number for number, value in enumerate(table[name], start=1) if not isinstance(value, str)]
        if wrong:
            raise DataError(f"{path.name}:{wrong[0]} {name}: expected a string ({len(wrong)} of {len(table)} rows)")
    versions = [VERSION.search(text) for text in table["model_version"]]
    if None in versions:
        raise DataError(f"{path.name}:{versions.index(None) + 1} model_version: expected a number, or models:/NAME/NUMBER")
    try:
        times = pd.to_datetime(table["time"], utc=True, format="ISO8601" if table["time"].dtype == object else None)
    except (ValueError, TypeError) as error:
        raise DataError(f"{path.name}: time: {' '.join(str(error).split())[:200]}; write ISO 8601") from error
    votes = pd.to_numeric(table["vote"], errors="coerce") if "vote" in table else pd.Series(float("nan"), index=table.index)
    frame = pd.DataFrame({
        "prompt": table["prompt"], "reply": table["reply"], "version": [str(found[1]) for found in versions if found],
        "time": times, "vote": votes.astype(float),
    })  # fmt: skip
    return frame[frame["prompt"].str.strip() != ""].sort_values("time", kind="stable").reset_index(drop=True)


def _jsonl(path: Path) -> pd.DataFrame:
    rows = []
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path.name}:{number}: not a line of JSON ({error}); mend or drop the line") from error
        if not isinstance(row, dict):
            raise DataError(f"{path.name}:{number}: expected an object, got {type(row).__name__}")
        rows.append(row)
    return pd.DataFrame(rows)


def _parquet(path: Path) -> pd.DataFrame:
    from pipelines.data.tables import read_table

    return read_table(path)
