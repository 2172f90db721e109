"""Judges: whatever scores answers. A judge is a function from prompts and answers to one score an answer."""

from __future__ import annotations

from collections.abc import Callable

from pipelines.config import Judge

Scorer = Callable[[list[str], list[str]], list[float]]
"""``scores = judge(prompts, answers)``: as many finite numbers as there are answers, higher is better."""


def make_judge(judge: Judge) -> Scorer:
    """The judge that ``preferences.judge`` names, its scores checked on every call."""
    if judge.kind == "lexicon":
        from pipelines.judges.lexicon import compound

        return compound
    from pipelines.judges.callables import load

    return load(judge.callable)


def name_of(judge: Judge) -> str:
    """How a judge is named in tables: ``lexicon``, or the callable's module and function."""
    return judge.kind if judge.kind == "lexicon" else judge.callable
