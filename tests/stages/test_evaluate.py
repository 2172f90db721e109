"""The evaluate stage on real small models: SFT first, then a policy against it."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from pipelines import config
from pipelines.adapters.cluster import connect
from pipelines.context import Context, Worker
from pipelines.data.schemas import PROMPTS
from pipelines.data.tables import read_table, write_json, write_table
from pipelines.data.tokens import encode_completion, encode_prompt
from pipelines.errors import DataError
from pipelines.evaluation.answers import answer, as_table
from pipelines.evaluation.samples import SAMPLES, SCORED_PAIRS
from pipelines.evaluation.scored_pairs import FILLER
from pipelines.journal import Journal
from pipelines.models.adapters import add_adapter, merge, save_adapter
from pipelines.models.loading import load_causal_lm, load_tokenizer, save_model
from pipelines.models.reward import group_folder, load_reward, save_reward, score
from pipelines.stages import evaluate
from tests.evaluation.synthetic import params
from tests.small import model_folder
from tests.stages.inputs import TESTED, demonstrations, prompts, write_inputs
from tests.stages.local import Here

GENERATION = config.Generation(max_new_tokens=8, batch_size=4)
WORKER = Worker(0, 1, "cpu", Journal(None))
SUITES = {"tone": config.Suite(path="data/suites/tone.jsonl")}
EVALUATE = config.Evaluate(answers=2, best_of=4, precision="float32", bootstrap=200, generation=GENERATION, suites=SUITES)


TONE = [
    {"prompt": TESTED[0], "chosen": " sweet", "rejected": " a most foul night"},
    {"prompt": TESTED[2], "chosen": " joy", "rejected": " joy"},
]


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Context, dict[str, dict[str, float]]]:
    """Both stages run as the runner runs them; their outputs moved into place."""
    root = tmp_path_factory.mktemp("project")
    write_inputs(root / "artifacts")
    (root / "data" / "suites").mkdir(parents=True)
    (root / SUITES["tone"].path).write_text("\n".join(map(json.dumps, TONE)), encoding="utf-8")
    settings, results = params(EVALUATE), {}
    for stage in ("evaluate_sft", "evaluate@ppo"):
        scratch = root / stage
        scratch.mkdir()
        with connect(settings.runtime, scratch / "journal") as cluster:
            ctx = Context(stage, settings, root, scratch, Journal(scratch / "journal"), cluster)
            results[stage] = evaluate.run(ctx)
        staged = scratch / "outs" / "artifacts" / "evaluations"
        (root / "artifacts" / "evaluations").mkdir(exist_ok=True)
        for folder in staged.iterdir():
            folder.replace(root / "artifacts" / "evaluations" / folder.name)
    return ctx, results


def test_a_policy_is_measured_by_every_group_with_a_reward_model(tmp_path: Path) -> None:
    """Two groups with heads of opposite sign: what one finds better the other finds worse, so their win rates add up to 1."""
    artifacts = tmp_path / "artifacts"
    write_inputs(artifacts)
    model = load_reward(artifacts / "reward", artifacts / "sft" / "model")
    for number in range(2):
        model.head.weight.neg_()
        save_reward(model, group_folder(artifacts / "reward", number))
    write_json(artifacts / "reward" / "groups.json", {"groups": ["Côte d'Ivoire", "b"], "annotators": {}, "agreement": {}})
    ctx = Context("evaluate@ppo", params(EVALUATE), tmp_path, tmp_path / "scratch", Journal(None), Here(1))
    ours, theirs = (as_table(answer(evaluate.job_of(ctx, name), evaluate.held_out(ctx), WORKER), even) for name in ("ppo", "sft"))
    found = evaluate.by_group(ctx, ours, theirs)
    one, other = (found["groups"][name] for name in ("Côte d'Ivoire", "b"))
    assert one["win_rate"] + other["win_rate"] == pytest.approx(1.0)
    assert one["reward_mean"] == pytest.approx(-other["reward_mean"], abs=1e-5)
    # the second group's head was turned twice: it is the reward model itself, here on the texts, row by row
    drawn, tokenizer = ours[ours["answer"] != "greedy"], load_tokenizer(artifacts / "sft" / "model")
    asked = [encode_prompt(tokenizer, text) for text in drawn["prompt"]]
    said = [encode_completion(tokenizer, text, eos=ended) for text, ended in zip(drawn["text"], drawn["ended"], strict=True)]
    reward = load_reward(artifacts / "reward", artifacts / "sft" / "model")
    assert other["reward_mean"] == pytest.approx(np.mean(score(reward, asked, said, 1, "float32")), abs=1e-4)
    assert found["worst_group_win_rate"] == min(one["win_rate"], other["win_rate"])
    assert "groups/Côte d_Ivoire/win_rate" in evaluate.numbers(found)
    shutil.rmtree(artifacts / "reward" / "groups")
    (artifacts / "reward" / "groups.json").unlink()
    assert evaluate.by_group(ctx, ours, theirs) == {}


def even(prompts: list[str], answers: list[str]) -> list[float]:
    """A judge without a taste."""
    return [0.0] * len(answers)


def test_only_held_out_prompts_are_answered(evaluated: tuple[Context, dict[str, dict[str, float]]]) -> None:
    for name in ("sft", "ppo"):
        table = read_table(evaluated[0].artifacts / "evaluations" / name / "samples.parquet", SAMPLES)
        assert table["prompt"].drop_duplicates().tolist() == TESTED
        assert table["answer"].tolist() == ["greedy", "A", "B"] * 3


def test_the_figures_follow_from_the_samples(evaluated: tuple[Context, dict[str, dict[str, float]]]) -> None:
    """Win, lose and tie counted again, answer by answer, from the two tables."""
    folder = evaluated[0].artifacts / "evaluations"
    ours, theirs = (pd.read_parquet(folder / name / "samples.parquet") for name in ("ppo", "sft"))
    gaps = [a - b for a, b, name in zip(ours["gold"], theirs["gold"], ours["answer"], strict=True) if name != "greedy"]
    metrics = json.loads((folder / "ppo" / "metrics.json").read_text(encoding="utf-8"))
    wins, losses = sum(gap > 0.05 + 1e-9 for gap in gaps), sum(gap < -0.05 - 1e-9 for gap in gaps)
    assert metrics["comparisons"] == len(gaps) == 6
    assert metrics["win"] == pytest.approx(wins / 6, abs=1e-6)
    assert metrics["lose"] == pytest.approx(losses / 6, abs=1e-6)
    assert metrics["win_rate"] == pytest.approx(metrics["win"] + metrics["tie"] / 2, abs=2e-6)
    assert metrics["win_rate_ci"][0] <= metrics["win_rate"] <= metrics["win_rate_ci"][1]
    drawn = ours[ours["answer"] != "greedy"]
    assert metrics["kl"] == pytest.approx((drawn["logprob"] - drawn["logprob_sft"]).mean(), abs=1e-6)
    assert metrics["eos_rate"] == pytest.approx(drawn["ended"].mean(), abs=1e-6)


def test_sft_has_no_drift_and_no_win_rate(evaluated: tuple[Context, dict[str, dict[str, float]]]) -> None:
    metrics = json.loads((evaluated[0].artifacts / "evaluations" / "sft" / "metrics.json").read_text(encoding="utf-8"))
    assert (metrics["kl"], metrics["kl_se"]) == (0.0, 0.0)
    assert "win_rate" not in metrics
    assert (metrics["judge"], metrics["judge_is_gold"]) == ("lexicon", True)


def test_snapshots_and_best_of_n_are_measured(evaluated: tuple[Context, dict[str, dict[str, float]]], tmp_path: Path) -> None:
    """The snapshot of step 2 as if it were a policy of its own; step 4 is the policy; best-of-n uses more answers."""
    ctx = evaluated[0]
    points = pd.read_csv(ctx.artifacts / "evaluations" / "ppo" / "optimisation.csv")
    assert points["step"].tolist() == [0, 2, 4]
    assert points["kl"].iloc[0] == 0.0
    final = json.loads((ctx.artifacts / "evaluations" / "ppo" / "metrics.json").read_text(encoding="utf-8"))
    assert points["gold"].iloc[2] == pytest.approx(final["gold_mean"], abs=1e-6)
    assert points["kl"].iloc[2] == pytest.approx(final["kl"], abs=1e-6)
    plain = model_folder(tmp_path / "plain", seed=3)
    rows = answer(replace(evaluate.job_of(ctx, "ppo"), policy=plain), evaluate.held_out(ctx), WORKER)
    drawn = [row for row in rows if row["answer"] != "greedy"]
    assert points["reward"].iloc[1] == pytest.approx(sum(row["reward"] for row in drawn) / len(drawn), abs=1e-5)
    best = pd.read_csv(ctx.artifacts / "evaluations" / "sft" / "optimisation.csv")
    assert best["step"].tolist() == [1, 2, 3, 4]
    assert best["reward"].is_monotonic_increasing
    assert not (ctx.scratch / "snapshot").exists()


def test_a_snapshot_that_is_an_adapter_is_measured_on_the_sft_model(
    evaluated: tuple[Context, dict[str, dict[str, float]]], tmp_path: Path
) -> None:
    """The snapshots of the default recipe: an adapter on SFT answers as the plain model does into which it is merged."""
    ctx = evaluated[0]
    sft, snapshot = ctx.artifacts / "sft" / "model", ctx.artifacts / "policies" / "ppo" / "snapshots" / "step-000003"
    adapted = add_adapter(load_causal_lm(sft), config.Ppo(method="ppo", lora_r=2))
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.2, generator=torch.Generator().manual_seed(len(name)))
    save_adapter(adapted, snapshot)
    try:
        found = evaluate._over_steps(ctx, evaluate.held_out(ctx))
    finally:
        shutil.rmtree(snapshot)
    assert sorted(found) == [2, 3]
    save_model(merge(adapted), load_tokenizer(sft), tmp_path / "plain")
    rows = answer(replace(evaluate.job_of(ctx, "ppo"), policy=tmp_path / "plain", brief=True), evaluate.held_out(ctx), WORKER)
    assert found[3]["text"].tolist() == [row["text"] for row in rows]
    assert found[3]["logprob"].tolist() == pytest.approx([row["logprob"] for row in rows], abs=1e-5)
    assert (found[3]["logprob"] - found[3]["logprob_sft"]).abs().max() > 0.1, "it is another model than SFT"


def test_the_held_out_demonstrations_are_read_with_their_eos(evaluated: tuple[Context, dict[str, dict[str, float]]]) -> None:
    """Perplexity again, from one plain forward pass a text."""
    artifacts = evaluated[0].artifacts
    for name, model in (("sft", "sft/model"), ("ppo", "policies/ppo/model")):
        coder, lm = load_tokenizer(artifacts / model), load_causal_lm(artifacts / model)
        total, count = 0.0, 0
        for row in demonstrations()[:2].itertuples():
            asked, said = encode_prompt(coder, row.prompt), encode_completion(coder, row.completion)
            with torch.no_grad():
                logps = lm(torch.tensor([asked + said])).logits[0, len(asked) - 1 : -1].log_softmax(-1)
            total -= float(logps[range(len(said)), said].sum())
            count += len(said)
        metrics = json.loads((artifacts / "evaluations" / name / "metrics.json").read_text(encoding="utf-8"))
        assert metrics["demonstration_perplexity"] == pytest.approx(math.exp(total / count), rel=1e-4)
        assert 0.0 <= metrics["rouge_l"] <= 1.0
        assert "rouge_l_unseen_templates" not in metrics


def test_the_reward_model_scores_the_held_out_pairs(evaluated: tuple[Context, dict[str, dict[str, float]]]) -> None:
    """Each score again, one answer at a time; EOS only behind what ended, and behind the filler."""
    artifacts = evaluated[0].artifacts
    scored = read_table(artifacts / "evaluations" / "sft" / "pairs.parquet", SCORED_PAIRS)
    assert scored["id"].tolist() == ["q0", "q1"]
    sft = artifacts / "sft" / "model"
    coder, model = load_tokenizer(sft), load_reward(artifacts / "reward", sft)

    def alone(answer: str, ended: bool) -> float:
        said = encode_completion(coder, answer, eos=ended)
        return score(model, [encode_prompt(coder, TESTED[0])], [said], 1, "float32")[0]

    assert scored["chosen_reward"].tolist() == pytest.approx([alone(" sweet", True)] * 2, abs=1e-5)
    expected = [alone(" foul", True), alone(" a most foul night", False)]
    assert scored["rejected_reward"].tolist() == pytest.approx(expected, abs=1e-5)
    assert scored["filler_reward"].tolist() == pytest.approx([alone(" sweet" + FILLER, True)] * 2, abs=1e-5)
    assert scored["rejected_tokens"].tolist()[1] == len(encode_completion(coder, " a most foul night", eos=False))


def test_a_suite_is_asked_of_every_model(evaluated: tuple[Context, dict[str, dict[str, float]]]) -> None:
    """Two pairs, one with equal sides, which is half right; the reward model is asked where the SFT model is evaluated."""
    artifacts = evaluated[0].artifacts
    for stage, name, model in (("evaluate_sft", "sft", "sft/model"), ("evaluate@ppo", "ppo", "policies/ppo/model")):
        coder, lm = load_tokenizer(artifacts / model), load_causal_lm(artifacts / model)
        sums = []
        for side in ("chosen", "rejected"):
            asked, said = encode_prompt(coder, TONE[0]["prompt"]), encode_completion(coder, TONE[0][side])
            with torch.no_grad():
                logps = lm(torch.tensor([asked + said])).logits[0, len(asked) - 1 : -1].log_softmax(-1)
            sums.append(float(logps[range(len(said)), said].sum()))
        metrics = json.loads((artifacts / "evaluations" / name / "metrics.json").read_text(encoding="utf-8"))
        found = metrics["suites"]["tone"]
        assert found["accuracy"] == (0.5 + (sums[0] > sums[1])) / 2
        assert found["rows"] == 2
        assert ("reward_accuracy" in found) == (name == "sft")
        assert evaluated[1][stage]["suites/tone/accuracy"] == found["accuracy"]


def test_the_stage_returns_flat_numbers(evaluated: tuple[Context, dict[str, dict[str, float]]]) -> None:
    final = evaluated[1]["evaluate@ppo"]
    assert all(isinstance(value, float) for value in final.values())
    assert final["win_rate_ci_low"] <= final["win_rate"] <= final["win_rate_ci_high"]
    assert "judge" not in final
    assert "judge_is_gold" not in final
    assert "gold_mean" in evaluated[1]["evaluate_sft"]


def test_no_held_out_prompt_is_an_error_of_the_data(
    evaluated: tuple[Context, dict[str, dict[str, float]]], tmp_path: Path
) -> None:
    write_table(prompts([("v0", "ROMEO: But soft", "train")]), tmp_path / "artifacts" / "prepared" / "prompts.parquet", PROMPTS)
    with pytest.raises(DataError, match="raise prepare.test_prompts"):
        evaluate.run(replace(evaluated[0], root=tmp_path))
