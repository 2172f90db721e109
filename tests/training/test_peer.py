"""One step of our trainer against one unmodified step of TRL 1.12.0's PPOTrainer, recorded by peer/make.py; all in float64.

TRL puts the score of an answer that ends early on the first pad behind its EOS, and counts that pad's value; ours puts it
on EOS (docs/ppo.md, point 5). Where no answer ends before the limit the two agree to 1e-6, gradients included; where some do,
moving the score by one place is all that differs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import LlamaConfig, LlamaForCausalLM

from pipelines.algorithms.advantages import gae
from pipelines.config import Generation, Ppo
from pipelines.models.generation import Answers
from pipelines.training.learner import Learner
from pipelines.training.rewards import OpenTerm
from pipelines.training.rollout import Normaliser, Rollout, advantages_of, final_scores, roll_out, score
from pipelines.training.update import update

CLOSE: dict[str, Any] = {"atol": 1e-6, "rtol": 1e-6}


@pytest.fixture(scope="module")
def recorded() -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """TRL's tensors, and the settings, prompts and answers they were made with."""
    with safe_open(Path(__file__).parent / "peer" / "step.safetensors", framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, {k: json.loads(v) for k, v in file.metadata().items()}  # noqa: SIM118


def part(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): value.clone() for name, value in tensors.items() if name.startswith(prefix)}


def params(settings: dict[str, Any], rows: int) -> Ppo:
    return Ppo(
        method="ppo",
        adapter="none",
        precision="float32",
        batch_size=rows,
        mini_batch_size=rows,
        micro_batch_size=2,
        ppo_epochs=1,
        max_grad_norm=1e9,
        beta=settings["kl_coef"],
        normalise_scores="none",
        score_clip=0.0,
        generation=Generation(temperature=settings["temperature"]),
        **{name: settings[name] for name in ("cliprange", "cliprange_value", "vf_coef", "gamma", "lam", "missing_eos_penalty")},
    )


def learner_of(tensors: dict[str, torch.Tensor], facts: dict[str, Any]) -> Learner:
    """Our learner with TRL's models: a full policy, a frozen reference and a critic of its own."""
    models = []
    for name in ("policy", "reference"):
        model = LlamaForCausalLM(LlamaConfig(**facts["shape"])).double().eval()
        model.load_state_dict(part(tensors, f"{name}."))
        models.append(model)
    policy, reference = models
    critic = LlamaForCausalLM(LlamaConfig(**facts["shape"])).double().eval().model
    critic.load_state_dict(part(tensors, "critic.model."))
    head = torch.nn.Linear(facts["shape"]["hidden_size"], 1).double()
    head.load_state_dict({"weight": tensors["critic.score.weight"], "bias": torch.zeros(1)})
    learner = Learner(
        policy, reference.requires_grad_(False), critic, head, None, params(facts["settings"], len(facts["prompts"]))
    )  # type: ignore[arg-type]
    learner.optimizer = torch.optim.AdamW(learner.trained(), lr=0.0)
    return learner


@pytest.fixture
def ours(
    recorded: tuple[dict[str, torch.Tensor], dict[str, Any]], request: pytest.FixtureRequest
) -> tuple[Learner, Rollout, dict[str, torch.Tensor]]:
    """Our rollout of the recorded answers, scored with the recorded scores, and TRL's results for the same."""
    tensors, facts = recorded
    answers = facts["answers"][request.param]
    ended = [answer[-1] == facts["shape"]["eos_token_id"] for answer in answers]
    learner = learner_of(tensors, facts)
    theirs = part(tensors, f"{request.param}.")
    done = roll_out(learner, facts["prompts"], 0, lambda *_: Answers(answers, [], ended), seed=0, step=1)
    raw = theirs["scores"].tolist()
    score(done, [OpenTerm("recorded", 1.0, lambda *_: raw)])
    return learner, done, theirs


@pytest.mark.parametrize("ours", ["full"], indirect=True)
def test_a_step_is_the_peers(ours: tuple[Learner, Rollout, dict[str, torch.Tensor]]) -> None:
    learner, done, theirs = ours
    rows = len(done.answers)
    for mine, name in ((done.logprobs, "logprobs"), (done.reference, "ref_logprobs"), (done.values, "values")):
        torch.testing.assert_close(mine, theirs[name], **CLOSE)
    scores = final_scores(done, learner.params, Normaliser())
    advantages, returns = advantages_of(done, scores, learner.params, learner.params.beta)
    torch.testing.assert_close(advantages, theirs["advantages"], **CLOSE)
    torch.testing.assert_close(returns, theirs["returns"], **CLOSE)
    figures = update(learner, done, advantages, returns, rows, seed=0, step=1)
    assert figures["loss/policy"] == pytest.approx(float(theirs["loss.policy"]), abs=1e-6)
    assert figures["loss/value"] == pytest.approx(float(theirs["loss.value"]), rel=1e-6)
    mine = {name: parameter.grad for name, parameter in learner.named().items() if parameter.grad is not None}
    gradients = part(theirs, "gradient.")
    assert len(gradients) == len(mine) - 1  # our value head has a bias as well
    assert max(gradient.abs().max() for gradient in gradients.values()) > 0.01
    for name, gradient in gradients.items():
        name = name.replace("critic.score.", "value_head.").replace("critic.model.", "critic.").removeprefix("policy.")
        torch.testing.assert_close(mine[name], gradient, **CLOSE)


@pytest.mark.parametrize("ours", ["early"], indirect=True)
def test_where_answers_end_early_only_the_scores_place_differs(ours: tuple[Learner, Rollout, dict[str, torch.Tensor]]) -> None:
    learner, done, theirs = ours
    settings, lengths = learner.params, done.mask.long().sum(1)
    longest = done.mask.shape[1]
    scores = final_scores(done, settings, Normaliser())
    kl = -settings.beta * (done.logprobs - done.reference) * done.mask
    last, behind = (torch.nn.functional.one_hot(place, longest) for place in (lengths - 1, lengths.clamp(max=longest - 1)))
    assert (lengths < longest).sum() == 3
    # TRL's rewards are the KL's with the score one place later, where there is one
    torch.testing.assert_close(theirs["rewards"] * (done.mask + behind).clamp(max=1), kl + scores[:, None] * behind, **CLOSE)
    # with the score there, and the pad's value counted, our GAE gives TRL's advantages ...
    moved, _ = gae(
        kl + scores[:, None] * behind, theirs["values"], (done.mask + behind).clamp(max=1), settings.gamma, settings.lam
    )
    torch.testing.assert_close(moved * done.mask, theirs["raw_advantages"] * done.mask, **CLOSE)
    # ... and on EOS, where it belongs, the last advantage is score - beta k1 - V, as it must be
    mine, _ = gae(kl + scores[:, None] * last, done.values, done.mask, settings.gamma, settings.lam)
    expected = scores + ((kl - done.values) * last).sum(1)
    torch.testing.assert_close((mine * last).sum(1), expected, **CLOSE)
    assert (mine - moved)[lengths < longest].abs().max() > 0.01
