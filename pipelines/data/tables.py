"""Tables in and out: validated at load and at save, the same bytes for the same rows, never half a file."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pandera.pandas as pa
import pyarrow
import pyarrow.parquet as pq
from pandera.errors import SchemaErrors

from pipelines.data.columnar import batches_of
from pipelines.data.spill import Spill, numbered
from pipelines.errors import DataError

EXAMPLES = 20
GROUP = 65536
"""Rows of a Parquet row group of a table that is written in a stream: equal rows give equal bytes, whatever their blocks."""


def read_table(path: Path, schema: pa.DataFrameSchema | None = None, columns: list[str] | None = None) -> pd.DataFrame:
    """Read a Parquet table, or some columns, and check it; without a schema (histories) the columns are free.

    Raises DataError with one line that names the file, the columns and the first rows at fault.
    """
    if not path.exists():
        raise DataError(f"{_shown(path)}: no such table; run the stage that writes it (`prefloop status` names it)")
    try:
        frame = pq.read_table(path, columns=columns).to_pandas()
    except (pyarrow.ArrowInvalid, OSError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{_shown(path)}: not a readable Parquet file ({reason}); run its stage again") from error
    return frame if schema is None else _checked(frame, path, schema)


def write_table(frame: pd.DataFrame, path: Path, schema: pa.DataFrameSchema | None = None) -> None:
    """Check a table and write it as Parquet; equal rows give equal bytes (no pandas metadata, no index)."""
    if schema is not None:
        frame = _checked(_typed(frame, schema), path, schema)
    table = pyarrow.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata(None)
    with whole_file(path) as partial:
        pq.write_table(table, partial, compression="zstd")


def write_stream(blocks: Iterable[pyarrow.Table], path: Path, schema: pa.DataFrameSchema, optional: Sequence[str] = ()) -> int:
    """Write a table that comes in blocks, each checked as ``write_table`` does; return the number of its rows.

    A value that must be unique is so over all blocks. Of the optional columns those named are written, null where a block
    lacks them.
    """
    names = [name for name, column in schema.columns.items() if column.required or name in optional]
    empty = pd.DataFrame({name: pd.Series(dtype=schema.columns[name].dtype.type) for name in names})
    kinds = pyarrow.Schema.from_pandas(empty, preserve_index=False).remove_metadata()
    unique = [name for name in names if schema.columns[name].unique]
    count = 0
    with (
        whole_file(path) as partial,
        Spill(path.with_name(f".{path.name}.unique")) as seen,
        pq.ParquetWriter(partial, kinds, compression="zstd") as writer,
    ):
        left = kinds.empty_table()
        for block in blocks:
            for name in set(optional) - set(block.column_names):
                block = block.append_column(name, pyarrow.nulls(block.num_rows))
            block = block.select(names).cast(kinds)
            frame = block.to_pandas()
            frame.index = pd.RangeIndex(count, count + len(frame))
            _checked(frame, path, schema)
            for column, name in enumerate(unique):
                seen.add(numbered(pd.util.hash_array(np.asarray(frame[name], object), categorize=False), column))
            count += len(frame)
            left = pyarrow.concat_tables([left, block])
            while left.num_rows > GROUP:
                writer.write_table(left.slice(0, GROUP).combine_chunks())
                left = left.slice(GROUP)
        twice: Counter[str] = Counter()
        for part in seen.parts():
            for column, name in enumerate(unique):
                keys = part["key"][part["number"] == column]
                twice[name] += len(keys) - len(np.unique(keys))
        for name, rows in twice.items():
            if rows:
                raise DataError(f"{_shown(path)}: {name}: field_uniqueness in {rows} rows; see {schema.name} in schemas.py")
        writer.write_table(left.combine_chunks())
    return count


def read_blocks(path: Path, rows: int = 16384) -> Iterator[pd.DataFrame]:
    """A table in blocks; an empty one in one block that has its columns."""
    with pq.ParquetFile(path) as table:
        if not table.metadata.num_rows:
            yield table.read().to_pandas()
            return
        for batch in batches_of(table, rows):
            yield batch.to_pandas()


def write_json(path: Path, obj: Any) -> None:
    """Write JSON with sorted keys; NaN and infinities are refused, because they are no JSON."""
    text = json.dumps(obj, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a temporary path to write to; when the block ends, it is flushed to disk and renamed to ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _typed(frame: pd.DataFrame, schema: pa.DataFrameSchema) -> pd.DataFrame:
    """Give an empty table its columns and types; a table with rows has to bring its own."""
    if len(frame):
        return frame
    columns = {name: pd.Series(dtype=column.dtype.type) for name, column in schema.columns.items() if column.required}
    return pd.DataFrame(columns)


def _checked(frame: pd.DataFrame, path: Path, schema: pa.DataFrameSchema) -> pd.DataFrame:
    try:
        return schema.validate(frame, lazy=True)
    except SchemaErrors as error:
        raise DataError(f"{_shown(path)}: {_explained(error.failure_cases)}; see {schema.name} in schemas.py") from error


def _explained(failures: pd.DataFrame) -> str:
    """One phrase a broken rule: column, rule and the first rows (a row-wise rule is reported once a column: dedupe)."""
    of_rows = failures["column"].isna() | (failures["schema_context"] == "DataFrameSchema")
    failures = failures.assign(column=failures["column"].mask(of_rows, "rows"))
    phrases = []
    for (column, check), cases in failures.groupby(["column", "check"], sort=True):
        rows = sorted({int(index) for index in cases["index"].dropna()})
        where = f" in {len(rows)} rows, the first are {rows[:EXAMPLES]}" if rows else f": {cases['failure_case'].iloc[0]}"
        phrases.append(f"{column}: {check}{where}")
    return "; ".join(phrases)


def _shown(path: Path) -> Path:
    """The path from the artifacts folder on, where it has one: what a person can find."""
    parts = path.parts
    return Path(*parts[parts.index("artifacts") :]) if "artifacts" in parts else path
