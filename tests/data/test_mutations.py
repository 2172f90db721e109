"""A file that is damaged anywhere, in any way: never a traceback, never a hang, never rows that vanish without a word.

The worker is one process for all mutations, under a memory limit of 512 MB that it cannot raise.
"""

import contextlib
import csv
import gzip
import io
import json
import os
import random
import resource
import select
import subprocess
import sys
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.test_bad_files import ROOT, good, lines

SECONDS = 5.0
"""Of the processor; on a busy machine the clock may show more."""

PATIENCE = 60.0
LIMIT = 512 * 2**20
WORKER = """
import contextlib, io, json, sys
from pathlib import Path
from pipelines.__main__ import run_command
import pipelines.dataset, pipelines.data.rows, pipelines.data.vetting
print("ready", flush=True)
for line in sys.stdin:
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        code = run_command("data", ["check", line.strip()], Path.cwd())
    print(json.dumps([code, out.getvalue()]), flush=True)
"""


class Worker:
    """One checking process; a file in, exit code and message out."""

    def __init__(self) -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "ARROW_DEFAULT_MEMORY_POOL": "system"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=environment,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (LIMIT, LIMIT)),
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n", self.process.stderr and self.process.stderr.read()

    def check(self, path: Path) -> tuple[int, str]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{path}\n")
        self.process.stdin.flush()
        before = sum(psutil.Process(self.process.pid).cpu_times()[:2])
        assert select.select([self.process.stdout], [], [], PATIENCE)[0], f"no answer within {PATIENCE} s"
        assert sum(psutil.Process(self.process.pid).cpu_times()[:2]) - before < SECONDS
        line = self.process.stdout.readline()
        assert line, f"the worker died: {self.process.stderr and self.process.stderr.read()}"
        code, said = json.loads(line)
        return code, said

    def peak(self) -> int:
        """Bytes of memory at most."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))) * 1024

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


def mutated(content: bytes, draw: random.Random) -> bytes:
    """One to three byte flips, a cut, or a swap of two stretches."""
    kind = draw.choice(("flip", "flip", "cut", "swap"))
    data = bytearray(content)
    if kind == "flip":
        for _ in range(draw.randint(1, 3)):
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        return bytes(data)
    if kind == "cut":
        start = draw.randrange(len(data))
        return bytes(data[:start] if draw.random() < 0.5 else data[:start] + data[start + draw.randint(1, 200) :])
    one, two = sorted(draw.sample(range(len(data)), 2))
    width = min(draw.randint(1, 50), two - one, len(data) - two)
    data[one : one + width], data[two : two + width] = data[two : two + width], data[one : one + width]
    return bytes(data)


def originals(folder: Path) -> dict[str, bytes]:
    """Good files of every kind."""
    rows = good(40)
    messages = [
        {"messages": [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["chosen"]}]}
        for row in rows
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "rows.parquet", write_page_checksum=True)
    table = "prompt,completion\n" + "".join(f'"{row["prompt"]}","{row["chosen"]}, so"\n' for row in rows)
    return {
        "pairs.jsonl": lines(rows),
        "messages.jsonl": lines(messages),
        "packed.jsonl.gz": gzip.compress(lines(rows), mtime=0),
        "table.csv": table.encode(),
        "columns.parquet": (folder / "rows.parquet").read_bytes(),
    }


def rows_of(name: str, content: bytes) -> int | None:
    """How many rows a file has, counted without our code; None where that needs a parser."""
    if name.endswith(".jsonl"):
        return sum(1 for line in content.split(b"\n") if line.removeprefix(b"\xef\xbb\xbf").strip())
    if name.endswith(".gz"):
        return sum(1 for line in gzip.decompress(content).split(b"\n") if line.strip())
    if name.endswith(".csv"):
        with contextlib.suppress(csv.Error):
            return sum(1 for cells in csv.reader(io.StringIO(content.decode(errors="replace"))) if cells) - 1
    return 40 if name.endswith(".parquet") else None


def _mutate(folder: Path, count: int, seed: int) -> None:
    draw, files, worker = random.Random(seed), originals(folder), Worker()
    outcomes = {0: 0, 2: 0}
    try:
        for number in range(count):
            name = list(files)[number % len(files)]
            content = mutated(files[name], draw)
            path = folder / name
            path.write_bytes(content)
            code, said = worker.check(path)
            where = f"mutation {number} of {name}, seed {seed}: {said[:500]}"
            assert code in outcomes, where
            assert "Traceback" not in said, where
            outcomes[code] += 1
            if code == 2:
                assert said.startswith("error: "), where
                assert said.count(" | ") >= 2, where
                continue
            said_rows = int(said.split("ok: ")[1].split(" rows")[0])
            expected = rows_of(name, content)
            assert said_rows == expected, where
        assert worker.peak() < LIMIT
    finally:
        worker.close()
    assert min(outcomes.values()) > 0, "some mutations change only words, others break the file"


def test_200_mutations(tmp_path: Path) -> None:
    _mutate(tmp_path, 200, 1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 12))
def test_10000_mutations(tmp_path: Path, seed: int) -> None:
    """A thousand a seed."""
    _mutate(tmp_path, 1000, seed)
