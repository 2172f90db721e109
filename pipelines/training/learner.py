"""What learns: the policy, its critic (a value head on the policy's trunk, or a model of its own), and their optimiser.

With LoRA the frozen reference is the policy with its adapter switched off: no second model. Without an adapter it is a
copy. Where the models are split over the workers (``runtime.shard``), all workers make the same calls. Axes: N answer tokens,
H hidden.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.distributed.device_mesh import DeviceMesh

from pipelines.config import Ppo
from pipelines.models.adapters import add_adapter, merge
from pipelines.models.attention import attention_for
from pipelines.models.halves import halve_frozen
from pipelines.models.loading import autocast
from pipelines.models.policy import (
    Packed,
    causal_lm,
    check_head,
    response_states,
    token_logprobs,
    token_logprobs_and_entropies,
    trunk,
    trunk_states,
)
from pipelines.models.reward import RewardModel
from pipelines.training.sharding import full, gathered, is_split, like, shard

POLICY, REFERENCE = "default", "reference"
"""Names of adapters."""


@dataclass
class Learner:
    """The models of one worker; every worker holds the same numbers, or its part of them."""

    policy: Any
    reference: Any
    """A frozen copy, or None: then it is the policy without its adapter, or with the frozen adapter ``REFERENCE``."""
    critic: Any
    """The critic's own trunk, which began as the reward model's; None: the value head sits on the policy's trunk."""
    value_head: torch.nn.Linear | None
    """[H] -> 1, zero or the reward model's at the start; only the estimator gae has one."""
    optimizer: torch.optim.Optimizer
    params: Ppo

    @property
    def device(self) -> torch.device:
        """Where the models are."""
        return next(self.policy.parameters()).device

    @property
    def sharded(self) -> bool:
        """Whether the layers are split over the workers."""
        return any(map(is_split, self.policy.parameters()))

    def gathered(self) -> contextlib.AbstractContextManager[None]:
        """All weights whole for the time of the block (``sharding.gathered``)."""
        return gathered(self.policy, self.reference, self.critic)

    def named(self) -> dict[str, torch.nn.Parameter]:
        """The parameters that learn, by name, in one order."""
        named = {name: p for name, p in self.policy.named_parameters() if p.requires_grad}
        for prefix, module in (("critic", self.critic), ("value_head", self.value_head)):
            if module is not None:
                named |= {f"{prefix}.{name}": p for name, p in module.named_parameters() if p.requires_grad}
        return dict(sorted(named.items()))

    def trained(self, critic_only: bool = False) -> list[torch.nn.Parameter]:
        """The parameters that learn, in one order; ``critic_only``: without the policy's."""
        return [p for name, p in self.named().items() if not critic_only or name.startswith(("critic.", "value_head."))]

    def evaluate(self, packed: Packed, frozen_policy: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities and values of the answer tokens, both [N] float32; values are 0 without a value head.

        ``frozen_policy`` keeps gradients out of the policy's trunk (critic warm-up).
        """
        with self._mode(packed):
            with torch.set_grad_enabled(not frozen_policy):
                states_NH = response_states(self.policy, packed)
                logprobs_N = token_logprobs(self.policy, states_NH, packed.targets, self.params.generation.temperature)
            values_N = self._values(states_NH, packed)
        return logprobs_N, values_N

    def assess(
        self, packed: Packed, differentiable: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """What is known of answers before the update, each [N]: log-probabilities, values, entropies, and the reference's
        log-probabilities. The first two are those of ``evaluate`` bit for bit, and with their graph if ``differentiable``."""
        temperature = self.params.generation.temperature
        with self._mode(packed):
            with torch.no_grad(), self._reference() as model:
                reference_N = token_logprobs(model, response_states(model, packed), packed.targets, temperature)
            with torch.set_grad_enabled(differentiable):
                states_NH = response_states(self.policy, packed)
                logprobs_N, entropies_N = token_logprobs_and_entropies(self.policy, states_NH, packed.targets, temperature)
                values_N = self._values(states_NH, packed)
        return logprobs_N, values_N, entropies_N, reference_N

    def _values(self, states_NH: torch.Tensor, packed: Packed) -> torch.Tensor:
        """Values [N], from the policy's states or the critic's own; the head's product is float32 under autocast too."""
        if self.value_head is None:
            return torch.zeros(len(states_NH), device=states_NH.device)
        if self.critic is not None:
            states_NH = trunk_states(self.critic, packed)
        with torch.autocast(self.device.type, enabled=False):
            return self.value_head(states_NH.to(self.value_head.weight.dtype)).squeeze(-1)

    @contextlib.contextmanager
    def _mode(self, packed: Packed) -> Iterator[None]:
        """Precision and attention kernel of every pass over answers, with or without gradient."""
        precision, device = self.params.precision, self.device.type
        with attention_for(precision, device, packed.ids.shape[1]), autocast(precision, device):
            yield

    @contextlib.contextmanager
    def _reference(self) -> Iterator[Any]:
        if self.reference is not None:
            yield self.reference
        elif REFERENCE in self.policy.peft_config:
            self.policy.set_adapter(REFERENCE)
            try:
                yield self.policy
            finally:
                self.policy.set_adapter(POLICY)
        else:
            with self.policy.disable_adapter():
                yield self.policy

    def reference_state(self) -> dict[str, torch.Tensor]:
        """The reference's own weights, by name, where it can be refreshed; else nothing."""
        if not self.params.reference_refresh_steps:
            return {}
        if self.reference is not None:
            return self.reference.state_dict()
        return {name: p for name, p in self.policy.named_parameters() if f".{REFERENCE}." in name}

    @torch.no_grad()
    def refresh_reference(self) -> None:
        """The reference becomes the policy as it is now."""
        source = self.policy.state_dict()
        for name, weight in self.reference_state().items():
            weight.copy_(source[name.replace(f".{REFERENCE}.", f".{POLICY}.")])

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps: the trained weights, the optimiser's state, and a reference that was refreshed."""
        optimizer = {
            name: {key: full(value).cpu() for key, value in self.optimizer.state.get(parameter, {}).items()}
            for name, parameter in self.named().items()
        }
        return {"weights": whole(self.named()), "optimizer": optimizer, "reference": whole(self.reference_state())}

    def restore(self, weights: dict[str, torch.Tensor], optimizer: dict[str, Any], reference: dict[str, torch.Tensor]) -> None:
        """Put back what ``state`` gave."""
        named = self.named()
        if named.keys() != weights.keys():
            raise ValueError("the checkpoint holds other weights than those that are trained")
        with torch.no_grad():
            for name, parameter in named.items():
                parameter.copy_(like(weights[name], parameter))
            for name, weight in self.reference_state().items():
                weight.copy_(like(reference[name], weight))
        for name, parameter in named.items():
            self.optimizer.state[parameter] = {key: like(value, parameter) for key, value in optimizer[name].items()}


def whole(named: dict[str, torch.Tensor] | dict[str, torch.nn.Parameter]) -> dict[str, torch.Tensor]:
    """Detached copies on the CPU, whole also where the tensors are split over the workers."""
    return {name: full(tensor.detach()).cpu().clone() for name, tensor in named.items()}


def make_learner(
    model: Any, params: Ppo, seed: int, reward: RewardModel | None = None, mesh: DeviceMesh | None = None
) -> Learner:
    """Put the adapter and the value head on ``model``; the same numbers on every worker, because both are seeded here.

    With ``reward`` the critic is a model of its own, which begins as the reward model (trunk and head) and is trained in
    the same way as the policy: whole, or through an adapter. With ``mesh`` the layers are split over its workers.
    """
    check_head(model)
    torch.manual_seed(seed)
    reference = copy.deepcopy(model).requires_grad_(False).eval() if params.adapter != "lora" else None
    policy = add_adapter(model, params).eval()
    if params.reference_refresh_steps and reference is None:
        policy.add_adapter(REFERENCE, policy.peft_config[POLICY])
        policy.set_adapter(POLICY)
    critic = add_adapter(merge(reward.trunk), params).eval() if reward is not None else None
    for frozen in (policy, reference, critic):
        if frozen is not None:
            halve_frozen(frozen, params.precision)
            if mesh is not None:
                shard(causal_lm(frozen) if frozen is critic else trunk(frozen), mesh)
                frozen.to(mesh.device_type)
    head = None
    if params.estimator == "gae":
        device = next(policy.parameters()).device
        head = torch.nn.Linear(causal_lm(policy).config.hidden_size, 1, device=device)
        with torch.no_grad():
            head.weight.copy_(reward.head.weight if reward is not None else torch.zeros_like(head.weight))
            head.bias.copy_(-reward.centre if reward is not None else torch.zeros_like(head.bias))
    learner = Learner(policy, reference, critic, head, None, params)  # type: ignore[arg-type]
    groups = [[p for p in learner.trained() if is_split(p) == split] for split in (False, True)]  # a kernel takes one kind
    learner.optimizer = torch.optim.AdamW(
        [{"params": group} for group in groups if group],
        lr=params.learning_rate,
        eps=1e-5,
        weight_decay=params.weight_decay,
        fused=True,
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
