"""The on-policy trainer on a real tiny model: invariants of the first mini-batch, batching, order, figures, bad rewards."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from pipelines.config import Judge
from pipelines.context import Worker, seed_for
from pipelines.errors import ConfigurationError, DataError
from pipelines.journal import Journal
from pipelines.models.loading import load_causal_lm, load_tokenizer
from pipelines.models.policy import pack
from pipelines.models.reward import new_reward, save_reward
from pipelines.training.engines import open_engine
from pipelines.training.learner import Learner, learning_rate, make_learner
from pipelines.training.ppo import my_prompts, train
from pipelines.training.rewards import JudgeReward, LearnedReward, OpenTerm, maxmin
from pipelines.training.rollout import Normaliser, Rollout, advantages_of, final_scores, objectives, roll_out, score
from pipelines.training.update import update
from tests.training import onpolicy
from tests.training.onpolicy import CountReward, alone, job, outcome, params, weights

NAMES = {
    "objective/kl",
    "objective/scores",
    "objective/rlhf_reward",
    "objective/entropy",
    "policy/approxkl",
    "policy/clipfrac",
    "policy/ratio",
    "loss/policy",
    "loss/value",
    "val/explained_variance",
    "val/clipfrac",
    "tokens/response_length",
    "tokens/eos_rate",
    "grad_norm",
    "beta",
}


@pytest.fixture(scope="module")
def sft(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return onpolicy.make_folder(tmp_path_factory.mktemp("sft"))


def history(task: Any) -> pd.DataFrame:
    return pd.read_parquet(task.out / "history.parquet")


@pytest.mark.parametrize("changes", [{}, {"precision": "bf16"}, {"adapter": "none"}, {"method": "rloo", "samples_per_prompt": 2}])
def test_first_mini_batch_is_on_policy(sft: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    """Before any update the ratio is 1, approx-KL 0 and the clip fraction 0; the policy is the reference, so KL is 0."""
    task = job(sft, tmp_path, params(steps=2, micro_batch_size=8, mini_batch_size=8, **changes))
    alone(task)
    rows = history(task)
    assert rows["policy/first_ratio"].tolist() == pytest.approx([1.0, 1.0], abs=1e-6)
    assert rows["policy/first_approxkl"].abs().max() < 1e-9
    assert rows["policy/first_clipfrac"].tolist() == [0.0, 0.0]
    assert rows["objective/kl"][0] == pytest.approx(0.0, abs=1e-6)
    assert rows["objective/kl"][1] != 0.0


def test_a_soft_prompt_is_what_is_trained_and_kept_beside_the_weights(sft: Path, tmp_path: Path) -> None:
    """The weights stay those of SFT; KL is measured from the model without the prompt, so it is there from the first step."""
    task = job(sft, tmp_path, params(steps=2, adapter="prompt", prompt_length=2, learning_rate=1e-2))
    alone(task)
    assert history(task)["objective/kl"][0] != 0.0
    weights, before = (load_file(folder / "model.safetensors") for folder in (task.out / "model", sft))
    assert weights.keys() == before.keys()
    assert all(torch.equal(weights[name], before[name]) for name in before)
    kept = [load_file(task.out / place / "adapter_model.safetensors") for place in ("model/soft_prompt", "adapter")]
    assert torch.equal(kept[0]["prompt_embeddings"], kept[1]["prompt_embeddings"])
    assert kept[0]["prompt_embeddings"].shape[0] == 2


def test_results_are_whole(sft: Path, tmp_path: Path) -> None:
    """History under the field's names, a plain model that differs from SFT as its adapter says, a CSV, metrics, journal."""
    task = job(sft, tmp_path, params(snapshot_every=3))
    alone(task, tmp_path / "journal.jsonl")
    rows = history(task)
    assert list(rows.columns)[0] == "step"
    assert rows["step"].tolist() == [1, 2, 3, 4, 5, 6]
    assert set(rows.columns) >= NAMES
    assert rows.notna().all().all()
    assert not [name for name in rows.columns if "second" in name or "memory" in name]
    assert pd.read_csv(task.plot)["objective/kl"].tolist() == pytest.approx(rows["objective/kl"].tolist())
    lines = [json.loads(line) for line in (tmp_path / "journal.jsonl").read_text().splitlines()]
    lines = [line for line in lines if line["metrics"]]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert {"seconds/rollout", "seconds/score", "seconds/update", "tokens_per_second"} <= set(lines[0]["timings"])
    assert json.loads((task.out / "metrics.json").read_text())["steps"] == 6
    rollouts = [json.loads(line) for line in (task.scratch / "rollouts.jsonl").read_text().splitlines()]
    assert [line["policy_version"] for line in rollouts] == [0, 1, 2, 3, 4, 5]
    assert (rollouts[0]["seed"], rollouts[0]["temperature"], rollouts[0]["max_new_tokens"]) == (5, 1.0, 6)
    snapshots = sorted(path.name for path in (task.out / "snapshots").iterdir())
    assert snapshots == ["step-000003", "step-000006"]
    last = load_file(task.out / "snapshots" / "step-000006" / "adapter_model.safetensors")
    for name, weight in load_file(task.out / "adapter" / "adapter_model.safetensors").items():
        assert torch.equal(weight, last[name])
    before, after = load_causal_lm(sft), load_causal_lm(task.out / "model")
    name = "model.layers.0.self_attn.q_proj"
    low, high = (weights(task)[f"base_model.model.{name}.lora_{part}.default.weight"] for part in "AB")
    expected = before.get_parameter(f"{name}.weight") + 2.0 * high @ low
    torch.testing.assert_close(after.get_parameter(f"{name}.weight"), expected)
    assert not torch.equal(after.get_parameter(f"{name}.weight"), before.get_parameter(f"{name}.weight"))
    assert load_tokenizer(task.out / "model").eos_token_id == 1


def test_the_reward_is_learned(sft: Path, tmp_path: Path) -> None:
    task = job(sft, tmp_path, params(steps=20, learning_rate=5e-3, batch_size=16, mini_batch_size=16, micro_batch_size=16))
    alone(task)
    scores = history(task)["objective/scores"]
    assert scores.tail(3).mean() > scores.head(3).mean() + 0.15


def test_gradient_accumulation_equals_the_full_batch(sft: Path, tmp_path: Path) -> None:
    """The same answers in micro-batches of 8, 4 and 1: the same weights. Answers differ in length, so that averaging
    the micro-batches' means would show."""
    found = []
    for micro in (8, 4, 1):
        task = job(sft, tmp_path / str(micro), params(steps=2, mini_batch_size=8, micro_batch_size=micro))
        alone(task)
        found.append(weights(task))
        assert history(task)["tokens/response_length"][0] % 1 != 0, "answers should differ in length"
    for other in found[1:]:
        for name, weight in found[0].items():
            torch.testing.assert_close(other[name], weight, atol=2e-6, rtol=1e-4)


def test_pad_equal_to_eos_changes_nothing(sft: Path, tmp_path: Path) -> None:
    """Masks are explicit, so a tokenizer with pad == eos trains the same policy, EOS included, bit for bit."""
    same = onpolicy.make_folder(tmp_path / "same", pad_is_eos=True)
    tasks = [job(folder, tmp_path / name) for folder, name in ((sft, "apart"), (same, "together"))]
    for task in tasks:
        alone(task)
    assert history(tasks[0])["tokens/eos_rate"].max() > 0
    for name, weight in weights(tasks[0]).items():
        assert torch.equal(weights(tasks[1])[name], weight)


def test_epochs_stop_early_on_the_update_kl(sft: Path, tmp_path: Path) -> None:
    task = job(
        sft, tmp_path, params(steps=1, ppo_epochs=5, learning_rate=2e-2, lr_scheduler_type="constant", target_update_kl=1e-4)
    )
    alone(task)
    assert 1 <= history(task)["policy/epochs"][0] < 5


def test_critic_warm_up_moves_only_the_value_head(sft: Path, tmp_path: Path) -> None:
    task = job(sft, tmp_path, params(steps=2, critic_warmup_steps=2))
    alone(task)
    found = weights(task)
    assert all(not weight.any() for name, weight in found.items() if "lora_B" in name)
    assert found["value_head.weight"].any()


@pytest.mark.parametrize("adapter", ["none", "lora"])
def test_a_refreshed_reference_is_the_policy_of_that_moment(sft: Path, tmp_path: Path, adapter: str) -> None:
    """Refreshed after steps 2 and 4: KL is 0 when the steps 1, 3 and 5 are sampled, and only then."""
    task = job(sft, tmp_path, params(reference_refresh_steps=2, adapter=adapter, learning_rate=1e-2))
    alone(task)
    kl = history(task)["objective/kl_k3"]
    assert kl[[0, 2, 4]].tolist() == pytest.approx([0.0, 0.0, 0.0], abs=1e-9)
    assert kl[[1, 3, 5]].min() > 1e-6
    assert {name for name in weights(task) if "reference" in name} == set()


@pytest.mark.parametrize("adapter", ["none", "lora"])
def test_a_critic_of_its_own_begins_as_the_reward_model(sft: Path, tmp_path: Path, adapter: str) -> None:
    """V(s_t) = w . h_t - c of the reward model at the start; then the critic learns, without the policy in the warm-up."""
    reward = new_reward(sft, "mean", layers=1)
    torch.nn.init.normal_(reward.head.weight)
    reward.centre.fill_(0.25)
    save_reward(reward, tmp_path / "reward")
    source = LearnedReward(tmp_path / "reward", sft, 8, "float32")
    settings = params(steps=2, critic="reward", critic_warmup_steps=2, adapter=adapter, save_steps=1)
    packed = pack([[4, 5, 6]], [[7, 8, 1]])
    learner = make_learner(load_causal_lm(sft), settings, seed_for(5, "adapter") % 2**31, source.model("cpu"))
    with torch.no_grad():
        states = reward.trunk(input_ids=packed.ids).last_hidden_state[0, 2:5]
        expected = (states @ reward.head.weight.T).squeeze(-1) - 0.25
        torch.testing.assert_close(learner.evaluate(packed)[1], expected)
    task = job(sft, tmp_path, settings, source)
    alone(task)
    found, before = weights(task), {name: p.detach() for name, p in learner.named().items()}
    moved = {name for name, weight in found.items() if not torch.equal(weight, before[name])}
    assert moved
    assert all(name.startswith(("critic.", "value_head.")) for name in moved)
    assert any(name.startswith("critic.") for name in moved)
    assert history(task)["loss/value"].notna().all()


def test_a_critic_from_the_reward_model_needs_one(sft: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="critic: reward needs a reward model"):
        alone(job(sft, tmp_path, params(critic="reward")))


def test_the_group_that_is_worst_off_by_hand() -> None:
    """Means 2, 1.5 and 1.75: the second group's scores are raised, as they are; not each answer's least, (1, -2)."""
    groups = {"a": [1.0, 3.0], "b": [5.0, -2.0], "c": [1.5, 2.0]}
    found = maxmin(groups)
    assert list(found) == [5.0, -2.0]
    assert found.groups == groups


def test_beta_follows_the_target_and_is_resumed(sft: Path, tmp_path: Path) -> None:
    """KL far below its target of 100 nats: beta falls by 20 % * 8 / 80 = 2 % a step: 0.05, 0.049, 0.04802."""
    task = job(sft, tmp_path, params(steps=3, kl_target=100.0, kl_horizon=80))
    alone(task)
    assert history(task)["beta"].tolist() == pytest.approx([0.05, 0.049, 0.04802])


def test_every_prompt_comes_once_an_epoch_and_workers_share_a_step(sft: Path, tmp_path: Path) -> None:
    """7 prompts, 8 a step: 7 steps walk through the prompts 8 times; the workers' shares joined are one worker's."""
    task = job(sft, tmp_path, params(samples_per_prompt=2))
    seen: list[tuple[int, ...]] = []
    for step in range(1, 8):
        whole, first = my_prompts(task, Worker(0, 1, "cpu", Journal(None)), step)
        parts = [my_prompts(task, Worker(rank, 3, "cpu", Journal(None)), step) for rank in range(3)]
        assert [row for part, _ in parts for row in part] == whole
        assert [first for _, first in parts] == [0, 4, 10]
        assert first == 0
        assert whole[::2] == whole[1::2]
        seen += [tuple(row) for row in whole[::2]]
    for epoch in range(8):
        assert sorted(seen[7 * epoch : 7 * epoch + 7]) == sorted(map(tuple, onpolicy.PROMPTS))
    assert seen[:7] != seen[7:14]


def test_learning_rates_by_hand() -> None:
    """10 steps of rate 1: linear 1, 0.9 ... 0.1; with 20 % warm-up 1/3, 2/3, then 1, 7/8 ...; cosine's half-way is 0.5."""
    linear = params(steps=10, learning_rate=1.0)
    assert [learning_rate(linear, step) for step in (1, 2, 10)] == pytest.approx([1.0, 0.9, 0.1])
    warmed = params(steps=10, learning_rate=1.0, warmup_ratio=0.2)
    assert [learning_rate(warmed, step) for step in (1, 2, 3, 4)] == pytest.approx([1 / 3, 2 / 3, 1.0, 7 / 8])
    assert learning_rate(params(steps=10, learning_rate=1.0, lr_scheduler_type="cosine"), 6) == pytest.approx(0.5)
    assert learning_rate(params(steps=10, learning_rate=1.0, lr_scheduler_type="constant"), 9) == 1.0


def test_running_moments_are_those_of_all_scores() -> None:
    """1, 2, 3 then 4, 10: mean 4, variance (9 + 4 + 1 + 0 + 36) / 5 = 10."""
    normaliser = Normaliser()
    normaliser.add(torch.tensor([1.0, 2.0, 3.0]))
    normaliser.add(torch.tensor([4.0, 10.0]))
    assert normaliser.mean == pytest.approx(4.0)
    assert normaliser.squares / normaliser.count == pytest.approx(10.0)
    torch.testing.assert_close(normaliser.applied(torch.tensor([4.0, 14.0])), torch.tensor([0.0, 10.0**0.5]))


def rolled(lengths: list[int], scores: list[float], ended: list[bool], **parts: torch.Tensor) -> Rollout:
    """A rollout of answers of some lengths, 0 where ``parts`` say nothing."""
    mask = torch.tensor([[float(place < length) for place in range(max(lengths))] for length in lengths])
    zeros = {name: torch.zeros_like(mask) for name in ("logprobs", "sampled", "reference", "values", "entropies")}
    answers = [[2] * length for length in lengths]
    return Rollout(0, [[3]] * len(lengths), answers, ended, mask, **(zeros | parts), scores=torch.tensor(scores), terms={})


def test_final_scores_by_hand() -> None:
    """Clipped at 10: 1, 3, 10; 0.1 a token off for 2, 3, 1 tokens: 0.8, 2.7, 9.9; 0.5 off where no EOS came: 0.8, 2.2, 9.9."""
    settings = params(normalise_scores="none", length_penalty=0.1, missing_eos_penalty=0.5, score_clip=10.0)
    rollout = rolled([2, 3, 1], [1.0, 3.0, 200.0], [True, False, True])
    torch.testing.assert_close(final_scores(rollout, settings, Normaliser()), torch.tensor([0.8, 2.2, 9.9]))


def test_scores_are_normalised_by_the_first_step_or_by_all_so_far() -> None:
    """1 and 3: mean 2, deviation 1: -1, 1. Then 5 and 7: 3 and 5 by the first step's; by all four, mean 4, variance 5: 1 and 3
    over its root."""
    for kind, expected in (("reference", [3.0, 5.0]), ("running", [1 / 5**0.5, 3 / 5**0.5])):
        settings, normaliser = params(normalise_scores=kind, missing_eos_penalty=0.0), Normaliser()
        first = final_scores(rolled([1, 1], [1.0, 3.0], [True, True]), settings, normaliser)
        torch.testing.assert_close(first, torch.tensor([-1.0, 1.0]))
        second = final_scores(rolled([1, 1], [5.0, 7.0], [True, True]), settings, normaliser)
        torch.testing.assert_close(second, torch.tensor(expected))


def test_figures_by_hand() -> None:
    """Two answers of two tokens and one; log-ratios ln 2, 0 and -ln 2, beta 0.1.

    KL in nats a sequence: k1 (ln 2 + 0 - ln 2) / 2 = 0; k2 (ln 2)^2 / 2; k3 ((ln 2 - 1/2) + (1 - ln 2)) / 2 = 1/4.
    Entropy in nats a token: (1 + 2 + 3) / 3 = 2. Scores 1 and 3, rewarded 0.5 and 2.5.
    """
    half = torch.tensor(2.0).log().item()
    parts = {"logprobs": torch.tensor([[half, 0.0], [-half, 9.0]]), "entropies": torch.tensor([[1.0, 2.0], [3.0, 9.0]])}
    figures = objectives(rolled([2, 1], [1.0, 3.0], [True, False], **parts), torch.tensor([0.5, 2.5]), 0.1)
    expected = {
        "objective/kl": 0.0,
        "objective/kl_k2": half**2 / 2,
        "objective/kl_k3": 0.25,
        "objective/scores": 2.0,
        "objective/non_score_reward": 0.0,
        "objective/rlhf_reward": 1.5,
        "objective/entropy": 2.0,
        "tokens/response_length": 1.5,
        "tokens/eos_rate": 0.5,
    }
    assert figures == pytest.approx(expected, abs=1e-6)


def test_an_optimiser_step_by_hand(sft: Path) -> None:
    """Adam's first step moves a weight by -lr g / (|g| + eps), eps 1e-5, where g is the gradient clipped to the norm asked for.

    Clipped to a norm of 1e-4 most entries are near eps: with Adam's usual 1e-8 the move would be another. The value head is
    zero at first, and so are all values.
    """
    settings = params(batch_size=7, mini_batch_size=7, ppo_epochs=1, max_grad_norm=1e-4, learning_rate=0.5)
    learner, tokenizer = make_learner(load_causal_lm(sft), settings, 0), load_tokenizer(sft)
    rollout = roll_out(learner, onpolicy.PROMPTS, 0, open_engine(settings, sft, tokenizer, 5, "cpu"), 0, 1)
    assert not rollout.values.any()
    score(rollout, [OpenTerm("count", 1.0, CountReward().open(tokenizer, "cpu"))])
    advantages, returns = advantages_of(rollout, final_scores(rollout, settings, Normaliser()), settings, 0.1)
    before = {name: p.detach().clone() for name, p in learner.named().items()}
    figures = update(learner, rollout, advantages, returns, 7, 0, 1)
    gradients = {name: p.grad for name, p in learner.named().items()}
    assert figures["grad_norm"] > 0.01
    assert torch.stack([g.square().sum() for g in gradients.values()]).sum().sqrt() == pytest.approx(1e-4, rel=1e-3)
    for name, parameter in learner.named().items():
        expected = before[name] - 0.5 * gradients[name] / (gradients[name].abs() + 1e-5)
        torch.testing.assert_close(parameter.detach(), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("adapter", "micro"), [("none", 7), ("lora", 7), ("lora", 3)])
def test_a_pass_that_begins_the_update_is_made_once(
    sft: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, adapter: str, micro: int
) -> None:
    """Two epochs of one mini-batch over 3 steps: 3 passes in the update if it is one micro-batch; 2 x 3 x 3 of up to 3 answers.

    The first epoch's pass is the rollout's own then, and the bits are those of a pass of its own.
    """
    passes: list[int] = []
    evaluate = Learner.evaluate
    monkeypatch.setattr(Learner, "evaluate", lambda *a, **k: passes.append(1) or evaluate(*a, **k))
    settings = params(steps=3, batch_size=7, mini_batch_size=7, micro_batch_size=micro, ppo_epochs=2, adapter=adapter)
    once, twice = job(sft, tmp_path / "once", settings), job(sft, tmp_path / "twice", settings)
    alone(once)
    assert len(passes) == (3 if micro == 7 else 18)
    monkeypatch.setattr("pipelines.training.rollout.begins_the_update", lambda *_: False)
    alone(twice)
    assert outcome(once) == outcome(twice)


def test_a_prompt_that_is_too_long_is_named_before_training(sft: Path, tmp_path: Path) -> None:
    """The context has 32 tokens, an answer 6; the prompt would only come in a later step."""
    long = job(sft, tmp_path, prompts=[[4]] * 60 + [[5] * 27])
    with pytest.raises(DataError, match="prompt 60 has 27 tokens.*context of 32"):
        alone(long)
    assert not (tmp_path / "scratch").exists()


@dataclass(frozen=True)
class Returns:
    """A reward that returns ``value`` whatever it is asked."""

    value: Any

    def open(self, tokenizer: Any, device: str) -> Any:
        """Nothing to load."""
        return lambda prompts, answers, ended: self.value


@pytest.mark.parametrize(
    ("value", "message"), [([1.0, 2.0], "2 scores for 1 answers"), (["x"], "expected a list of numbers"), (None, "NoneType")]
)
def test_a_reward_of_the_wrong_shape_is_refused_before_training(sft: Path, tmp_path: Path, value: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        alone(job(sft, tmp_path, reward=Returns(value)))
    assert not (tmp_path / "scratch").exists()


def broken(prompts: list[str], answers: list[str]) -> list[float]:
    """A rule that cannot be computed."""
    return [1.0 / len(prompts[:0]) for _ in answers]


def test_a_reward_that_raises_is_refused_before_training(sft: Path, tmp_path: Path) -> None:
    rule = JudgeReward(Judge(kind="callable", callable="tests.training.test_ppo:broken"))
    with pytest.raises(DataError, match="broken: raised ZeroDivisionError"):
        alone(job(sft, tmp_path, reward=rule))
    assert not (tmp_path / "scratch").exists()


@pytest.mark.parametrize("critic", ["shared", "reward"])
def test_a_reward_model_of_another_tokenizer_is_refused_before_training(sft: Path, tmp_path: Path, critic: str) -> None:
    other = onpolicy.make_folder(tmp_path / "other")
    file = other / "tokenizer.json"
    file.write_text(file.read_text(encoding="utf-8").replace('"w10": 10', '"said": 10'), encoding="utf-8")
    save_reward(new_reward(other, "mean"), tmp_path / "reward")
    source = LearnedReward(tmp_path / "reward", sft, 8, "float32")
    with pytest.raises(DataError, match="trained with another tokenizer"):
        alone(job(sft, tmp_path, params(critic=critic), source))
    assert not (tmp_path / "scratch").exists()


def test_train_is_what_the_cluster_runs() -> None:
    """Picklable by name, with the job as plain data."""
    import pickle

    assert pickle.loads(pickle.dumps(train)) is train
    task = job(Path("a"), Path("b"))
    assert pickle.loads(pickle.dumps(task)) == task
