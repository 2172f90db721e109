"""The report stage: its outputs, and the same bytes in any folder and process."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from tests.evaluation.synthetic import write_run

ROOT = Path(__file__).parents[2]
RUN = """
import sys
from pathlib import Path
from pipelines.adapters.cluster import connect
from pipelines.context import Context
from pipelines.journal import Journal
from pipelines.stages import report
from tests.evaluation import synthetic
root = Path(sys.argv[1])
params = synthetic.params()
journal = root / "scratch" / "journal.jsonl"
journal.parent.mkdir(parents=True)
with connect(params.runtime, journal) as cluster:
    print(report.run(Context("report", params, root, root / "scratch", Journal(journal), cluster)))
"""


def _run(root: Path, hash_seed: str) -> dict[str, str]:
    """Run the stage in a process of its own; the SHA-256 of every output by its path."""
    write_run(root, {"ppo": "ppo", "dpo": "dpo", "stale": "dpo"}, prompts=24)
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", RUN, str(root)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    out = root / "scratch" / "outs" / "artifacts" / "report"
    files = sorted(path for path in out.rglob("*") if path.is_file())
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    root = tmp_path_factory.mktemp("one")
    return root / "scratch" / "outs" / "artifacts" / "report", _run(root, hash_seed="1")


def test_the_same_bytes_in_another_folder_with_another_hash_seed(reported: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    assert _run(tmp_path / "quite" / "another", hash_seed="2") == reported[1]


def test_the_outputs_are_those_of_the_graph(reported: tuple[Path, dict[str, str]]) -> None:
    names = set(reported[1])
    assert {
        "index.html",
        "metrics.json",
        "plots/frontier.svg",
        "plots/kl.png",
        "plots/dpo_accuracy.svg",
        "data/frontier.csv",
    } <= names
    assert {Path(name).parts[0] for name in names} == {"index.html", "metrics.json", "plots", "data"}
    drawn = {Path(name).stem for name in names if name.startswith("plots/")}
    assert {name for name in names if name.startswith("plots/")} == {
        f"plots/{n}.{kind}" for n in drawn for kind in ("png", "svg")
    }


def test_the_tables_hold_the_figures(reported: tuple[Path, dict[str, str]]) -> None:
    """What DVC draws is what metrics.json says."""
    metrics = json.loads((reported[0] / "metrics.json").read_text(encoding="utf-8"))
    frontier = pd.read_csv(reported[0] / "data" / "frontier.csv").set_index("model")
    assert frontier.index.tolist() == ["sft", "dpo", "ppo"]
    assert frontier.loc["ppo", "gold"] == metrics["policies"]["ppo"]["gold_mean"]
    assert frontier.loc["sft", "kl"] == 0.0
    wins = pd.read_csv(reported[0] / "data" / "win_rates.csv").set_index("model")
    assert wins.loc["dpo", ["low", "high"]].tolist() == metrics["policies"]["dpo"]["win_rate_ci"]
    curves = pd.read_csv(reported[0] / "data" / "over_optimisation.csv")
    assert set(curves["series"]) == {"best of n", "dpo", "ppo"}
    assert len(pd.read_csv(reported[0] / "data" / "reliability.csv")) > 2


def test_only_the_policies_of_the_parameters_are_shown(reported: tuple[Path, dict[str, str]]) -> None:
    """What a former recipe left under artifacts/ does not appear."""
    metrics = json.loads((reported[0] / "metrics.json").read_text(encoding="utf-8"))
    assert list(metrics) == ["policies", "reward", "sft"]
    assert list(metrics["policies"]) == ["dpo", "ppo"]
    assert '<section id="diagnosis">' in (reported[0] / "index.html").read_text(encoding="utf-8")
    assert "stale" not in (reported[0] / "index.html").read_text(encoding="utf-8")
