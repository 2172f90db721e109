"""Rows phrased by Jinja templates from a YAML file: which one is a matter of the row's hash, so every one occurs.

The file: ``tasks:`` -> a task (category/dataset, dataset, or ``*``) -> a template's name -> ``prompt`` and ``completion``, or
``prompt``, ``chosen`` and ``rejected``. An inverse template asks for the question and shows it as the completion. Templates
run in Jinja's immutable sandbox. Papers: Wei et al. 2021 (FLAN, arXiv:2109.01652), section 2.1; Longpre et al. 2023.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from jinja2 import StrictUndefined, Template, TemplateError, UndefinedError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipelines.config.data import Mixture, Source
from pipelines.context import seed_for
from pipelines.data.formats import Fields, Row, meta_of, pair_of, task_of
from pipelines.data.problems import BadRow
from pipelines.data.texts import normal
from pipelines.errors import ConfigurationError

LONGEST = 20_000
"""Characters of a template."""

SIDES = ({"prompt", "completion"}, {"prompt", "chosen", "rejected"})


class Phrasings:
    """The templates of one source."""

    def __init__(self, path: Path, name: str, source: Source, mixture: Mixture, seed: int) -> None:
        self.shown, self.source, self.origin = source.templates, source, name
        self.held_out = set(mixture.held_out_templates)
        self.fields = Fields(source.columns)
        self.tasks = {task: _first(found, mixture, seed, task) for task, found in _read(path, self.shown).items()}

    def key(self, record: dict[str, Any]) -> str:
        """What split and phrasing of a record hang on: its prompt, where it has one, else all of it.

        So what stands twice is phrased alike and found, and a row that is added changes no other's phrasing.
        """
        prompt = self.fields.get(record, "prompt")
        content = normal(prompt) if isinstance(prompt, str) else repr(sorted(record.items()))
        return f"record-{hashlib.sha256(content.encode(errors='surrogatepass')).hexdigest()[:12]}"

    def rows(self, record: dict[str, Any], key: str, split: str) -> list[Row]:
        """The record in the one of its task's phrasings that its ``key`` says. Held-out templates phrase test rows only.

        Raises BadRow for a field that the template needs and the record lacks.
        """
        task, choices = self._choices(record)
        names = sorted(name for name in choices if split == "test" or name not in self.held_out)
        if not names:
            raise BadRow("no-template", f"task {task!r} has held-out templates only", "hold fewer out", "template")
        name = names[seed_for("template", key) % len(names)]
        sides: dict[str, Any] = {side: self._rendered(template, record, name) for side, template in choices[name].items()}
        row = pair_of(**sides) if "chosen" in sides else Row("demonstration", **sides)
        meta = meta_of(record, self.fields, self.source, self.origin) | {"template": name}
        return [row._replace(**meta)]

    def every(self, record: dict[str, Any]) -> dict[str, tuple[str, str]]:
        """Template -> (prompt, answer) of the record in every template of its task; of a pair the chosen answer."""
        _, choices = self._choices(record)
        found: dict[str, tuple[str, str]] = {}
        for name, sides in sorted(choices.items()):
            answer = sides.get("completion") or sides["chosen"]
            found[name] = self._rendered(sides["prompt"], record, name), self._rendered(answer, record, name)
        return found

    def _choices(self, record: dict[str, Any]) -> tuple[str, dict[str, dict[str, Template]]]:
        """The record's task and that task's templates. Raises BadRow where there are none."""
        task = task_of(record, self.fields, self.source, self.origin)
        choices = next((self.tasks[key] for key in (task, task.rpartition("/")[2], "*") if key in self.tasks), None)
        if choices is None:
            raise BadRow("no-template", f"task {task!r} has no template", f"add it to {self.shown}, or a task '*'", "dataset")
        return task, choices

    def _rendered(self, template: Template, record: dict[str, Any], name: str) -> str:
        try:
            text = template.render(record)
        except UndefinedError as error:
            raise BadRow("missing", f"template {name}: {error}", "fill the field in, or change the template", name) from error
        except (TemplateError, TypeError, ValueError, OverflowError, ArithmeticError, AttributeError, LookupError) as error:
            raise ConfigurationError(
                f"{self.shown}: template {name}: {type(error).__name__}: {error}; mend the template"
            ) from error
        if not text.strip() or "\0" in text:
            raise BadRow("empty-text", f"template {name}: empty after strip", "fill the fields in", name)
        return text


def _read(path: Path, shown: str) -> dict[str, dict[str, dict[str, Template]]]:
    try:
        raw = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"{shown}: {error.strerror}; see prepare.sources.*.templates") from error
    except (YAMLError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{shown}: not valid YAML: {' '.join(str(error).split())}") from error
    tasks = raw.get("tasks") if isinstance(raw, dict) and set(raw) == {"tasks"} else None
    if not isinstance(tasks, dict) or not all(isinstance(found, dict) and found for found in tasks.values()):
        raise ConfigurationError(f"{shown}: expected tasks: -> task -> template -> prompt and completion")
    environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, autoescape=False, keep_trailing_newline=True)
    return {
        str(task): {str(name): _compiled(environment, sides, f"{shown}: {task}.{name}") for name, sides in found.items()}
        for task, found in tasks.items()
    }


def _compiled(environment: ImmutableSandboxedEnvironment, sides: Any, where: str) -> dict[str, Template]:
    if not isinstance(sides, dict) or set(sides) not in SIDES:
        raise ConfigurationError(f"{where}: expected prompt and completion, or prompt, chosen and rejected")
    if not all(isinstance(text, str) and len(text) <= LONGEST for text in sides.values()):
        raise ConfigurationError(f"{where}: expected strings of at most {LONGEST} characters")
    try:
        return {side: environment.from_string(text) for side, text in sides.items()}
    except TemplateError as error:
        raise ConfigurationError(f"{where}: {error}; mend the template") from error


def _first(found: dict[str, dict[str, Template]], mixture: Mixture, seed: int, task: str) -> dict[str, dict[str, Template]]:
    """The task's first ``mixture.templates`` templates in an order drawn by seed; held-out ones do not count."""
    if not mixture.templates:
        return found
    used = [name for name in in_seed_order(found, seed, task) if name not in mixture.held_out_templates][: mixture.templates]
    return {name: sides for name, sides in found.items() if name in used or name in mixture.held_out_templates}


def in_seed_order(names: Any, seed: int, *context: str) -> list[str]:
    """Names in an order drawn by seed: the first N of N + 1 are those of N, so that a sweep only adds."""
    return sorted(names, key=lambda name: (seed_for(seed, "order", *context, name), name))
