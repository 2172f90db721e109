"""Small on-policy jobs on a real tiny model, and rewards that fail on demand."""

from __future__ import annotations

import hashlib
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipelines.config import Generation, Ppo
from pipelines.context import Worker
from pipelines.journal import Journal
from pipelines.models.loading import save_model
from pipelines.training import checkpoints
from pipelines.training.ppo import Job, train
from pipelines.training.rewards import Term, maxmin

PROMPTS = [[4, 5, 6], [5, 3], [6, 7, 8, 9, 10], [7], [8, 9, 2, 3], [9, 1], [10, 11, 2]]


@dataclass(frozen=True)
class CountReward:
    """The share of even tokens in an answer."""

    def open(self, tokenizer: Any, device: str) -> Any:
        """Nothing to load."""

        def scores(prompts: Sequence[list[int]], answers: Sequence[list[int]], ended: Sequence[bool]) -> list[float]:
            return [sum(token % 2 == 0 for token in answer) / len(answer) for answer in answers]

        return scores


@dataclass(frozen=True)
class TwoGroups:
    """MaxMin over the shares of even and of odd tokens: which group is worst off is a matter of all workers' answers."""

    def open(self, tokenizer: Any, device: str) -> Any:
        """Nothing to load."""
        even = CountReward().open(tokenizer, device)

        def scores(prompts: Sequence[list[int]], answers: Sequence[list[int]], ended: Sequence[bool]) -> list[float]:
            found = even(prompts, answers, ended)
            return maxmin({"even": found, "odd": [1.0 - share for share in found]})

        return scores


@dataclass(frozen=True)
class Fault:
    """CountReward, but the call of step ``step`` in the first process does ``what``; ``marker`` says that it has happened."""

    what: str
    step: int
    marker: Path

    def open(self, tokenizer: Any, device: str) -> Any:
        """Count the calls: the probe before training is call 0."""
        honest, calls = CountReward().open(tokenizer, device), [0]

        def scores(prompts: Sequence[list[int]], answers: Sequence[list[int]], ended: Sequence[bool]) -> list[float]:
            due = calls[0] == self.step and not self.marker.exists()
            calls[0] += 1
            if due:
                self.marker.touch()
                if self.what == "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                raise RuntimeError("the fault that was asked for")
            return honest(prompts, answers, ended)

        return scores


@dataclass(frozen=True)
class Poison:
    """CountReward, but an answer to one of ``prompts`` scores ``value``: a batch that is bad whenever it is met."""

    prompts: tuple[tuple[int, ...], ...]
    value: float = float("nan")

    def open(self, tokenizer: Any, device: str) -> Any:
        """Nothing to load; the probe before training sees no answer worth poisoning."""
        honest = CountReward().open(tokenizer, device)

        def scores(prompts: Sequence[list[int]], answers: Sequence[list[int]], ended: Sequence[bool]) -> list[float]:
            found = honest(prompts, answers, ended)
            if len(prompts) == 1:
                return found
            return [self.value if tuple(p) in self.prompts else s for p, s in zip(prompts, found, strict=True)]

        return scores


def make_folder(folder: Path, pad_is_eos: bool = False) -> Path:
    """A Llama over 12 tokens with random weights: EOS is 1 and comes often, so that answers differ in length."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = {"<pad>": 0, "<eos>": 1} | {f"w{token}": token for token in range(2, 12)}
    core = Tokenizer(WordLevel(words, unk_token="<pad>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>", pad_token="<eos>" if pad_is_eos else "<pad>")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=12,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=32,
        initializer_range=0.1,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    save_model(LlamaForCausalLM(config).eval(), tokenizer, folder)
    return folder


def params(**changes: Any) -> Ppo:
    """Six short steps in float32 with a small LoRA."""
    common = {
        "method": "ppo",
        "lora_r": 4,
        "lora_alpha": 8,
        "precision": "float32",
        "learning_rate": 1e-3,
        "steps": 6,
        "save_steps": 2,
        "batch_size": 8,
        "mini_batch_size": 4,
        "micro_batch_size": 4,
        "generation": Generation(max_new_tokens=6, batch_size=4),
    }
    return Ppo(**{**common, **changes})


def job(sft: Path, place: Path, settings: Ppo | None = None, reward: Any = None, prompts: list[list[int]] | None = None) -> Job:
    """A job whose outputs and checkpoints are below ``place``."""
    return Job(
        sft,
        prompts or PROMPTS,
        (Term("count", 1.0, reward or CountReward()),),
        settings or params(),
        5,
        place / "out",
        place / "scratch",
        place / "plot.csv",
    )


def alone(task: Job, journal: Path | None = None) -> None:
    """Run a job as the only worker, in this process."""
    train(task, Worker(0, 1, "cpu", Journal(journal)))


def outcome(task: Job) -> dict[str, str]:
    """sha256 of every file that the job has left as its result."""
    files = sorted(path for path in [*task.out.rglob("*"), task.plot] if path is not None and path.is_file())
    return {str(path.relative_to(task.out.parent)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def final_state(task: Job) -> str:
    """One hash over weights, optimiser, controller, random state and history of the last checkpoint."""
    found = checkpoints.newest(task.scratch / "checkpoints")
    assert found is not None
    digest = hashlib.sha256(str(found[0]).encode())
    _feed(digest, found[1])
    return digest.hexdigest()


def weights(task: Job) -> dict[str, torch.Tensor]:
    """The trained weights of the last checkpoint."""
    found = checkpoints.newest(task.scratch / "checkpoints")
    assert found is not None
    return found[1]["learner"]["weights"]


def _feed(digest: Any, state: Any) -> None:
    if isinstance(state, torch.Tensor):
        digest.update(str((state.dtype, tuple(state.shape))).encode() + state.contiguous().numpy().tobytes())
    elif isinstance(state, dict):
        for key in sorted(state, key=str):
            digest.update(str(key).encode())
            _feed(digest, state[key])
    elif isinstance(state, list | tuple):
        for item in state:
            _feed(digest, item)
    else:
        digest.update(repr(state).encode())
