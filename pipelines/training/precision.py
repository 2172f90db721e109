"""Is this machine slow at the chosen precision? Measured before training, said in the journal, never decided upon.

The precision is a parameter that defines the result, so nothing is switched here: a person reads the note and chooses.
"""

from __future__ import annotations

import time

import torch

from pipelines.config import Precision
from pipelines.context import Worker

ROWS, INNER, OUTER = 512, 576, 1536
REPEATS = 5
SLOWER = 1.3
"""A difference below this is noise on a shared machine."""


def tell_if_slow(precision: Precision, worker: Worker, total: int) -> None:
    """Write a note to the journal if the other precision multiplies matrices clearly faster here."""
    note = advice(precision, {name: multiplication_seconds(name, worker.device) for name in ("float32", "bf16")})
    if note:
        worker.journal.log(0, total, note=note)


def advice(precision: Precision, seconds: dict[str, float]) -> str:
    """What to say, given the seconds of the same multiplication in both precisions; empty if nothing."""
    other = "float32" if precision == "bf16" else "bf16"
    ratio = seconds[precision] / seconds[other]
    if ratio < SLOWER:
        return ""
    return f"this machine multiplies {ratio:.1f} times slower in {precision} than in {other}; precision: {other} would be faster"


def multiplication_seconds(precision: str, device: str) -> float:
    """The best of a few times for one matrix product, [512, 576] x [576, 1536]."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    left = torch.ones(ROWS, INNER, dtype=dtype, device=device)
    right = torch.ones(INNER, OUTER, dtype=dtype, device=device)
    best = float("inf")
    for _ in range(REPEATS):
        started = time.perf_counter()
        (left @ right).sum().item()
        best = min(best, time.perf_counter() - started)
    return best
