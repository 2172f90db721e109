"""The progress line of a stage: printed by the runner, read by the flow."""

from __future__ import annotations

import re
from typing import Any

LINE = re.compile(
    r"^(?P<stage>\S+)  (?P<step>\d+)/(?P<total>\d+)  *(?P<percent>\d+) %  (?P<rate>[\d.]+) step/s"
    r"  (?P<left>-:--|[\d:]+) left(?:  (?P<metric>\S+) (?P<value>\S+))?"
)


def line_of(name: str, entry: dict[str, Any], first: tuple[float, int], now: float, key_metrics: tuple[str, ...]) -> str:
    """``sft  12/48  25 %  1.9 step/s  0:19 left  loss 2.31``; the rate counts from the first step seen."""
    step, total = entry["step"], max(entry["total"], 1)
    seconds = now - first[0]
    rate = (step - first[1]) / seconds if step > first[1] and seconds >= 0.1 else 0.0
    left = clock((total - step) / rate) if rate else "-:--"
    metrics = entry["metrics"]
    metric = next((name for name in (*key_metrics, *metrics) if name in metrics), "")
    shown = f"  {metric} {metrics[metric]:.4g}" if metric else ""
    note = f"  {entry['note']}" if entry["note"] else ""
    return f"{name}  {step}/{total}  {100 * step // total:3d} %  {rate:.2f} step/s  {left} left{shown}{note}"


def clock(seconds: float) -> str:
    """Seconds as ``m:ss``, or ``h:mm:ss`` from an hour on."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
