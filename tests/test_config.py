"""The configuration: every recipe parses, and what is wrong is named with its place and the nearest valid name."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines import config
from pipelines.errors import ConfigurationError

ROOT = Path(__file__).resolve().parent.parent
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
CALLED = {"kind": "callable", "callable": "a.b:c"}
TONE = {"model": "data/judges/tone", "label": "kind"}
CLASSIFIER: dict = {"kind": "classifier", "classifier": TONE}
KIND = "data/constitutions/kind.yaml"
SERVER = {"url": "http://127.0.0.1:8000/v1", "model": "some/judge"}
CONSTITUTION: dict = {"kind": "constitution", "gold": False, "constitution": {"principles": KIND, "model": "artifacts/base"}}
DEFAULT = (ROOT / "recipes" / "shakespeare.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_valid(recipe: Path) -> None:
    assert config.load(recipe).policies


def test_the_params_file_is_at_first_the_default_recipe() -> None:
    committed = subprocess.run(["git", "show", "HEAD:params.yaml"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert committed.stdout == subprocess.run(
        ["git", "show", "HEAD:recipes/shakespeare.yaml"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout  # fmt: skip


@pytest.mark.parametrize(
    ("section", "values", "expected"),
    [
        ("sft", {"lerning_rate": 0.1}, ["sft.lerning_rate: unknown key", "did you mean 'learning_rate'?"]),
        ("sft", {"learning_rate": "fast"}, ["sft.learning_rate", "valid number", "got 'fast'"]),
        ("sft", {"adapter": "lorra"}, ["sft.adapter", "did you mean 'lora'?"]),
        ("sft", {"batch_size": 33, "micro_batch_size": 32}, ["sft: batch_size 33 must be a multiple of micro_batch_size 32"]),
        ("policies", {"mine": {"method": "pppo"}}, ["policies.mine.method: unknown method 'pppo'", "did you mean 'ppo'?"]),
        ("policies", {"mine": {"method": "dpo", "betta": 1.0}}, ["policies.mine.betta: unknown key", "did you mean 'beta'?"]),
        ("policies", {"mine": {"method": "ppo", "generation": {"top_k": 50}}}, ["generation.top_k 50", "KL turns negative"]),
        (
            "policies",
            {"mine": {"method": "ppo", "generation": {"repetition_penalty": 1.1}}},
            ["generation.repetition_penalty 1.1"],
        ),
        ("policies", {"mine": {"method": "ppo", "generation": {"min_new_tokens": 2}}}, ["generation.min_new_tokens 2"]),
        ("policies", {"mine": {"method": "ppo", "engine": "vlm"}}, ["policies.mine.engine", "did you mean 'vllm'?"]),
        (
            "policies",
            {"mine": {"method": "rloo", "samples_per_prompt": 2, "critic": "reward"}},
            ["critic: reward is for ppo and a2c"],
        ),
        ("policies", {"mine": {"method": "ppo", "rewards": [{"kind": "callable"}]}}, ["needs callable:"]),
        ("policies", {"mine": {"method": "ppo", "rewards": [{"kind": "model"}, {"kind": "model"}]}}, ["a name of its own"]),
        ("policies", {"mine": {"method": "ppo", "rewards": [{"kind": "maxmin"}]}}, ["reward.groups: given", "or found"]),
        ("reward", {"loss": "listwise"}, ["reward.loss"]),
        ("reward", {"loss": "all_pairs", "margin": 0.5}, ["margin 0.5 belongs to loss: bradley_terry"]),
        ("policies", {"; touch x": {"method": "dpo"}}, ["policies.; touch x"]),
        (
            "policies",
            {"mine": {"method": "ppo", "diagnosis": {"held_out": {"callable": "a.b:c"}}, "rewards": [CALLED]}},
            ["diagnosis.held_out is one of the rewards"],
        ),
        ("policies", {"mine": {"method": "grpo"}}, ["grpo compares a prompt's answers: samples_per_prompt must be 2 or more"]),
        ("policies", {"mine": {"method": "a2c", "cliprange": 0.2}}, ["a2c has cliprange 0.0"]),
        ("policies", {"mine": {"method": "kot"}}, ["unknown method 'kot'", "did you mean 'kto'?"]),
        ("policies", {"mine": {"method": "rloo", "sampels_per_prompt": 4}}, ["did you mean 'samples_per_prompt'?"]),
        ("policies", {"mine": {"method": "rejection", "answers": 1}}, ["policies.mine.answers", "greater than or equal to 2"]),
        ("policies", {"mine": {"method": "rejection", "rewards": []}}, ["rewards needs one term or more"]),
        ("policies", {"mine": {"method": "orpo", "loss_type": "ipo"}}, ["policies.mine.loss_type: unknown key"]),
        ("policies", {"mine": {"method": "dpo", "loss_type": "sigmod"}}, ["policies.mine.loss_type", "did you mean 'sigmoid'?"]),
        (
            "policies",
            {"mine": {"method": "dpo", "loss_type": "ipo", "label_smoothing": 0.1}},
            ["loss_type ipo has no label_smoothing"],
        ),
        ("policies", {"mine": {"method": "dpo", "loss_type": "robust"}}, ["loss_type robust needs label_smoothing above 0"]),
        ("policies", {"mine": {"method": "dpo", "label_smoothing": 0.5}}, ["policies.mine.label_smoothing", "less than 0.5"]),
        ("policies", {"mine": {"method": "kto", "micro_batch_size": 1}}, ["micro_batch_size must be 2 or more"]),
        (
            "policies",
            {"mine": {"method": "kto", "learns_from": "artifacts/prepared/labels.parquet", "ended_only": True}},
            ["pairs_per_prompt and ended_only choose among pairs"],
        ),
        (
            "policies",
            {"mine": {"method": "ppo", "rewards": [{"wieght": 1.0}]}},
            ["mine.rewards.0.wieght", "did you mean 'weight'?"],
        ),
        (
            "policies",
            {"mine": {"method": "ppo", "diagnosis": {"held_out": {"calable": "a.b:c"}}}},
            ["diagnosis.held_out.calable: unknown key", "did you mean 'callable'?"],
        ),
        ("preferences", {"judge": {"kind": "constituton"}}, ["preferences.judge.kind", "did you mean 'constitution'?"]),
        ("preferences", {"judge": {"kind": "classifier"}}, ["kind: classifier needs the section classifier:"]),
        ("preferences", {"judge": {"classifier": TONE}}, ["classifier: is for kind: classifier, this is kind: lexicon"]),
        ("preferences", {"judge": CLASSIFIER | {"classifier": TONE | {"lable": "x"}}}, ["lable", "did you mean 'label'?"]),
        ("preferences", {"judge": CLASSIFIER | {"classifier": {"model": "a/b", "label": "x"}}}, ["a hub id with revision:"]),
        ("preferences", {"judge": CLASSIFIER | {"classifier": TONE | {"model": "data/judges/../x"}}}, ["below data/judges/"]),
        ("preferences", {"judge": {"kind": "reward", "reward": {"folder": "artifacts/reward"}}}, ["below data/judges/"]),
        ("preferences", {"judge": CONSTITUTION | {"gold": True}}, ["an opinion, not the known truth: set gold: false"]),
        ("preferences", {"judge": CONSTITUTION | {"constitution": {"principles": "kind.yaml"}}}, ["below data/constitutions/"]),
        ("preferences", {"judge": CONSTITUTION | {"constitution": {"principles": KIND}}}, ["model: or endpoint:, one of them"]),
        (
            "preferences",
            {"judge": CONSTITUTION | {"constitution": {"principles": KIND, "endpoint": SERVER | {"key_varable": "KEY"}}}},
            ["judge.constitution.endpoint.key_varable", "did you mean 'key_variable'?"],
        ),
        (
            "preferences",
            {"judge": CONSTITUTION | {"constitution": {"principles": KIND, "endpoint": SERVER | {"url": "ftp://here"}}}},
            ["endpoint.url", "got 'ftp://here'"],
        ),
        ("preferences", {"judge": {"kind": "ensemble", "ensemble": [{"kind": "lexicon"}]}}, ["two judges or more"]),
        (
            "preferences",
            {"judge": {"kind": "ensemble", "ensemble": [{"kind": "lexicon"}, {"kind": "lexikon"}]}},
            ["judge.ensemble.1.kind", "did you mean 'lexicon'?"],
        ),
        (
            "preferences",
            {"judge": {"kind": "ensemble", "ensemble": [{"kind": "lexicon"}, {"kind": "lexicon", "callabel": "a:b"}]}},
            ["judge.ensemble.1.callabel: unknown key", "did you mean 'callable'?"],
        ),
        (
            "preferences",
            {
                "judge": {
                    "kind": "ensemble",
                    "ensemble": [{"kind": "lexicon"}, {k: v for k, v in CONSTITUTION.items() if k != "gold"}],
                }
            },
            ["set gold: false"],
        ),
        ("prepare", {"source": "jsonl"}, ["source: jsonl needs learns_from:"]),
        ("base", {"source": "hub", "id": "a/b"}, ["needs id: and revision:"]),
        ("runtime", {"worker": 1}, ["runtime.worker: unknown key", "did you mean 'workers'?"]),
        ("reports", {}, ["reports: unknown key; did you mean 'report'?"]),
    ],
)
def test_a_fault_is_named(tmp_path: Path, section: str, values: dict, expected: list[str]) -> None:
    from ruamel.yaml import YAML

    yaml = YAML(typ="safe")
    params = yaml.load(DEFAULT)
    params[section] = values
    path = tmp_path / "params.yaml"
    with path.open("w", encoding="utf-8") as file:
        yaml.dump(params, file)
    with pytest.raises(ConfigurationError) as caught:
        config.load(path)
    for part in expected:
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_method_has_its_estimator() -> None:
    """One trainer for five methods: the name says how advantages are estimated; a2c has defaults of its own."""
    named = {name: config.Ppo(method=name, samples_per_prompt=2) for name in ("ppo", "a2c", "reinforce", "rloo", "grpo")}
    assert {name: entry.estimator for name, entry in named.items()} == {
        "ppo": "gae", "a2c": "gae", "reinforce": "reinforce", "rloo": "rloo", "grpo": "group",
    }  # fmt: skip
    unclipped = (named["a2c"].ppo_epochs, named["a2c"].cliprange, named["a2c"].cliprange_value)
    assert unclipped == (1, 0.0, 0.0)
    assert (named["ppo"].ppo_epochs, named["ppo"].cliprange) == (2, 0.2)


def test_gold_may_not_watch(tmp_path: Path) -> None:
    """The default judge is gold: a policy may not be steered by it. The same judge, not gold, may watch; so may another one."""
    from ruamel.yaml import YAML

    yaml = YAML(typ="safe")
    params = yaml.load(DEFAULT)
    path = tmp_path / "params.yaml"

    def told(held_out: dict, gold: bool) -> config.Params:
        params["policies"]["ppo"]["diagnosis"] = {"act": True, "held_out": held_out}
        params["preferences"]["judge"]["gold"] = gold
        with path.open("w", encoding="utf-8") as file:
            yaml.dump(params, file)
        return config.load(path)

    with pytest.raises(ConfigurationError, match="acting on gold would train on the answer"):
        told({"kind": "lexicon"}, gold=True)
    assert told({"kind": "lexicon"}, gold=False).policies
    params["preferences"]["judge"] = dict(CLASSIFIER)
    with pytest.raises(ConfigurationError, match="acting on gold would train on the answer"):
        told(CLASSIFIER, gold=True)
    assert told(CLASSIFIER | {"classifier": TONE | {"label": "harsh"}}, gold=True).policies
    assert told({"callable": "pipelines.judges.mine:score"}, gold=True).policies


def test_a_judge_in_a_file_of_its_own(tmp_path: Path) -> None:
    """An opinion unless it says otherwise; mistakes are named as they are in params.yaml."""
    path = tmp_path / "judge.yaml"
    path.write_text(json.dumps(CLASSIFIER), encoding="utf-8")
    assert config.load_judge(path) == config.Judge(**CLASSIFIER, gold=False)
    path.write_text("kind: lexicon\ngold: true\n", encoding="utf-8")
    assert config.load_judge(path).gold
    for text, said in (
        ("kind: lexicon\ngolden: true\n", "judge.yaml: preferences.judge.golden: unknown key; did you mean 'gold'"),
        ("kind: lexikon\n", "did you mean 'lexicon'"),
        ("- lexicon\n", "expected a mapping"),
        ("kind: [\n", "not valid YAML"),
    ):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(ConfigurationError, match=said):
            config.load_judge(path)


def test_not_yaml_and_missing_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    with pytest.raises(ConfigurationError, match="no such file"):
        config.load(path)
    path.write_text("seed: [1\n", encoding="utf-8")
    with pytest.raises(ConfigurationError, match="not valid YAML"):
        config.load(path)
    path.write_text("- 1\n", encoding="utf-8")
    with pytest.raises(ConfigurationError, match="expected a mapping"):
        config.load(path)


def test_reading_the_configuration_imports_nothing_heavy() -> None:
    heavy = "{'torch', 'transformers', 'mlflow', 'ray', 'dvc'}"
    code = f"import sys, pipelines.config, pipelines.stages; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
