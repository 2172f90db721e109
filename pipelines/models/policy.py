"""Running a causal language model over prompts with answers, paying for logits at the answers' tokens only.

Axes: B rows, T tokens of a padded row, N answer tokens of all rows in row order, H hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pipelines.algorithms.logprobs import chosen_logprobs, logprobs_and_entropies
from pipelines.data.tokens import right_pad
from pipelines.errors import ConfigurationError


@dataclass(frozen=True)
class Packed:
    """Rows of prompt + answer, padded on the right: causal attention never looks there, so no mask is needed."""

    ids: torch.Tensor
    """[B, T]"""
    rows: torch.Tensor
    """[N] the row of each answer token."""
    columns: torch.Tensor
    """[N] the position whose hidden state predicts it: the one before it."""
    targets: torch.Tensor
    """[N] the answer token itself."""
    lengths: list[int]
    """The number of answer tokens of each row; they sum to N."""


def pack(prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], device: torch.device | str = "cpu") -> Packed:
    """Join prompts and answers row by row. Every prompt needs a token: the first answer token is predicted from it."""
    joined = [[*prompt, *answer] for prompt, answer in zip(prompts, answers, strict=True)]
    ids, _ = right_pad(joined, 0)
    rows = [row for row, answer in enumerate(answers) for _ in answer]
    columns = [len(prompts[row]) - 1 + place for row, answer in enumerate(answers) for place in range(len(answer))]
    targets = [token for answer in answers for token in answer]
    row_N, column_N, target_N = torch.tensor([rows, columns, targets], dtype=torch.long, device=device)
    return Packed(ids.to(device), row_N, column_N, target_N, [len(answer) for answer in answers])


def causal_lm(model: Any) -> Any:
    """The transformers model itself, out of its adapter's wrapper; the adapter's layers stay inside it."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def trunk(model: Any) -> Any:
    """The model without its output layer."""
    return causal_lm(model).get_decoder()


def head(model: Any) -> Any:
    """The output layer, [*, H] -> [*, V]: linear, without bias (``check_head``)."""
    return causal_lm(model).get_output_embeddings()


def response_states(model: Any, packed: Packed) -> torch.Tensor:
    """The hidden states [N, H] from which the answers' tokens are predicted."""
    return trunk_states(trunk(model), packed)


def trunk_states(module: Any, packed: Packed) -> torch.Tensor:
    """The same of a model without output layer, [N, H]."""
    return module(input_ids=packed.ids, use_cache=False).last_hidden_state[packed.rows, packed.columns]


def token_logprobs(model: Any, states: torch.Tensor, targets: torch.Tensor, temperature: float) -> torch.Tensor:
    """Log-probabilities [N] of ``targets`` from hidden states [N, H], in float32 whatever the precision of the trunk."""
    return chosen_logprobs(states, head(model).weight, targets, temperature)


def token_logprobs_and_entropies(
    model: Any, states: torch.Tensor, targets: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same log-probabilities bit for bit, and entropies [N] in nats without gradient."""
    return logprobs_and_entropies(states, head(model).weight, targets, temperature)


@torch.no_grad()
def check_head(model: Any) -> None:
    """Refuse a model whose logits are not a matrix times its trunk's last states (bias, soft cap or scale)."""
    ids = torch.arange(4, device=next(model.parameters()).device)[None] % causal_lm(model).config.vocab_size
    whole = causal_lm(model)(input_ids=ids).logits.float()
    parts = (trunk(model)(input_ids=ids).last_hidden_state @ head(model).weight.T).float()
    if not torch.allclose(whole, parts, rtol=1e-3, atol=1e-3):
        kind = causal_lm(model).config.model_type
        raise ConfigurationError(
            f"model of type {kind}: its logits are more than its output layer's matrix times the last states (a bias,"
            " a soft cap or a scale), which training here does not follow; take a model of another type, such as llama or qwen2"
        )
