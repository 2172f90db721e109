"""dvc.lock as data: what a result was made from, and where two results part."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

from pipelines.adapters.spool import outs_hash
from pipelines.errors import EnvironmentFault

Lock = dict[str, dict[str, Any]]
"""Stage -> its entry in dvc.lock: cmd, deps, params, outs."""
JUDGED_WITH = (
    "artifacts/base",
    "artifacts/prepared/prompts.parquet",
    "artifacts/reward",
    "artifacts/sft",
    "data/constitutions",
    "data/judges",
    "pipelines/judges",
)
"""What answers are asked, scored and judged with: where these are equal, two models' answers can be compared as they are."""


def parse(text: str) -> Lock:
    """The stages of a dvc.lock."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        return dict((YAML(typ="safe").load(text) or {}).get("stages", {}))
    except (YAMLError, AttributeError) as error:
        raise EnvironmentFault(
            f"dvc.lock: damaged ({' '.join(str(error).split())[:200]}); `prefloop status` says more"
        ) from error


def hashes(lock: Lock, stage: str, kind: str = "outs") -> dict[str, str]:
    """Path -> md5 of what a stage wrote (``outs``) or read (``deps``)."""
    return {entry["path"]: entry["md5"] for entry in lock[stage].get(kind, [])}


def params(lock: Lock, stage: str) -> dict[str, Any]:
    """The parameters that a stage read, flat: ``policies.ppo.steps``."""
    return dict(_flat("", lock[stage].get("params", {}).get("params.yaml", {})))


def closure(lock: Lock, stage: str) -> list[str]:
    """A stage and all that it stands on, in the order of the lock."""
    found, waiting = set(), [stage]
    while waiting:
        name = waiting.pop()
        if name in found or name not in lock:
            continue
        found.add(name)
        reads = hashes(lock, name, "deps")
        waiting += [other for other in lock if any(_meet(out, dep) for out in hashes(lock, other) for dep in reads)]
    return [name for name in lock if name in found]


def ordered(lock: Lock, stages: Iterable[str]) -> list[str]:
    """Stages so that each comes behind those that it stands on."""
    return sorted(stages, key=lambda name: (len(closure(lock, name)), name))


def evaluation_key(lock: Lock, policy: str) -> str:
    """One hash of what a policy was evaluated with; "" where it was not evaluated."""
    stage = f"evaluate@{policy}"
    if stage not in lock:
        return ""
    reads = {path: md5 for path, md5 in hashes(lock, stage, "deps").items() if path in JUDGED_WITH}
    return digest([reads, params(lock, stage)])


def stage_hash(lock: Lock, stage: str) -> str:
    """The hash by which MLflow's run of this result is found."""
    return outs_hash(hashes(lock, stage))


def differences(ours: Lock, theirs: Lock, stage: str) -> list[str]:
    """What differs in what a stage read: parameters with both values, files with both hashes."""
    found = []
    mine, other = params(ours, stage), params(theirs, stage)
    for key in sorted(mine.keys() | other.keys()):
        if mine.get(key) != other.get(key):
            found.append(f"parameter {key}: {mine.get(key, 'not set')} here, {other.get(key, 'not set')} there")
    mine, other = hashes(ours, stage, "deps"), hashes(theirs, stage, "deps")
    for path in sorted(mine.keys() | other.keys()):
        if mine.get(path) != other.get(path):
            kind = "libraries" if path == "constraints.txt" else "code" if path.startswith("pipelines") else "data"
            found.append(f"{kind} {path}: {mine.get(path, 'not read')[:12]} here, {other.get(path, 'not read')[:12]} there")
    return found


def first_difference(ours: Lock, theirs: Lock, stages: Iterable[str]) -> str:
    """The first stage, in the order of the graph, whose outputs differ; "" where none does."""
    for stage in ordered(theirs, stages):
        if stage not in ours or hashes(ours, stage) != hashes(theirs, stage):
            return stage
    return ""


def digest(value: Any) -> str:
    """A hash of plain values."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def _meet(one: str, other: str) -> bool:
    """Whether one path is the other, or lies in it."""
    return one == other or one.startswith(f"{other}/") or other.startswith(f"{one}/")


def _flat(prefix: str, value: Any) -> Iterable[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _flat(f"{prefix}.{key}" if prefix else str(key), inner)
    elif prefix:
        yield prefix, value
