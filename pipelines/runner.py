"""The one impure frame around every stage: checks, seed, threads, cluster, journal, tracker, atomic outputs.

A stage itself is a function from files to files; what a run leaves besides its outputs (numbers, seconds, errors,
resumable state) is born here, under ``.runs/STAGE/``.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib
import json
import os
import resource
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines import config
from pipelines.context import Context, make_deterministic, seed_for
from pipelines.errors import ConfigurationError, EnvironmentFault, PrefloopError
from pipelines.journal import Journal, read_from
from pipelines.progress import line_of
from pipelines.stages import STAGES, stage_of

if TYPE_CHECKING:
    from pipelines.adapters.tracking import Tracker
    from pipelines.diagnosis.live import Live

MEBIBYTE = 2**20
KEPT_FREE = 200 * MEBIBYTE
PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Inputs:
    """What DVC knows of a stage: its fingerprint, the hashes of what it reads, and how large that is."""

    key: str
    hashes: dict[str, str]
    params: dict[str, Any]
    largest: int
    stage: Any


def main(name: str, root: Path) -> int:
    """Run one stage as dvc.yaml names it; return the exit code (0, 2, 3, 4, 130, 143, or 1 for a defect).

    Every failure is left as one line in ``.runs/STAGE/error.json``, because DVC turns every exit code into 255.
    """
    _die_with_the_parent()
    signal.signal(signal.SIGTERM, _terminated)
    report = root / ".runs" / name / "error.json"
    report.unlink(missing_ok=True)
    try:
        _run(name, root)
        return 0
    except PrefloopError as error:
        code, message = error.code, str(error)
    except KeyboardInterrupt:
        code, message = 130, "interrupted"
    except SystemExit as stop:
        code, message = int(stop.code or 0), "terminated"
    except MemoryError as error:
        code, message = EnvironmentFault.code, f"{name}: out of memory ({error}); lower batch_size or micro_batch_size"
    except OSError as error:
        traceback.print_exc()
        code, message = EnvironmentFault.code, f"{name}: {error.strerror or error}: {error.filename or root}"
    except Exception as error:
        traceback.print_exc()
        code, message = 1, f"{name}: {type(error).__name__}: {error}"
    report.parent.mkdir(parents=True, exist_ok=True)
    report.write_text(json.dumps({"stage": name, "code": code, "message": message}), encoding="utf-8")
    print(f"error: {message}", file=sys.stderr, flush=True)
    return code


def _run(name: str, root: Path) -> None:
    """Beats: read, check, prepare the frame, run, move the outputs into place, tidy up."""
    # 1. the configuration, before anything heavy
    started = time.monotonic()
    params = config.load(root / config.PARAMS)
    stage = _known(name, params)
    prune_stale_policies(root, params)

    # 2. what DVC knows: fingerprint, hashes, sizes; is there room for what will be written?
    inputs = fingerprint(name, root)
    scratch = root / ".runs" / name / inputs.key
    _check_disk(name, root, inputs)
    resumed = (scratch / "checkpoints").exists()
    if not resumed:
        shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(scratch / "outs", ignore_errors=True)

    # 3. seed and threads
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    make_deterministic(seed_for(params.seed, name), params.runtime.threads, stage.torch)

    # 4. the work, with its journal followed by the terminal and the tracker
    from pipelines.adapters import cluster, machine, tracking
    from pipelines.diagnosis.live import Live

    journal = scratch / "timings.jsonl"
    surroundings = machine.environment(params.runtime)
    tracker = tracking.open_stage(root, name, scratch, inputs.params, inputs.hashes, _source_of(params), surroundings)
    try:
        live = Live(_settings_of(name, params))
        with _followed(journal, name, stage.key_metrics, tracker, live), cluster.connect(params.runtime, journal) as rays:
            module = importlib.import_module(f"pipelines.stages.{stage.module}")
            context = Context(name, params, root, scratch, Journal(journal), rays)
            metrics: dict[str, float] = module.run(context)

        # 5. the outputs, each renamed into place when whole, hashed as DVC hashes them
        outs = _publish(scratch, root, inputs.stage)
        gpus = params.runtime.gpus_per_worker * params.runtime.workers
        tracker.finish(metrics | ({"time/gpu_seconds": gpus * (time.monotonic() - started)} if gpus else {}), outs)
    except BaseException as error:
        tracker.fail(f"{type(error).__name__}: {error}")
        raise
    _tidy(scratch, root / ".runs" / name)
    _remember(root / ".runs" / name / "last.json", time.monotonic() - started, root, outs)
    watched = next((name for name in stage.key_metrics if name in metrics), "")
    print(f"{name}  done in {time.monotonic() - started:.1f} s"
          + (f"  {watched} {metrics[watched]:.4g}" if watched else ""), flush=True)  # fmt: skip


def fingerprint(name: str, root: Path) -> Inputs:
    """Hash what a stage depends on, as DVC does: its command, the content of its dependencies, its parameters."""
    from dvc.repo import Repo

    with Repo(str(root)) as repo:
        stage = next(iter(repo.stage.collect(name)))
        stage.save_deps()
        hashes: dict[str, str] = {}
        params: dict[str, Any] = {}
        largest = 0
        for dep in stage.deps:
            value = dep.hash_info.value
            if isinstance(value, dict):
                params.update(value)
                continue
            hashes[str(dep.def_path)] = str(value)
            largest = max(largest, dep.meta.size or 0)
        facts = json.dumps([stage.cmd, sorted(hashes.items()), params], sort_keys=True, default=str)
    return Inputs(hashlib.sha256(facts.encode()).hexdigest()[:16], hashes, params, largest, stage)


def _known(name: str, params: config.Params) -> Any:
    kind, _, policy = name.partition("@")
    if kind not in STAGES:
        raise ConfigurationError(f"unknown stage {name!r}; stages: {', '.join(STAGES)}")
    if policy and policy not in params.policies:
        raise ConfigurationError(f"{name}: params.yaml has no policy {policy!r}; policies: {', '.join(params.policies)}")
    return stage_of(name)


def _settings_of(name: str, params: config.Params) -> dict[str, Any]:
    """The section of params.yaml that a training stage goes by, defaults filled in; empty for the others."""
    kind, _, policy = name.partition("@")
    if kind == "policy":
        return params.policies[policy].model_dump()
    return {"sft": params.sft, "reward": params.reward}[kind].model_dump() if kind in ("sft", "reward") else {}


def _source_of(params: config.Params) -> str:
    return f"package {params.prepare.package}" if params.prepare.source == "plays" else params.prepare.learns_from


def prune_stale_policies(root: Path, params: config.Params) -> None:
    """Remove what a former recipe's policies left in place: the report depends on whole folders. DVC's cache keeps it."""
    kept = {*params.policies, "sft"}
    for folder in ("policies", "evaluations"):
        for path in sorted((root / "artifacts" / folder).glob("*")):
            if path.is_dir() and path.name not in kept:
                shutil.rmtree(path)


def _check_disk(name: str, root: Path, inputs: Inputs) -> None:
    """A stage writes about as much as its largest input: once in place, once in DVC's cache, once as checkpoints."""
    needed = 3 * inputs.largest + KEPT_FREE
    free = shutil.disk_usage(root).free
    if free < needed:
        raise EnvironmentFault(
            f"{name}: {needed // MEBIBYTE} MiB of disk space needed under {root.name}/, {free // MEBIBYTE} MiB free; "
            "free some (`dvc gc --workspace` drops results that no recipe here uses) and run again"
        )


@contextmanager
def _followed(journal: Path, name: str, key_metrics: tuple[str, ...], tracker: Tracker, live: Live) -> Iterator[None]:
    """Follow the journal from a thread: a progress line every two seconds, everything to the tracker, training's to the
    detectors."""
    done = threading.Event()

    def follow() -> None:
        offset, first, shown = 0, None, 0.0
        while True:
            last_round = done.wait(0.5)
            lines, offset = read_from(journal, offset)
            now = time.monotonic()
            if lines:
                first = first or (now, lines[0]["step"])
                tracker.log(lines)
                for sentence in _seen(live, lines):
                    print(f"warning: {sentence}", flush=True)
                if now - shown >= 2.0 or last_round or any(line["note"] for line in lines):
                    noted = [line for line in lines[:-1] if line["note"]]
                    for line in [*noted, lines[-1]]:
                        print(line_of(name, line, first, now, key_metrics), flush=True)
                    shown = now
            if last_round:
                return

    thread = threading.Thread(target=follow, name="journal", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(timeout=30)


def _seen(live: Live, lines: list[dict]) -> list[str]:
    """What the detectors say of a training stage's further lines; a look never costs a run."""
    try:
        return live.see(lines) if live.settings else []
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        return [f"diagnosis: {type(error).__name__}: {error}"]


def _publish(scratch: Path, root: Path, stage: Any) -> dict[str, str]:
    """Move every output from its staging path into place; return path -> hash, as dvc.lock will have it."""
    hashes: dict[str, str] = {}
    for out in stage.outs:
        staged, final = scratch / "outs" / out.def_path, root / out.def_path
        if not staged.exists():
            raise RuntimeError(f"the stage did not write its output {out.def_path}")
        final.parent.mkdir(parents=True, exist_ok=True)
        if final.is_dir() and not final.is_symlink():
            shutil.rmtree(final)
        staged.replace(final)
        out.save()
        hashes[str(out.def_path)] = str(out.hash_info.value)
    return hashes


def _tidy(scratch: Path, folder: Path) -> None:
    """Drop resumable state, this run's and that of other parameters; the timings stay."""
    for path in folder.iterdir():
        if path.is_dir() and path != scratch:
            shutil.rmtree(path)
    for path in scratch.iterdir():
        if path.is_dir():
            shutil.rmtree(path)


def _remember(path: Path, seconds: float, root: Path, outs: dict[str, str]) -> None:
    """Seconds, memory and size of this run: the estimates of the next ``--dry-run``. Hashes: what changed by hand since."""
    files = [file for out in outs for file in ((root / out).rglob("*") if (root / out).is_dir() else [root / out])]
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) * 1024
    facts = {
        "seconds": round(seconds, 2),
        "peak_rss_bytes": peak,
        "out_bytes": sum(file.stat().st_size for file in files if file.is_file()),
        "outs": outs,
    }
    path.write_text(json.dumps(facts), encoding="utf-8")


def _terminated(signum: int, frame: Any) -> None:
    raise SystemExit(128 + signum)


def _die_with_the_parent() -> None:
    """On Linux, ask to be killed when DVC's process dies, so that no training goes on as an orphan."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
