"""CSV and Parquet as records with their places, in a stream."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet as pq

from pipelines.data.jsonl import read_lines
from pipelines.data.problems import BadRow
from pipelines.errors import DataError

BATCH = 4096
MAGIC = b"PAR1"


def read_csv(path: Path, shown: str, max_row_bytes: int) -> Iterator[tuple[int, dict[str, Any] | BadRow]]:
    """(line, record) of a CSV file with a header. Empty cells are missing fields; all values are strings.

    Raises DataError where no later row could be trusted: a quote that is never closed, a byte that is not UTF-8.
    """
    csv.field_size_limit(max_row_bytes)
    rows = csv.reader(_decoded(path, shown, max_row_bytes), strict=True)
    header: list[str] | None = None
    while True:
        line = rows.line_num + 1
        try:
            cells = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(
                f"invalid-csv {shown}:{line}: line {line}: {error} | strict CSV | close the quote, or double it"
            ) from error
        if header is None:
            header = cells
            if len(set(header)) < len(header):
                raise DataError(f"duplicate-key {shown}:1: line 1: a column stands twice | one column a name | rename one")
        elif cells and len(cells) != len(header):
            yield line, BadRow("wrong-width", f"{len(cells)} cells, the header has {len(header)}", "quote cells that hold commas")
        elif cells:
            yield line, {name: cell for name, cell in zip(header, cells, strict=True) if cell != ""}


def read_parquet(path: Path, shown: str, max_row_bytes: int) -> Iterator[tuple[int, dict[str, Any] | BadRow]]:
    """(row, record) of a Parquet file. NaN and null are missing fields. Extension types are refused: they load code."""
    try:
        with path.open("rb") as file:
            start = file.read(4)
            file.seek(0, 2)
            size = file.tell()
            file.seek(max(size - 4, 0))
            if start != MAGIC or file.read(4) != MAGIC:
                raise DataError(f"not-parquet {shown}: not a Parquet file (magic) | PAR1 at both ends | check how it was written")
        with pq.ParquetFile(path, arrow_extensions_enabled=False, page_checksum_verification=True) as table:
            _refuse_extensions(table.schema_arrow, shown)
            yield from _records(table, max_row_bytes)
    except (pyarrow.ArrowException, MemoryError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"bad-parquet {shown}: damaged Parquet file ({reason}) | whole files | write it again") from error
    except OSError as error:
        reason = error.strerror or " ".join(str(error).split())[:200]
        raise DataError(
            f"unreadable {shown}: {reason} | a readable file | check the path, its rights, or write it again"
        ) from error


def batches_of(table: pq.ParquetFile, rows: int, columns: list[str] | None = None) -> Iterator[pyarrow.RecordBatch]:
    """A Parquet file in batches, a row group at a time: asked for all of them, pyarrow holds the whole file in memory."""
    for group in range(table.num_row_groups):
        yield from table.iter_batches(rows, [group], columns)


def without_gaps(record: dict[str, Any], max_row_bytes: int) -> dict[str, Any] | BadRow:
    """A record without its null and NaN fields, or what is wrong with it: its texts are too long."""
    kept = {name: value for name, value in record.items() if value is not None and not _nan(value)}
    size = sum(len(value) for value in kept.values() if isinstance(value, str))
    if size <= max_row_bytes:
        return kept
    limit = f"limit {max_row_bytes} (prepare.max_row_bytes)"
    return BadRow("huge-row", f"a row of {size} bytes", "shorten it, or raise the limit", limit=limit)


def _records(table: pq.ParquetFile, max_row_bytes: int) -> Iterator[tuple[int, dict[str, Any] | BadRow]]:
    number = 0
    for batch in batches_of(table, BATCH):
        for record in batch.to_pylist():
            number += 1
            yield number, without_gaps(record, max_row_bytes)
    if number != table.metadata.num_rows:
        raise ValueError(f"{number} rows read, {table.metadata.num_rows} announced")


def _refuse_extensions(schema: pyarrow.Schema, shown: str) -> None:
    for field in schema:
        named = (field.metadata or {}).get(b"ARROW:extension:name")
        if named or isinstance(field.type, pyarrow.BaseExtensionType):
            kind = (named or str(field.type).encode()).decode(errors="replace")
            raise DataError(
                f"extension-type {shown} [{field.name}] extension type {kind} | plain types only | store its plain values"
            )


def _nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _decoded(path: Path, shown: str, max_row_bytes: int) -> Iterator[str]:
    for number, line in read_lines(path, shown, max_row_bytes):
        if isinstance(line, BadRow):
            raise DataError(f"{line.code} {shown}:{number}: line {number}: {line.what} | {line.limit} | {line.fix}")
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            what = f"byte 0x{line[error.start]:02x} is not UTF-8"
            raise DataError(f"not-utf8 {shown}:{number}: line {number}: {what} | UTF-8 | iconv -f latin1 -t utf-8") from error
        if "\0" in text:
            raise DataError(f"control-character {shown}:{number}: line {number}: control character U+0000 | text | remove it")
        yield text
