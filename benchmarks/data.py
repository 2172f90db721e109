"""Time and memory of reading, checking, deduplicating, splitting and writing preference rows; the same with the obvious peer.

``python benchmarks/data.py [--rows 100000 1000000 10000000] [--parts rows stage peer]``: each number of rows, each part in a
process of its own (its peak memory is measured); then datasets + pandas with checks row by row, of up to a million rows: it
holds them all in memory. Ten million rows take 11 GB of disk, and as much again meanwhile. Writes benchmarks/results/data.json.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
from common import ROOT, facts, save

sys.path.insert(0, str(ROOT))

WORDS = 20_000
FRAGMENTS = 40_000
REPEATS = 0.001
LETTERS = str.maketrans("0123456789", "abcdefghij")
"""A row's number in letters: a million in digits is as long as a phone number, and texts with such ones are looked at twice."""

LONGEST_PEER = 1_000_000


def main() -> None:
    """Make the rows, measure each part in a process of its own, save."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", nargs="+", type=int, default=[100_000, 1_000_000])
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--part", choices=list(PARTS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    if options.part:
        print(json.dumps(PARTS[options.part](options.folder)))
        return
    busy = psutil.cpu_percent(5.0)
    note = f"Other processes took {busy:.0f} % of the cores at the start: seconds of the clock count them too."
    known = facts(" ".join(["python benchmarks/data.py", *sys.argv[1:]]))
    result: dict[str, Any] = {"rows": options.rows, "parts": {}, "note": note if busy > 10.0 else ""}
    with tempfile.TemporaryDirectory(prefix="prefloop-benchmark-") as folder:
        for rows in options.rows:
            own = Path(folder) / str(rows)
            own.mkdir()
            found: dict[str, Any] = {"bytes": make(own / "rows.jsonl", rows)}
            result["parts"][str(rows)] = found
            for name in options.parts:
                if name != "peer" or rows <= LONGEST_PEER:
                    found[name] = _measured(name, own)
                    _clear(own)
                    save("data", result | known)  # what comes next may take an hour
            shutil.rmtree(own)


def make(path: Path, rows: int) -> int:
    """Preference rows of about a kilobyte; one in a thousand stands twice. Returns the bytes."""
    draw = random.Random(1)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 9))) for _ in range(WORDS)]
    fragments = [" ".join(draw.choices(words, k=10)) for _ in range(FRAGMENTS)]
    with path.open("w", encoding="utf-8") as file:
        line = ""
        for number in range(rows):
            if number == 0 or draw.random() >= REPEATS:
                parts = draw.choices(fragments, k=16)
                texts = (f"{str(number).translate(LETTERS)} {' '.join(parts[:6])}", " ".join(parts[6:11]), " ".join(parts[11:]))
                line = json.dumps(dict(zip(("prompt", "chosen", "rejected"), texts, strict=True))) + "\n"
            file.write(line)
    return path.stat().st_size


def ours_rows(folder: Path) -> dict[str, Any]:
    """Read, validated, exactly deduplicated, split and written as Parquet: the table of pairs, with its schema's checks."""
    from pipelines.config.data import Prepare, Source
    from pipelines.data import schemas, streams
    from pipelines.data.rows import ingest
    from pipelines.data.tables import write_stream
    from pipelines.data.vetting import vet_rows

    settings = Prepare().model_copy(update={"sources": {"rows": Source(path="rows.jsonl")}, "duplicates": "drop"})
    found = ingest(settings, folder, folder / "ours", 1)
    vet_rows(found, settings, "rows.jsonl")
    return {"kept": write_stream(streams.pairs_of(found), folder / "ours" / "pairs.parquet", schemas.PAIRS)}


def ours_stage(folder: Path) -> dict[str, Any]:
    """The whole stage: the first part, and leaks, near duplicates, contamination, the other tables, and quality.json."""
    from pipelines.adapters.cluster import connect
    from pipelines.config import load
    from pipelines.config.data import Source
    from pipelines.context import Context
    from pipelines.journal import Journal
    from pipelines.stages import prepare

    params = load(ROOT / "recipes" / "hh.yaml")
    settings = {
        "sources": {"rows": Source(path="rows.jsonl")},
        "learns_from": "rows.jsonl",
        "duplicates": "drop",
        "leaks": "drop",
    }
    params = params.model_copy(update={"prepare": params.prepare.model_copy(update=settings)})
    scratch = folder / "stage"
    scratch.mkdir()
    with connect(params.runtime, scratch / "journal") as cluster:
        metrics = prepare.run(Context("prepare", params, folder, scratch, Journal(None), cluster))
    wanted = ("preferences", "quality/near_duplicates/rows", "quality/contamination/mean_8_gram_overlap")
    return {name: metrics[name] for name in wanted}


def peer(folder: Path) -> dict[str, Any]:
    """The same as the first part with datasets and pandas: load, check row by row, drop repeats, split by hash, write."""
    import hashlib

    import datasets

    datasets.disable_progress_bars()
    rows = datasets.load_dataset("json", data_files=str(folder / "rows.jsonl"), split="train", cache_dir=str(folder / "cache"))

    def checked(row: dict[str, Any]) -> bool:
        texts = [row[name] for name in ("prompt", "chosen", "rejected")]
        return all(isinstance(text, str) and text.strip() and "\0" not in text for text in texts) and texts[1] != texts[2]

    def split(row: dict[str, Any]) -> dict[str, str]:
        place = int(hashlib.sha256(" ".join(row["prompt"].lower().split()).encode()).hexdigest()[:15], 16) / 16**15
        return {"split": "test" if place < 0.15 else "validation" if place < 0.25 else "train"}

    frame = rows.filter(checked).map(split).to_pandas()
    frame = frame.drop_duplicates(["prompt", "chosen", "rejected"])
    frame.to_parquet(folder / "peer.parquet", compression="zstd")
    return {"kept": len(frame)}


def _clear(folder: Path) -> None:
    """What a part has written, so that the next one finds the disk as it did."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != "rows.jsonl":
            path.unlink()


PARTS = {"rows": ours_rows, "stage": ours_stage, "peer": peer}


def _measured(part: str, folder: Path) -> dict[str, Any]:
    """Seconds of the clock and of the processor, and the peak memory of one part with its start."""
    command = [sys.executable, __file__, "--part", part, "--folder", str(folder)]
    started = time.monotonic()
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert child.stdout is not None
    said = child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"{part} failed")
    seconds = time.monotonic() - started
    print(f"{part}: {seconds:.0f} s, {usage.ru_maxrss / 2**20:.2f} GiB", flush=True)
    return {
        "seconds": seconds,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_rss_bytes": usage.ru_maxrss * 1024,
        "found": json.loads(said.splitlines()[-1]),
    }


if __name__ == "__main__":
    main()
