"""Checkpoints that are whole or absent: a temporary folder, renamed when complete; checksums in a manifest written last.

Tensors are read with ``weights_only=True``, and only after their checksum agreed. No checkpoint holds a non-finite number.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pipelines.errors import PrefloopError

MANIFEST = "manifest.json"


class NonFiniteState(PrefloopError):
    """A state that must not be kept: it holds NaN or infinity."""


def save(folder: Path, step: int, states: dict[str, Any], keep: int = 2) -> Path:
    """Write ``states`` (tensors, numbers, strings, lists, dicts) as ``folder/step-STEP`` and keep the newest ``keep``.

    Raises NonFiniteState before anything is written, if a tensor or number is NaN or infinite.
    """
    for name, state in states.items():
        _check_finite(name, state)
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob(".tmp-*"):
        shutil.rmtree(leftover)
    temporary, whole = folder / f".tmp-{step:08d}", folder / f"step-{step:08d}"
    temporary.mkdir()
    sums = {}
    for name, state in sorted(states.items()):
        file = temporary / f"{name}.pt"
        torch.save(state, file)
        _sync(file)
        sums[file.name] = _sha256(file)
    manifest = temporary / MANIFEST
    manifest.write_text(json.dumps({"step": step, "sha256": sums}, indent=2) + "\n", encoding="utf-8")
    _sync(manifest)
    _sync(temporary)
    if whole.exists():
        shutil.rmtree(whole)
    temporary.rename(whole)
    _sync(folder)
    for old in _folders(folder)[keep:]:
        shutil.rmtree(old)
    return whole


def newest(
    folder: Path, warn: Callable[[str], None] | None = None, before: float = math.inf
) -> tuple[int, dict[str, Any]] | None:
    """The step and states of the newest whole checkpoint of a step below ``before``, or None.

    Damaged ones are passed over; ``warn`` (default: ``warnings.warn``) is told each of them and the one that was taken.
    """
    faults: list[str] = []
    found = None
    for candidate in [path for path in _folders(folder) if int(path.name[5:]) < before]:
        fault = _fault(candidate)
        if fault is None:
            found = candidate
            break
        faults.append(f"{candidate.name} ({fault})")
    if faults:
        taken = f"going on from {found.name}" if found else "none is left, starting from the beginning"
        tell = warn or (lambda message: warnings.warn(message, RuntimeWarning, stacklevel=3))
        tell(f"checkpoint damaged: {', '.join(faults)}; {taken}")
    if found is None:
        return None
    manifest = json.loads((found / MANIFEST).read_text(encoding="utf-8"))
    states = {Path(name).stem: torch.load(found / name, map_location="cpu", weights_only=True) for name in manifest["sha256"]}
    return manifest["step"], states


def drop_from(folder: Path, step: int) -> None:
    """Remove the checkpoints of ``step`` and later: what was learnt since is taken back."""
    for path in _folders(folder):
        if int(path.name[5:]) >= step:
            shutil.rmtree(path)


def _folders(folder: Path) -> list[Path]:
    """The checkpoint folders, newest first; temporary ones are not among them."""
    found = [path for path in folder.glob("step-*") if path.is_dir() and path.name[5:].isdigit()]
    return sorted(found, key=lambda path: int(path.name[5:]), reverse=True)


def _fault(folder: Path) -> str | None:
    """Why a checkpoint cannot be trusted, or None."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        step, sums = int(manifest["step"]), dict(manifest["sha256"])
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except (ValueError, KeyError, TypeError):
        return f"{MANIFEST} is not readable"
    if step != int(folder.name[5:]):
        return f"{MANIFEST} is of step {step}"
    for name, expected in sorted(sums.items()):
        if Path(name).name != name or not (folder / name).is_file():
            return f"{name} is missing"
        if _sha256(folder / name) != expected:
            return f"{name}: checksum differs"
    return None


def _check_finite(where: str, state: Any) -> None:
    """Walk nested dicts, lists and tensors; raise NonFiniteState at the first NaN or infinity."""
    if isinstance(state, torch.Tensor):
        if state.is_floating_point() and not bool(torch.isfinite(state).all()):
            raise NonFiniteState(f"{where} holds a non-finite number and is not saved; lower learning_rate")
    elif isinstance(state, float):
        if not math.isfinite(state):
            raise NonFiniteState(f"{where} is {state} and is not saved; lower learning_rate")
    elif isinstance(state, dict):
        for key, value in state.items():
            _check_finite(f"{where}.{key}", value)
    elif isinstance(state, list | tuple):
        for index, value in enumerate(state):
            _check_finite(f"{where}[{index}]", value)


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sync(path: Path) -> None:
    """Force a file's or a folder's content to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
