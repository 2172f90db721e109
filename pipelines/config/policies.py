"""The entries of ``policies:``, a class a method."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pipelines.config.section import Count, Fraction, Positive, Section
from pipelines.config.training import ExcessLength, Generation, Training


class Policy(Training):
    """What every entry of ``policies:`` shares."""

    method: str
    learns_from: str


class Scorer(Section):
    """What gives a text a score: a model, VADER's lexicon, or a function of the user's."""

    kind: Literal["model", "lexicon", "callable"]
    callable: str = ""

    @model_validator(mode="after")
    def _callable_is_named(self) -> Self:
        if self.kind == "callable" and ":" not in self.callable:
            raise ValueError("kind: callable needs callable: pipelines.judges.file:function")
        return self


class RewardTerm(Scorer):
    """One term of what an on-policy method maximises: the reward model, or a judge of texts.

    An ensemble of reward models gives its mean less ``deviations`` standard deviations (Coste et al. 2024, eq. 4: caution
    where the members disagree).
    """

    kind: Literal["model", "lexicon", "callable"] = "model"
    weight: float = 1.0
    deviations: Annotated[float, Field(ge=0.0)] = 0.0

    @property
    def name(self) -> str:
        """How the term is named in the history."""
        return self.callable.partition(":")[2] if self.kind == "callable" else self.kind


class HeldOut(Scorer):
    """A judge of texts that only watches a run. It is not the judge whose scores are the known gold, and no reward."""

    kind: Literal["lexicon", "callable"] = "callable"


class Diagnosis(Section):
    """What the detectors (docs/diagnosis.md) may do while a policy learns.

    ``act`` false: they only report. True: at most three actions a run (skip a batch, adapt beta or the learning rate, roll
    back, stop). ``held_out`` scores the answers of every step beside the rewards; without it nothing is read but the history.
    """

    act: bool = False
    held_out: HeldOut | None = None


class Ppo(Policy):
    """PPO-clip and its relatives with a KL penalty (docs/ppo.md).

    ``batch_size`` is prompts a step; ``mini_batch_size`` and ``micro_batch_size`` are answers (prompts times
    ``samples_per_prompt``); ``beta`` is reward per nat, ``kl_target`` nats per sequence (0 = fixed beta),
    ``target_update_kl`` nats per token (0 = never stop early). What is maximised is the weighted sum of ``rewards``;
    ``normalise_scores`` divides it by the standard deviation of the first step's scores, after subtracting their mean
    (``reference``), or by what was seen so far (``running``). ``length_penalty`` is then taken off for every token,
    ``missing_eos_penalty`` off an answer that was cut. A2C is estimator gae with one epoch and ``cliprange`` 0. The critic
    (estimator gae) is a value head on the policy's trunk (``shared``: no second model) or a model of its own that begins
    as the reward model (``reward``). The reference, to which KL is measured, becomes the policy as it is after every
    ``reference_refresh_steps`` steps (0 = it stays the SFT model). Answers are sampled by the policy itself (engine ``hf``)
    or by vLLM with the policy's weights (``vllm``: a GPU and the package vllm are needed; its other arithmetic is made up for
    by importance weights).
    """

    method: Literal["ppo"]
    learns_from: str = "artifacts/reward"
    estimator: Literal["gae", "rloo", "reinforce", "group"] = "gae"
    steps: Count = 30
    ppo_epochs: Count = 2
    mini_batch_size: Count = 32
    samples_per_prompt: Count = 1
    gamma: Fraction = 1.0
    lam: Fraction = 0.95
    cliprange: Annotated[float, Field(ge=0.0)] = 0.2
    cliprange_value: Annotated[float, Field(ge=0.0)] = 0.2
    vf_coef: Positive = 0.1
    reference_refresh_steps: Annotated[int, Field(ge=0)] = 0
    critic: Literal["shared", "reward"] = "shared"
    critic_warmup_steps: Annotated[int, Field(ge=0)] = 0
    beta: Annotated[float, Field(ge=0.0)] = 0.05
    kl_target: Annotated[float, Field(ge=0.0)] = 0.0
    kl_horizon: Count = 10000
    target_update_kl: Annotated[float, Field(ge=0.0)] = 0.0
    rewards: list[RewardTerm] = [RewardTerm()]
    whiten_advantages: bool = True
    normalise_scores: Literal["none", "reference", "running"] = "reference"
    score_clip: Annotated[float, Field(ge=0.0)] = 10.0
    missing_eos_penalty: Annotated[float, Field(ge=0.0)] = 1.0
    length_penalty: Annotated[float, Field(ge=0.0)] = 0.0
    generation: Generation = Generation()
    engine: Literal["hf", "vllm"] = "hf"
    snapshot_every: Annotated[int, Field(ge=0)] = 0
    diagnosis: Diagnosis = Diagnosis()

    @model_validator(mode="after")
    def _micro_batches_fill_the_batch(self) -> Ppo:
        """Losses are sums over tokens here, so a micro-batch may have any size."""
        return self

    @model_validator(mode="after")
    def _answers_are_divided_evenly(self) -> Ppo:
        answers = self.batch_size * self.samples_per_prompt
        if answers % self.mini_batch_size:
            raise ValueError(
                f"mini_batch_size {self.mini_batch_size} must divide the answers of a step, batch_size"
                f" {self.batch_size} x samples_per_prompt {self.samples_per_prompt} = {answers}"
            )
        return self

    @model_validator(mode="after")
    def _groups_have_members(self) -> Ppo:
        if self.estimator in ("rloo", "group") and self.samples_per_prompt < 2:
            raise ValueError(f"estimator {self.estimator} compares a prompt's answers: samples_per_prompt must be 2 or more")
        return self

    @model_validator(mode="after")
    def _sampling_is_from_the_policy_itself(self) -> Ppo:
        plain = Generation()
        for name in ("top_k", "repetition_penalty", "min_new_tokens"):
            if getattr(self.generation, name) != getattr(plain, name):
                raise ValueError(
                    f"generation.{name} {getattr(self.generation, name)}: answers would come from another distribution than the"
                    " one whose log-probabilities are trained on (the KL turns negative, the ratios are wrong);"
                    f" leave it at {getattr(plain, name)}, and set it where answers are sampled for evaluation"
                )
        return self

    @model_validator(mode="after")
    def _terms_are_told_apart(self) -> Ppo:
        names = [term.name for term in self.rewards]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"rewards needs one term or more, each with a name of its own (these: {', '.join(names) or 'none'})")
        return self

    @model_validator(mode="after")
    def _soft_prompts_stay_in_this_process(self) -> Ppo:
        if self.adapter == "prompt" and (self.engine != "hf" or self.reference_refresh_steps):
            raise ValueError(
                "adapter: prompt goes with engine: hf and with reference_refresh_steps: 0; take lora or none otherwise"
            )
        return self

    @model_validator(mode="after")
    def _critics_are_for_gae(self) -> Ppo:
        if self.critic == "reward" and self.estimator != "gae":
            raise ValueError(f"critic: reward is for estimator gae; {self.estimator} has no critic")
        return self

    @model_validator(mode="after")
    def _held_out_is_no_reward(self) -> Ppo:
        watching = self.diagnosis.held_out
        if watching and any((term.kind, term.callable) == (watching.kind, watching.callable) for term in self.rewards):
            raise ValueError("diagnosis.held_out is one of the rewards: what is trained on is not held out")
        return self

    @model_validator(mode="after")
    def _snapshots_are_few(self) -> Ppo:
        if self.snapshot_every and self.steps // self.snapshot_every > 20:
            raise ValueError(f"snapshot_every {self.snapshot_every} keeps more than 20 snapshots of {self.steps} steps")
        return self


class Dpo(Policy):
    """Direct preference optimisation with TRL's trainer, on the ``pairs_per_prompt`` most decisive pairs (0 = all).

    ``ended_only`` leaves out pairs with an answer that was cut: it has no EOS, so it teaches the policy never to stop.
    """

    method: Literal["dpo"]
    learns_from: str = "artifacts/preferences/pairs.parquet"
    pairs_per_prompt: Annotated[int, Field(ge=0)] = 0
    ended_only: bool = False
    beta: Positive = 0.1
    loss_type: Literal["sigmoid", "ipo", "hinge", "robust"] = "sigmoid"
    label_smoothing: Fraction = 0.0
    num_train_epochs: Count = 1
    excess_length: ExcessLength = "raise"
    group_by_length: bool = False


AnyPolicy = Annotated[Ppo | Dpo, Field(discriminator="method")]
