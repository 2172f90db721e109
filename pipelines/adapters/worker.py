"""What runs inside a worker process of the cluster: the frame around a training or mapping function."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.context import Worker, make_deterministic
from pipelines.journal import Journal


@dataclass(frozen=True)
class Frame:
    """What the stage's process has and its workers need to be like it."""

    folder: Path
    journal: Path
    threads: int
    seed: int
    gpus: float
    shard: bool = False

    def enter(self) -> None:
        """Working directory, threads, seeds and determinism as in the stage's process."""
        os.chdir(self.folder)
        make_deterministic(self.seed, self.threads)


def train_here(config: dict[str, Any]) -> None:
    """The training function that Ray Train calls on every worker: ``config`` has the frame, the function and its job."""
    import ray
    from ray.train import get_context
    from ray.train.torch import get_device

    frame, function = config["frame"], config["function"]
    frame.enter()
    rank, here = get_context().get_world_rank(), ray.get_runtime_context()
    record(frame.journal, "train", function, rank=rank, node=here.get_node_id(), actor=str(here.get_actor_id()))
    journal = Journal(frame.journal if rank == 0 else None)
    size = get_context().get_world_size()
    function(config["job"], Worker(rank, size, str(get_device()), journal, frame.shard and size > 1))


class Mapper:
    """An actor that maps; one a worker."""

    def __init__(self, frame: Frame) -> None:
        self.frame = frame

    def call(
        self,
        function: Callable[[Any, Sequence[Any], Worker], list],
        job: Any,
        items: Sequence[Any],
        rank: int,
        size: int,
    ) -> list:
        """Call ``function`` on one shard."""
        import ray

        self.frame.enter()
        here = ray.get_runtime_context()
        record(self.frame.journal, "map", function, rank=rank, node=here.get_node_id(), actor=str(here.get_actor_id()))
        journal = Journal(self.frame.journal if rank == 0 else None)
        return function(job, items, Worker(rank, size, device_here(self.frame.gpus), journal))


def device_here(gpus: float) -> str:
    """The device of this process: Ray shows a worker only the GPUs that are its own."""
    if gpus:
        import torch

        if torch.cuda.is_available():
            return "cuda:0"
    return "cpu"


def record(journal: Path, call: str, function: Callable, rank: int, node: str, actor: str) -> None:
    """Note beside the journal where a call runs: node and actor are Ray's ids, empty in local mode."""
    name = f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', repr(function))}"
    line = {"call": call, "function": name, "rank": rank, "node": node, "actor": actor, "pid": os.getpid()}
    journal.parent.mkdir(parents=True, exist_ok=True)
    with (journal.parent / "placements.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
