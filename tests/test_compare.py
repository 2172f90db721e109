"""``prefloop compare``: real small models, by every judge, in a process as a person starts it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from flows.__main__ import parser
from pipelines import compare, config
from pipelines.errors import ConfigurationError
from pipelines.evaluation.comparison import summed
from tests.judges import models
from tests.judges.server import BIAS, serving
from tests.project import PARAMS, ROOT
from tests.small import model_folder
from tests.stages.inputs import write_inputs

EVALUATE = "evaluate: {answers: 2, precision: float32, bootstrap: 200, generation: {max_new_tokens: 8, batch_size: 4}}"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Parameters, models and prompts; nothing is evaluated yet. ``twin`` holds the policy's weights under another name."""
    root = tmp_path_factory.mktemp("compare")
    (root / "params.yaml").write_text(PARAMS.replace("evaluate: {}", EVALUATE), encoding="utf-8")
    write_inputs(root / "artifacts")
    model_folder(root / "elsewhere" / "twin", seed=2)
    votes = [{"prompt_id": "t0", "answer": "A", "winner": "twin"}, {"prompt_id": "t1", "answer": "B", "winner": "sft"}]
    (root / "votes.jsonl").write_text("\n".join(map(json.dumps, votes)), encoding="utf-8")
    return root


def _run(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipelines", "compare", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)


def test_a_folder_against_the_sft_model_by_peoples_votes(project: Path) -> None:
    done = _run(project, "elsewhere/twin", "sft", "--judge", "votes.jsonl")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "twin is not surely different from sft"
    assert "win rate           50.0 %" in done.stdout
    assert "sign test          1 prompts won, 1 lost, p = 1" in done.stdout
    assert "KL to SFT (nats)" in done.stdout


def test_the_same_weights_under_two_names_tie(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The policy and a folder with its weights draw from the same seeds: every comparison is a tie by both scores."""
    monkeypatch.chdir(project)
    params = config.load()
    tables = [compare.samples_of(project, params, model) for model in ("ppo", "elsewhere/twin")]
    for judge in ("gold", "reward"):
        pairs, figures = compare.compared(judge, ("ppo", "twin"), tables, params, project)
        found = summed(pairs, 200, 1)
        assert (found.comparisons, found.tie, found.win_rate, figures) == (6, 1.0, 0.5, {})
    lines = compare.report(("ppo", "twin"), tables, found)
    assert lines[0] == "ppo is not surely different from twin"
    assert not [line for line in lines if "leaning" in line]


def answered(*texts: str) -> pd.DataFrame:
    """A samples table of two prompts with two answers each."""
    rows = [{"prompt_id": f"t{i // 2}", "prompt": "LEAR:", "answer": "AB"[i % 2], "text": text} for i, text in enumerate(texts)]
    scores = dict.fromkeys(("reward", "gold", "logprob", "logprob_sft", "base_nll", "entropy"), 0.0)
    return pd.DataFrame(rows).assign(**scores, tokens=4, base_tokens=3, ended=True)


def test_a_constitution_is_shown_both_answers_in_both_orders(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The judge adds 1.5 nats to the answer shown first and else counts vowels: 3 to 0, 0 to 5, 2 to 1 and 0 to 0, so we win two,
    lose one and tie one. In one order alone the tie would be won; with a margin of 1 the third is a tie too."""
    monkeypatch.chdir(project)
    ours, theirs = answered("aei", "b", "ou", "xyz"), answered("b", "aeiou", "a", "xyz!")
    with serving() as server:
        section = {"principles": models.principles(project), "endpoint": {"url": server.url, "model": "m"}}
        section["endpoint"] |= {"requests_per_minute": 100_000}
        (project / "kind.yaml").write_text(json.dumps({"kind": "constitution", "constitution": section}), encoding="utf-8")
        params = config.load()
        pairs, figures = compare.compared("kind.yaml", ("ppo", "sft"), [ours, theirs], params, project)
        assert pairs.outcomes.tolist() == [1.0, 0.0, 1.0, 0.5]
        assert pairs.prompts == ["t0", "t0", "t1", "t1"]
        assert len(server.requests) == 8
        assert figures["position_bias"] == pytest.approx(BIAS)
        turned, _ = compare.compared("kind.yaml", ("sft", "ppo"), [theirs, ours], params, project)
        assert turned.outcomes.tolist() == [0.0, 1.0, 0.0, 0.5]
        # the recipe's own judge is asked in the same way
        judge = params.preferences.model_copy(update={"judge": config.load_judge(project / "kind.yaml")})
        evaluate = params.evaluate.model_copy(update={"tie_margin": 1.0})
        changed = params.model_copy(update={"preferences": judge, "evaluate": evaluate})
        wide, _ = compare.compared("gold", ("ppo", "sft"), [ours, theirs], changed, project)
        assert wide.outcomes.tolist() == [1.0, 0.0, 0.5, 0.5]
    lines = compare.report(("ppo", "sft"), [ours, theirs], summed(pairs, 200, 1), figures)
    leaning = "judge's leaning    +1.50 nats to the answer shown first, stronger than its preference in 50.0 % of the comparisons"
    assert f"{leaning}; taken out" in lines


def test_what_is_no_model_or_judge_is_refused(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    params = config.load()
    with pytest.raises(ConfigurationError, match=r"nobody: neither a model of params.yaml \(base, sft, ppo\) nor a folder"):
        compare.folder_of(project, params, "nobody")
    with pytest.raises(ConfigurationError, match="--judge oracle: gold"):
        compare.compared("oracle", ("a", "b"), [], params, project)
    with pytest.raises(ConfigurationError, match="need different names"):
        compare.compared("votes.jsonl", ("a", "a"), [], params, project)


def test_the_callers_paths_are_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command changes to the project's root; a name stays a name."""
    monkeypatch.chdir(tmp_path)
    options = parser().parse_args(["compare", "ppo", "models/mine", "--judge", "votes.jsonl"])
    assert options.models == ["ppo", str(tmp_path / "models" / "mine")]
    assert options.judge == str(tmp_path / "votes.jsonl")
    assert parser().parse_args(["compare", "a", "b"]).judge == "gold"
