"""The correctness gate: on an enumerable language model every method reaches the optimum that theory says (docs/ppo.md)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipelines.data.tables import read_table
from tests.training import toy
from tests.training.toy import METHODS, Optimum, beta_at, distribution, params, variation


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.Tensor]:
    folder = toy.make_folder(tmp_path_factory.mktemp("toy"))
    return folder, distribution(folder)


def reaches_the_optimum(reference: tuple[Path, torch.Tensor], out: Path, method: str, distance: float, seed: int) -> None:
    """Gain of at least 0.99 of (J* - J_ref), total variation to pi* below 0.02."""
    folder, probabilities = reference
    optimum = Optimum(probabilities, beta_at(probabilities, distance))
    found = toy.run(folder, out, params(optimum.beta, **METHODS[method]), seed)
    assert optimum.share_of_gain(found) >= 0.99
    assert variation(found, optimum.best) < 0.02


def test_the_oracle_itself(reference: tuple[Path, torch.Tensor]) -> None:
    """The 64 probabilities sum to 1; pi* attains J* = beta log E_ref[exp(r / beta)]; every other policy has less."""
    _, probabilities = reference
    assert float(probabilities.sum()) == pytest.approx(1.0, abs=1e-5)
    reference_64 = probabilities / probabilities.sum()
    for distance in (0.7, 0.5, 0.3):
        optimum = Optimum(reference_64, beta_at(reference_64, distance))
        assert variation(reference_64, optimum.best) == pytest.approx(distance, abs=1e-6)
        assert optimum.share_of_gain(optimum.best) == pytest.approx(1.0, abs=1e-9)
        assert optimum.share_of_gain(0.9 * optimum.best + 0.1 * reference_64) < 0.99
        assert optimum.share_of_gain(reference_64) == 0.0


@pytest.mark.parametrize("method", sorted(METHODS))
def test_method_reaches_the_optimum(reference: tuple[Path, torch.Tensor], tmp_path: Path, method: str) -> None:
    reaches_the_optimum(reference, tmp_path, method, 0.5, 1)


def test_the_maxmin_oracle_itself(reference: tuple[Path, torch.Tensor]) -> None:
    """Both groups are as well off under pi*; J* is the dual's value; one group's own optimum, and that of the mean, have less."""
    probabilities = reference[1] / reference[1].sum()
    for beta in (0.5, 1.0):
        optimum = toy.MaxMinOptimum(probabilities, beta)
        assert 0.05 < optimum.weight < 0.95
        best = optimum.for_weight(optimum.weight)
        one, other = (toy.group_rewards() * best).sum(1).tolist()
        assert one == pytest.approx(other, abs=1e-9)
        weighted = optimum.weight * toy.group_rewards()[0] + (1 - optimum.weight) * toy.group_rewards()[1]
        dual = beta * float((probabilities * (weighted / beta).exp()).sum().log())
        assert optimum.objective(best) == pytest.approx(dual, abs=1e-9)
        for weight in (0.0, 0.5, 1.0):
            assert optimum.objective(optimum.for_weight(weight)) < dual - 1e-3
    assert toy.MaxMinOptimum(probabilities, 0.5).share_of_gain(toy.MaxMinOptimum(probabilities, 0.5).for_weight(0.5)) < 0.55


@pytest.mark.slow
def test_maxmin_reaches_the_optimum_of_the_group_that_is_worst_off(reference: tuple[Path, torch.Tensor], tmp_path: Path) -> None:
    """A step goes up for the group that is worst off in it, so the policy ends where both are as well off: 0.97 of the gain.

    The best policy for the mean of both rewards has 0.52 of it. Steps that change sides leave more noise than one reward does.
    """
    folder, probabilities = reference
    optimum = toy.MaxMinOptimum(probabilities / probabilities.sum(), 0.5)
    settings = params(0.5, **METHODS["rloo"])
    found = toy.run(folder, tmp_path, settings, 1, toy.GroupsReward()).double()
    assert optimum.share_of_gain(found / found.sum()) >= 0.97
    assert variation(found, optimum.for_weight(optimum.weight)) < 0.1
    history = read_table(tmp_path / "out" / "history.parquet")
    groups = history[["group/group 0", "group/group 1"]]
    assert history["objective/scores"].tolist() == pytest.approx(groups.min(axis=1).tolist(), abs=1e-6)
    assert set(groups.tail(100).idxmin(axis=1)) == set(groups)  # near the end each of them is the worst off at times


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("distance", [0.7, 0.5, 0.3])
@pytest.mark.parametrize("method", sorted(METHODS))
def test_grid(reference: tuple[Path, torch.Tensor], tmp_path: Path, method: str, distance: float, seed: int) -> None:
    reaches_the_optimum(reference, tmp_path, method, distance, seed)


def ends_at(optimum: Optimum, wins: torch.Tensor) -> torch.Tensor:
    """Where sigmoid DPO on a table of wins ends, if nothing but the table limits it; [64]."""
    weights = optimum.reference * (toy.most_likely(wins) / optimum.beta).exp()
    return weights / weights.sum()


def test_where_a_table_of_pairs_ends(reference: tuple[Path, torch.Tensor]) -> None:
    """The toy's table leads to pi*. Tens of thousands of drawn labels do not, however well they are trained on: a sequence that
    pi_ref hardly ever draws and pi* often has been compared a few times only, and its error is divided by beta."""
    probabilities = reference[1] / reference[1].sum()
    for distance in (0.7, 0.5, 0.3):
        optimum = Optimum(probabilities, beta_at(probabilities, distance))
        found = ends_at(optimum, toy.bradley_terry_wins())
        assert optimum.share_of_gain(found) > 0.999
        assert variation(found, optimum.best) < 0.015
    optimum = Optimum(probabilities, beta_at(probabilities, 0.7))
    drawn = ends_at(optimum, toy.drawn_wins(probabilities, 40_000, 11))
    assert optimum.share_of_gain(drawn) < 0.97
    assert variation(drawn, optimum.best) > 0.1


@pytest.mark.slow
@pytest.mark.parametrize(("distance", "steps"), [(0.7, 300), (0.5, 200), (0.3, 200)])
def test_sigmoid_dpo_has_the_same_optimum(
    reference: tuple[Path, torch.Tensor], tmp_path: Path, distance: float, steps: int
) -> None:
    """Rafailov et al. 2023, eq. 4 and 7: from Bradley-Terry pairs DPO goes to pi* of the same beta, without any sampling."""
    folder, probabilities = reference
    optimum = Optimum(probabilities / probabilities.sum(), beta_at(probabilities, distance))
    found = toy.run_dpo(folder, toy.write_pairs(toy.bradley_terry_wins(), tmp_path), tmp_path, optimum.beta, steps)
    assert optimum.share_of_gain(found) >= 0.99
    assert variation(found, optimum.best) < 0.02
