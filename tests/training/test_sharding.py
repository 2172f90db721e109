"""Layers split over two workers (FSDP2 on gloo) train like one whole model, and go on from each other's checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from pipelines.models.loading import load_causal_lm
from pipelines.models.reward import new_reward, save_reward
from pipelines.training.ppo import Job
from pipelines.training.rewards import LearnedReward
from tests.training import onpolicy
from tests.training.onpolicy import CountReward, Fault, alone, final_state, job, outcome, params, weights
from tests.training.processes import two

RICH: dict[str, Any] = {"kl_target": 0.01, "kl_horizon": 50, "snapshot_every": 2, "reference_refresh_steps": 2}


@pytest.fixture(scope="module")
def sft(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return onpolicy.make_folder(tmp_path_factory.mktemp("sft"))


def same(one: Job, other: Job) -> None:
    """Weights, figures and the saved model agree to 1e-5."""
    found = weights(other)
    for name, weight in weights(one).items():
        torch.testing.assert_close(found[name], weight, atol=1e-5, rtol=0, msg=name)
    figures = [pd.read_parquet(task.out / "history.parquet") for task in (one, other)]
    pd.testing.assert_frame_equal(figures[0], figures[1], atol=1e-5, rtol=1e-5)
    models = [load_causal_lm(task.out / "model") for task in (one, other)]
    for name, weight in models[0].named_parameters():
        torch.testing.assert_close(models[1].get_parameter(name), weight, atol=1e-5, rtol=0, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("adapter", ["lora", "none"])
def test_a_sharded_pair_equals_one_worker(sft: Path, tmp_path: Path, adapter: str) -> None:
    """Three steps with clipping, adaptive beta, a snapshot and a refreshed reference. Micro-batches of 1: the workers differ in
    their number of passes, so that they must pass along with each other."""
    settings = params(steps=3, save_steps=3, micro_batch_size=1, adapter=adapter, max_grad_norm=0.05, **RICH)
    one, pair = (job(sft, tmp_path / name, settings) for name in ("one", "pair"))
    alone(one)
    assert two(pair, tmp_path / "pair", shard=True) == [0, 0]
    same(one, pair)
    assert sorted(p.name for p in (pair.out / "snapshots").iterdir()) == ["step-000002"]


@pytest.mark.slow
def test_a_critic_of_its_own_and_bf16(sft: Path, tmp_path: Path) -> None:
    """A sharded critic that began as the reward model, in warm-up and after it; frozen layers in bfloat16 beside float32."""
    reward = new_reward(sft, "mean", layers=1)
    torch.nn.init.normal_(reward.head.weight, generator=torch.Generator().manual_seed(0))
    save_reward(reward, tmp_path / "reward")
    source = LearnedReward(tmp_path / "reward", sft, 8, "float32")
    for name, changes in (("float32", {}), ("bf16", {"precision": "bf16"})):
        settings = params(steps=2, save_steps=2, critic="reward", critic_warmup_steps=1, **changes)
        whole, split = (job(sft, tmp_path / name / kind, settings, source) for kind in ("whole", "split"))
        assert two(whole, tmp_path / name / "whole") == [0, 0]
        assert two(split, tmp_path / name / "split", shard=True) == [0, 0]
        same(whole, split)


@pytest.mark.slow
@pytest.mark.parametrize("adapter", ["lora", "none"])
def test_a_sharded_run_goes_on_from_a_checkpoint_to_the_same_bits(sft: Path, tmp_path: Path, adapter: str) -> None:
    """Both workers fail in step 4 and go on from step 2. A whole worker goes on from a sharded checkpoint as well (1e-5)."""
    settings = params(adapter=adapter, **RICH)
    whole, cut = (
        job(sft, tmp_path / "whole", settings),
        job(sft, tmp_path / "cut", settings, Fault("raise", 4, tmp_path / "fired")),
    )
    assert two(whole, tmp_path / "whole", shard=True) == [0, 0]
    assert 0 not in two(cut, tmp_path / "cut", shard=True)
    assert two(cut, tmp_path / "cut", shard=True) == [0, 0]
    assert final_state(cut) == final_state(whole)
    assert outcome(cut) == outcome(whole)
    moved = job(sft, tmp_path / "moved", settings, Fault("raise", 4, tmp_path / "fired-again"))
    assert 0 not in two(moved, tmp_path / "moved", shard=True)
    alone(job(sft, tmp_path / "moved", settings, CountReward()))
    same(whole, moved)
