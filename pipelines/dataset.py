"""``python -m pipelines data check|show|diff``: look at data without training. ``check`` imports no torch.

Exit codes: 0 usable (warnings are printed), 2 not usable, 3 wrong arguments.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from pipelines.config.data import Format, Prepare, Source
from pipelines.errors import ConfigurationError, DataError, EnvironmentFault

PREPARED = Path("artifacts/prepared")
EXTERNAL = Path("data/external")
TABLES = ("demonstrations", "prompts", "preferences", "labels", "corpus")
SPLIT_NAMES = ("train", "validation", "test")


def main(arguments: Sequence[str], root: Path) -> None:
    """Run one command."""
    options = _parser().parse_args(arguments)
    if options.command == "check":
        try:
            report = check(options.paths, options.format, _mapping(options.columns), options.golden)
        except MemoryError as error:
            raise EnvironmentFault("out of memory; lower prepare.max_row_bytes, or check the file in parts") from error
        print("\n".join(report), flush=True)
    elif options.command == "show":
        print("\n".join(show(root, options.examples)), flush=True)
    else:
        lines, changed = diff(root, options.revision)
        print("\n".join(lines), flush=True)
        if changed:
            raise DataError(
                f"schema-drift: {'; '.join(changed)} | same columns and types | mend the source, or accept: commit it"
            )


def check(paths: list[str], format: str = "auto", columns: dict[str, str] | None = None, golden: str = "") -> list[str]:
    """Validate files as if they were sources, with the strictest settings; what was found, one line a fact.

    A path may be ``train=FILE`` or ``test=FILE``: then its rows are that split. Raises DataError for unusable data.
    """
    from pipelines.data.rows import ingest
    from pipelines.data.vetting import vet

    named = [_split_of(path) for path in paths]
    files = [Path(os.path.abspath(path)) for _, path in named]
    beside = [*files, Path(os.path.abspath(golden))] if golden else files
    root = Path(os.path.commonpath([str(file.parent) for file in beside]))
    sources: dict[str, Source] = {}
    for (split, _), file in zip(named, files, strict=True):
        stem = file.name.partition(".")[0]
        name = f"{stem}-{len(sources)}" if stem in sources else stem
        shown = file.relative_to(root).as_posix()
        try:
            sources[name] = Source.model_validate({"path": shown, "format": format, "columns": columns or {}, "split": split})
        except ValidationError as error:
            raise ConfigurationError(f"--columns: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from error
    settings = Prepare().model_copy(update={"source": "files", "sources": sources, "golden": _relative(golden, root)})
    with tempfile.TemporaryDirectory(prefix="prefloop-check-") as folder:
        found = ingest(settings, root, Path(folder), 0)
        facts = vet(found, settings, root, ", ".join(file.name for file in files))
    lines = [f"warning: {line}" for line in found.ledger.warning_lines()]
    kinds = ", ".join(f"{name}: {kind}" for name, kind in found.formats.items())
    return [
        *lines,
        f"ok: {facts['rows']['read']} rows ({kinds}), {facts['rows']['blank_lines']} blank lines",
        json.dumps(facts, sort_keys=True),
    ]


def show(root: Path, examples: int) -> list[str]:
    """The prepared tables: sources, splits, counts, and some rows of each, cut short."""
    from pipelines.data.tables import read_blocks, read_table

    lines = []
    for name in TABLES:
        path = root / PREPARED / f"{name}.parquet"
        if not path.exists():
            continue
        table = read_table(path, columns=["split"])
        first = next(read_blocks(path)).head(examples)
        by = next((column for column in ("source", "task", "template") if column in first), "group")
        table[by] = read_table(path, columns=[by])[by]
        lines.append(f"{name}: {len(table)} rows")
        counted = table.groupby([by, "split"], observed=True).size().unstack(fill_value=0)
        for source, numbers in counted.iterrows():
            lines.append(f"  {source}: " + ", ".join(f"{split} {numbers.get(split, 0)}" for split in SPLIT_NAMES))
        for row in first.to_dict("records"):
            shown = {
                key: _short(row[key]) for key in ("prompt", "completion", "chosen", "rejected", "label", "text") if key in row
            }
            lines.append("    " + json.dumps(shown, ensure_ascii=False))
    if not lines:
        raise DataError(f"{PREPARED}: no prepared tables; run the stage: prefloop run --only prepare")
    return lines


def diff(root: Path, revision: str) -> tuple[list[str], list[str]]:
    """What changed in the prepared tables since a git revision: rows, columns, drift; and of Parquet files that were brought in,
    rows and columns. And what makes the schemas differ."""
    import pyarrow
    import pyarrow.parquet as pq
    from dvc.api import DVCFileSystem
    from dvc.exceptions import DvcException
    from dvc.scm import SCMError

    from pipelines.data.drift import columns, compare

    lines: list[str] = []
    changed: list[str] = []
    known = subprocess.run(["git", "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}"], cwd=root, capture_output=True)
    if known.returncode:
        raise ConfigurationError(f"{revision}: no such git revision; `git log --oneline` lists them")
    try:
        before = DVCFileSystem(str(root), rev=revision)
        for name in TABLES:
            path = PREPARED / f"{name}.parquet"
            there = [(root / path).exists(), before.exists(path.as_posix())]
            if all(there):
                with before.open(path.as_posix(), "rb") as file, pq.ParquetFile(file) as was, pq.ParquetFile(root / path) as now:
                    found, drifted = compare(name, was, now)
                lines, changed = lines + found, changed + drifted
            elif any(there):
                lines.append(f"{name}: only in {'the workspace' if there[0] else revision}")
        for path in sorted((root / EXTERNAL).rglob("*.parquet")):
            shown = path.relative_to(root).as_posix()
            if before.exists(shown):
                with before.open(shown, "rb") as file, pq.ParquetFile(file) as was, pq.ParquetFile(path) as now:
                    drifted = columns(shown, was.schema_arrow, now.schema_arrow)
                    lines += [f"{shown}: {was.metadata.num_rows} -> {now.metadata.num_rows} rows", *drifted]
                    changed += drifted
    except pyarrow.ArrowException as error:
        raise DataError(f"bad-parquet: {' '.join(str(error).split())[:200]} | whole files | write them again") from error
    except (DvcException, SCMError, OSError) as error:
        reason = " ".join(str(error).split())
        raise ConfigurationError(
            f"{revision}: no prepared tables to compare with ({reason}); record runs with `prefloop commit`"
        ) from error
    return lines or [f"{PREPARED}: no tables, neither here nor in {revision}"], changed


def _parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="prefloop data", exit_on_error=False)
    commands = top.add_subparsers(dest="command", required=True)
    checked = commands.add_parser("check")
    checked.add_argument("paths", nargs="+", metavar="PATH")
    checked.add_argument("--format", default="auto", choices=[name for name in get_args(Format) if name != "template"])
    checked.add_argument("--columns", nargs="*", default=[], metavar="OURS=THEIRS")
    checked.add_argument("--golden", default="", metavar="FILE")
    shown = commands.add_parser("show")
    shown.add_argument("--examples", type=int, default=2, metavar="N")
    commands.add_parser("diff").add_argument("revision", metavar="REV")
    return top


def _mapping(pairs: list[str]) -> dict[str, str]:
    """``OURS=THEIRS`` arguments as a mapping."""
    odd = next((pair for pair in pairs if "=" not in pair), None)
    if odd is not None:
        raise ConfigurationError(f"--columns {odd}: expected OURS=THEIRS, such as prompt=question")
    return dict(pair.split("=", 1) for pair in pairs)


def _split_of(path: str) -> tuple[str, str]:
    before, _, after = path.partition("=")
    return (before, after) if before in SPLIT_NAMES and after else ("hash", path)


def _relative(path: str, root: Path) -> str:
    return os.path.relpath(os.path.abspath(path), root) if path else ""


def _short(value: Any) -> Any:
    return value[:80] + ("…" if len(value) > 80 else "") if isinstance(value, str) else value
