"""Two workers take the steps of one: same losses and weights to 1e-5, and both go on from a checkpoint after a death."""

import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipelines import config
from pipelines.context import Worker
from pipelines.data.tables import read_table
from pipelines.journal import Journal
from pipelines.training import dpo, orpo, reward, sft
from tests import small
from tests.training import helpers

COMMON: dict[str, Any] = {
    "adapter": "lora",
    "precision": "float32",
    "learning_rate": 1e-2,
    "batch_size": 8,
    "micro_batch_size": 4,
    "save_steps": 2,
}


def _job(kind: str, folder: Path, name: str) -> Any:
    model = folder / "model" if (folder / "model").exists() else small.model_folder(folder / "model")
    out, scratch = folder / name / "out", folder / name
    scratch.mkdir()
    if kind in ("sft", "packed"):
        table = helpers.demonstrations(folder)
        some = {"packing": True, "max_length": 48, "batch_size": 4, "micro_batch_size": 1} if kind == "packed" else {}
        return sft.Job(model, table, out, scratch, config.Sft(**(COMMON | some), num_train_epochs=2), 7)
    if kind == "reward":
        training = config.Reward(**COMMON, layers=2, num_train_epochs=2, eval_steps=2, early_stopping_patience=9)
        return reward.Job(model, helpers.pairs(folder), out, scratch, training, 7)
    entry: Any = config.Dpo(**COMMON, method="dpo", num_train_epochs=2)
    if kind == "orpo":
        entry = config.Orpo(**COMMON, method="orpo", num_train_epochs=2)
    return dpo.Job(model, helpers.pairs(folder), out, scratch, entry, 7)


def _on_rank(rank: int, train: Callable[[Any, Worker], None], job: Any, journal: Path, port: int) -> None:
    """One of two processes of a gloo group, with the environment that Ray Train gives them."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    train(job, Worker(rank, 2, "cpu", Journal(journal if rank == 0 else None)))
    torch.distributed.destroy_process_group()


def _on_two(train: Callable[[Any, Worker], None], job: Any, journal: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_on_rank, (train, job, journal, port), nprocs=2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "train"),
    [("sft", sft.train), ("packed", sft.train), ("reward", reward.train), ("dpo", dpo.train), ("orpo", orpo.train)],
)
def test_two_workers_take_the_steps_of_one(tmp_path: Path, kind: str, train: Callable[[Any, Worker], None]) -> None:
    alone, together = _job(kind, tmp_path, "alone"), _job(kind, tmp_path, "together")
    train(alone, helpers.worker())
    _on_two(train, together, tmp_path / "journal")
    one, two = (read_table(job.out / "history.parquet") for job in (alone, together))
    np.testing.assert_allclose(one["loss"], two["loss"], atol=1e-5)
    weights = [helpers.tensors(job.out) for job in (alone, together)]
    assert set(weights[0]) == set(weights[1])
    for name, weight in weights[0].items():
        torch.testing.assert_close(weight, weights[1][name], atol=1e-5, rtol=0)

    # as after a death behind the last checkpoint but one: both ranks go on from it, to the same bits
    expected, last = helpers.digests(together.out), len(one)
    shutil.rmtree(together.scratch / "checkpoints" / f"checkpoint-{last}")
    _on_two(train, together, tmp_path / "resumed")
    assert helpers.steps(tmp_path / "resumed") == [last - 1, last]
    assert helpers.digests(together.out) == expected
