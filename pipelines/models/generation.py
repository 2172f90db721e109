"""Answers sampled from a policy, and the log-probabilities of answers.

Every row draws from a generator of its own, so an answer depends on its prompt and its seed, not on the rows beside it.
Axes: B rows of a batch, T tokens, N answer tokens of a batch, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from transformers import (
    DynamicCache,
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TopKLogitsWarper,
)

from pipelines.config import Generation, Precision
from pipelines.data.tokens import left_pad, right_pad
from pipelines.errors import DataError
from pipelines.models.halves import half_linears, packed_linears
from pipelines.models.loading import autocast
from pipelines.models.policy import head, pack, response_states, token_logprobs, trunk
from pipelines.models.soft_prompt import room

_Rows = Sequence[Sequence[int]]
_States = tuple[list[int], torch.Tensor, torch.Tensor]
"""Row numbers, and in their order the states [N, H] from which the answers' tokens are predicted, and these tokens [N]."""
BLOCK = 256
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
    own: list[list[float]] = field(default_factory=list)
    """Where asked for, each token's log-probability under the model alone, before top-k and penalties."""
    entropies: list[list[float]] = field(default_factory=list)
    """Where asked for, of the model's distribution at each token."""


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
    read: bool = False,
) -> Answers:
    """Answer every prompt; row i draws from ``seeds[i]`` alone. Prompts of like length share a batch.

    With ``read`` the model's own log-probabilities and entropies come with the answers, without another pass over them.
    """
    check_prompts(model, prompts, generation)
    device = next(model.parameters()).device
    order = sorted(range(len(prompts)), key=lambda row: (len(prompts[row]), row))
    answers: list[list[_Token]] = [[]] * len(prompts)
    with half_linears(model, precision), packed_linears(model), autocast(precision, device.type):
        for start in range(0, len(order), generation.batch_size):
            chosen = order[start : start + generation.batch_size]
            uniforms = None if greedy else _uniforms([seeds[row] for row in chosen], generation.max_new_tokens).to(device)
            batch = [prompts[row] for row in chosen]
            made = _answer(model, eos_token_id, pad_token_id, batch, generation, uniforms, read)
            for row, answer in zip(chosen, made, strict=True):
                answers[row] = answer
    return Answers(
        tokens=[[one.token for one in answer] for answer in answers],
        logprobs=[[one.logprob for one in answer] for answer in answers],
        ended=[answer[-1].token == eos_token_id for answer in answers],
        own=[[one.own for one in answer] for answer in answers if read],
        entropies=[[one.entropy for one in answer] for answer in answers if read],
    )


@torch.no_grad()
def response_logprobs(
    model: Any,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    temperature: float,
    precision: Precision,
    batch_size: int,
) -> list[torch.Tensor]:
    """Log-probability of every answer token: a list of [tokens of the answer] tensors on the CPU.

    The logits are divided by ``temperature``, as they were when the answers were sampled. A prompt of several answers is read
    once, whatever their order; ``batch_size`` is distinct prompts then, and answers.
    """
    logprobs: list[torch.Tensor] = [torch.empty(0)] * len(prompts)
    read = _shared_states if len(set(map(tuple, prompts))) < len(prompts) else _joined_states
    with half_linears(model, precision), autocast(precision, next(model.parameters()).device.type):
        for chosen, states, targets in read(model, prompts, answers, batch_size):
            pairs = zip(states.split(LOGITS_AT_ONCE), targets.split(LOGITS_AT_ONCE), strict=True)
            parts = torch.cat([token_logprobs(model, *pair, temperature) for pair in pairs]).cpu()
            for row, values in zip(chosen, parts.split([len(answers[row]) for row in chosen]), strict=True):
                logprobs[row] = values
    return logprobs


def _joined_states(model: Any, prompts: _Rows, answers: _Rows, batch_size: int) -> Iterator[_States]:
    """Every prompt with its answer behind it, in batches of like length."""
    device = next(model.parameters()).device
    for chosen in batches_of_like_length([len(p) + len(a) for p, a in zip(prompts, answers, strict=True)], batch_size):
        packed = pack([prompts[row] for row in chosen], [answers[row] for row in chosen], device)
        yield chosen, response_states(model, packed), packed.targets


def _shared_states(model: Any, prompts: _Rows, answers: _Rows, batch_size: int) -> Iterator[_States]:
    """Every distinct prompt once; each of its answers goes on from the keys and values that it left."""
    rows_of: dict[tuple[int, ...], list[int]] = {}
    for row, prompt in enumerate(prompts):
        rows_of.setdefault(tuple(prompt), []).append(row)
    distinct = list(rows_of)
    for read in batches_of_like_length([len(prompt) for prompt in distinct], batch_size):
        rows = [row for place in read for row in rows_of[distinct[place]]]
        places = [place for place, one in enumerate(read) for _ in rows_of[distinct[one]]]
        first, cache, mask = _read_prompts(model, [distinct[place] for place in read], pad_token_id=0)
        for some in batches_of_like_length([len(answers[row]) for row in rows], batch_size):
            said = [answers[rows[i]] for i in some]
            states = _continued(model, [places[i] for i in some], said, first, cache, mask)
            row_N = torch.tensor([row for row, answer in enumerate(said) for _ in answer], device=first.device)
            column_N = torch.tensor([column for answer in said for column in range(len(answer))], device=first.device)
            targets = torch.tensor([token for answer in said for token in answer], device=first.device)
            yield [rows[i] for i in some], states[row_N, column_N], targets


def _continued(
    model: Any, places: list[int], answers: _Rows, first: torch.Tensor, cache: DynamicCache, mask: torch.Tensor
) -> torch.Tensor:
    """The states [B, T, H] from which tokens of ``answers`` are predicted, each behind the prompt at its place of P.

    ``first`` [P, H], ``cache`` and ``mask`` [P, prompt tokens] are what reading the prompts gave; they stay as they are.
    """
    index = torch.tensor(places, device=first.device)
    ids, _ = right_pad([answer[:-1] for answer in answers], 0)
    if ids.shape[1] == 0:
        return first[index][:, None]
    cache, mask = copy.deepcopy(cache), mask[index]
    cache.batch_select_indices(index)
    padded = bool((mask == 0).any())
    states = trunk(model)(
        input_ids=ids.to(first.device),
        attention_mask=torch.cat([mask, mask.new_ones(ids.shape)], dim=-1) if padded else None,
        position_ids=mask.sum(-1, keepdim=True) + torch.arange(ids.shape[1], device=first.device),
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state
    return torch.cat([first[index][:, None], states], dim=1)


def _read_prompts(model: Any, prompts: _Rows, pad_token_id: int) -> tuple[torch.Tensor, DynamicCache, torch.Tensor]:
    """The states [B, H] behind the prompts, the cache with their keys and values, and their mask [B, T], padded on the left."""
    ids, mask = (part.to(next(model.parameters()).device) for part in left_pad(prompts, pad_token_id))
    cache = DynamicCache()
    states = trunk(model)(
        input_ids=ids,
        attention_mask=mask if bool((mask == 0).any()) else None,
        position_ids=mask.cumsum(-1) - mask,
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state
    return states[:, -1], cache, mask


def batches_of_like_length(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Row numbers in batches, rows of like length together, so that little is padded. Depends on the lengths only."""
    order = sorted(range(len(lengths)), key=lambda row: (lengths[row], row))
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


class _Token(NamedTuple):
    """A token as it was drawn, and as the model alone has it (the latter where asked for, else 0)."""

    token: int
    logprob: float
    own: float = 0.0
    entropy: float = 0.0


def _answer(
    model: Any,
    eos_token_id: int,
    pad_token_id: int,
    prompts: Sequence[Sequence[int]],
    generation: Generation,
    uniforms: torch.Tensor | None,
    read: bool,
) -> list[list[_Token]]:
    """One batch, token by token with a key-value cache; rows that have ended leave it. ``uniforms`` [B, T], None = greedy.

    A prompt that several rows have is read once.
    """
    distinct = {prompt: place for place, prompt in enumerate(dict.fromkeys(map(tuple, prompts)))}
    states, cache, mask = _read_prompts(model, list(distinct), pad_token_id)
    index = torch.tensor([distinct[tuple(prompt)] for prompt in prompts], device=states.device)
    cache.batch_select_indices(index)
    states, mask = states[index], mask[index]
    padded = bool((mask == 0).any())
    positions = mask.sum(-1, keepdim=True)
    ids = left_pad(prompts, pad_token_id)[0].to(states.device)
    answers: list[list[_Token]] = [[] for _ in prompts]
    alive = list(range(len(prompts)))
    shaping = _shaping(generation, ids, eos_token_id, greedy=uniforms is None)
    seen = torch.where(mask.bool(), ids, ids[:, -1:])  # no padding: how much of it a row has depends on the rows beside it
    for step in range(generation.max_new_tokens):
        plain = head(model)(states).float()
        logits = shaping(seen, plain)  # type: ignore[arg-type]  # they want a LongTensor
        if uniforms is None:
            chosen, tokens = torch.log_softmax(logits, dim=-1).max(-1)
        else:
            tokens, chosen = _draw(logits / generation.temperature, uniforms[alive, step])
        parts = [tokens, chosen, *(_read(plain / generation.temperature, tokens) if read else ())]
        for row, *token in zip(alive, *(part.tolist() for part in parts), strict=True):
            answers[row].append(_Token(*token))
        stay = (tokens != eos_token_id).nonzero().squeeze(-1)
        if len(stay) == 0 or step + 1 == generation.max_new_tokens:
            break
        if len(stay) < len(alive):
            kept = stay.tolist()
            alive = [alive[place] for place in kept]
            cache.batch_select_indices(stay)
            mask, tokens, positions, seen = mask[stay], tokens[stay], positions[stay], seen[stay]
        mask = torch.cat([mask, mask.new_ones(len(alive), 1)], dim=-1)
        seen = torch.cat([seen, tokens[:, None]], dim=-1)
        states = trunk(model)(
            input_ids=tokens[:, None],
            attention_mask=mask if padded else None,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state[:, -1]
        positions = positions + 1
    return answers


def _shaping(generation: Generation, ids: torch.Tensor, eos_token_id: int, greedy: bool) -> LogitsProcessorList:
    """What the settings do to the logits after the prompts ``ids`` [B, T], before a token is drawn; nothing by default."""
    shaping = LogitsProcessorList()
    if generation.repetition_penalty != 1.0:
        shaping.append(RepetitionPenaltyLogitsProcessor(generation.repetition_penalty))
    if generation.min_new_tokens:
        least, device = generation.min_new_tokens, str(ids.device)
        shaping.append(MinNewTokensLengthLogitsProcessor(ids.shape[1], least, eos_token_id, device=device))
    if generation.top_k and not greedy:
        shaping.append(TopKLogitsWarper(generation.top_k))
    return shaping


def _draw(logits: torch.Tensor, uniforms: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens [B] at which the cumulated probability passes ``uniforms`` [B], and their log-probabilities; logits [B, V].

    The inverse of the cumulated distribution, looked for first among blocks of ``BLOCK`` tokens and then inside one: exact,
    and one pass over the vocabulary where a cumulated sum in float64 takes four.
    """
    high = logits.max(-1, keepdim=True).values
    weights = (logits - high).exp_()
    blocks = torch.nn.functional.pad(weights, (0, -weights.shape[1] % BLOCK)).view(len(weights), -1, BLOCK)
    sums = blocks.sum(-1, dtype=torch.float64).cumsum(-1)
    wanted = uniforms[:, None] * sums[:, -1:]
    block = _first_beyond(sums, wanted)
    before = torch.where(block > 0, sums.gather(-1, (block - 1).clamp(min=0)), 0.0)
    inside = blocks.gather(1, block[:, :, None].expand(-1, 1, BLOCK)).squeeze(1).double().cumsum(-1)
    token = (block * BLOCK + _first_beyond(inside, wanted - before)).clamp(max=logits.shape[-1] - 1)
    logps = logits.gather(-1, token) - high - sums[:, -1:].log()
    return token.squeeze(-1), logps.squeeze(-1).float()


def _read(logits: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities of ``tokens`` [B] and entropies [B], in nats; logits [B, V]."""
    logps = torch.log_softmax(logits, dim=-1)
    return logps.gather(-1, tokens[:, None]).squeeze(-1), -torch.linalg.vecdot(logps.exp(), logps)


def _first_beyond(cumulated: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """The first place [B, 1] at which ``cumulated`` [B, K] is above ``wanted`` [B, 1].

    Where rounding leaves none, the last place at which it grows: an entry of weight 0 is never taken. (Logits that are
    not numbers give some token, whose log-probability is not a number either: the caller sees it.)
    """
    found = torch.searchsorted(cumulated, wanted, right=True)
    last = torch.searchsorted(cumulated, cumulated[:, -1:].contiguous())
    return torch.minimum(found, last).clamp(max=cumulated.shape[-1] - 1)


def _uniforms(seeds: Sequence[int], tokens: int) -> torch.Tensor:
    """Uniform numbers [B, tokens] in [0, 1), each row from a generator of its own."""
    rows = [torch.rand(tokens, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) for seed in seeds]
    return torch.stack(rows) if rows else torch.empty(0, tokens, dtype=torch.float64)


def check_prompts(model: Any, prompts: Sequence[Sequence[int]], generation: Generation) -> None:
    """Refuse an empty prompt and one that leaves no room for an answer in the model's context."""
    context = room(model)
    for row, prompt in enumerate(prompts):
        if not prompt:
            raise DataError(f"prompt {row} has no tokens: an answer needs a token to start from; drop the row or give it text")
        if len(prompt) + generation.max_new_tokens > context:
            raise DataError(
                f"prompt {row} has {len(prompt)} tokens; with max_new_tokens {generation.max_new_tokens} it passes the"
                f" model's context of {context}; shorten the prompt or lower max_new_tokens"
            )
