"""Functions that the workers of the tests run; a module of its own, because workers import it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from pipelines.context import Worker
from pipelines.errors import DataError


@dataclass(frozen=True)
class Job:
    """Where to write, and what the toy training is told to suffer."""

    out: Path
    steps: int = 4
    kill_rank: int = -1
    kill_step: int = -1
    fail_rank: int = -1


def regression(job: Job, worker: Worker) -> None:
    """Gradient descent on 0.5 (w x - y)^2 over a global batch of 8 rows that the ranks share; one checkpoint a step."""
    if worker.rank == job.fail_rank:
        raise DataError("rows.jsonl:3 [prompt] empty (1 of 8) | at least 1 character | remove the row")
    x = torch.arange(1.0, 9.0)
    y = 2.0 * x
    rows = slice(worker.rank * 8 // max(1, worker.world_size), (worker.rank + 1) * 8 // max(1, worker.world_size))
    saved = job.out / "step.pt"
    step, w = torch.load(saved) if saved.exists() else (0, torch.zeros(()))
    while step < job.steps:
        gradient = ((w * x[rows] - y[rows]) * x[rows]).sum()
        if worker.world_size > 1:
            torch.distributed.all_reduce(gradient)
        w = w - 0.01 * gradient / 8
        step += 1
        if worker.rank == 0:
            torch.save((step, w), job.out / "next.pt")
            (job.out / "next.pt").replace(saved)
        worker.journal.log(step, job.steps, {"w": float(w)})
        flag = job.out / "killed"
        if worker.rank == job.kill_rank and step == job.kill_step and not flag.exists():
            flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)
    if worker.rank == 0:
        torch.save(w, job.out / "w.pt")


def defect(job: Job, worker: Worker) -> None:
    """An error of the code itself, counted."""
    with (job.out / "calls").open("a") as file:
        file.write("x")
    raise KeyError("a defect")


def squares(job: int, items: Sequence[int], worker: Worker) -> list[int]:
    """item^2 + job."""
    return [item * item + job for item in items]


def where(job: None, items: Sequence[int], worker: Worker) -> list[tuple[int, int, int, str]]:
    """(item, rank, pid, folder)."""
    return [(item, worker.rank, os.getpid(), os.getcwd()) for item in items]


def dies_once(job: Path, items: Sequence[int], worker: Worker) -> list[int]:
    """The second shard kills its process the first time."""
    flag = job / "mapped"
    if worker.rank == 1 and not flag.exists():
        flag.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return list(items)


def refuses(job: None, items: Sequence[int], worker: Worker) -> list[int]:
    """A person's mistake, found while mapping."""
    raise DataError("prompts.parquet: 0 rows left")


def sleeps(job: Path, worker: Worker) -> None:
    """Says that it runs, and stays."""
    (job / f"pid-{os.getpid()}").touch()
    time.sleep(600)
