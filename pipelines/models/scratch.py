"""A small Llama and its tokenizer trained from scratch: a base model for tests and for a first look.

Axes: B sequences, T tokens.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
import torch.distributed as dist

from pipelines.config import Scratch
from pipelines.context import Worker, seed_for
from pipelines.errors import DataError

PAD, EOS = "<|endoftext|>", "<|im_end|>"
WARMUP = 0.1
FLOOR = 0.1
"""The learning rate ends at this fraction of its peak."""
PARTS = 4
"""The corpus is read up to this many times the tokens that all steps take."""
REACH = 4
"""Rotary positions go on beyond the windows: this many times the context is what the model says that it takes."""


@dataclass(frozen=True)
class Job:
    """What the workers need: paths and numbers only."""

    corpus: Path
    tokenizer: Path
    out: Path
    scratch: Scratch


def train_tokenizer(corpus: Path, vocabulary: int, pad_token: str) -> Any:
    """A byte-level BPE tokenizer of the training split; the same merges in the same order every time."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    pad = pad_token or PAD
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[pad, EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator(training_texts(corpus), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token=pad, eos_token=EOS)


def train(job: Job, worker: Worker) -> None:
    """Next-token prediction on windows of the corpus; writes the weights to ``job.out`` (rank 0).

    Short enough to start again from the beginning when a worker dies. Every rank takes its share of the global batch.
    """
    from safetensors.torch import save_file

    scratch = job.scratch
    # 1. the corpus as one stream of tokens, the model, the optimiser: the same on every rank
    stream = _stream(job)
    torch.manual_seed(seed_for("scratch", "weights"))
    model = build(job).to(worker.device).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=scratch.learning_rate, betas=(0.9, 0.95), weight_decay=0.1)
    for step, starts in enumerate(_starts(len(stream), scratch), start=1):
        began = time.monotonic()
        # 2. this rank's windows [B, T], and the loss as a mean over the tokens of all ranks
        windows = torch.stack([stream[at : at + scratch.context] for at in starts[worker.rank :: worker.world_size]])
        total = len(starts) * (scratch.context - 1)
        loss = _summed_loss(model, windows.to(worker.device)) / total
        # 3. backward, gradients summed over the ranks, one step
        optimiser.zero_grad()
        loss.backward()
        if worker.world_size > 1:
            for parameter in model.parameters():
                dist.all_reduce(parameter.grad)
            dist.all_reduce(loss := loss.detach())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        rate = scratch.learning_rate * _schedule(step, scratch.steps)
        optimiser.param_groups[0]["lr"] = rate
        optimiser.step()
        metrics = {"loss": float(loss.detach()), "learning_rate": rate}
        worker.journal.log(step, scratch.steps, metrics, {"step": time.monotonic() - began})
    # 4. the weights
    if worker.rank == 0:
        weights = {name: value.detach().cpu().contiguous() for name, value in model.named_parameters()}
        save_file(weights, str(job.out), metadata={"format": "pt"})


def build(job: Job) -> Any:
    """The model with random weights; embeddings tied, as in models of this size."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(str(job.tokenizer), local_files_only=True)
    scratch = job.scratch
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=scratch.hidden_size,
        intermediate_size=3 * scratch.hidden_size,
        num_hidden_layers=scratch.layers,
        num_attention_heads=scratch.heads,
        num_key_value_heads=scratch.heads,
        max_position_embeddings=REACH * scratch.context,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    return LlamaForCausalLM(config)


def training_texts(corpus: Path) -> list[str]:
    """The documents of the training split, in the order of the file."""
    rows = pq.read_table(corpus, columns=["split", "text"]).to_pylist()
    texts = [row["text"] for row in rows if row["split"] == "train"]
    if not texts:
        raise DataError(f"artifacts/prepared/{corpus.name}: 0 rows in split train; nothing to train a base model on")
    return texts


def _stream(job: Job) -> torch.Tensor:
    """Documents as one row of tokens [T], each ended by EOS; no more of them than the steps can see a part of."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(job.tokenizer), local_files_only=True)
    enough = PARTS * job.scratch.steps * job.scratch.batch_size * job.scratch.context
    ids: list[int] = []
    for text in training_texts(job.corpus):
        if len(ids) >= enough:
            break
        ids += [*tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"], tokenizer.eos_token_id]
    if len(ids) <= job.scratch.context:
        raise DataError(f"{job.corpus.name}: {len(ids)} tokens are too few for base.scratch.context {job.scratch.context}")
    return torch.tensor(ids, dtype=torch.long)


def _starts(tokens: int, scratch: Scratch) -> Iterator[list[int]]:
    """Where the windows of every step begin, a function of the step alone."""
    for step in range(scratch.steps):
        draw = torch.Generator().manual_seed(seed_for("scratch", "windows", step))
        yield torch.randint(0, tokens - scratch.context, (scratch.batch_size,), generator=draw).tolist()


def _summed_loss(model: Any, windows: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of each token given those before it, summed over [B, T - 1]."""
    logits = model(input_ids=windows[:, :-1]).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), windows[:, 1:].flatten(), reduction="sum")


def _schedule(step: int, steps: int) -> float:
    """Linear warm-up, then a cosine down to the floor."""
    warmup = max(1, int(WARMUP * steps))
    if step <= warmup:
        return step / warmup
    return FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
