"""Faults in real trainings: the quick ones here at every run, all of them and the clean seeds among the slow tests."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from pipelines.diagnosis import examine
from tests.diagnosis import faults
from tests.diagnosis.faults import CASES, HEALTHY, Case, in_time, on_policy, pairwise, rollout_temperature


def test_old_logprobs_at_another_temperature(tmp_path: Path) -> None:
    """Two steps of PPO: the ratio before the first update is not 1, and both steps say so."""
    record = on_policy(tmp_path, steps=2, inject=partial(rollout_temperature, 1.3))
    (found,) = [one for one in examine(record) if one.detector == "D7"]
    assert (found.first_step, found.steps) == (1, 2)
    assert found.causes[0].startswith("rollout and update")


def test_top_k_sampling_is_seen_in_three_steps(tmp_path: Path) -> None:
    found = {one.detector: one for one in examine(on_policy(tmp_path, steps=3, top_k=6))}
    assert found["D5"].first_step == 3
    assert "top_k" in found["D5"].causes[0]
    assert not [one for one in examine(on_policy(tmp_path / "honest", steps=3)) if one.detector == "D5"]


def test_pairs_with_equal_sides(tmp_path: Path) -> None:
    (found,) = examine(pairwise(tmp_path, same=True))
    assert (found.detector, found.first_step) == ("D18", 20)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.detector)
def test_a_fault_is_found_and_its_weak_form_is_not(case: Case, tmp_path: Path) -> None:
    assert in_time(case, case.run(tmp_path / "fault"))
    assert case.detector not in [one.detector for one in examine(case.miss(tmp_path / "near"))]


@pytest.mark.slow
@pytest.mark.parametrize("seed", faults.SEEDS)
@pytest.mark.parametrize("name", HEALTHY)
def test_a_clean_run_says_nothing(name: str, seed: int, tmp_path: Path) -> None:
    assert examine(HEALTHY[name](tmp_path, seed)) == []
