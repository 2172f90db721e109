"""The configuration: strict, frozen, read before anything heavy is imported. One class a section of params.yaml.

Unknown keys fail with the nearest valid name. What is under ``runtime`` says where and how wide a stage runs and never
enters what is hashed; everything else defines the result.
"""

from __future__ import annotations

import difflib
import types
import typing
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipelines.config.base import Base, Scratch
from pipelines.config.data import Prepare
from pipelines.config.judges import Classifier, Constitution, Endpoint, Judge, Member, SavedReward, Scorer
from pipelines.config.policies import (
    LABELS_FILE,
    PAIRS_FILE,
    AnyPolicy,
    Dpo,
    HeldOut,
    Kto,
    Offline,
    Orpo,
    Ppo,
    Rejection,
    RewardTerm,
    Scored,
)
from pipelines.config.section import NAME, Count, Fraction, Positive, Precision, Section
from pipelines.config.training import Generation, Reward, Sft, Training
from pipelines.config_promotion import Collect, Monitor, Promotion, Registry, Retrain
from pipelines.errors import ConfigurationError

__all__ = [
    "LABELS_FILE", "NAME", "PAIRS_FILE", "PARAMS", "AnyPolicy", "Base", "Classifier", "Collect", "Constitution", "Count", "Dpo",
    "Endpoint", "Evaluate", "Fraction", "Generation", "HeldOut", "Judge", "Kto", "Member", "Offline", "Orpo", "Params",
    "Positive", "Ppo", "Precision", "Preferences", "Prepare", "RayRuntime", "Rejection", "Report", "Reward", "RewardTerm",
    "Runtime", "SavedReward", "Scored", "Scorer", "Scratch", "Section", "Sft", "Suite", "Training", "load", "load_judge",
]  # fmt: skip

PARAMS = Path("params.yaml")


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


class Suite(Section):
    """A set from outside: a JSONL file below data/suites/ (pairs, or prompts with references), or tasks of lm-evaluation-harness.

    The first ``limit`` rows are used (0 = all).
    """

    path: str = ""
    tasks: list[str] = []
    limit: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _one_kind(self) -> Suite:
        if bool(self.path) == bool(self.tasks):
            raise ValueError(
                "a suite needs path: (a JSONL file below data/suites/) or tasks: (of lm-evaluation-harness), one of them"
            )
        if self.path and (not self.path.startswith("data/suites/") or ".." in self.path):
            raise ValueError("path must lie below data/suites/, which the stages list as a dependency")
        return self


class Evaluate(Section):
    """Answers on held-out prompts, compared with the SFT model's answer by answer.

    ``demonstrations`` of the test split are read for perplexity (0 = none). Best-of-n is measured up to n = ``best_of``, or
    with the ``answers`` that are compared where that is more.
    """

    answers: Count = 3
    best_of: Annotated[int, Field(ge=0)] = 0
    demonstrations: Annotated[int, Field(ge=0)] = 64
    precision: Precision = "bf16"
    tie_margin: Annotated[float, Field(ge=0.0)] = 0.05
    bootstrap: Count = 2000
    generation: Generation = Generation()
    suites: dict[Annotated[str, Field(pattern=NAME)], Suite] = {}


class Report(Section):
    """The report page."""

    examples: Count = 10


class RayRuntime(Section):
    """The cluster that serves a flow run; no address: the flow starts one on this machine."""

    address: str = ""


class Runtime(Section):
    """Where and how wide, never what: listed by no stage.

    ``shard`` splits the layers of the models that on-policy training holds over its workers, if there are two or more (FSDP2),
    for a model that does not fit beside its gradients and optimiser state. The other trainings keep whole models.
    """

    workers: Annotated[int, Field(ge=0)] = 0
    threads: Count = 2
    gpus_per_worker: Annotated[float, Field(ge=0.0)] = 0.0
    shard: bool = False
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
    registry: Registry = Registry()
    promotion: Promotion = Promotion()
    retrain: Retrain = Retrain()
    collect: Collect = Collect()
    monitor: Monitor = Monitor()

    @model_validator(mode="after")
    def _names_are_free(self) -> Params:
        if "sft" in self.policies:
            raise ValueError("policies.sft: the name is taken by the SFT model's evaluation; call the policy otherwise")
        return self

    @model_validator(mode="after")
    def _groups_have_reward_models(self) -> Params:
        for name, policy in self.policies.items():
            if isinstance(policy, Ppo) and self.reward.groups == "none" and "maxmin" in [term.kind for term in policy.rewards]:
                raise ValueError(
                    f"policies.{name}.rewards: kind maxmin needs a reward model for each group; set reward.groups: given (the"
                    " pairs' column group) or found (groups of annotators who choose alike)"
                )
        return self

    @model_validator(mode="after")
    def _gold_watches_no_training(self) -> Params:
        judge = self.preferences.judge
        for name, policy in self.policies.items():
            watching = policy.diagnosis.held_out if isinstance(policy, Ppo) else None
            if watching and judge.gold and watching.content == judge.content:
                raise ValueError(
                    f"policies.{name}.diagnosis.held_out is the gold judge (preferences.judge): acting on gold would train on"
                    " the answer; name another judge, or leave held_out out"
                )
        return self


def load(path: Path = PARAMS) -> Params:
    """Read and check a params file.

    Raises ConfigurationError with one line that names the file, the key, what was wrong and, for an unknown key or
    value, the nearest valid one.
    """
    if not path.exists():
        raise ConfigurationError(f"{path}: no such file; `prefloop use shakespeare` writes the default recipe there")
    try:
        return Params.model_validate(_mapping(path))
    except ValidationError as error:
        raise ConfigurationError(f"{path}: " + "; ".join(_explained(item) for item in error.errors())) from error


def load_judge(path: Path) -> Judge:
    """Read and check a file that holds what may stand under ``preferences.judge``; not gold unless it says so.

    Raises ConfigurationError as ``load`` does.
    """
    try:
        return Judge.model_validate({"gold": False, **_mapping(path)})
    except ValidationError as error:
        items: list[Any] = [{**item, "loc": ("preferences", "judge", *item["loc"])} for item in error.errors()]
        raise ConfigurationError(f"{path}: " + "; ".join(map(_explained, items))) from error


def _mapping(path: Path) -> dict[str, Any]:
    """What a YAML file holds, which has to be a mapping."""
    try:
        raw = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    except (YAMLError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(raw, dict):
        raise ConfigurationError(f"{path}: expected a mapping of sections, got {type(raw).__name__}")
    return raw


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
    if where[:1] == ["policies"] and len(where) >= 3:
        model, where = _methods()[where[2]], where[3:]
    for part in where:
        named = typing.get_args(model)  # a mapping or a list of sections: the name or number leads to the section
        model = _present(named[-1] if named else model.model_fields[part].annotation)
    return list(model.model_fields)


def _methods() -> dict[str, type[Section]]:
    """The class of every method that an entry of ``policies:`` can name."""
    classes = typing.get_args(typing.get_args(AnyPolicy)[0])
    return {name: one for one in classes for name in typing.get_args(one.model_fields["method"].annotation)}


def _present(annotation: Any) -> Any:
    """The section itself of one that may be left out."""
    if isinstance(annotation, types.UnionType):
        return next(kind for kind in typing.get_args(annotation) if kind is not types.NoneType)
    return annotation


def _dotted(where: list[str]) -> str:
    """The place as the file has it: pydantic puts the union's tag behind a policy's name."""
    if where[:1] == ["policies"] and len(where) >= 3:
        where = where[:2] + where[3:]
    return ".".join(where)
