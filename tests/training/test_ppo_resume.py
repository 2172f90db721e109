"""Killed and resumed to the bit; damaged checkpoints; numbers that are not finite; several workers."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

from pipelines.context import Worker
from pipelines.errors import PrefloopError
from pipelines.journal import Journal
from pipelines.training.ppo import Job, train
from tests.training import onpolicy
from tests.training.onpolicy import Fault, Poison, alone, final_state, job, outcome, params, weights

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def sft(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return onpolicy.make_folder(tmp_path_factory.mktemp("sft"))


@pytest.fixture(scope="module")
def whole(sft: Path, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """The uninterrupted run: adaptive beta, running normalisation and a refreshed reference, so that their state matters."""
    task = job(sft, tmp_path_factory.mktemp("whole"), stateful())
    alone(task)
    return task


def stateful() -> onpolicy.Ppo:
    return params(kl_target=0.01, kl_horizon=50, normalise_scores="running", snapshot_every=2, reference_refresh_steps=3)


def in_own_process(task: Job, place: Path, rank: int = 0, world_size: int = 1) -> subprocess.Popen:
    """Run a job in a process of its own, as rank ``rank`` of a gloo group."""
    place.mkdir(parents=True, exist_ok=True)
    packed = place / f"job-{rank}.pickle"
    packed.write_bytes(pickle.dumps(task))
    arguments = [str(packed), str(rank), str(world_size), str(place / "store")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "lo"}
    return subprocess.Popen([sys.executable, __file__, *arguments], env=environment, stderr=subprocess.DEVNULL)


def main(packed: str, rank: str, world_size: str, store: str) -> None:
    """One process of ``in_own_process``."""
    torch.set_num_threads(1)
    task = pickle.loads(Path(packed).read_bytes())
    if int(world_size) > 1:
        torch.distributed.init_process_group("gloo", f"file://{store}", rank=int(rank), world_size=int(world_size))
    journal = Journal(task.scratch.parent / "journal.jsonl" if rank == "0" else None)
    train(task, Worker(int(rank), int(world_size), "cpu", journal))


@pytest.mark.parametrize("cut", [1, 4, 6])
def test_a_run_that_was_cut_ends_with_the_same_bits(sft: Path, whole: Job, tmp_path: Path, cut: int) -> None:
    """Cut in the first, a middle and the last step, by an error: results and the final state are equal by hash."""
    task = job(sft, tmp_path, stateful(), Fault("raise", cut, tmp_path / "fired"))
    with pytest.raises(RuntimeError, match="asked for"):
        alone(task)
    assert (tmp_path / "fired").exists()
    alone(task)
    assert final_state(task) == final_state(whole)
    assert outcome(task) == outcome(whole)


def test_kill_9_and_resume_in_a_process_of_its_own(sft: Path, tmp_path: Path) -> None:
    """SIGKILL in step 4 of a real process; a second process goes on from step 2's checkpoint to the same bits.

    The uninterrupted run has a process of its own as well: bits are promised for equal threads, and this one's may differ.
    """
    (tmp_path / "whole").mkdir()
    whole = job(sft, tmp_path / "whole", stateful())
    assert in_own_process(whole, tmp_path / "whole").wait(timeout=120) == 0
    task = job(sft, tmp_path, stateful(), Fault("kill", 4, tmp_path / "fired"))
    assert in_own_process(task, tmp_path).wait(timeout=120) == -signal.SIGKILL
    assert (tmp_path / "fired").exists()
    assert in_own_process(task, tmp_path).wait(timeout=120) == 0
    assert final_state(task) == final_state(whole)
    assert outcome(task) == outcome(whole)


def test_a_damaged_checkpoint_is_passed_over(sft: Path, whole: Job, tmp_path: Path) -> None:
    """The newest checkpoint (step 4) loses half of a file: the run says so, goes on from step 2, ends with the same bits."""
    task = job(sft, tmp_path, stateful(), Fault("raise", 5, tmp_path / "fired"))
    with pytest.raises(RuntimeError):
        alone(task)
    file = task.scratch / "checkpoints" / "step-00000004" / "learner.pt"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    alone(task, tmp_path / "journal.jsonl")
    notes = [json.loads(line)["note"] for line in (tmp_path / "journal.jsonl").read_text().splitlines()]
    expected = "step-00000004 (learner.pt: checksum differs); going on from step-00000002"
    assert sum(expected in note for note in notes) == 1
    assert final_state(task) == final_state(whole)


def test_one_bad_batch_is_skipped_and_counted(sft: Path, tmp_path: Path) -> None:
    """8 prompts, 4 a step: a poisoned prompt is met once in two steps. Over two steps: one batch is left out."""
    prompts = [[2 + n, 3] for n in range(8)]
    task = job(sft, tmp_path, params(steps=2, batch_size=4), Poison(((2, 3),)), prompts)
    alone(task, tmp_path / "journal.jsonl")
    rows = pd.read_parquet(task.out / "history.parquet")
    assert len(rows) == 1
    assert json.loads((task.out / "metrics.json").read_text())["skipped"] == 1
    notes = [json.loads(line)["note"] for line in (tmp_path / "journal.jsonl").read_text().splitlines()]
    assert sum("scores of the rollout is not finite; its batch is left out" in note for note in notes) == 1
    assert all(torch.isfinite(weight).all() for weight in weights(task).values())


def test_second_bad_batch_rolls_back_and_third_stops(sft: Path, tmp_path: Path) -> None:
    """The poisoned prompt comes once in two steps: skipped at first, rolled back the second time, stopped the third."""
    prompts = [[2 + n, 3] for n in range(8)]
    two = job(sft, tmp_path / "two", params(steps=4, batch_size=4), Poison(((2, 3),)), prompts)
    (tmp_path / "two").mkdir()
    alone(two, tmp_path / "two" / "journal.jsonl")
    notes = [json.loads(line)["note"] for line in (tmp_path / "two" / "journal.jsonl").read_text().splitlines()]
    assert sum("rolled back to step 2" in note for note in notes) == 1
    assert json.loads((two.out / "metrics.json").read_text())["skipped"] == 2
    assert len(pd.read_parquet(two.out / "history.parquet")) == 2
    three = job(sft, tmp_path / "three", params(steps=6, batch_size=4), Poison(((2, 3),)), prompts)
    with pytest.raises(PrefloopError, match=r"third batch within 100 steps .*scores|scores.*third batch within 100 steps"):
        alone(three)


def test_two_workers_equal_one(sft: Path, tmp_path: Path) -> None:
    """The same global batches on two processes: figures and weights agree to 1e-5 after three steps."""
    settings = params(steps=3, save_steps=3, kl_target=0.01, kl_horizon=50)
    one = job(sft, tmp_path / "one", settings)
    alone(one)
    two = job(sft, tmp_path / "two", settings)
    workers = [in_own_process(two, tmp_path / "two", rank, 2) for rank in range(2)]
    assert [worker.wait(timeout=120) for worker in workers] == [0, 0]
    for name, weight in weights(one).items():
        torch.testing.assert_close(weights(two)[name], weight, atol=1e-5, rtol=0, msg=name)
    figures = [pd.read_parquet(task.out / "history.parquet") for task in (one, two)]
    pd.testing.assert_frame_equal(figures[0], figures[1], atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("cut", [1, 4, 6])
def test_kill_9_of_a_worker_of_two(sft: Path, tmp_path: Path, cut: int) -> None:
    """Two workers, rank 1 killed: both are started again and end with the bits of an uninterrupted pair."""
    whole = job(sft, tmp_path / "whole", stateful())
    assert [w.wait(timeout=120) for w in [in_own_process(whole, tmp_path / "whole", rank, 2) for rank in range(2)]] == [0, 0]
    place = tmp_path / "cut"
    honest, doomed = (job(sft, place, stateful(), reward) for reward in (None, Fault("kill", cut, tmp_path / "fired")))
    pair = [in_own_process(honest, place, 0, 2), in_own_process(doomed, place, 1, 2)]
    assert pair[1].wait(timeout=120) == -signal.SIGKILL
    assert pair[0].wait(timeout=120) != 0, "a worker whose peer died must not end well"
    (place / "store").unlink(missing_ok=True)
    pair = [in_own_process(honest, place, rank, 2) for rank in range(2)]
    assert [worker.wait(timeout=120) for worker in pair] == [0, 0]
    assert final_state(honest) == final_state(whole)
    assert outcome(honest) == outcome(whole)


if __name__ == "__main__":
    main(*sys.argv[1:])
