"""The policy stage: every kind of method on a small model through their own inputs, files as the next stages read them."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from pipelines import config
from pipelines.config import Params
from pipelines.context import Context
from pipelines.data.schemas import PROMPTS
from pipelines.data.tables import read_table, write_table
from pipelines.errors import ConfigurationError
from pipelines.journal import Journal
from pipelines.models.loading import load_causal_lm, load_tokenizer
from pipelines.stages import policy
from pipelines.stages import reward as stages_reward
from pipelines.training import reward
from tests import small
from tests.judges import models
from tests.stages.local import Here
from tests.training import helpers

SMALL: dict[str, Any] = {"adapter": "none", "precision": "float32", "batch_size": 8, "micro_batch_size": 8}
DPO: dict[str, Any] = SMALL | {"method": "dpo", "learns_from": "artifacts/preferences/pairs.parquet"}
PPO: dict[str, Any] = SMALL | {
    "method": "ppo",
    "learns_from": "artifacts/reward",
    "steps": 2,
    "mini_batch_size": 8,
    "generation": {"max_new_tokens": 5, "batch_size": 8},
}


REJECTION: dict[str, Any] = SMALL | {
    "method": "rejection",
    "learns_from": "artifacts/reward",
    "answers": 3,
    "num_train_epochs": 2,
    "generation": {"max_new_tokens": 5, "batch_size": 4},
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A project after the stages sft, preferences and reward."""
    artifacts = project(tmp_path)
    pairs = helpers.pairs(artifacts / "preferences")
    training = config.Reward(**SMALL, layers=1, num_train_epochs=1)
    job = reward.Job(artifacts / "sft" / "model", pairs, artifacts / "reward", tmp_path / "scratch", training, 1)
    reward.train(job, helpers.worker())
    return tmp_path


def project(folder: Path) -> Path:
    """A project after the stage sft: its artifacts."""
    artifacts = folder / "artifacts"
    small.model_folder(artifacts / "sft" / "model")
    (artifacts / "preferences").mkdir()
    rows = [
        {
            "id": f"q{n}",
            "prompt": f"JULIET: hour {n}",
            "reference": " end.",
            "template": "plain",
            "source": "test",
            "group": "romeo",
            "split": "train" if n < 10 else "test",
        }
        for n in range(12)
    ]
    write_table(pd.DataFrame(rows), artifacts / "prepared" / "prompts.parquet", PROMPTS)
    return artifacts


def _context(root: Path, entry: dict[str, Any], **settings: Any) -> Context:
    sections = dict.fromkeys(("base", "sft", "reward", "evaluate", "report"), {})
    params = {"prepare": {}, "preferences": {"judge": {}}, "policies": {"mine": entry}} | sections | settings
    validated, scratch = Params.model_validate(params), root / "run"
    scratch.mkdir()
    return Context("policy@mine", validated, root, scratch, Journal(None), Here(1))


def test_a_sum_of_rewards_is_logged_term_by_term(root: Path) -> None:
    """The reward model, the lexicon and a function of the project; the score is their weighted sum."""
    terms = [
        {"kind": "model", "deviations": 1.0},
        {"kind": "lexicon", "weight": 2.0},
        {"kind": "callable", "callable": "tests.stages.test_policy:length", "weight": -0.5},
    ]
    policy.run(_context(root, PPO | {"rewards": terms, "length_penalty": 0.1}))
    history = read_table(root / "run/outs/artifacts/policies/mine/history.parquet")
    parts = history["reward/model"] + 2.0 * history["reward/lexicon"] - 0.5 * history["reward/length"]
    assert history["objective/scores"].tolist() == pytest.approx(parts.tolist(), abs=1e-5)
    assert history["reward/length"].gt(0).all()


def test_a_classifier_is_a_reward_and_another_watches(root: Path) -> None:
    """Of two labels one's log-odds are the other's with the sign turned: what watches sees minus the reward."""
    tone = {"model": models.classifier(root), "label": "kind"}
    terms = [{"kind": "classifier", "classifier": tone, "weight": 0.5}, {"kind": "lexicon"}]
    watching = {"held_out": {"kind": "classifier", "classifier": tone | {"label": "harsh"}}}
    entry = PPO | {"rewards": terms, "diagnosis": watching, "learns_from": "artifacts/prepared/prompts.parquet"}
    policy.run(_context(root, entry))
    history = read_table(root / "run/outs/artifacts/policies/mine/history.parquet")
    parts = 0.5 * history["reward/tone"] + history["reward/lexicon"]
    assert history["objective/scores"].tolist() == pytest.approx(parts.tolist(), abs=1e-5)
    assert history["judge/held_out"].tolist() == pytest.approx((-history["reward/tone"]).tolist(), abs=1e-4)
    assert history["reward/tone"].abs().gt(0).all()


def test_rules_alone_need_no_reward_model(root: Path) -> None:
    rule = {"rewards": [{"kind": "callable", "callable": "tests.stages.test_policy:length"}]}
    with pytest.raises(ConfigurationError, match=r"learns from artifacts/prepared/prompts.parquet"):
        policy.run(_context(root, PPO | rule))
    shutil.rmtree(root / "artifacts" / "reward")
    shutil.rmtree(root / "run")
    policy.run(_context(root, PPO | rule | {"learns_from": "artifacts/prepared/prompts.parquet"}))
    history = read_table(root / "run/outs/artifacts/policies/mine/history.parquet")
    assert not [name for name in history if name.startswith("reward/")]


def test_maxmin_goes_up_for_the_group_that_is_worst_off(tmp_path: Path) -> None:
    """From the stage reward, with a model for each of two groups, to the policy: the score is the smaller of their means."""
    artifacts = project(tmp_path)
    helpers.contradicting(artifacts / "preferences")
    settings = {"reward": SMALL | {"layers": 1, "groups": "given"}}
    entry = PPO | {"steps": 3, "rewards": [{"kind": "maxmin"}]}
    context = _context(tmp_path, entry, **settings)
    stages_reward.run(replace(context, stage="reward"))
    (tmp_path / "run" / "outs" / "artifacts" / "reward").rename(artifacts / "reward")
    policy.run(context)
    history = read_table(tmp_path / "run/outs/artifacts/policies/mine/history.parquet")
    groups = history[["group/juliet", "group/romeo"]]
    assert history["objective/scores"].tolist() == pytest.approx(groups.min(axis=1).tolist(), abs=1e-6)
    assert (groups["group/juliet"] != groups["group/romeo"]).all()
    with pytest.raises(ValueError, match="reward.groups: given"):
        _context(tmp_path / "other", entry)


def length(prompts: list[str], answers: list[str]) -> list[float]:
    """A rule: characters."""
    return [float(len(answer)) for answer in answers]


@pytest.mark.parametrize(
    ("entry", "column"),
    [
        (DPO, "rewards/margins"),
        (DPO | {"method": "orpo"}, "nll_loss"),
        (DPO | {"method": "kto"}, "kl"),
        (PPO, "objective/kl"),
        (PPO | {"method": "grpo", "samples_per_prompt": 2}, "objective/kl"),
        (REJECTION, "loss"),
    ],
    ids=lambda value: value["method"] if isinstance(value, dict) else "",
)
def test_a_policy_is_a_plain_folder_with_its_history(root: Path, entry: dict[str, Any], column: str) -> None:
    figures = policy.run(_context(root, entry))
    assert figures["steps"] >= 2
    out = root / "run" / "outs" / "artifacts"
    assert load_causal_lm(out / "policies" / "mine" / "model").config.vocab_size == 300
    assert load_tokenizer(out / "policies" / "mine" / "model").eos_token_id == 1
    history = read_table(out / "policies" / "mine" / "history.parquet")
    plot = pd.read_csv(out / "plots" / "mine.csv")
    assert history.columns[0] == plot.columns[0] == "step"
    assert column in history
    assert len(history) == len(plot) == figures["steps"]


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        (DPO | {"learns_from": "artifacts/reward"}, "the method dpo learns from artifacts/preferences/pairs.parquet"),
        (DPO | {"method": "kto", "learns_from": "artifacts/reward"}, "parquet or artifacts/prepared/labels.parquet"),
        (PPO | {"learns_from": "artifacts/prepared/prompts.parquet"}, "the method ppo learns from artifacts/reward"),
        (REJECTION | {"learns_from": "artifacts/prepared/prompts.parquet"}, "the method rejection learns from artifacts/reward"),
    ],
)
def test_a_method_is_told_what_it_learns_from(root: Path, entry: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigurationError, match=expected):
        policy.run(_context(root, entry))
