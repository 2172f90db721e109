"""JSON Lines of people: read line by line, and refused with file, line and remedy as soon as a line is broken."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from pipelines.errors import DataError

DEMONSTRATION = ("prompt", "completion")
PREFERENCE = ("prompt", "chosen", "rejected")
Row = dict[str, str]


def read_jsonl(path: Path, root: Path, kinds: tuple[tuple[str, ...], ...]) -> list[Row]:
    """The rows of a file inside ``root``; all have the fields of the first of ``kinds`` that the first row has.

    ``group`` is optional; fields beyond that are left out. Raises DataError for anything that is not as it should be.
    """
    shown = _inside(path, root)
    rows: list[Row] = []
    fields: tuple[str, ...] = ()
    blank = 0
    for number, line in _lines(path, shown):
        if not line.strip():
            blank += 1
            continue
        found = _object(line, f"{shown}:{number}")
        fields = fields or _kind(found, kinds, f"{shown}:{number}")
        rows.append(_row(found, fields, f"{shown}:{number}"))
    if not rows:
        raise DataError(f"{shown}: 0 rows ({blank} blank lines); it needs one JSON object a line")
    return rows


def joined(prompt: str, answer: str) -> str:
    """The answer as it follows its prompt: with a space before it where neither brings one."""
    return answer if prompt[-1:].isspace() or answer[:1].isspace() else " " + answer


def _inside(path: Path, root: Path) -> str:
    """The path as the project knows it; a file elsewhere would be missing from a clone."""
    if not path.resolve().is_relative_to(root.resolve()):
        raise DataError(f"{path.name}: lies outside the project; copy it below data/external/ and name it there")
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name


def _lines(path: Path, shown: str) -> Iterator[tuple[int, str]]:
    try:
        with path.open("rb") as file:
            for number, raw in enumerate(file, start=1):
                if number == 1 and raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
                    _refuse(shown, f"looks like UTF-16 (BOM {raw[:2].hex(' ')})", "save it as UTF-8")
                try:
                    yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    byte = raw[error.start]
                    _refuse(f"{shown}:{number}", f"byte 0x{byte:02x} is not UTF-8", "convert it: iconv -f latin1 -t utf-8")
    except OSError as error:
        raise DataError(f"{shown}: {error.strerror}; see prepare.learns_from and data/preferences/") from error


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        found = json.loads(line, parse_constant=_no_constant, object_pairs_hook=_no_twins)
    except json.JSONDecodeError as error:
        ending = error.msg.startswith("Unterminated string") and not line.endswith("\n")
        what = "ends inside a string (truncated file?)" if ending else f"invalid JSON at column {error.colno}: {error.msg}"
        _refuse(where, what, "mend the line")
    except (ValueError, RecursionError) as error:
        _refuse(where, f"invalid JSON: {error}", "mend the line")
    if not isinstance(found, dict):
        kind = "array" if isinstance(found, list) else type(found).__name__
        _refuse(where, f"expected object, got {kind}", "write one JSON object a line (jq -c '.[]' turns an array into lines)")
    return found


def _kind(found: dict[str, Any], kinds: tuple[tuple[str, ...], ...], where: str) -> tuple[str, ...]:
    for fields in kinds:
        if set(fields) <= set(found):
            return fields
    wanted = " or ".join("/".join(fields) for fields in kinds)
    missing = ", ".join(sorted(set(min(kinds, key=lambda fields: len(set(fields) - set(found)))) - set(found)))
    return _refuse(where, f"missing: {missing}; found: {', '.join(sorted(found))}", f"rename the fields to {wanted}")


def _row(found: dict[str, Any], fields: tuple[str, ...], where: str) -> Row:
    row = {}
    for field in fields if found.get("group") is None else (*fields, "group"):
        value = found.get(field)
        if field not in found:
            _refuse(where, f"{field}: missing", "every line needs the fields of the first")
        if not isinstance(value, str):
            kind = "null" if value is None else type(value).__name__
            _refuse(where, f"{field}: expected string, got {kind}", "write it as a JSON string")
        if not value.strip():
            _refuse(where, f"{field}: empty after strip", "fill it in or remove the line")
        _printable(value, field, where)
        row[field] = value
    if row.get("chosen", "").strip() == row.get("rejected", "-").strip():
        _refuse(where, "chosen equals rejected", "remove the line: it says nothing about a preference")
    return row


def _printable(text: str, field: str, where: str) -> None:
    """No NUL, which truncates text in C libraries, and no lone surrogate, which no file can hold as UTF-8."""
    for char in text:
        if char == "\0" or "\ud800" <= char <= "\udfff":
            kind = "U+0000" if char == "\0" else f"lone surrogate U+{ord(char):04X}"
            _refuse(where, f"{kind} in field {field}", "remove the character")


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not valid JSON")


def _no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f'duplicate key "{key}"')
        found[key] = value
    return found


def _refuse(where: str, what: str, remedy: str) -> NoReturn:
    raise DataError(f"{where}: {what}; {remedy}")
