"""From a source to records with their places: local files, folders and globs, or a hub data set at a pinned revision."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipelines.config.data import Source
from pipelines.data import columnar, jsonl
from pipelines.data.problems import BadRow, Ledger
from pipelines.errors import DataError, EnvironmentFault

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".csv", ".csv.gz", ".parquet")
Record = dict[str, Any]


def files_of(pattern: str, root: Path) -> list[Path]:
    """The files that a path, a folder or a glob means, in the order of their names, all inside ``root``.

    Raises DataError for what is missing, outside the project, empty, or of an unknown kind.
    """
    whole = root / pattern
    if whole.is_dir():
        found = sorted(path for path in whole.rglob("*") if path.name.endswith(SUFFIXES))
    elif any(mark in pattern for mark in "*?["):
        found = sorted(path for path in root.glob(pattern) if path.is_file())
    else:
        found = [whole]
    if not found:
        raise DataError(f"no-files {pattern}: 0 files | {', '.join(SUFFIXES)} | check the path")
    for path in found:
        _check(path, root, pattern)
    return found


def records(name: str, source: Source, root: Path, ledger: Ledger, max_row_bytes: int) -> Iterator[tuple[str, Record, bytes]]:
    """(place, record, raw line) of every row of a source that could be parsed; the others go to the ledger.

    The ledger counts every row, blank lines apart.
    """
    if source.hub:
        shown = f"{source.hub}@{source.revision[:10]}"
        yield from _counted(_of_hub(name, source, shown, max_row_bytes), shown, "row", ledger)
        return
    for path in files_of(source.path, root):
        shown = shown_as(path, root)
        if path.name.endswith(".parquet"):
            yield from _counted(columnar.read_parquet(path, shown, max_row_bytes), shown, "row", ledger)
        elif path.name.endswith((".csv", ".csv.gz")):
            yield from _counted(columnar.read_csv(path, shown, max_row_bytes), shown, "line", ledger)
        else:
            yield from _of_jsonl(path, shown, ledger, max_row_bytes)


def shown_as(path: Path, root: Path) -> str:
    """The path as the project knows it."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name


def _check(path: Path, root: Path, pattern: str) -> None:
    if not path.resolve().is_relative_to(root.resolve()):
        raise DataError(f"outside {pattern}: lies outside the project | files inside it | `prefloop data add PATH` copies it")
    if not path.exists():
        raise DataError(f"unreadable {pattern}: No such file or directory | a readable file | check the path")
    if path.is_dir():
        raise DataError(f"unreadable {pattern}: Is a directory | a readable file | name the files in it")
    if not path.name.endswith(SUFFIXES):
        raise DataError(f"unknown-kind {pattern}: not one of {', '.join(SUFFIXES)} | known kinds | convert or rename it")


def _of_jsonl(path: Path, shown: str, ledger: Ledger, max_row_bytes: int) -> Iterator[tuple[str, Record, bytes]]:
    for number, line in jsonl.read_lines(path, shown, max_row_bytes):
        if isinstance(line, BadRow):
            ledger.rows += 1
            ledger.refuse(f"{shown}:{number} (line {number})", line)
            continue
        if number == 1 and line.startswith(b"\xef\xbb\xbf"):
            line = line[3:]
            ledger.warn(f"{shown}:1 (line 1)", "utf8-bom", "UTF-8 BOM removed", "save it without one")
        if not line.strip():
            ledger.blank += 1
            continue
        ledger.rows += 1
        place = f"{shown}:{number} (line {number})"
        try:
            record = jsonl.parse(line)
        except BadRow as bad:
            ledger.refuse(place, bad, line)
            continue
        yield place, record, line


def _counted(
    rows: Iterator[tuple[int, Record | BadRow]], shown: str, unit: str, ledger: Ledger
) -> Iterator[tuple[str, Record, bytes]]:
    for number, record in rows:
        ledger.rows += 1
        place = f"{shown}:{number} ({unit} {number})"
        if isinstance(record, BadRow):
            ledger.refuse(place, record)
        else:
            yield place, record, repr(record).encode(errors="backslashreplace")


def _of_hub(name: str, source: Source, shown: str, max_row_bytes: int) -> Iterator[tuple[int, Record | BadRow]]:
    """A data set of the hub, in a stream. Only data files are read: no code of the repository is run."""
    from datasets import load_dataset
    from huggingface_hub.errors import HTTPError

    try:
        rows = load_dataset(
            source.hub, source.subset or None, revision=source.revision, split=source.hub_split, streaming=True
        )  # fmt: skip
        for number, record in enumerate(rows, start=1):
            yield number, columnar.without_gaps(record, max_row_bytes)
    except (OSError, HTTPError) as error:
        raise EnvironmentFault(
            f"prepare.sources.{name}: {shown} cannot be reached ({type(error).__name__}); a network, or path:"
        ) from error
    except ValueError as error:
        raise DataError(
            f"bad-hub {shown}: {' '.join(str(error).split())[:200]} | subset and hub_split | see the data set's page"
        ) from error
