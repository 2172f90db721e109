"""Killed and resumed to the bit; damaged checkpoints; numbers that are not finite; several workers."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from pipelines.errors import PrefloopError
from pipelines.training import checkpoints
from pipelines.training.ppo import Job
from tests.training import onpolicy
from tests.training.onpolicy import Fault, Poison, TwoGroups, alone, final_state, job, outcome, params, weights
from tests.training.processes import in_own_process, two


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


@pytest.fixture(scope="module")
def whole_apart(sft: Path, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """The uninterrupted run in a process of its own: bits are promised for equal threads, and this one's may differ."""
    place = tmp_path_factory.mktemp("apart")
    task = job(sft, place, stateful())
    assert in_own_process(task, place).wait(timeout=120) == 0
    return task


@pytest.mark.parametrize("cut", [4, *(pytest.param(cut, marks=pytest.mark.slow) for cut in (1, 6))])
def test_kill_9_and_resume_in_a_process_of_its_own(sft: Path, whole_apart: Job, tmp_path: Path, cut: int) -> None:
    """SIGKILL in a middle, the first and the last step of a real process; a second process goes on to the same bits."""
    task = job(sft, tmp_path, stateful(), Fault("kill", cut, tmp_path / "fired"))
    assert in_own_process(task, tmp_path).wait(timeout=120) == -signal.SIGKILL
    assert (tmp_path / "fired").exists()
    assert in_own_process(task, tmp_path).wait(timeout=120) == 0
    assert final_state(task) == final_state(whole_apart)
    assert outcome(task) == outcome(whole_apart)


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


UNBOUNDED: dict[str, Any] = {"score_clip": 0.0, "normalise_scores": "none", "whiten_advantages": False}


@pytest.mark.parametrize(
    ("value", "changes", "fault"),
    [
        (float("nan"), {}, "scores of the rollout"),
        (1e30, UNBOUNDED, "loss or gradient of the update"),  # its square is beyond float32
    ],
)
def test_one_bad_batch_is_skipped_and_counted(
    sft: Path, tmp_path: Path, value: float, changes: dict[str, Any], fault: str
) -> None:
    """8 prompts, 4 a step: a poisoned prompt is met once in two steps. Over two steps: one batch is left out."""
    prompts = [[2 + n, 3] for n in range(8)]
    task = job(sft, tmp_path, params(steps=2, batch_size=4, **changes), Poison(((2, 3),), value), prompts)
    alone(task, tmp_path / "journal.jsonl")
    rows = pd.read_parquet(task.out / "history.parquet")
    assert len(rows) == 1
    assert json.loads((task.out / "metrics.json").read_text())["skipped"] == 1
    notes = [json.loads(line)["note"] for line in (tmp_path / "journal.jsonl").read_text().splitlines()]
    assert sum(f"{fault} is not finite; its batch is left out" in note for note in notes) == 1
    assert all(torch.isfinite(weight).all() for weight in weights(task).values())


def test_a_policy_that_has_diverged_stops_with_the_cause(sft: Path, tmp_path: Path) -> None:
    """A rate far too high: from the second step on no log-probability is a number. No checkpoint holds one that is not."""
    task = job(sft, tmp_path, params(learning_rate=1e25, save_steps=1))
    with pytest.raises(PrefloopError, match=r"logprobs of the rollout is not finite, the third .* lower learning_rate"):
        alone(task)
    found = checkpoints.newest(task.scratch / "checkpoints")
    assert found is not None
    assert all(torch.isfinite(weight).all() for weight in found[1]["learner"]["weights"].values())


def test_weights_that_are_not_finite_are_never_kept(sft: Path, tmp_path: Path) -> None:
    task = job(sft, tmp_path, params(learning_rate=1e39, save_steps=1))
    with pytest.raises(PrefloopError, match=r"learner.weights.* not saved; lower learning_rate"):
        alone(task)
    assert checkpoints.newest(task.scratch / "checkpoints") is None


def test_second_bad_batch_rolls_back_and_third_stops(sft: Path, tmp_path: Path) -> None:
    """The poisoned prompt comes once in two steps: skipped at first, rolled back the second time, stopped the third."""
    prompts = [[2 + n, 3] for n in range(8)]
    twice = job(sft, tmp_path / "two", params(steps=4, batch_size=4), Poison(((2, 3),)), prompts)
    (tmp_path / "two").mkdir()
    alone(twice, tmp_path / "two" / "journal.jsonl")
    notes = [json.loads(line)["note"] for line in (tmp_path / "two" / "journal.jsonl").read_text().splitlines()]
    assert sum("rolled back to step 2" in note for note in notes) == 1
    assert json.loads((twice.out / "metrics.json").read_text())["skipped"] == 2
    assert len(pd.read_parquet(twice.out / "history.parquet")) == 2
    three = job(sft, tmp_path / "three", params(steps=6, batch_size=4), Poison(((2, 3),)), prompts)
    with pytest.raises(PrefloopError, match=r"third batch within 100 steps .*scores|scores.*third batch within 100 steps"):
        alone(three)


@pytest.mark.parametrize("reward", [None, pytest.param(TwoGroups(), marks=pytest.mark.slow)])
def test_two_workers_equal_one(sft: Path, tmp_path: Path, reward: TwoGroups | None) -> None:
    """The same global batches on two processes: figures and weights agree to 1e-5 after three steps. Under MaxMin too, where
    both workers go up for the group that is worst off over all answers."""
    settings = params(steps=3, save_steps=3, kl_target=0.01, kl_horizon=50)
    one = job(sft, tmp_path / "one", settings, reward)
    alone(one)
    both = job(sft, tmp_path / "both", settings, reward)
    assert two(both, tmp_path / "both") == [0, 0]
    for name, weight in weights(one).items():
        torch.testing.assert_close(weights(both)[name], weight, atol=1e-5, rtol=0, msg=name)
    figures = [pd.read_parquet(task.out / "history.parquet") for task in (one, both)]
    pd.testing.assert_frame_equal(figures[0], figures[1], atol=1e-5, rtol=1e-5)


@pytest.fixture(scope="module")
def whole_pair(sft: Path, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """The uninterrupted run of two workers."""
    place = tmp_path_factory.mktemp("pair")
    task = job(sft, place, stateful())
    assert two(task, place) == [0, 0]
    return task


@pytest.mark.slow
@pytest.mark.parametrize("cut", [1, 4, 6])
def test_kill_9_of_a_worker_of_two(sft: Path, whole_pair: Job, tmp_path: Path, cut: int) -> None:
    """Two workers, rank 1 killed: both are started again and end with the bits of an uninterrupted pair."""
    honest, doomed = (job(sft, tmp_path, stateful(), reward) for reward in (None, Fault("kill", cut, tmp_path / "fired")))
    pair = [in_own_process(honest, tmp_path, 0, 2), in_own_process(doomed, tmp_path, 1, 2)]
    assert pair[1].wait(timeout=120) == -signal.SIGKILL
    assert pair[0].wait(timeout=120) != 0, "a worker whose peer died must not end well"
    assert two(honest, tmp_path) == [0, 0]
    assert final_state(honest) == final_state(whole_pair)
    assert outcome(honest) == outcome(whole_pair)
