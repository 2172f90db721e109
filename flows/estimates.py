"""What a run would cost: time, memory and disk of each stage, as this folder or the published benchmark measured them."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows import recipes
from pipelines.progress import clock
from tasks import versions

BENCHMARK = Path("benchmarks/results/seeds.json")
MEBIBYTE = 2**20


@dataclass(frozen=True)
class Estimate:
    """Seconds, bytes of memory at the peak, bytes written; and where the figures come from."""

    seconds: float
    memory: int
    disk: int
    source: str


def of_stage(root: Path, stage: str) -> Estimate | None:
    """From this folder's last run of the stage, else from the benchmark of the default recipe; None when neither has it."""
    try:
        facts = json.loads((root / ".runs" / stage / "last.json").read_text(encoding="utf-8"))
        return Estimate(facts["seconds"], facts["peak_rss_bytes"], facts["out_bytes"], "last run here")
    except (OSError, ValueError, KeyError):
        pass
    measured = _benchmark(root, stage)
    if not measured:
        return None
    median = {key: statistics.median(facts[key] for facts in measured) for key in ("seconds", "peak_rss_bytes", "out_bytes")}
    return Estimate(
        median["seconds"], int(median["peak_rss_bytes"]), int(median["out_bytes"]), "benchmark of the default recipe, 2 cores"
    )


def table(root: Path, plan: versions.Plan) -> str:
    """The dry run: every stage that would run or be restored, and the totals."""
    rows = [("stage", "would", "time", "memory", "disk", "estimated from", "why")]
    seconds, memory, disk, unknown = 0.0, 0, 0, 0
    for planned in plan.stages:
        found = of_stage(root, planned.stage) if planned.action == "run" else None
        if planned.action == "run" and found is None:
            unknown += 1
        if found is not None:
            seconds, memory, disk = seconds + found.seconds, max(memory, found.memory), disk + found.disk
        cells = (clock(found.seconds), size(found.memory), size(found.disk), found.source) if found else ("", "", "", "")
        source = cells[3] or ("not measured" if planned.action == "run" else "")
        rows.append((planned.stage, planned.action if planned.action != "unchanged" else "-", *cells[:3], source, planned.why))
    lines = aligned(rows)
    if not plan.names("run"):
        return "\n".join([*lines, "", "nothing would run"])
    recipe = recipes.current(root)
    total = (
        f"{f'recipe {recipe}' if recipe else 'params.yaml (no recipe has it)'}: {len(plan.names('run'))} stages would run: "
        f"about {clock(seconds)} one after the other, {size(memory)} of memory at the peak, {size(disk)} written"
        f"{f'; {unknown} not measured' if unknown else ''}; DVC's cache takes the same disk once more"
    )
    return "\n".join([*lines, "", total])


def size(count: int) -> str:
    """Bytes for people: ``540 MiB``."""
    return f"{count / MEBIBYTE / 1024:.1f} GiB" if count >= 1024 * MEBIBYTE else f"{count / MEBIBYTE:.0f} MiB"


def aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Columns as wide as their widest cell."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _benchmark(root: Path, stage: str) -> list[dict[str, Any]]:
    try:
        seeds = json.loads((root / BENCHMARK).read_text(encoding="utf-8"))["seeds"].values()
    except (OSError, ValueError, KeyError):
        return []
    return [run["stages"][stage] for run in seeds if stage in run.get("stages", {})]
