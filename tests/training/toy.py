"""A language model small enough to enumerate: 4 tokens, 3 steps, 64 sequences, so the optimum is known exactly.

pi*(y) = pi_ref(y) exp(r(y) / beta) / Z and J* = beta log E_ref[exp(r / beta)] (docs/ppo.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from pipelines.config import Dpo, Generation, Ppo
from pipelines.context import Worker
from pipelines.data.schemas import PAIRS
from pipelines.data.tables import read_table, write_table
from pipelines.journal import Journal
from pipelines.models.generation import response_logprobs
from pipelines.models.loading import load_causal_lm, save_model
from pipelines.training import dpo
from pipelines.training.ppo import Job, train
from pipelines.training.rewards import RewardSource, Term, maxmin

TOKENS, STEPS = 4, 3
SEQUENCES = [list(sequence) for sequence in product(range(TOKENS), repeat=STEPS)]
PROMPT = [0]


def rewards_table() -> torch.Tensor:
    """r(y) of the 64 sequences: standard normal numbers, fixed."""
    return torch.randn(len(SEQUENCES), generator=torch.Generator().manual_seed(7), dtype=torch.float64)


@dataclass(frozen=True)
class TableReward:
    """The reward of the toy, as any reward source."""

    def open(self, tokenizer: Any, device: str) -> Any:
        """Look the answers up; an answer that is not among the 64 (the probe at the start) scores 0."""
        table = dict(zip(map(tuple, SEQUENCES), rewards_table().tolist(), strict=True))

        def scores(prompts: Sequence[list[int]], answers: Sequence[list[int]], ended: Sequence[bool]) -> list[float]:
            return [table.get(tuple(answer), 0.0) for answer in answers]

        return scores


def group_rewards() -> torch.Tensor:
    """r_u(y) of two groups, [2, 64]: the first group's is ``rewards_table``, the second's is drawn on its own."""
    other = torch.randn(len(SEQUENCES), generator=torch.Generator().manual_seed(12), dtype=torch.float64)
    return torch.stack([rewards_table(), other])


@dataclass(frozen=True)
class GroupsReward:
    """The rewards of both groups under MaxMin, as any reward source."""

    def open(self, tokenizer: Any, device: str) -> Any:
        """Look the answers up in both tables."""
        tables = [dict(zip(map(tuple, SEQUENCES), rewards.tolist(), strict=True)) for rewards in group_rewards()]

        def scores(prompts: Sequence[list[int]], answers: Sequence[list[int]], ended: Sequence[bool]) -> list[float]:
            return maxmin({f"group {n}": [table.get(tuple(a), 0.0) for a in answers] for n, table in enumerate(tables)})

        return scores


def make_folder(folder: Path, hidden: int = 32, layers: int = 1) -> Path:
    """A GPT-2 over the 4 tokens with random weights, far from uniform; EOS and pad lie outside its vocabulary.

    Its positions are learned: rotary attention over equal tokens gives equal states, so that a Llama could not tell
    0 from 0 0 and could not represent pi*.
    """
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    words = {str(token): token for token in range(TOKENS)} | {"<eos>": TOKENS, "<pad>": TOKENS + 1}
    core = Tokenizer(WordLevel(words, unk_token="<pad>"))
    core.pre_tokenizer = WhitespaceSplit()  # type: ignore[assignment]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>", pad_token="<pad>")
    torch.manual_seed(3)
    config = GPT2Config(
        vocab_size=TOKENS,
        n_positions=8,
        n_embd=hidden,
        n_layer=layers,
        n_head=2,
        activation_function="relu",
        initializer_range=0.15,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
    )
    save_model(GPT2LMHeadModel(config).eval(), tokenizer, folder)
    return folder


def distribution(folder: Path) -> torch.Tensor:
    """The probabilities [64] that a model gives to the sequences."""
    model = load_causal_lm(folder)
    logprobs = response_logprobs(model, [PROMPT] * len(SEQUENCES), SEQUENCES, 1.0, "float32", len(SEQUENCES))
    return torch.stack([row.double().sum() for row in logprobs]).exp()


@dataclass(frozen=True)
class Optimum:
    """What is known exactly for one beta."""

    reference: torch.Tensor
    beta: float

    @property
    def best(self) -> torch.Tensor:
        """pi* [64]"""
        weights = self.reference * (rewards_table() / self.beta).exp()
        return weights / weights.sum()

    def objective(self, policy: torch.Tensor) -> float:
        """J = E[r] - beta KL(pi || pi_ref)."""
        kl = (policy * (policy.log() - self.reference.log())).sum()
        return float((policy * rewards_table()).sum() - self.beta * kl)

    def share_of_gain(self, policy: torch.Tensor) -> float:
        """(J - J_ref) / (J* - J_ref)."""
        start = self.objective(self.reference)
        optimum = self.beta * float((self.reference * (rewards_table() / self.beta).exp()).sum().log())
        return (self.objective(policy) - start) / (optimum - start)


@dataclass(frozen=True)
class MaxMinOptimum:
    """The policy that maximises min_u E[r_u] - beta KL, known exactly for two groups.

    J is concave in pi and linear in the weights of the groups, so max and min change places (Sion 1958): J* is the smallest
    beta log E_ref[exp((w r_0 + (1 - w) r_1) / beta)] over w in [0, 1], convex in w, and pi* is the optimum for that reward.
    """

    reference: torch.Tensor
    beta: float

    def for_weight(self, weight: float) -> torch.Tensor:
        """The optimum [64] of one reward, w r_0 + (1 - w) r_1."""
        one, other = group_rewards()
        weights = self.reference * ((weight * one + (1.0 - weight) * other) / self.beta).exp()
        return weights / weights.sum()

    def objective(self, policy: torch.Tensor) -> float:
        """J = min_u E[r_u] - beta KL(pi || pi_ref)."""
        kl = (policy * (policy.log() - self.reference.log())).sum()
        return float((group_rewards() * policy).sum(1).min() - self.beta * kl)

    @property
    def weight(self) -> float:
        """Where both groups are as well off under the optimum of the weighted reward: by bisection."""
        low, high = 0.0, 1.0
        for _ in range(80):
            middle = (low + high) / 2
            one, other = (group_rewards() * self.for_weight(middle)).sum(1).tolist()
            low, high = (middle, high) if one < other else (low, middle)
        return low

    def share_of_gain(self, policy: torch.Tensor) -> float:
        """(J - J_ref) / (J* - J_ref)."""
        start = self.objective(self.reference)
        return (self.objective(policy) - start) / (self.objective(self.for_weight(self.weight)) - start)


def variation(p: torch.Tensor, q: torch.Tensor) -> float:
    """Total variation distance."""
    return 0.5 * float((p - q).abs().sum())


def beta_at(reference: torch.Tensor, distance: float) -> float:
    """The beta at which TV(pi_ref, pi*) is ``distance``, by bisection: the distance falls as beta grows."""
    low, high = 1e-2, 1e2
    for _ in range(80):
        middle = (low * high) ** 0.5
        if variation(reference, Optimum(reference, middle).best) > distance:
            low = middle
        else:
            high = middle
    return low


def params(beta: float, **changes: Any) -> Ppo:
    """Settings under which the toy converges in seconds; the method and what belongs to it come in ``changes``."""
    common = {
        "method": "ppo",
        "adapter": "none",
        "precision": "float32",
        "learning_rate": 1e-2,
        "warmup_ratio": 0.05,
        "lr_scheduler_type": "cosine",
        "beta": beta,
        "steps": 300,
        "save_steps": 10_000,
        "batch_size": 512,
        "mini_batch_size": 512,
        "micro_batch_size": 512,
        "normalise_scores": "none",
        "missing_eos_penalty": 0.0,
        "generation": Generation(max_new_tokens=STEPS, batch_size=10_000),
    }
    return Ppo(**{**common, **changes})


METHODS: dict[str, dict[str, Any]] = {
    "ppo": {"ppo_epochs": 2, "steps": 240},
    "a2c": {"method": "a2c"},
    "rloo": {"method": "rloo", "ppo_epochs": 1, "samples_per_prompt": 4, "batch_size": 128},
    "reinforce": {"method": "reinforce", "ppo_epochs": 1},
}


def bradley_terry_wins(neighbours: int = 5, most: int = 6) -> torch.Tensor:
    """How often sequence i beats j, [64, 64], as Bradley and Terry expect it of r: P(i beats j) = sigmoid(r_i - r_j).

    For each sequence the pairs are taken whose share of wins is nearest to a fraction of 2 to ``most`` draws, so that the
    table's own maximum likelihood is at r. Which pairs are compared does not move DPO's optimum, as long as they connect
    all sequences.
    """
    r = rewards_table()
    share = torch.sigmoid(r[:, None] - r[None, :])
    draws = torch.arange(2, most + 1, dtype=torch.float64)[:, None, None]
    miss, place = (draws * share - (draws * share).round()).abs().min(0)
    miss = miss.masked_fill((share - 0.5).abs() > 0.4, 1.0).fill_diagonal_(1.0)  # near certain wins say little
    compared = torch.zeros_like(share).scatter_(1, miss.argsort(1)[:, :neighbours], 1.0)
    return (torch.maximum(compared, compared.T) * (place + 2) * share).round()


def drawn_wins(reference: torch.Tensor, pairs: int, seed: int) -> torch.Tensor:
    """The same counts when both answers are drawn from pi_ref, and the winner by its probability."""
    generator = torch.Generator().manual_seed(seed)
    one, other = (torch.multinomial(reference, pairs, True, generator=generator) for _ in range(2))
    share = torch.sigmoid(rewards_table()[one] - rewards_table()[other])
    first = torch.rand(pairs, generator=generator, dtype=torch.float64) < share
    wins = torch.zeros(len(reference), len(reference), dtype=torch.float64)
    places = (torch.where(first, one, other), torch.where(first, other, one))
    return wins.index_put_(places, torch.ones(pairs, dtype=torch.float64), accumulate=True).fill_diagonal_(0.0)


def most_likely(wins: torch.Tensor) -> torch.Tensor:
    """The rewards [64] under which a table of wins is likeliest (Bradley and Terry), up to a constant: Newton's method.

    It is where DPO on that table ends: beta log(pi / pi_ref) = these rewards + const.
    """
    draws, found = wins + wins.T, torch.zeros(len(wins), dtype=torch.float64)
    for _ in range(200):
        share = torch.sigmoid(found[:, None] - found[None, :])
        information = draws * share * (1.0 - share)
        hessian = information.sum(1).diag() - information + 1e-8 * torch.eye(len(wins), dtype=torch.float64)
        found = found + torch.linalg.solve(hessian, wins.sum(1) - (draws * share).sum(1)).clamp(-2.0, 2.0)
    return found - found.mean()


def write_pairs(wins: torch.Tensor, folder: Path) -> Path:
    """The table of pairs that DPO reads: row (i, j) as often as i beats j, shuffled; some again for the held-out figures."""
    texts = [" ".join(map(str, sequence)) for sequence in SEQUENCES]
    rows = [(texts[i], texts[j]) for i, j in wins.nonzero().tolist() for _ in range(int(wins[i, j]))]
    frame = pd.DataFrame(rows, columns=["chosen", "rejected"]).sample(frac=1.0, random_state=13, ignore_index=True)
    frame = pd.concat([frame.assign(split="train"), frame.head(64).assign(split="validation")], ignore_index=True)
    frame["id"] = [f"p{number}" for number in range(len(frame))]
    same = {"prompt_id": "q", "prompt": "0", "judge": "table", "group": "toy", "margin": float("nan"), "source": "judge"}
    frame = frame.assign(**same, chosen_ended=False, rejected_ended=False)
    required = [name for name, column in PAIRS.columns.items() if column.required]
    write_table(frame[required], folder / "pairs.parquet", PAIRS)
    return folder / "pairs.parquet"


def run_dpo(reference: Path, pairs: Path, out: Path, beta: float, steps: int) -> torch.Tensor:
    """Train with the whole table in every batch, by the very function that the policy stage runs; probabilities [64]."""
    rows = int((read_table(pairs, PAIRS)["split"] == "train").sum())
    settings = Dpo(
        method="dpo",
        adapter="none",
        precision="float32",
        learning_rate=1e-2,
        warmup_ratio=0.05,
        lr_scheduler_type="cosine",
        beta=beta,
        batch_size=rows,
        micro_batch_size=rows,
        num_train_epochs=steps,
        save_steps=10_000,
    )
    dpo.train(dpo.Job(reference, pairs, out / "out", out / "scratch", settings, 1), Worker(0, 1, "cpu", Journal(None)))
    return distribution(out / "out" / "model")


def run(reference: Path, out: Path, settings: Ppo, seed: int, reward: RewardSource | None = None) -> torch.Tensor:
    """Train on the toy with the very function that the policy stage runs; the policy's probabilities [64]."""
    worker, term = Worker(0, 1, "cpu", Journal(None)), Term("table", 1.0, reward or TableReward())
    train(Job(reference, [PROMPT], (term,), settings, seed, out / "out", out / "scratch"), worker)
    return distribution(out / "out" / "model")
