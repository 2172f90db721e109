"""The journal of a stage: one JSON line a step, written where the work happens, read by whoever shows or keeps it.

A stage (or rank 0 of its workers) appends; the runner follows the file and passes the lines on to the terminal and to
the tracker. Training therefore never waits for a tracking server, and a line that was written is never lost.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

UNFIT = re.compile(r"[^\w .-]")
"""What a name that people gave (of a group) may hold and the name of a metric may not."""


class Journal:
    """Appends to ``path``; ``None`` writes nothing (the workers other than rank 0)."""

    def __init__(self, path: Path | None) -> None:
        self.path = path

    def log(
        self,
        step: int,
        total: int,
        metrics: dict[str, float] | None = None,
        timings: dict[str, float] | None = None,
        note: str = "",
    ) -> None:
        """Record step ``step`` of ``total``: reproducible ``metrics``, and ``timings`` (seconds, bytes), which are not."""
        if self.path is None:
            return
        line = {"step": step, "total": total, "metrics": metrics or {}, "timings": timings or {}, "note": note}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def metric_name(name: str) -> str:
    """``name`` as a part of a metric's name."""
    return UNFIT.sub("_", name)


def read_from(path: Path, offset: int) -> tuple[list[dict], int]:
    """Return the whole lines of ``path`` after byte ``offset`` and the offset behind them."""
    if not path.exists():
        return [], offset
    with path.open("rb") as file:
        file.seek(offset)
        block = file.read()
    end = block.rfind(b"\n") + 1
    return list(_parsed(block[:end])), offset + end


def _parsed(block: bytes) -> Iterator[dict]:
    for line in block.splitlines():
        if line.strip():
            yield json.loads(line)
