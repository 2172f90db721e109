"""The cluster that stage tests run on: this process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pipelines.context import Worker
from pipelines.journal import Journal


class Here:
    """A cluster in this process that cuts the work into shards, as one with several workers does."""

    def __init__(self, shards: int) -> None:
        self.workers = shards

    def train(self, function: Callable[[Any, Worker], None], job: Any, scratch: Path) -> None:
        function(job, Worker(0, 1, "cpu", Journal(None)))

    def map(self, function: Callable[[Any, Sequence[Any], Worker], list], job: Any, items: Sequence[Any]) -> list:
        if not items:
            return []
        size = -(-len(items) // self.workers)
        shards = [items[start : start + size] for start in range(0, len(items), size)]
        return [row for shard in shards for row in function(job, shard, Worker(0, 1, "cpu", Journal(None)))]
