"""Judges: whatever scores answers or compares them. A judge is a function from prompts and answers to one score an answer.

With a cluster, a judge that is a model is spread over its workers and remembers what it has said (``asking``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipelines.config import Scorer as Settings
    from pipelines.context import Cluster

Scorer = Callable[[list[str], list[str]], list[float]]
"""``scores = judge(prompts, answers)``: as many finite numbers as there are answers, higher is better."""


@dataclass(frozen=True)
class Verdicts:
    """Pairs compared: by how much the first answer of each is better (below 0: worse), and figures of the judge itself."""

    differences: list[float]
    figures: dict[str, float] = field(default_factory=dict)


def make_judge(judge: Settings, root: Path = Path(), cluster: Cluster | None = None, device: str = "cpu") -> Scorer:
    """The judge that ``judge`` describes, its scores checked on every call. ``root`` is the project's folder.

    Without a cluster a model runs in this process, on ``device``, and remembers nothing.
    """
    if judge.kind == "lexicon":
        from pipelines.judges.lexicon import compound

        return compound
    if judge.kind == "callable":
        from pipelines.judges.callables import load

        return load(judge.callable)
    if judge.kind == "ensemble":
        from pipelines.judges.ensemble import mean_of, references

        members = [(name_of(member), make_judge(member, root, cluster, device)) for member in judge.content["ensemble"]]
        return mean_of(members, lambda: references(root))
    from pipelines.judges.asking import scorer

    return scorer(judge, root, cluster, device)


def compares(judge: Settings) -> bool:
    """Whether a judge looks at two answers at a time. The others score each answer, whatever it is compared with."""
    return judge.kind == "constitution"


def compare(judge: Settings, root: Path, cluster: Cluster, prompts: list[str], first: list[str], second: list[str]) -> Verdicts:
    """Compare two answers to each prompt: by the difference of their scores, or side by side where the judge can."""
    if compares(judge):
        from pipelines.judges.asking import ask
        from pipelines.judges.constitution import verdicts

        return verdicts(ask(judge, root, cluster, list(zip(prompts, first, second, strict=True))))
    score = make_judge(judge, root, cluster)
    ours, theirs = score(prompts, first), score(prompts, second)
    return Verdicts([one - other for one, other in zip(ours, theirs, strict=True)])


def name_of(judge: Settings) -> str:
    """How a judge is named in tables: ``lexicon``, a callable's module and function, else its kind and its model's name."""
    if judge.kind == "callable":
        return judge.callable
    if judge.kind == "ensemble":
        return "ensemble"
    section = judge.content.get(judge.kind)
    if section is None:
        return judge.kind
    from pipelines.judges.asking import model_name

    return f"{judge.kind}:{model_name(section)}"
