"""Losses and gradients worked by hand, from the trainers themselves on models whose next token has given probabilities.

Policy: 0.2 on the chosen answer (token 1), 0.3 on the rejected one (token 2), 0.25 on each of the others, whatever came before.
References have their own. The models' output layer times their last state (the first unit vector) are the log-probabilities, so
the gradient of the output layer's first column is that of the logits: with the loss's derivatives c and r by the two
log-probabilities it is c (1[v = 1] - p_v) + r (1[v = 2] - p_v).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines import config
from pipelines.models.loading import load_causal_lm, load_tokenizer, save_model
from pipelines.models.reward import collate, new_reward
from pipelines.training import dpo, hf, kto, orpo, reward
from pipelines.training.offline import Job
from tests.training import helpers, toy

POLICY = [0.25, 0.2, 0.3, 0.25]
LESS_REJECTED, MORE_REJECTED, MORE_OF_BOTH = [0.2, 0.2, 0.4, 0.2], [0.3, 0.2, 0.2, 0.3], [0.25, 0.1, 0.4, 0.25]
"""References against which the policy has moved: away from the rejected answer, to it, to the chosen and away from the other."""
ROW = {"prompt_ids": [0], "chosen_ids": [1], "rejected_ids": [2]}
PLAIN: dict[str, Any] = {"adapter": "none", "precision": "float32", "batch_size": 2, "micro_batch_size": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.make_folder(tmp_path_factory.mktemp("forced") / "toy")


def forced(folder: Path, probabilities: list[float]) -> Any:
    """The toy's GPT-2 with these probabilities of the next token, after any tokens."""
    model = load_causal_lm(folder)
    with torch.no_grad():
        model.transformer.ln_f.weight.zero_()
        model.transformer.ln_f.bias.copy_(torch.eye(model.config.n_embd)[0])
        model.lm_head.weight.zero_()
        model.lm_head.weight[:, 0] = torch.tensor(probabilities).log()
    return model


def job(folder: Path, place: Path, reference: list[float], entry: Any) -> Job[Any]:
    """A job whose SFT model has the reference's probabilities."""
    save_model(forced(folder, reference), load_tokenizer(folder), place / "reference")
    return Job(place / "reference", place / "none", place / "out", place / "scratch", entry, 1)


def loss_and_gradient(trainer: hf.Frame) -> tuple[float, list[float]]:
    """What the trainer makes of all its rows as one batch: the loss, and its gradient by the logits [V]."""
    batch = trainer.data_collator([trainer.train_dataset[row] for row in range(len(trainer.train_dataset))])
    loss = trainer.compute_loss(trainer.model.train(), batch)
    loss.backward()
    return loss.item(), trainer.model.lm_head.weight.grad[:, 0].tolist()


def by_logits(chosen: float, rejected: float) -> list[float]:
    """The gradient by the logits, from the derivatives by the two answers' log-probabilities."""
    return [chosen * ((v == 1) - p) + rejected * ((v == 2) - p) for v, p in enumerate(POLICY)]


def run_dpo(
    folder: Path, place: Path, reference: list[float], row: dict[str, list[int]] = ROW, **some: Any
) -> tuple[float, list[float]]:
    entry = config.Dpo(method="dpo", **PLAIN, **some)
    rows = {"train": [row], "validation": [row]}
    task = job(folder, place, reference, entry)
    return loss_and_gradient(dpo.make_trainer(task, helpers.worker(), forced(folder, POLICY), load_tokenizer(folder), rows))


@pytest.mark.parametrize(
    ("reference", "beta", "expected", "slope"),
    [
        # h = log(0.2 / 0.2) - log(0.3 / 0.4) = log 4/3; loss = log(1 + (3/4)^beta), slope = beta sigmoid(-beta h)
        (LESS_REJECTED, 1.0, 0.5596, 1.0 * 3 / 7),
        (LESS_REJECTED, 2.0, 0.4463, 2.0 * 9 / 25),
        (LESS_REJECTED, 4.0, 0.2749, 4.0 * 81 / 337),
        # h = -log(0.3 / 0.2) = -log 3/2
        (MORE_REJECTED, 1.0, 0.9163, 1.0 * 3 / 5),
        (MORE_REJECTED, 2.0, 1.1787, 2.0 * 9 / 13),
        (MORE_REJECTED, 4.0, 1.8021, 4.0 * 81 / 97),
    ],
)
def test_dpo_by_hand(folder: Path, tmp_path: Path, reference: list[float], beta: float, expected: float, slope: float) -> None:
    """Where the policy already leans the right way the loss falls with beta, else it rises (Rafailov et al. 2023, eq. 7)."""
    loss, gradient = run_dpo(folder, tmp_path, reference, beta=beta)
    assert loss == pytest.approx(expected, abs=1e-4)
    assert gradient == pytest.approx([0.0, -slope, slope, 0.0], abs=1e-5)


@pytest.mark.parametrize(
    ("some", "expected"),
    [
        # log-ratios: chosen a = log 2, rejected b = log 3/4, h = a - b = log 8/3; sigmoid(a) = 2/3, (b) = 3/7, (h) = 8/11
        ({"loss_type": "sigmoid"}, math.log(11 / 8)),
        ({"loss_type": "sigmoid_norm"}, math.log(11 / 8)),
        ({"loss_type": "sigmoid", "label_smoothing": 0.1}, 0.9 * math.log(11 / 8) + 0.1 * math.log(11 / 3)),
        ({"loss_type": "robust", "label_smoothing": 0.1}, (0.9 * math.log(11 / 8) - 0.1 * math.log(11 / 3)) / 0.8),
        ({"loss_type": "ipo"}, (math.log(8 / 3) - 0.5) ** 2),
        ({"loss_type": "hinge"}, 1.0 - math.log(8 / 3)),
        (
            {"loss_type": "exo_pair", "label_smoothing": 0.1},
            8 / 11 * math.log(8 / 11 / 0.9) + 3 / 11 * math.log(3 / 11 / 0.1),
        ),
        ({"loss_type": "nca_pair"}, math.log(3 / 2) + 0.5 * math.log(3) + 0.5 * math.log(7 / 4)),
        ({"loss_type": "bco_pair"}, math.log(3 / 2) + math.log(7 / 4)),
        ({"loss_type": "sppo_hard"}, (math.log(2) - 0.5) ** 2 + (math.log(3 / 4) + 0.5) ** 2),
        ({"loss_type": "apo_zero"}, 1 / 3 + 3 / 7),
        ({"loss_type": "apo_down"}, 2 / 3 + 3 / 11),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_every_loss_by_hand(folder: Path, tmp_path: Path, some: dict[str, Any], expected: float) -> None:
    """At beta 1; -log sigmoid(x) = log(1 + exp(-x))."""
    loss, _ = run_dpo(folder, tmp_path, MORE_OF_BOTH, beta=1.0, **some)
    assert loss == pytest.approx(expected, abs=1e-5)


def test_smoothed_labels_pull_back_where_the_margin_is_large_enough(folder: Path, tmp_path: Path) -> None:
    """cDPO's slope by h is e sigmoid(h) - (1 - e) sigmoid(-h): -0.9 * 3/11 + 0.1 * 8/11 = -1.9/11 at h = log 8/3, and 0 at
    h = log((1 - e) / e). With e = 3/11 it is 0 there."""
    _, gradient = run_dpo(folder, tmp_path / "one", MORE_OF_BOTH, beta=1.0, label_smoothing=0.1)
    assert gradient == pytest.approx([0.0, -1.9 / 11, 1.9 / 11, 0.0], abs=1e-5)
    _, gradient = run_dpo(folder, tmp_path / "two", MORE_OF_BOTH, beta=1.0, label_smoothing=3 / 11)
    assert gradient == pytest.approx([0.0, 0.0, 0.0, 0.0], abs=1e-5)


@pytest.mark.parametrize(
    ("loss_type", "expected"),
    [
        ("sigmoid", math.log(1 + (3 / 4) ** 2)),  # log-ratios are sums over tokens: b = 2 log 3/4
        ("sigmoid_norm", math.log(1 + 3 / 4)),  # their means
        ("ipo", (math.log(4 / 3) - 0.5) ** 2),
    ],
)
def test_which_losses_divide_by_length(folder: Path, tmp_path: Path, loss_type: Any, expected: float) -> None:
    row = {"prompt_ids": [0], "chosen_ids": [1], "rejected_ids": [2, 2]}
    loss, _ = run_dpo(folder, tmp_path, LESS_REJECTED, {**row, "chosen_ids": [1, 1]}, beta=1.0, loss_type=loss_type)
    assert loss == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("prompt", "beta", "expected"),
    [
        # odds 0.2 / 0.8 = 1/4 and 0.3 / 0.7 = 3/7, their ratio 7/12: -log sigmoid = log(1 + 12/7) = log 19/7
        ([0], 0.1, -math.log(0.2) + 0.1 * math.log(19 / 7)),
        ([0], 0.5, -math.log(0.2) + 0.5 * math.log(19 / 7)),
        # a prompt of two tokens: its second (0.25) is part of TRL's cross-entropy, a mean over tokens
        ([3, 0], 0.5, -0.5 * (math.log(0.25) + math.log(0.2)) + 0.5 * math.log(19 / 7)),
    ],
)
def test_orpo_by_hand(folder: Path, tmp_path: Path, prompt: list[int], beta: float, expected: float) -> None:
    """Hong et al. 2024, eq. 6 and 7; no reference enters."""
    row = ROW | {"prompt_ids": prompt}
    entry = config.Orpo(method="orpo", **PLAIN, beta=beta)
    task, rows = job(folder, tmp_path, POLICY, entry), {"train": [row], "validation": [row]}
    loss, gradient = loss_and_gradient(
        orpo.make_trainer(task, helpers.worker(), forced(folder, POLICY), load_tokenizer(folder), rows)
    )
    assert loss == pytest.approx(expected, abs=1e-5)
    if prompt == [0]:
        # d log odds / d log p = 1 / (1 - p); sigmoid(-log ratio) = 12/19
        chosen, rejected = -1.0 - beta * 12 / 19 / 0.8, beta * 12 / 19 / 0.7
        assert gradient == pytest.approx(by_logits(chosen, rejected), abs=1e-5)


@pytest.mark.parametrize(
    ("reference", "some", "expected", "chosen", "rejected"),
    [
        # log-ratios 0 and log 3/4: their mean is below 0, so z = 0. Good: 1 - sigmoid(0) = 1/2; bad: 1 - sigmoid(log 4/3) = 3/7
        (LESS_REJECTED, {}, (1 / 2 + 3 / 7) / 2, -1 / 8, 6 / 49),
        (LESS_REJECTED, {"desirable_weight": 2.0}, (2 * 1 / 2 + 3 / 7) / 2, -1 / 4, 6 / 49),
        (LESS_REJECTED, {"undesirable_weight": 3.0}, (1 / 2 + 3 * 3 / 7) / 2, -1 / 8, 18 / 49),
        # log-ratios 0 and log 3/2: z = log(3/2) / 2, and both lose sigmoid(z) = s / (1 + s) with s = sqrt(3/2)
        (MORE_REJECTED, {}, 1.5**0.5 / (1 + 1.5**0.5), -(1.5**0.5) / (1 + 1.5**0.5) ** 2 / 2, 1.5**0.5 / (1 + 1.5**0.5) ** 2 / 2),
    ],
)
def test_kto_by_hand(
    folder: Path,
    tmp_path: Path,
    reference: list[float],
    some: dict[str, float],
    expected: float,
    chosen: float,
    rejected: float,
) -> None:
    """Ethayarajh et al. 2024, eq. 7, at beta 1: a mean over the two answers; the slope of sigmoid is s (1 - s); z has none."""
    entry = config.Kto(method="kto", **PLAIN, beta=1.0, **some)
    answers = [
        {"prompt_ids": [0], "completion_ids": [1], "label": True},
        {"prompt_ids": [0], "completion_ids": [2], "label": False},
    ]
    task, rows = job(folder, tmp_path, reference, entry), {"train": answers, "validation": answers}
    loss, gradient = loss_and_gradient(
        kto.make_trainer(task, helpers.worker(), forced(folder, POLICY), load_tokenizer(folder), rows)
    )
    assert loss == pytest.approx(expected, abs=1e-5)
    assert gradient == pytest.approx(by_logits(chosen, rejected), abs=1e-5)


def test_the_reward_models_loss_by_hand(folder: Path, tmp_path: Path) -> None:
    """Scores 0.5 and 0.8 (a head that solves for them): -log sigmoid(0.5 - 0.8) = log(1 + exp(0.3)) = 0.8544."""
    model = new_reward(folder, "last")
    batch = collate([([0], [1]), ([0], [2])])
    with torch.no_grad():
        states = model.trunk(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state[:, -1]
        model.head.weight.copy_(torch.linalg.lstsq(states, torch.tensor([[0.5], [0.8]])).solution.T)
    entry = config.Reward(**PLAIN, layers=0)
    rows = {"train": [ROW], "validation": [ROW], "test": [ROW]}
    task = reward.Job(folder, tmp_path / "none", tmp_path / "out", tmp_path / "scratch", entry, 1)
    trainer = reward._trainer(task, helpers.worker(), model, load_tokenizer(folder), rows)
    loss = trainer.compute_loss(trainer.model, trainer.data_collator([ROW]))
    assert loss.item() == pytest.approx(0.8544, abs=1e-4)
