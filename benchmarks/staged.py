"""Stages in this process, without DVC and the flow: for benchmarks that train many small models."""

from __future__ import annotations

import hashlib
import importlib
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common import ROOT, code

sys.path.insert(0, str(ROOT))

KEPT = ROOT / ".runs" / "sweeps"
Entry = dict[str, Any]


def measured(name: str, settings: Any, entries: list[Entry], measure: Callable[[Path, Entry], Entry]) -> list[Entry]:
    """Each entry with its figures, written down when it is measured.

    ``measure`` gets a folder for what entries share. An entry that was measured with the same settings and the same code
    (as committed) is read, so the same command goes on after a measurement that was cut.
    """
    folder = KEPT / f"{name}-{hashlib.sha256(json.dumps([settings, code()]).encode()).hexdigest()[:12]}"
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob("cut-*"):
        shutil.rmtree(left)
    found = []
    for number, entry in enumerate(entries, 1):
        shown = name_of(entry)
        print(f"{name} {number} of {len(entries)}: {shown}", flush=True)
        file = folder / f"{shown}.json"
        if not file.exists():
            started = time.monotonic()
            figures = measure(folder, entry) | {"seconds": round(time.monotonic() - started, 1)}
            fresh = file.with_suffix(".new")
            fresh.write_text(json.dumps(figures), encoding="utf-8")
            fresh.replace(file)
        found.append(entry | json.loads(file.read_text(encoding="utf-8")))
        print(f"  {found[-1]}", flush=True)
    return found


def name_of(entry: Entry) -> str:
    """An entry in words."""
    return ", ".join(f"{key} {value}" for key, value in entry.items())


def recipe(name: str) -> dict[str, Any]:
    """A recipe as it is written."""
    from ruamel.yaml import YAML

    return YAML(typ="safe").load((ROOT / "recipes" / f"{name}.yaml").read_text(encoding="utf-8"))


def params(name: str, seed: int, *changes: dict[str, dict[str, Any]]) -> Any:
    """A recipe with other settings in some of its sections, the later ones of ``changes`` over the earlier ones."""
    from pipelines.config import Params

    found = recipe(name) | {"seed": seed}
    for change in changes:
        for section, settings in change.items():
            found[section] = found[section] | settings
    return Params.model_validate(found)


def made(folder: Path, settings: Any, stages: Sequence[str], files: dict[str, str] | None = None) -> Path:
    """The artifacts of some stages, made in ``folder`` once and whole. ``files``: path in the project -> text."""
    if not folder.exists():
        print(f"  {', '.join(stages)}: {folder.name}", flush=True)
        with place(folder.parent, {}, files) as root:
            for stage in stages:
                run_stage(stage, settings, root)
            (root / "artifacts").rename(folder)
    return folder


@contextmanager
def place(folder: Path, artifacts: dict[str, Path], files: dict[str, str] | None = None) -> Iterator[Path]:
    """A project's folder with links to some artifacts and with some files; gone afterwards."""
    with tempfile.TemporaryDirectory(dir=folder, prefix="cut-") as name:
        root = Path(name)
        (root / "artifacts").mkdir()
        for artifact, source in artifacts.items():
            (root / "artifacts" / artifact).symlink_to(source)
        for path, text in (files or {}).items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(text, encoding="utf-8")
        yield root


def run_stage(stage: str, settings: Any, root: Path) -> None:
    """A stage in this process; its outputs are put where the next one reads them."""
    from pipelines.context import Context, Worker, make_deterministic, seed_for
    from pipelines.journal import Journal
    from pipelines.stages import stage_of

    class Here:
        workers = 0

        def train(self, function: Any, job: Any, scratch: Path) -> None:
            function(job, Worker(0, 1, "cpu", Journal(None)))

        def map(self, function: Any, job: Any, items: Any) -> list:
            return function(job, items, Worker(0, 1, "cpu", Journal(None)))

    scratch = root / ".runs" / stage
    scratch.mkdir(parents=True)
    make_deterministic(seed_for(settings.seed, stage), settings.runtime.threads)
    module = importlib.import_module(f"pipelines.stages.{stage_of(stage).module}")
    module.run(Context(stage, settings, root, scratch, Journal(None), Here()))
    shutil.copytree(scratch / "outs", root, dirs_exist_ok=True, copy_function=shutil.move)


def demonstrations(prepared: Path, split: str) -> Any:
    """The demonstrations of a split."""
    from pipelines.data.schemas import DEMONSTRATIONS
    from pipelines.data.tables import read_table

    table = read_table(prepared / "demonstrations.parquet", DEMONSTRATIONS)
    return table[table["split"] == split]


def nats(model: Path, rows: Any, precision: Any) -> float:
    """What a model pays for the answers of demonstrations: nats a token, EOS included, the mean over answers."""
    from pipelines.context import Worker
    from pipelines.evaluation import language
    from pipelines.journal import Journal

    asked = list(zip(rows["prompt"], rows["completion"], strict=True))
    paid = language.read_texts(language.Job(model, 32, precision), asked, Worker(0, 1, "cpu", Journal(None)))
    return sum(cost / tokens for cost, tokens in paid) / len(paid)
