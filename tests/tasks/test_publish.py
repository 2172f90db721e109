"""What is added to the copy of the report that is opened."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flows import seeds
from tasks import publish


def _report(win_rate: float) -> dict[str, Any]:
    policy = {"gold_mean": 0.4, "reward_mean": 1.0, "kl": 3.0, "win_rate": win_rate, "win_rate_ci": [0.5, 0.9]}
    return {"policies": {"ppo": policy}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A project with a published page and two seeds, one of which has failed."""
    (tmp_path / "params.yaml").write_text("seed: 1\nsft: {}\n", encoding="utf-8")
    page = tmp_path / publish.PAGE
    page.parent.mkdir(parents=True)
    page.write_text('<main></main><section id="lineage">flow 7</section></body>', encoding="utf-8")
    reports, codes = {1: _report(0.6), 2: _report(0.8)}, {1: 0, 2: 0, 3: 4}
    seeds.write(tmp_path / seeds.RESULT, reports, codes, publish.parameters(tmp_path))
    return tmp_path


def test_the_page_shows_every_seed_with_mean_and_spread(folder: Path) -> None:
    """Win rates 0.6 and 0.8: mean 0.7, standard deviation 0.2 / sqrt(2) = 0.141. Renewing it twice leaves one section."""
    publish.renew_seeds(folder)
    publish.renew_seeds(folder)
    page = (folder / publish.PAGE).read_text(encoding="utf-8")
    assert page.count('id="seeds"') == 1
    assert page.endswith('<section id="lineage">flow 7</section></body>')
    rows = [row.partition("</tr>")[0] for row in page.split("<tr>")[2:]]
    assert [row.rpartition('"n">')[2].partition("<")[0] for row in rows] == ["0.600", "0.800", "0.700", "0.141"]
    assert [label for label in ("seed 1", "seed 2", "mean", "spread") if f"<td>{label}</td>" in page] == [
        "seed 1", "seed 2", "mean", "spread"
    ]  # fmt: skip
    assert "seed 3: ended with 4" in page


def test_seeds_of_other_parameters_are_not_shown(folder: Path) -> None:
    """Another seed is the same run; another parameter is not."""
    (folder / "params.yaml").write_text("seed: 9\nsft: {}\n", encoding="utf-8")
    assert publish.seeds(folder)
    (folder / "params.yaml").write_text("seed: 1\nsft: {lora_r: 2}\n", encoding="utf-8")
    assert publish.seeds(folder) == ""
    (folder / publish.SEEDS).write_text(json.dumps({}), encoding="utf-8")
    assert publish.seeds(folder) == ""
