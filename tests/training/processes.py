"""A training job in processes of their own: one worker, or several of a gloo group, as they are in a cluster."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import torch

from pipelines.context import Worker
from pipelines.journal import Journal
from pipelines.training.ppo import Job, train

ROOT = Path(__file__).parents[2]


def in_own_process(task: Job, place: Path, rank: int = 0, world_size: int = 1, shard: bool = False) -> subprocess.Popen:
    """Run a job in a process of its own, as rank ``rank`` of a gloo group."""
    place.mkdir(parents=True, exist_ok=True)
    packed = place / f"job-{rank}.pickle"
    packed.write_bytes(pickle.dumps(task))
    arguments = [str(packed), str(rank), str(world_size), str(place / "store"), "shard" if shard else "whole"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "lo"}
    return subprocess.Popen([sys.executable, __file__, *arguments], env=environment, stderr=subprocess.DEVNULL)


def two(task: Job, place: Path, shard: bool = False) -> list[int]:
    """Run a job on two workers; their exit codes."""
    (place / "store").unlink(missing_ok=True)
    workers = [in_own_process(task, place, rank, 2, shard) for rank in range(2)]
    try:
        return [worker.wait(timeout=120) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()


def main(packed: str, rank: str, world_size: str, store: str, shard: str) -> None:
    """One process of ``in_own_process``."""
    torch.set_num_threads(1)
    task = pickle.loads(Path(packed).read_bytes())
    if int(world_size) > 1:
        torch.distributed.init_process_group("gloo", f"file://{store}", rank=int(rank), world_size=int(world_size))
    journal = Journal(task.scratch.parent / "journal.jsonl" if rank == "0" else None)
    train(task, Worker(int(rank), int(world_size), "cpu", journal, shard == "shard"))


if __name__ == "__main__":
    main(*sys.argv[1:])
