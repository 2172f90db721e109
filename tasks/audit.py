"""What the ledger and the registry can be asked afterwards: does the record hold, and which versions learned from this data."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipelines.errors import ConfigurationError
from tasks import ledger, locks, registry, repository
from tasks.registry import Office

HASH = re.compile(r"^[0-9a-f]{8,64}(\.dir)?$")
IDS = ("id", "prompt_id")
"""Columns that name a row of a table."""
READ = (*IDS, "prompt", "split")
HELD_OUT = ("validation", "test")


def faults(office: Office) -> list[str]:
    """What is wrong with the record: broken links, and versions whose tags speak of entries that are not there."""
    entries = office.ledger.entries()
    wrong = ledger.verify(entries)
    by_number = {entry.number: entry for entry in entries}
    for version in office.registry.versions():
        promoted = version.tags.get("prefloop.promoted", "")
        found = re.search(r"ledger entry (\d+) ([0-9a-f]{12})", promoted)
        if not found:
            continue
        entry = by_number.get(int(found[1]))
        if entry is None or not entry.hash.startswith(found[2]):
            wrong.append(
                f"{version.uri}: its tag names ledger entry {found[1]} {found[2]}, which is not in the ledger (cut off?)"
            )
    return wrong


def export(office: Office, path: Path) -> None:
    """Every entry as a line of JSON, with its hash, whole or not at all."""
    fresh = path.with_name(f".{path.name}.partial")
    fresh.write_text(
        "".join(json.dumps(asdict(entry), sort_keys=True) + "\n" for entry in office.ledger.entries()), encoding="utf-8"
    )
    fresh.replace(path)


def verify_export(path: Path) -> list[str]:
    """What is wrong with an exported ledger: for whoever was handed the file alone."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return ledger.verify([ledger.Entry(**json.loads(line)) for line in lines])


def impact(office: Office, what: str) -> list[tuple[str, str, str]]:
    """Version, standing and where it learned from ``what``: a file of the project, a hash (or its beginning), or a row's id.

    A version learned from what its policy's stages read, rows of held-out splits excepted. A row is its prompt: other files may
    number it otherwise. Raises ConfigurationError where the tables of a version are in DVC's cache no longer, since then a row
    cannot be looked for.
    """
    now = office.standing()
    standing = {now.champion: "champion", now.previous: "previous"} | dict.fromkeys(now.rolled_back, "rolled back")
    lineages = [(version, registry.lineage_of(office, version)) for version in office.registry.versions()]
    row = not (Path(what).exists() or HASH.match(what))
    prompts = _prompts_of(office, [lineage for _, lineage in lineages], what) if row else []
    rows = []
    for version, lineage in lineages:
        places = list(_of_row(office, lineage, what, prompts) if row else _places(office, lineage, what))
        if places:
            rows.append((version.uri, standing.get(version.number, ""), ", ".join(sorted(set(places)))))
    return rows


def _places(office: Office, lineage: dict[str, Any], what: str) -> Iterator[str]:
    lock: locks.Lock = lineage["lock"]
    learned = locks.closure(lock, f"policy@{lineage['policy']}")
    path = Path(what)
    if path.exists():
        yield from _of_file(office, lock, learned, path)
    else:
        for stage in learned:
            for kind in ("deps", "outs"):
                yield from (place for place, md5 in locks.hashes(lock, stage, kind).items() if md5.startswith(what))
        yield from (f"the model's {name}" for name, facts in lineage["manifest"].items() if facts["sha256"].startswith(what))


def _of_file(office: Office, lock: locks.Lock, learned: list[str], path: Path) -> Iterator[str]:
    """By content, wherever it lay; or by name, with other content."""
    relative = (
        path.resolve().relative_to(office.root.resolve()).as_posix()
        if path.resolve().is_relative_to(office.root.resolve())
        else ""
    )
    md5 = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest() if path.is_file() else ""
    for stage in learned:
        for place, known in locks.hashes(lock, stage, "deps").items():
            if md5 and known == md5:
                yield f"{place} (this content)"
            elif relative and (place == relative or relative.startswith(f"{place}/")):
                listed = _listed(office, known) if known.endswith(".dir") else {}
                inside = listed.get(relative.removeprefix(f"{place}/")) if listed else None
                if not listed or inside:
                    yield f"{relative} ({'this' if inside and inside == md5 else 'another'} content)"


def _prompts_of(office: Office, lineages: list[dict[str, Any]], row: str) -> list[str]:
    """The prompts of the rows that are called so: in this folder's tables, else in those of the newest version that has one."""
    here = [office.root / name for lineage in lineages for name, _ in _tables(lineage)]
    for files in (here, *([_cached(office, md5) for _, md5 in _tables(lineage)] for lineage in lineages)):
        called = [_called(_read(file), row) for file in files if file.exists()]
        found = {text for table in called if "prompt" in table.column_names for text in table["prompt"].to_pylist()}
        if found:
            return sorted(found)
    return []


def _of_row(office: Office, lineage: dict[str, Any], row: str, prompts: list[str]) -> Iterator[str]:
    """By prompt; by id in a table without prompts (the corpus)."""
    import pyarrow
    import pyarrow.compute as pc

    for path, md5 in _tables(lineage):
        cached = _cached(office, md5)
        if not cached.exists():
            raise ConfigurationError(
                f"{path} ({md5[:12]}): not in DVC's cache any more, so its rows cannot be searched; "
                "`dvc fetch --all-tags` fetches it"
            )
        table = _read(cached)
        if "split" in table.column_names:
            table = table.filter(pc.invert(pc.is_in(table["split"], pyarrow.array(HELD_OUT))))
        if "prompt" in table.column_names:
            table = table.filter(pc.is_in(table["prompt"], pyarrow.array(prompts, pyarrow.string())))
        called = _called(table, row)
        if called.num_rows or ("prompt" in table.column_names and table.num_rows):
            yield f"{path} ({'id' if called.num_rows else 'the same prompt'})"


def _tables(lineage: dict[str, Any]) -> list[tuple[str, str]]:
    """Path and hash of the tables that a version's stages read."""
    lock: locks.Lock = lineage["lock"]
    learned = locks.closure(lock, f"policy@{lineage['policy']}")
    read = {item for stage in learned for item in locks.hashes(lock, stage, "deps").items() if item[0].endswith(".parquet")}
    return sorted(read)


def _read(file: Path) -> Any:
    """What names and parts the rows of a table."""
    import pyarrow.parquet as pq

    return pq.read_table(file, columns=[name for name in pq.read_schema(file).names if name in READ])


def _called(table: Any, row: str) -> Any:
    """The rows with this id."""
    import functools

    import pyarrow.compute as pc

    columns = [pc.equal(table[name], row) for name in IDS if name in table.column_names]
    return table.filter(functools.reduce(pc.or_, columns)) if columns else table.slice(0, 0)


def _listed(office: Office, md5: str) -> dict[str, str]:
    """The files of a folder that DVC knows by this hash; empty where its list is not in the cache."""
    path = _cached(office, md5)
    return {entry["relpath"]: entry["md5"] for entry in json.loads(path.read_text(encoding="utf-8"))} if path.exists() else {}


def _cached(office: Office, md5: str) -> Path:
    with repository.opened(office.root) as repo:
        return Path(repo.cache.local.oid_to_path(md5))
