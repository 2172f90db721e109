"""Drift on replies that a real (tiny) model has generated: none, sudden, gradual; how often clean windows raise an alarm."""

from __future__ import annotations

import math

import numpy as np
import pytest
from pydantic import ValidationError

from pipelines.config_promotion import Monitor
from pipelines.evaluation import drift
from tests.diagnosis.traffic import (
    CASES,
    SETTINGS,
    Case,
    Rows,
    World,
    alarms,
    clean,
    judged,
    make,
    mixed,
    picked,
    prompts,
    served,
)

POOL = 3000


def test_psi_by_hand() -> None:
    """Ten bins with a tenth each; the window has two tenths in the last and none in the first."""
    reference = np.arange(1000.0)
    window = np.concatenate([np.arange(100.0, 1000.0), np.arange(900.0, 1000.0)])
    expected = (0.2 - 0.1) * math.log(0.2 / 0.1) + (1e-4 - 0.1) * math.log(1e-4 / 0.1)
    assert drift.psi(reference, window) == pytest.approx(expected, rel=1e-9)
    assert drift.psi(reference, reference) == 0.0
    assert drift.psi(np.zeros(50), np.zeros(50)) == 0.0, "a signal that never varies"


def test_mmd_by_hand() -> None:
    """Two points against two: means of the kernel's blocks."""
    gram = drift.kernel(np.array([[0.0], [1.0], [5.0], [6.0]]))
    expected = gram[:2, :2].mean() + gram[2:, 2:].mean() - 2 * gram[:2, 2:].mean()
    assert float(drift.mmd2(gram, np.array([0, 1]), np.array([2, 3]))) == pytest.approx(expected)
    both = drift.mmd2(gram, np.array([[0, 1], [0, 2]]), np.array([[2, 3], [1, 3]]))
    assert both[0] == pytest.approx(expected)
    assert float(drift.mmd2(gram, np.array([0, 0]), np.array([0]))) == pytest.approx(0.0)


def test_a_window_is_large_enough() -> None:
    with pytest.raises(ValidationError, match="greater than or equal to 500"):
        Monitor(window=499)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make(tmp_path_factory.mktemp("traffic"))


@pytest.fixture(scope="module")
def pool(world: World) -> Rows:
    """3,000 replies to other prompts of the same kind."""
    return served(world.models, prompts(POOL, np.random.default_rng(8)), 2)


@pytest.mark.slow
def test_clean_windows_raise_few_alarms(world: World, pool: Rows) -> None:
    """At most 5 alarms in 100 clean windows of 500 replies, all signals together."""
    rng, alarms = np.random.default_rng(3), []
    for _ in range(100):
        found = judged(world, picked(pool, rng.choice(POOL, SETTINGS.window, replace=False)))
        alarms += [(one.signal, one.test) for one in found if one.level == "alarm"]
    assert len(alarms) <= 5, alarms


def test_sudden_drift_is_seen_in_the_first_window(world: World) -> None:
    rng = np.random.default_rng(5)
    longer = served(world.models, prompts(SETTINGS.window, rng, 12, 20), 3)
    found = judged(world, longer)
    assert drift.level_of(found) == "alarm"
    assert {"prompt_tokens"} <= {one.signal for one in found if one.level == "alarm"}
    shorter = served(world.models, prompts(SETTINGS.window, rng), 4, tokens=3)
    alarming = {one.signal for one in judged(world, shorter) if one.level == "alarm"}
    assert {"reply_tokens", "embedding"} <= alarming
    assert "prompt_tokens" not in alarming, "it names what has changed"


def test_gradual_drift_is_seen_before_it_is_whole(world: World, pool: Rows) -> None:
    rng = np.random.default_rng(6)
    other = served(world.models, prompts(SETTINGS.window, rng, 12, 20), 5)
    levels = [drift.level_of(judged(world, mixed(pool, other, share, rng))) for share in (0.02, 0.3, 0.6)]
    assert levels[0] != "alarm", "a near miss"
    assert levels[1:] == ["alarm", "alarm"]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.detector)
def test_a_fault_is_found_within_two_windows_and_its_weak_form_is_not(world: World, case: Case) -> None:
    assert case.detector in [name for spoken in case.run(world) for name in spoken]
    assert case.detector not in [name for spoken in case.miss(world) for name in spoken]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 6))
def test_clean_traffic_raises_no_alarm(world: World, seed: int) -> None:
    assert alarms(world, clean(world, seed)) == []
