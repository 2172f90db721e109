"""What gives a text a score or compares two: the kinds of judges, a class each that needs more than a name (docs/judges.md)."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from pipelines.config.section import Count, Positive, Precision, Section

FOLDER = "data/judges/"
"""Where judges' models and recorded replies lie: the stages list it as a dependency."""
BASE = "artifacts/base"


def _check_place(model: str, revision: str, known: tuple[str, ...] = ()) -> None:
    """A hub id has a revision; a folder lies where the stages look."""
    if revision or model in known or (model.startswith(FOLDER) and ".." not in model):
        return
    others = "".join(f", or {place}" for place in known)
    raise ValueError(f"model must be a folder below {FOLDER}, or a hub id with revision: (a commit hash){others}")


class Classifier(Section):
    """A sequence classifier of transformers; the score is the log-odds of ``label``, or a single output as it is.

    ``model`` is a folder below data/judges/, or a hub id at ``revision``. It reads the answer alone, or prompt and answer.
    """

    model: str
    label: str
    revision: str = ""
    reads: Literal["answer", "prompt_and_answer"] = "answer"
    batch_size: Count = 32
    precision: Precision = "float32"

    @model_validator(mode="after")
    def _model_is_pinned(self) -> Self:
        _check_place(self.model, self.revision)
        return self


class SavedReward(Section):
    """A reward model of ours, kept: ``folder`` (below data/judges/) holds copies of artifacts/reward and artifacts/sft."""

    folder: str
    batch_size: Count = 32
    precision: Precision = "bf16"

    @model_validator(mode="after")
    def _folder_is_listed(self) -> Self:
        if not self.folder.startswith(FOLDER) or ".." in self.folder:
            raise ValueError(f"folder must lie below {FOLDER}, which the stages list as a dependency")
        return self


class Endpoint(Section):
    """An OpenAI-compatible server: ``url`` is what stands before ``/chat/completions``; it has to give log-probabilities.

    The key is in the environment variable that ``key_variable`` names ("" = the server asks for none). A request is tried
    ``attempts`` times, ``timeout`` seconds each. Replies are recorded under .runs/judges/replies/; ``replies`` is such a
    file below data/judges/, in which a reply is looked for before it is asked for.
    """

    url: Annotated[str, Field(pattern=r"^https?://")]
    model: str
    key_variable: Annotated[str, Field(pattern=r"^([A-Za-z_][A-Za-z0-9_]*)?$")] = ""
    requests_per_minute: Count = 60
    attempts: Count = 6
    timeout: Positive = 60.0
    replies: str = ""

    @model_validator(mode="after")
    def _replies_are_listed(self) -> Self:
        if self.replies and (not self.replies.startswith(FOLDER) or ".." in self.replies):
            raise ValueError(f"replies must lie below {FOLDER}, which the stages list as a dependency")
        return self


class Constitution(Section):
    """A language model that judges by the principles in a file below data/constitutions/.

    ``model`` is a folder below data/judges/, artifacts/base, or a hub id at ``revision``; or there is an ``endpoint``.
    """

    principles: str
    model: str = ""
    revision: str = ""
    endpoint: Endpoint | None = None
    batch_size: Count = 16
    precision: Precision = "bf16"

    @model_validator(mode="after")
    def _one_model(self) -> Self:
        if not self.principles.startswith("data/constitutions/") or ".." in self.principles:
            raise ValueError("principles must lie below data/constitutions/, which the stages list as a dependency")
        if bool(self.model) == bool(self.endpoint):
            raise ValueError("a constitution needs model: or endpoint:, one of them")
        if self.model:
            _check_place(self.model, self.revision, (BASE,))
        return self


class Scorer(Section):
    """What gives a text a score: the recipe's reward model, VADER's lexicon, a function of the user's, another model.

    What a kind needs to know stands in the section of its name; no other section may be there.
    """

    kind: Literal["model", "maxmin", "lexicon", "callable", "classifier", "reward", "constitution", "ensemble"]
    callable: str = ""
    classifier: Classifier | None = None

    @property
    def content(self) -> dict[str, Any]:
        """What it is, without what it is used for: equal for equal judges."""
        kinds = ("callable", "classifier", "reward", "constitution", "ensemble")
        return {"kind": self.kind, **{name: getattr(self, name) for name in kinds if getattr(self, name, None)}}

    @model_validator(mode="after")
    def _callable_is_named(self) -> Self:
        if self.kind == "callable" and ":" not in self.callable:
            raise ValueError("kind: callable needs callable: pipelines.judges.file:function")
        return self

    @model_validator(mode="after")
    def _sections_belong_to_the_kind(self) -> Self:
        for name in ("classifier", "reward", "constitution", "ensemble"):
            given = bool(getattr(self, name, None))
            if given and self.kind != name:
                raise ValueError(f"{name}: is for kind: {name}, this is kind: {self.kind}")
            if not given and self.kind == name:
                raise ValueError(f"kind: {name} needs the section {name}:")
        return self


class Member(Scorer):
    """One judge of an ensemble."""

    kind: Literal["lexicon", "callable", "classifier", "reward", "constitution"]
    reward: SavedReward | None = None
    constitution: Constitution | None = None


class Judge(Scorer):
    """The judge that labels pairs. ``lexicon`` is VADER's compound score: a gold judge, because it is known exactly.

    ``ensemble`` lists two judges or more, whose standardised scores are averaged. A constitution is an opinion, never gold.
    """

    kind: Literal["lexicon", "callable", "classifier", "reward", "constitution", "ensemble"] = "lexicon"
    reward: SavedReward | None = None
    constitution: Constitution | None = None
    ensemble: list[Member] = []
    gold: bool = True

    @model_validator(mode="after")
    def _an_ensemble_has_members(self) -> Self:
        if self.kind == "ensemble" and len(self.ensemble) < 2:
            raise ValueError("ensemble needs two judges or more")
        return self

    @model_validator(mode="after")
    def _an_opinion_is_no_gold(self) -> Self:
        if self.gold and "constitution" in (self.kind, *(member.kind for member in self.ensemble)):
            raise ValueError("a constitution is an opinion, not the known truth: set gold: false")
        return self
