"""What learns: the policy, its value head on the same trunk, the frozen reference, and their optimiser.

With LoRA the reference is the policy with its adapter switched off: no second model. Without an adapter it is a frozen
copy. Axes: N answer tokens, H hidden.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from pipelines.config import Ppo
from pipelines.models.adapters import add_adapter
from pipelines.models.loading import autocast
from pipelines.models.policy import Packed, causal_lm, check_head, response_states, token_logprobs


@dataclass
class Learner:
    """The models of one worker; every worker holds the same numbers."""

    policy: Any
    reference: Any
    """A frozen copy, or None: then it is the policy without its adapter."""
    value_head: torch.nn.Linear | None
    """[H] -> 1, zero at the start; only the estimator gae has one."""
    optimizer: torch.optim.Optimizer
    params: Ppo

    @property
    def device(self) -> torch.device:
        """Where the models are."""
        return next(self.policy.parameters()).device

    def named(self) -> dict[str, torch.nn.Parameter]:
        """The parameters that learn, by name, in one order."""
        named = {name: p for name, p in self.policy.named_parameters() if p.requires_grad}
        if self.value_head is not None:
            named |= {f"value_head.{name}": p for name, p in self.value_head.named_parameters()}
        return dict(sorted(named.items()))

    def trained(self, head_only: bool = False) -> list[torch.nn.Parameter]:
        """The parameters that learn, in one order; ``head_only``: those of the value head."""
        return [p for name, p in self.named().items() if not head_only or name.startswith("value_head.")]

    def evaluate(self, packed: Packed, frozen_trunk: bool = False) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Log-probabilities, values and entropies of the answer tokens, each [N] float32; values are 0 without a value head.

        ``frozen_trunk`` keeps gradients out of the trunk (critic warm-up).
        """
        with autocast(self.params.precision, self.device.type):
            with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen_trunk):
                states_NH = response_states(self.policy, packed)
            logprobs_N, entropies_N = token_logprobs(self.policy, states_NH, packed.targets, self.params.generation.temperature)
        values_N = torch.zeros_like(logprobs_N)
        if self.value_head is not None:
            values_N = self.value_head(states_NH.float()).squeeze(-1)
        return logprobs_N, values_N, entropies_N

    @torch.no_grad()
    def reference_logprobs(self, packed: Packed) -> torch.Tensor:
        """Log-probabilities [N] of the answer tokens under the reference."""
        with self._reference() as model, autocast(self.params.precision, self.device.type):
            states_NH = response_states(model, packed)
            return token_logprobs(model, states_NH, packed.targets, self.params.generation.temperature)[0]

    @contextlib.contextmanager
    def _reference(self) -> Iterator[Any]:
        if self.reference is not None:
            yield self.reference
        else:
            with self.policy.disable_adapter():
                yield self.policy

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps: the trained weights and the optimiser's state."""
        weights = {name: p.detach().cpu().clone() for name, p in self.named().items()}
        return {"weights": weights, "optimizer": self.optimizer.state_dict()}

    def restore(self, weights: dict[str, torch.Tensor], optimizer: dict[str, Any]) -> None:
        """Put back what ``state`` gave."""
        named = self.named()
        if named.keys() != weights.keys():
            raise ValueError("the checkpoint holds other weights than those that are trained")
        with torch.no_grad():
            for name, parameter in named.items():
                parameter.copy_(weights[name])
        self.optimizer.load_state_dict(optimizer)


def make_learner(model: Any, params: Ppo, seed: int) -> Learner:
    """Put the adapter and the value head on ``model``; the same numbers on every worker, because both are seeded here."""
    check_head(model)
    torch.manual_seed(seed)
    reference = copy.deepcopy(model).requires_grad_(False).eval() if params.adapter == "none" else None
    policy = add_adapter(model, params).eval()
    head = None
    if params.estimator == "gae":
        device = next(policy.parameters()).device
        head = torch.nn.Linear(causal_lm(policy).config.hidden_size, 1).to(device)
        torch.nn.init.zeros_(head.weight)
        torch.nn.init.zeros_(head.bias)
    learner = Learner(policy, reference, head, None, params)  # type: ignore[arg-type]
    learner.optimizer = torch.optim.AdamW(
        learner.trained(), lr=params.learning_rate, eps=1e-5, weight_decay=params.weight_decay, fused=True
    )
    return learner


def learning_rate(params: Ppo, step: int) -> float:
    """The rate of step 1..steps: a linear warm-up, then constant, linear or cosine decay towards 0 after the last step."""
    warmup = round(params.warmup_ratio * params.steps)
    if step <= warmup:
        return params.learning_rate * step / (warmup + 1)
    done = (step - 1 - warmup) / (params.steps - warmup)
    factor = {"constant": 1.0, "linear": 1.0 - done, "cosine": 0.5 * (1.0 + math.cos(math.pi * done))}
    return params.learning_rate * factor[params.lr_scheduler_type]
