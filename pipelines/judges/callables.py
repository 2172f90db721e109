"""A judge of one's own: ``module:function`` in a Python file of the project, ``scores = function(prompts, answers)``."""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipelines.errors import ConfigurationError, DataError

ROOT = Path(__file__).resolve().parents[2]


def load(place: str) -> Callable[[list[str], list[str]], list[float]]:
    """Import ``module:function`` from the project root; what it returns is checked on every call."""
    function = _found(place)

    def judge(prompts: list[str], answers: list[str]) -> list[float]:
        try:
            scores = function(list(prompts), list(answers))
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            raise DataError(f"judge {place}: raised {reason}; try it alone on the texts it was given") from error
        return _checked(scores, len(answers), place)

    return judge


def _found(place: str) -> Callable[..., Any]:
    module_name, _, name = place.partition(":")
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigurationError(
            f"callable: {place}: cannot import {module_name} from the project root ({error}); "
            "name a file of the project with dots for slashes and without .py"
        ) from error
    function = getattr(module, name, None)
    if not callable(function):
        known = sorted(key for key, value in vars(module).items() if callable(value) and not key.startswith("_"))
        raise ConfigurationError(f"callable: {place}: {module_name} has no function {name}; it has: {', '.join(known) or 'none'}")
    return function


def _checked(scores: Any, expected: int, place: str) -> list[float]:
    """As many finite numbers as there were answers, or DataError that says what came instead."""
    wanted = f"it has to return {expected} finite numbers, one an answer"
    try:
        values = [float(score) for score in scores]
    except (TypeError, ValueError) as error:
        raise DataError(f"judge {place}: returned {_described(scores)}; {wanted}") from error
    if len(values) != expected:
        raise DataError(f"judge {place}: returned {len(values)} scores; {wanted}")
    bad = next((index for index, value in enumerate(values) if not math.isfinite(value)), None)
    if bad is not None:
        raise DataError(f"judge {place}: score {bad} is {values[bad]}; {wanted}")
    return values


def _described(scores: Any) -> str:
    if isinstance(scores, list | tuple):
        odd = next((item for item in scores if not isinstance(item, int | float)), None)
        return f"a {type(scores).__name__} that holds {type(odd).__name__}"
    return f"{type(scores).__name__}"
