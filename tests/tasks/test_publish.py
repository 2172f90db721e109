"""What is added to the copy of the report that is opened."""

from __future__ import annotations

import hashlib
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


LOCK = "stages:\n  prepare:\n    cmd: x\n    outs:\n    - path: artifacts/prepared/prompts.parquet\n      md5: aaa\n"
FLOW = "6f1c2f43-0000-4000-8000-000000000007"


def test_the_page_says_from_which_data_and_links_both_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The data is a hash over the prepared tables' own; a server's address is linked without its password."""
    from prefect.settings import PREFECT_UI_URL, temporary_settings

    (folder / "dvc.lock").write_text(LOCK, encoding="utf-8")
    report = folder / "artifacts" / "report" / "index.html"
    report.parent.mkdir(parents=True)
    report.write_text("<body></body>", encoding="utf-8")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:secret@mlflow.example.org/base/")
    with temporary_settings({PREFECT_UI_URL: "https://prefect.example.org"}):
        made = publish.report(folder, "abc", FLOW)
    assert made
    page = made.read_text(encoding="utf-8")
    data = hashlib.sha256(json.dumps({"artifacts/prepared/prompts.parquet": "aaa"}).encode()).hexdigest()
    assert f"<dt>prepared data (sha256)</dt><dd><code>{data}</code></dd>" in page
    assert '<a href="https://mlflow.example.org/base/#/runs/abc"><code>abc</code></a></dd>' in page
    assert f'<a href="https://prefect.example.org/runs/flow-run/{FLOW}"><code>{FLOW}</code></a></dd>' in page
    assert "secret" not in page
    assert "make ui" not in page


def test_without_servers_make_ui_has_the_pages(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A SQLite store has no page of its own; a run that is not known has no link."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert publish.pages(folder, "abc", "") == {"MLflow run": "http://127.0.0.1:5000/#/runs/abc"}
    assert "(while <code>make ui</code> runs)" in publish._cell("abc", "http://127.0.0.1:5000/#/runs/abc")
    assert publish.pages(folder, "", "") == {}
    assert publish._cell("none: no <stage> ran", "") == "<code>none: no &lt;stage&gt; ran</code>"
