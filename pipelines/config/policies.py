"""The entries of ``policies:``, a class a method."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from pipelines.config.judges import Scorer
from pipelines.config.section import Count, Fraction, Positive, Section
from pipelines.config.training import ExcessLength, Generation, Training

PAIRS_FILE, LABELS_FILE = "artifacts/preferences/pairs.parquet", "artifacts/prepared/labels.parquet"
ESTIMATORS: dict[str, Literal["gae", "reinforce", "rloo", "group"]] = {
    "ppo": "gae", "a2c": "gae", "reinforce": "reinforce", "rloo": "rloo", "grpo": "group",
}  # fmt: skip
PreferenceLoss = Literal[
    "sigmoid", "sigmoid_norm", "ipo", "hinge", "robust", "exo_pair", "nca_pair", "bco_pair", "sppo_hard", "apo_zero",
    "apo_down",
]  # fmt: skip
SMOOTHED = ("sigmoid", "robust", "exo_pair")
A2C = {"ppo_epochs": 1, "cliprange": 0.0, "cliprange_value": 0.0}


class Policy(Training):
    """What every entry of ``policies:`` shares."""

    method: str
    learns_from: str


class RewardTerm(Scorer):
    """One term of what an on-policy method maximises: the reward model, or a judge of texts.

    An ensemble of reward models gives its mean less ``deviations`` standard deviations (Coste et al. 2024, eq. 4: caution
    where the members disagree). ``maxmin`` is, in every step, the reward model of the group that is worst off (Chakraborty et
    al. 2024); ``reward.groups`` trains one for each.
    """

    kind: Literal["model", "maxmin", "lexicon", "callable", "classifier"] = "model"
    weight: float = 1.0
    deviations: Annotated[float, Field(ge=0.0)] = 0.0

    @property
    def name(self) -> str:
        """How the term is named in the history: a function by its name, a classifier by its model's."""
        if self.classifier:
            return PurePosixPath(self.classifier.model).name
        return self.callable.partition(":")[2] if self.kind == "callable" else self.kind


class HeldOut(Scorer):
    """A judge of texts that only watches a run. It is not the judge whose scores are the known gold, and no reward."""

    kind: Literal["lexicon", "callable", "classifier"] = "callable"


class Diagnosis(Section):
    """What the detectors (docs/diagnosis.md) may do while a policy learns.

    ``act`` false: they only report. True: at most three actions a run (skip a batch, adapt beta or the learning rate, roll
    back, stop). ``held_out`` scores the answers of every step beside the rewards; without it nothing is read but the history.
    """

    act: bool = False
    held_out: HeldOut | None = None


class Scored(Policy):
    """What the methods share that draw answers themselves and score them: ``rewards`` is a weighted sum."""

    learns_from: str = "artifacts/reward"
    rewards: list[RewardTerm] = [RewardTerm()]
    generation: Generation = Generation()

    @model_validator(mode="after")
    def _terms_are_told_apart(self) -> Self:
        names = [term.name for term in self.rewards]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"rewards needs one term or more, each with a name of its own (these: {', '.join(names) or 'none'})")
        return self


class Ppo(Scored):
    """PPO-clip and its relatives with a KL penalty (docs/ppo.md): one trainer, whose advantages the method names.

    ppo and a2c have a critic (generalised advantage estimation); a2c is one epoch without clipping. The others have none and
    measure an answer's reward against other answers': of the whole step (reinforce), of the same prompt (rloo), of the same
    prompt in units of their standard deviation (grpo, with the KL in the reward as in the others).

    ``batch_size`` is prompts a step; ``mini_batch_size`` and ``micro_batch_size`` are answers (prompts times
    ``samples_per_prompt``); ``beta`` is reward per nat, ``kl_target`` nats per sequence (0 = fixed beta),
    ``target_update_kl`` nats per token (0 = never stop early). What is maximised is the weighted sum of ``rewards``;
    ``normalise_scores`` divides it by the standard deviation of the first step's scores, after subtracting their mean
    (``reference``), or by what was seen so far (``running``). ``length_penalty`` is then taken off for every token,
    ``missing_eos_penalty`` off an answer that was cut. The critic is a value head on the policy's trunk (``shared``: no second
    model) or a model of its own that begins as the reward model (``reward``). The reference, to which KL is measured, becomes
    the policy as it is after every ``reference_refresh_steps`` steps (0 = it stays the SFT model). Answers are sampled by the
    policy itself (engine ``hf``) or by vLLM with the policy's weights (``vllm``: a GPU and the package vllm are needed; its
    other arithmetic is made up for by importance weights).
    """

    method: Literal["ppo", "a2c", "reinforce", "rloo", "grpo"]
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
    whiten_advantages: bool = True
    normalise_scores: Literal["none", "reference", "running"] = "reference"
    score_clip: Annotated[float, Field(ge=0.0)] = 10.0
    missing_eos_penalty: Annotated[float, Field(ge=0.0)] = 1.0
    length_penalty: Annotated[float, Field(ge=0.0)] = 0.0
    engine: Literal["hf", "vllm"] = "hf"
    snapshot_every: Annotated[int, Field(ge=0)] = 0
    diagnosis: Diagnosis = Diagnosis()

    @property
    def estimator(self) -> Literal["gae", "reinforce", "rloo", "group"]:
        """How advantages are estimated."""
        return ESTIMATORS[self.method]

    @model_validator(mode="before")
    @classmethod
    def _a2c_has_its_own_defaults(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("method") == "a2c":
            return {**A2C, **values}
        return values

    @model_validator(mode="after")
    def _a2c_is_one_unclipped_epoch(self) -> Ppo:
        wrong = [name for name, value in A2C.items() if self.method == "a2c" and getattr(self, name) != value]
        if wrong:
            raise ValueError(f"a2c has {wrong[0]} {A2C[wrong[0]]} (one epoch, nothing clipped); with others it is method: ppo")
        return self

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
        if self.method in ("rloo", "grpo") and self.samples_per_prompt < 2:
            raise ValueError(f"{self.method} compares a prompt's answers: samples_per_prompt must be 2 or more")
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
    def _soft_prompts_stay_in_this_process(self) -> Ppo:
        if self.adapter == "prompt" and (self.engine != "hf" or self.reference_refresh_steps):
            raise ValueError(
                "adapter: prompt goes with engine: hf and with reference_refresh_steps: 0; take lora or none otherwise"
            )
        return self

    @model_validator(mode="after")
    def _critics_are_for_gae(self) -> Ppo:
        if self.critic == "reward" and self.estimator != "gae":
            raise ValueError(f"critic: reward is for ppo and a2c; {self.method} has no critic")
        return self

    @model_validator(mode="after")
    def _held_out_is_no_reward(self) -> Ppo:
        watching = self.diagnosis.held_out
        if watching and any(term.content == watching.content for term in self.rewards):
            raise ValueError("diagnosis.held_out is one of the rewards: what is trained on is not held out")
        return self

    @model_validator(mode="after")
    def _snapshots_are_few(self) -> Ppo:
        if self.snapshot_every and self.steps // self.snapshot_every > 20:
            raise ValueError(f"snapshot_every {self.snapshot_every} keeps more than 20 snapshots of {self.steps} steps")
        return self


class Rejection(Scored):
    """Rejection sampling: of ``answers`` answers of the SFT model to each prompt the best by the reward, then SFT on those."""

    method: Literal["rejection"]
    answers: Annotated[int, Field(ge=2)] = 4
    num_train_epochs: Count = 1


class Offline(Policy):
    """What the methods share that learn from a table of answers and draw none.

    Of each prompt's pairs the ``pairs_per_prompt`` most decisive are taken (0 = all). ``ended_only`` leaves out pairs with an
    answer that was cut: it has no EOS, so it teaches the policy never to stop.
    """

    learns_from: str = PAIRS_FILE
    pairs_per_prompt: Annotated[int, Field(ge=0)] = 0
    ended_only: bool = False
    beta: Positive = 0.1
    num_train_epochs: Count = 1
    excess_length: ExcessLength = "raise"
    group_by_length: bool = False


class Dpo(Offline):
    """Direct preference optimisation and its relatives with TRL's trainer (docs/methods.md: the losses).

    ``label_smoothing`` is the share of labels that are taken to be wrong: with loss_type sigmoid it is cDPO, with robust the
    unbiased loss, with exo_pair the target's smoothing. With loss_type ipo ``beta`` is the paper's tau. ipo and sigmoid_norm
    divide the log-ratios by the answers' tokens.
    """

    method: Literal["dpo"]
    loss_type: PreferenceLoss = "sigmoid"
    label_smoothing: Annotated[float, Field(ge=0.0, lt=0.5)] = 0.0

    @model_validator(mode="after")
    def _smoothing_belongs_to_the_loss(self) -> Dpo:
        if self.label_smoothing and self.loss_type not in SMOOTHED:
            raise ValueError(f"loss_type {self.loss_type} has no label_smoothing ({', '.join(SMOOTHED)} have); leave it out")
        if not self.label_smoothing and self.loss_type in ("robust", "exo_pair"):
            raise ValueError(f"loss_type {self.loss_type} needs label_smoothing above 0 (the share of wrong labels)")
        return self


class Orpo(Offline):
    """Odds-ratio preference optimisation with TRL's trainer: no reference model. ``beta`` is the paper's lambda."""

    method: Literal["orpo"]
    adapter: Literal["none", "lora"] = "lora"


class Kto(Offline):
    """Kahneman-Tversky optimisation with TRL's trainer, on single answers that are good or bad.

    They are people's labels, or both answers of every pair. The weights make up for unequal numbers of good and bad ones. The
    KL of the loss is estimated in each micro-batch, so the result depends on ``micro_batch_size`` and the number of workers.
    """

    method: Literal["kto"]
    adapter: Literal["none", "lora"] = "lora"
    desirable_weight: Positive = 1.0
    undesirable_weight: Positive = 1.0

    @model_validator(mode="after")
    def _micro_batches_have_two_answers(self) -> Kto:
        if self.micro_batch_size < 2:
            raise ValueError("kto pairs a micro-batch's prompts with each other's answers: micro_batch_size must be 2 or more")
        return self

    @model_validator(mode="after")
    def _labels_are_no_pairs(self) -> Kto:
        if self.learns_from == LABELS_FILE and (self.pairs_per_prompt or self.ended_only):
            raise ValueError(f"pairs_per_prompt and ended_only choose among pairs; {LABELS_FILE} holds single answers")
        return self


AnyPolicy = Annotated[Ppo | Rejection | Dpo | Orpo | Kto, Field(discriminator="method")]
