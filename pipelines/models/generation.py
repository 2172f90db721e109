"""Answers sampled from a policy, and the log-probabilities of answers.

Every row draws from a generator of its own, so an answer depends on its prompt and its seed, not on the rows beside it.
Axes: B rows of a batch, T tokens, N answer tokens of a batch, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache

from pipelines.config import Generation, Precision
from pipelines.data.tokens import left_pad
from pipelines.errors import DataError
from pipelines.models.halves import half_linears
from pipelines.models.loading import autocast
from pipelines.models.policy import causal_lm, head, pack, response_states, token_logprobs, trunk

LOGITS_AT_ONCE = 1024
"""Answer tokens whose logits are held at a time: 200 MB at a vocabulary of 49,152."""


@dataclass(frozen=True)
class Answers:
    """What was sampled, one entry a prompt."""

    tokens: list[list[int]]
    """EOS included where it was emitted."""
    logprobs: list[list[float]]
    """Of each token at the sampling temperature; of the argmax at temperature 1 when greedy."""
    ended: list[bool]
    """Whether the answer ended by itself, with EOS."""


@torch.no_grad()
def sample(
    model: Any,
    eos_token_id: int,
    pad_token_id: int,
    prompts: Sequence[Sequence[int]],
    generation: Generation,
    seeds: Sequence[int],
    precision: Precision,
    greedy: bool = False,
) -> Answers:
    """Answer every prompt; row i draws from ``seeds[i]`` alone. Prompts of like length share a batch."""
    _check_prompts(model, prompts, generation)
    device = next(model.parameters()).device
    order = sorted(range(len(prompts)), key=lambda row: (len(prompts[row]), row))
    answers: list[tuple[list[int], list[float]]] = [([], [])] * len(prompts)
    with half_linears(model, precision), autocast(precision, device.type):
        for start in range(0, len(order), generation.batch_size):
            chosen = order[start : start + generation.batch_size]
            uniforms = None if greedy else _uniforms([seeds[row] for row in chosen], generation.max_new_tokens).to(device)
            batch = [prompts[row] for row in chosen]
            for row, answer in zip(chosen, _answer(model, eos_token_id, pad_token_id, batch, generation, uniforms), strict=True):
                answers[row] = answer
    tokens, logprobs = [answer[0] for answer in answers], [answer[1] for answer in answers]
    return Answers(tokens, logprobs, [answer[-1] == eos_token_id for answer in tokens])


@torch.no_grad()
def response_logprobs(
    model: Any,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    temperature: float,
    precision: Precision,
    batch_size: int,
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Log-probability and entropy of every answer token: two lists of [tokens of the answer] tensors on the CPU.

    The logits are divided by ``temperature``, as they were when the answers were sampled.
    """
    device = next(model.parameters()).device
    logprobs: list[torch.Tensor] = [torch.empty(0)] * len(prompts)
    entropies: list[torch.Tensor] = [torch.empty(0)] * len(prompts)
    for chosen in batches_of_like_length([len(p) + len(a) for p, a in zip(prompts, answers, strict=True)], batch_size):
        packed = pack([prompts[row] for row in chosen], [answers[row] for row in chosen], device)
        with autocast(precision, device.type):
            states = response_states(model, packed)
            parts = [
                token_logprobs(model, states_n, targets_n, temperature)
                for states_n, targets_n in zip(states.split(LOGITS_AT_ONCE), packed.targets.split(LOGITS_AT_ONCE), strict=True)
            ]
        for into, index in ((logprobs, 0), (entropies, 1)):
            whole = torch.cat([part[index] for part in parts]).cpu()
            for row, values in zip(chosen, whole.split(packed.lengths), strict=True):
                into[row] = values
    return logprobs, entropies


def batches_of_like_length(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Row numbers in batches, rows of like length together, so that little is padded. Depends on the lengths only."""
    order = sorted(range(len(lengths)), key=lambda row: (lengths[row], row))
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def _answer(
    model: Any,
    eos_token_id: int,
    pad_token_id: int,
    prompts: Sequence[Sequence[int]],
    generation: Generation,
    uniforms: torch.Tensor | None,
) -> list[tuple[list[int], list[float]]]:
    """One batch, token by token with a key-value cache; rows that have ended leave it. ``uniforms`` [B, T], None = greedy."""
    ids, mask = (part.to(next(model.parameters()).device) for part in left_pad(prompts, pad_token_id))
    padded = bool((mask == 0).any())
    positions = mask.cumsum(-1) - mask
    cache = DynamicCache()
    answers: list[tuple[list[int], list[float]]] = [([], []) for _ in prompts]
    alive = list(range(len(prompts)))
    for step in range(generation.max_new_tokens):
        states = trunk(model)(
            input_ids=ids,
            attention_mask=mask if padded else None,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state[:, -1]
        logits = head(model)(states).float()
        logps = torch.log_softmax(logits if uniforms is None else logits / generation.temperature, dim=-1)
        tokens = logps.argmax(-1) if uniforms is None else _inverse_cdf(logps, uniforms[alive, step])
        chosen = logps.gather(-1, tokens[:, None]).squeeze(-1)
        for row, token, logp in zip(alive, tokens.tolist(), chosen.tolist(), strict=True):
            answers[row][0].append(token)
            answers[row][1].append(logp)
        stay = (tokens != eos_token_id).nonzero().squeeze(-1)
        if len(stay) == 0:
            break
        if len(stay) < len(alive):
            kept = stay.tolist()
            alive = [alive[place] for place in kept]
            cache.batch_select_indices(stay)
            mask, tokens, positions = mask[stay], tokens[stay], positions[stay]
        ids, positions = tokens[:, None], positions[:, -1:] + 1
        mask = torch.cat([mask, mask.new_ones(len(alive), 1)], dim=-1)
    return answers


def _inverse_cdf(logps: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """Tokens [B] at which the cumulated probability passes ``uniforms`` [B]; exact sampling from ``logps`` [B, V]."""
    cumulated = logps.double().exp().cumsum(-1)
    found = torch.searchsorted(cumulated, (uniforms * cumulated[:, -1])[:, None], right=True).squeeze(-1)
    return found.clamp(max=logps.shape[-1] - 1)


def _uniforms(seeds: Sequence[int], tokens: int) -> torch.Tensor:
    """Uniform numbers [B, tokens] in [0, 1), each row from a generator of its own."""
    rows = [torch.rand(tokens, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) for seed in seeds]
    return torch.stack(rows) if rows else torch.empty(0, tokens, dtype=torch.float64)


def _check_prompts(model: Any, prompts: Sequence[Sequence[int]], generation: Generation) -> None:
    """Refuse an empty prompt and one that leaves no room for an answer in the model's context."""
    context = getattr(causal_lm(model).config, "max_position_embeddings", None)
    for row, prompt in enumerate(prompts):
        if not prompt:
            raise DataError(f"prompt {row} has no tokens: an answer needs a token to start from; drop the row or give it text")
        if context and len(prompt) + generation.max_new_tokens > context:
            raise DataError(
                f"prompt {row} has {len(prompt)} tokens; with max_new_tokens {generation.max_new_tokens} it passes the"
                f" model's context of {context}; shorten the prompt or lower max_new_tokens"
            )
