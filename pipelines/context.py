"""What a stage is given: its parameters, where to read and write, and the rim (cluster, journal) behind small interfaces."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pipelines.config import Params
from pipelines.journal import Journal


@dataclass(frozen=True)
class Worker:
    """One of the processes that train together. In local mode there is one, in the stage's own process."""

    rank: int
    world_size: int
    device: str
    journal: Journal
    """Writes on rank 0 only."""
    shard: bool = False
    """Whether the layers of the models that train are split over the workers (``runtime.shard``; on-policy training)."""


class Cluster(Protocol):
    """Ray, seen from a stage: local mode with ``runtime.workers: 0``, worker groups and actors otherwise."""

    @property
    def workers(self) -> int:
        """The number of worker processes; 0 = in this process."""

    def train(self, function: Callable[[Any, Worker], None], job: Any, scratch: Path) -> None:
        """Run ``function(job, worker)`` on every worker of one group, as a distributed training function.

        Both must be picklable (a module's function, a dataclass of plain values and paths). The function writes its
        results under ``scratch`` (rank 0) and returns nothing. A worker that dies is replaced, and the function is
        called again on every worker: it has to go on from its own newest checkpoint under ``scratch``.
        """

    def map(self, function: Callable[[Any, Sequence[Any], Worker], list], job: Any, items: Sequence[Any]) -> list:
        """Cut ``items`` into one run of neighbours a worker, call ``function(job, shard, worker)`` on each, join the lists.

        The result must not depend on the number of shards.
        """


@dataclass(frozen=True)
class Context:
    """Everything that a stage's ``run(ctx)`` may touch."""

    stage: str
    """As in dvc.yaml: ``sft``, ``policy@ppo``."""
    params: Params
    root: Path
    scratch: Path
    """``.runs/STAGE/KEY``: resumable state; KEY is the fingerprint of the inputs; removed when the stage has finished."""
    journal: Journal
    cluster: Cluster

    @property
    def name(self) -> str:
        """The entry of ``policies:`` that this stage is for (``ppo`` in ``policy@ppo``); empty for the other stages."""
        return self.stage.partition("@")[2]

    @property
    def artifacts(self) -> Path:
        """Where finished outputs of earlier stages are read."""
        return self.root / "artifacts"

    def out(self, relative: str) -> Path:
        """Where to write the output ``artifacts/<relative>``: a staging path, moved into place when the stage has finished."""
        path = self.scratch / "outs" / "artifacts" / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


def seed_for(*parts: object) -> int:
    """A 63-bit seed from names and numbers, the same in every process: ``seed_for(params.seed, "ppo", step, row)``."""
    digest = hashlib.sha256(":".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def make_deterministic(seed: int, threads: int, with_torch: bool = True) -> None:
    """Seeds, threads and algorithms of this process; the same in the stage's own and in every worker's."""
    import numpy

    random.seed(seed)
    numpy.random.seed(seed % 2**32)
    if not with_torch:
        return
    import torch

    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    # use_deterministic_algorithms(True, warn_only=True) but for torch.compile, whose compiler it would import: 1.4 s
    torch.set_deterministic_debug_mode("warn")
    # a debugging aid that comes with it and writes every new tensor twice
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
