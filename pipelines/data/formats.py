"""From a record of a file to rows of one shape, whatever its format: recognised by its fields, or named and mapped.

Papers: Ouyang et al. 2022 (K ranked answers give every pair), Ethayarajh et al. 2024 (single labels), Taori et al. 2023
(instruction, input, output).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any, NamedTuple

from pipelines.config.data import OURS, Source
from pipelines.data import dialogues
from pipelines.data.problems import BadRow
from pipelines.errors import DataError

Record = dict[str, Any]

FIELDS: dict[str, tuple[str, ...]] = {
    "kto": ("prompt", "completion", "label"),
    "preference": ("prompt", "chosen", "rejected"),
    "ranked": ("prompt", "answers"),
    "graded": ("prompt", "first", "second", "grade"),
    "completion": ("prompt", "completion"),
    "messages": ("messages",),
    "alpaca": ("instruction", "output"),
    "hh": ("chosen", "rejected"),
    "text": ("text",),
}
"""What each format needs, in the order in which they are tried."""


OPTIONAL = ("group", "annotator", "source", "template", "margin", "weight", "category", "dataset")


class Row(NamedTuple):
    """One demonstration (completion), one pair (chosen, rejected) or one label (completion, label). Unknown = None."""

    kind: str
    prompt: str
    completion: str | None = None
    chosen: str | None = None
    rejected: str | None = None
    label: bool | None = None
    group: str | None = None
    annotator: str | None = None
    margin: float | None = None
    weight: float | None = None
    source: str | None = None
    task: str | None = None
    template: str | None = None
    chosen_grade: float | None = None
    rejected_grade: float | None = None


class Fields:
    """A record seen through ``columns:``; a dot leads into objects and lists."""

    def __init__(self, columns: dict[str, str]) -> None:
        self.paths = {name: columns.get(name, name) for name in OURS}

    def get(self, record: Record, name: str) -> Any:
        """The value, or None where it is missing or null."""
        path = self.paths[name]
        if path in record or "." not in path:
            return record.get(path)
        value: Any = record
        for part in path.split("."):
            if isinstance(value, dict):
                value = value.get(part)
            elif isinstance(value, list) and part.isdigit() and int(part) < len(value):
                value = value[int(part)]
            else:
                return None
        return value

    def has(self, record: Record, name: str) -> bool:
        """Whether there is such a field, even if it is null."""
        return self.paths[name] in record or self.get(record, name) is not None

    def text(self, record: Record, name: str) -> str:
        """A text that can be used. Raises BadRow."""
        value = self.get(record, name)
        if type(value) is str and value and not value.isspace() and "\0" not in value:
            return value
        raise self._fault(record, name, value)

    def number(self, record: Record, name: str) -> float | None:
        """A finite number, None where there is none; CSV brings it as a string."""
        value = self.get(record, name)
        if value is None:
            return None
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not math.isfinite(number):
            raise BadRow("wrong-type", f"{name}: expected a finite number, got {type(value).__name__}", "mend the value", name)
        return number

    def name(self, record: Record, name: str) -> str | None:
        """A name (of a group, a source): a string or a whole number."""
        value = self.get(record, name)
        if value is None or (type(value) is str and value and "\0" not in value):
            return value
        if type(value) is int:
            return str(value)
        raise BadRow("wrong-type", f"{name}: expected a name, got {type(value).__name__}", "write a string", name)

    def _fault(self, record: Record, name: str, value: Any) -> BadRow:
        shown = name if self.paths[name] == name else f"{name} ({self.paths[name]})"
        if value is None:
            there = self.paths[name] in record
            return BadRow("null" if there else "missing", f"{shown}: {'null' if there else 'missing'}", "fill it in", name)
        if type(value) is not str:
            kind = "array" if isinstance(value, list) else "object" if isinstance(value, dict) else type(value).__name__
            return BadRow("wrong-type", f"{shown}: expected string, got {kind}", "write it as a string", name)
        if "\0" in value:
            return BadRow("control-character", f"U+0000 in field {name}", "remove the character", name)
        return BadRow("empty-text", f"{shown}: empty after strip", "fill it in or remove the row", name)


def recognise(records: Sequence[Record], source: Source, shown: str) -> str:
    """The format of a source by its first records: by every field that one of them has, since any may lack one.

    Raises DataError that names what is missing and how to map it.
    """
    fields = Fields(source.columns)
    there = {name for name in OURS if any(fields.has(record, name) for record in records)}
    implicit = any(_implicit(record, fields) for record in records)
    for name, needed in FIELDS.items():
        if source.format in (name, "auto") and (set(needed) <= there or (name == "preference" and implicit)):
            return name
    wanted = FIELDS.get(source.format) or min(FIELDS.values(), key=lambda needed: len(set(needed) - there))
    missing = [name for name in wanted if name not in there]
    hint = ", ".join(f"{name}: <its name>" for name in missing)
    found = ", ".join(sorted({name for record in records for name in record})) or "no fields"
    raise DataError(
        f"wrong-columns {shown}: missing: {', '.join(missing)}; found: {found} | format {source.format}"
        f" | map them: columns: {{{hint}}}"
    )


def reader(kind: str, source: Source, origin: str) -> Callable[[Record], tuple[list[Row], int]]:
    """A function from a record of the source ``origin`` to its rows and the number of ties. It raises BadRow."""
    fields = Fields(source.columns)
    read = READERS[kind]
    paths = {fields.paths[name] for name in OPTIONAL}
    usual = task_of({}, fields, source, origin)
    nested = any("." in path for path in paths)

    def rows(record: Record) -> tuple[list[Row], int]:
        made, ties = read(record, fields, source)
        if not nested and paths.isdisjoint(record):
            return [row._replace(source=origin, task=usual) for row in made], ties
        meta = meta_of(record, fields, source, origin)
        return [row._replace(**meta) for row in made], ties

    return rows


def task_of(record: Record, fields: Fields, source: Source, origin: str) -> str:
    """category/dataset; a source without a dataset column is a data set of its own name."""
    category = fields.name(record, "category") or source.category
    dataset = fields.name(record, "dataset") or origin
    return f"{category}/{dataset}" if category else dataset


def meta_of(record: Record, fields: Fields, source: Source, origin: str) -> dict[str, Any]:
    """The optional columns that the record has, its source and its task."""
    found: dict[str, Any] = {"source": origin, "task": task_of(record, fields, source, origin)}
    for name in ("group", "annotator", "source", "template"):
        value = fields.name(record, name)
        if value is not None:
            found[name] = value
    for name in ("margin", "weight"):
        number = fields.number(record, name)
        if number is not None:
            found[name] = number
    if found.get("weight", 1.0) <= 0:
        raise BadRow("wrong-type", "weight: expected a number above 0", "leave the row out instead", "weight")
    return found


def _completion(record: Record, fields: Fields, _: Source) -> tuple[list[Row], int]:
    return [Row("demonstration", *_asked_and_answered(record, fields))], 0


def _kto(record: Record, fields: Fields, _: Source) -> tuple[list[Row], int]:
    label = fields.get(record, "label")
    known = {"true": True, "1": True, "false": False, "0": False}
    value = known.get(str(label).lower())
    if value is None:
        raise BadRow("wrong-type", f"label: expected true or false, got {type(label).__name__}", "write true or false", "label")
    return [Row("label", *_asked_and_answered(record, fields), label=value)], 0


def _text(record: Record, fields: Fields, _: Source) -> tuple[list[Row], int]:
    """A whole text; ``rows.cut`` makes a prompt and its continuation of it."""
    return [Row("text", fields.text(record, "text"))], 0


def _alpaca(record: Record, fields: Fields, _: Source) -> tuple[list[Row], int]:
    prompt = fields.text(record, "instruction")
    if fields.get(record, "input"):
        prompt += "\n\n" + fields.text(record, "input")
    return [Row("demonstration", prompt, fields.text(record, "output"))], 0


def _messages(record: Record, fields: Fields, _: Source) -> tuple[list[Row], int]:
    found = dialogues.checked(fields.get(record, "messages"), "messages")
    if found[-1][0] != "assistant":
        raise BadRow("role-order", f"ends with role {found[-1][0]!r}; an answer of role assistant is due", "add it", "messages")
    return [Row("demonstration", dialogues.prompt_of(found[:-1]), found[-1][1])], 0


def _hh(record: Record, fields: Fields, _: Source) -> tuple[list[Row], int]:
    prompt, chosen = dialogues.split_last(fields.text(record, "chosen"), "chosen")
    other, rejected = dialogues.split_last(fields.text(record, "rejected"), "rejected")
    if prompt != other:
        raise _prompts_differ()
    for name, answer in (("chosen", chosen), ("rejected", rejected)):
        if not answer.strip():
            raise BadRow("empty-text", f"{name}: empty after strip", "fill it in or remove the row", name)
    return [pair_of(prompt, chosen, rejected)], 0


def _prompts_differ() -> BadRow:
    return BadRow("prompts-differ", "chosen and rejected do not share their prompt", "remove the row: answers to two questions")


def _preference(record: Record, fields: Fields, _: Source) -> tuple[list[Row], int]:
    if type(fields.get(record, "chosen")) is list:
        (asked, chosen), (other, rejected) = (_of_messages(record, fields, name) for name in ("chosen", "rejected"))
        if asked != other:
            raise _prompts_differ()
        return [pair_of(dialogues.prompt_of(asked), chosen, rejected)], 0
    chosen, rejected = fields.text(record, "chosen"), fields.text(record, "rejected")
    return [pair_of(_prompt(record, fields), chosen, rejected)], 0


def _asked_and_answered(record: Record, fields: Fields) -> tuple[str, str]:
    """Prompt and completion, each of them a text or a list of messages."""
    if type(fields.get(record, "completion")) is list:
        asked, answer = _of_messages(record, fields, "completion")
        return dialogues.prompt_of(asked), answer
    return _prompt(record, fields), fields.text(record, "completion")


def _of_messages(record: Record, fields: Fields, name: str) -> tuple[list[dialogues.Turn], str]:
    """The turns that are asked and the answer to them, of a list of messages that comes behind the prompt, if there is one."""
    side, asked = fields.get(record, name), fields.get(record, "prompt")
    before = asked if type(asked) is list else [{"role": "user", "content": asked}] if type(asked) is str else []
    found = dialogues.checked(before + (side if type(side) is list else []), name)
    if found[-1][0] != "assistant" or len(found) < 2:
        raise BadRow("role-order", f"{name} ends with an answer of role assistant, to a prompt", "add it", name)
    return found[:-1], found[-1][1]


def _prompt(record: Record, fields: Fields) -> str:
    asked = fields.get(record, "prompt")
    if type(asked) is not list:
        return fields.text(record, "prompt")
    found = dialogues.checked(asked, "prompt")
    if found[-1][0] != "user":
        raise BadRow("role-order", f"prompt ends with role {found[-1][0]!r}, user is due", "end with what is asked", "prompt")
    return dialogues.prompt_of(found)


def _ranked(record: Record, fields: Fields, source: Source) -> tuple[list[Row], int]:
    """Every pair of answers that are not tied. Scores (numbers, or words of ``grades``) are grades and say by how much
    (margin), ranks (1 is best) do not."""
    prompt, answers = fields.text(record, "prompt"), fields.get(record, "answers")
    if type(answers) is not list or len(answers) < 2:
        raise BadRow("wrong-type", "answers: expected a list of two or more", "write the answers as a list", "answers")
    texts: list[Any] = [answer.get("text") if isinstance(answer, dict) else answer for answer in answers]
    if not all(type(text) is str and text.strip() and "\0" not in text for text in texts):
        raise BadRow("empty-text", "answers: an answer is empty after strip, or no string", "fill it in", "answers")
    scores, ranks = (_listed(record, fields, source, answers, name) for name in ("scores", "ranks"))
    if scores is None and ranks is None:
        raise BadRow("missing", "scores, ranks: missing", "give one number an answer: scores (high is good) or ranks (1 is best)")
    values = scores if scores is not None else [-rank for rank in ranks or []]
    rows, ties = [], 0
    for one, two in combinations(range(len(texts)), 2):
        best, worst = (one, two) if values[one] > values[two] else (two, one)
        if values[one] == values[two] or texts[one].strip() == texts[two].strip():
            ties += 1
        else:
            pair = pair_of(prompt, texts[best], texts[worst])
            if scores is not None:
                pair = pair._replace(margin=scores[best] - scores[worst], chosen_grade=scores[best], rejected_grade=scores[worst])
            rows.append(pair)
    return rows, ties


def _listed(record: Record, fields: Fields, source: Source, answers: list[Any], name: str) -> list[float] | None:
    """One number an answer, from a list beside them or from inside them; words have the worth that ``grades`` says."""
    found = fields.get(record, name)
    for inside in ("score", "grade") if name == "scores" else ("rank",):
        if found is None and all(isinstance(answer, dict) and inside in answer for answer in answers):
            found = [answer[inside] for answer in answers]
    if found is None:
        return None
    if type(found) is list and source.grades:
        found = [_worth(value, source, name) if type(value) is str else value for value in found]
    finite = type(found) is list and all(type(value) in (int, float) and math.isfinite(value) for value in found)
    if not finite or len(found) != len(answers):
        raise BadRow("wrong-type", f"{name}: expected {len(answers)} numbers", "give one number an answer", name)
    return [float(value) for value in found]


def _worth(word: str, source: Source, name: str) -> float:
    """What a word of the source's ``grades`` stands for."""
    if word not in source.grades:
        known = ", ".join(source.grades)
        raise BadRow("unknown-grade", f"{name}: {word[:40]!r} is none of {known}", "add it to grades:", name)
    return source.grades[word]


def _graded(record: Record, fields: Fields, source: Source) -> tuple[list[Row], int]:
    prompt, first, second = (fields.text(record, name) for name in ("prompt", "first", "second"))
    grade = fields.get(record, "grade")
    if type(grade) is str and source.grades:
        value = _worth(grade, source, "grade")
    else:
        number = fields.number(record, "grade")
        if number is None:
            raise BadRow("missing", "grade: missing", "give a grade (0 is a tie) or remove the row", "grade")
        value = number
    if value == 0 or first.strip() == second.strip():
        return [], 1
    better, worse = (first, second) if value > 0 else (second, first)
    return [pair_of(prompt, better, worse)._replace(margin=abs(value))], 0


def pair_of(prompt: str, chosen: str, rejected: str) -> Row:
    """A pair. Raises BadRow where the two answers are the same."""
    if chosen.strip() == rejected.strip():
        raise BadRow("chosen-equals-rejected", "chosen equals rejected", "remove the row: it prefers nothing")
    return Row("pair", prompt, chosen=chosen, rejected=rejected)


def _implicit(record: Record, fields: Fields) -> bool:
    """Whether chosen and rejected are message lists, which bring their prompt."""
    return all(type(fields.get(record, name)) is list for name in ("chosen", "rejected"))


READERS: dict[str, Callable[[Record, Fields, Source], tuple[list[Row], int]]] = {
    "alpaca": _alpaca,
    "completion": _completion,
    "graded": _graded,
    "hh": _hh,
    "kto": _kto,
    "messages": _messages,
    "preference": _preference,
    "ranked": _ranked,
    "text": _text,
}
