"""JSON Lines, plain or gzipped: strict, in a stream, and quick. What is wrong with a line is found out only when it is wrong.

A line is parsed by orjson; the plain json module, which is slower and says more, explains the lines that orjson refuses.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import orjson

from pipelines.data.problems import BadRow
from pipelines.errors import DataError

Record = dict[str, Any]
MEBIBYTE = 2**20
FREE_OF_RATIO = 64 * MEBIBYTE
MAX_RATIO = 100
"""A gzip file may be a bomb: text packs to a fifth or so; beyond 64 MiB more than a hundredfold is refused."""


def read_lines(path: Path, shown: str, max_row_bytes: int) -> Iterator[tuple[int, bytes | BadRow]]:
    """(line number, line without its end) of a file; a line that is too long comes as a BadRow, and is never held whole.

    Raises DataError for what is wrong with the whole file: UTF-16, an array, no gzip, a bomb, cut short.
    """
    try:
        with path.open("rb") as raw:
            stream = _unzipped(raw, shown) if path.suffix == ".gz" else raw
            yield from _lines(stream, raw, shown, path.stat().st_size, max_row_bytes)
    except EOFError as error:
        raise DataError(
            f"cut-gzip {shown}: the gzip file ends too early (truncated file?) | whole files | copy it again"
        ) from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"bad-gzip {shown}: damaged gzip file ({error}) | whole files | copy it again") from error
    except OSError as error:
        raise DataError(
            f"unreadable {shown}: {error.strerror or error} | a readable file | check the path and its rights"
        ) from error


def parse(line: bytes) -> Record:
    """The object on one line. Raises BadRow with the column, the character or the field at fault."""
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError:
        return _explained(line)
    if type(record) is not dict:
        kind = "array" if isinstance(record, list) else _kind(record)
        raise BadRow("not-an-object", f"expected object, got {kind}", "write one JSON object a line")
    if not _all_keys_kept(line, record):
        _explained(line)
    return record


def records(path: Path, shown: str, max_row_bytes: int) -> Iterator[tuple[int, Record]]:
    """(line number, object) of every line that is not blank; the first bad one raises DataError with file and line."""
    for number, line in read_lines(path, shown, max_row_bytes):
        try:
            if isinstance(line, BadRow):
                raise line
            if line.strip():
                yield number, parse(line)
        except BadRow as bad:
            named = f" [{bad.name}]" if bad.name else ""
            raise DataError(f"{bad.code} {shown}:{number}{named} {bad.what} | one object a line | {bad.fix}") from bad


def _lines(stream: BinaryIO, raw: BinaryIO, shown: str, size: int, limit: int) -> Iterator[tuple[int, bytes | BadRow]]:
    number = read = 0
    while line := stream.readline(limit + 1):
        number += 1
        read += len(line)
        if number == 1:
            _check_start(line, shown)
        if len(line) > limit:
            length = len(line)
            while not line.endswith(b"\n") and (line := stream.readline(MEBIBYTE)):
                length += len(line)
                _check_ratio(read + length, size, stream is not raw, shown)
            read += length
            what = f"a row of {length} bytes"
            yield (
                number,
                BadRow("huge-row", what, "shorten it, or raise the limit", limit=f"limit {limit} (prepare.max_row_bytes)"),
            )
        else:
            _check_ratio(read, size, stream is not raw, shown)
            yield number, line


def _unzipped(raw: BinaryIO, shown: str) -> Any:
    if raw.read(2) != b"\x1f\x8b":
        raise DataError(f"not-gzip {shown}: not a gzip file (magic) | .gz means gzip | rename it, or pack it with gzip")
    raw.seek(0)
    return gzip.open(raw, "rb")


def _check_ratio(read: int, size: int, zipped: bool, shown: str) -> None:
    if zipped and read > FREE_OF_RATIO and read > MAX_RATIO * size:
        raise DataError(
            f"gzip-bomb {shown}: {size} bytes unpack to more than {read} | limit {MAX_RATIO} times | unpack it if it is real"
        )


def _check_start(line: bytes, shown: str) -> None:
    """The first bytes tell the encoding and whether this is JSON Lines at all."""
    if line[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise DataError(f"utf-16 {shown}: looks like UTF-16 (BOM {line[:2].hex(' ')}) | UTF-8 | iconv -f utf-16 -t utf-8")
    if line.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"[" and shown.removesuffix(".gz").endswith((".jsonl", ".json")):
        raise DataError(
            f"json-array {shown}: line 1: JSON array, expected one object per line | JSON Lines | convert it: jq -c '.[]' FILE"
        )


def _all_keys_kept(line: bytes, record: Record) -> bool:
    """Whether no key stood twice, which orjson would not tell: then the parsed object accounts for every quote."""
    return b"\\u0022" not in line and line.count(b'"') == _quotes(record)


def _quotes(value: Any) -> int:
    if type(value) is str:
        return 2 + value.count('"')
    if type(value) is dict:
        return sum([2 + key.count('"') + _quotes(item) for key, item in value.items()])
    return sum([_quotes(item) for item in value]) if type(value) is list else 0


class _NotANumber:
    """NaN or an infinity, which are no JSON."""

    def __init__(self, name: str) -> None:
        self.name = name


def _explained(line: bytes) -> Record:
    """Parse slowly and say what is wrong; what is only unusual for orjson (a number of many digits) is returned."""
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        what = f"byte 0x{line[error.start]:02x} is not UTF-8"
        raise BadRow("not-utf8", what, "convert it: iconv -f latin1 -t utf-8") from error
    try:
        found = json.loads(text, parse_constant=_NotANumber, object_pairs_hook=_no_twins)
    except json.JSONDecodeError as error:
        raise BadRow("invalid-json", _syntax(text, line, error), "mend the line") from error
    except (ValueError, RecursionError) as error:
        raise BadRow("invalid-json", f"invalid JSON: {error}", "mend the line") from error
    if not isinstance(found, dict):
        raise BadRow("not-an-object", f"expected object, got {_kind(found)}", "write one JSON object a line")
    for name, value in found.items():
        _no_constants(name, value)
        _no_surrogates(name, value)
    return found


def _syntax(text: str, line: bytes, error: json.JSONDecodeError) -> str:
    control = next((char for char in text.rstrip("\r\n") if char < " " and char != "\t"), "")
    if error.msg.startswith("Invalid control character") and control:
        return f"control character U+{ord(control):04X} at column {error.colno}"
    if error.msg.startswith("Unterminated string") and not line.endswith(b"\n"):
        return "ends inside a string (truncated file?)"
    return f"invalid JSON at column {error.colno}: {error.msg}"


def _no_constants(name: str, value: Any) -> None:
    if isinstance(value, _NotANumber):
        raise BadRow("not-a-number", f"{value.name} is not valid JSON", "write null, or leave the field out", name)
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _no_constants(name, item)


def _no_surrogates(name: str, value: Any) -> None:
    if isinstance(value, str):
        for char in value:
            if "\ud800" <= char <= "\udfff":
                what = f"lone surrogate U+{ord(char):04X} in field {name}"
                raise BadRow("lone-surrogate", what, "remove the character", name)
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _no_surrogates(name, item)


def _no_twins(pairs: list[tuple[str, Any]]) -> Record:
    found: Record = {}
    for key, value in pairs:
        if key in found:
            _refuse_twin(key)
        found[key] = value
    return found


def _refuse_twin(key: str) -> NoReturn:
    raise BadRow("duplicate-key", f'duplicate key "{key}"', "keep one of the two", key)


def _kind(value: Any) -> str:
    return "array" if isinstance(value, list) else "null" if value is None else type(value).__name__
