"""A round of the pool: a policy's pairs become a file of data/preferences/ that is never changed, versioned by DVC."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

from pipelines import config
from pipelines.errors import ConfigurationError, DataError, EnvironmentFault
from tasks import card, processes, repository

POOL = Path("data/preferences")
QUEUE = Path("data/queue")
SCRATCH = Path(".runs/collect")
PAIRS_FILE, QUEUE_FILE, FACTS_FILE = "pairs.parquet", "queue.jsonl", "facts.json"
"""What ``python -m pipelines collect`` writes."""


def name_of(number: int) -> str:
    """How a round is called in files and rows."""
    return f"round-{number:03d}"


def pool_file(number: int) -> Path:
    """Where a round's pairs are."""
    return POOL / f"{name_of(number)}.parquet"


def queue_file(number: int) -> Path:
    """Where a round waits for people."""
    return QUEUE / f"{name_of(number)}.jsonl"


def next_round(root: Path) -> int:
    """The first round that is not whole in the pool (one that waits for people is the next)."""
    found = [re.fullmatch(r"round-(\d+)\.parquet\.dvc", path.name) for path in (root / POOL).glob("round-*.parquet.dvc")]
    return max((int(match[1]) for match in found if match), default=0) + 1


def is_whole(root: Path, number: int) -> bool:
    """Whether a round is in the pool: DVC's note is what says so (its rows may have to be pulled)."""
    return (root / f"{pool_file(number)}.dvc").exists()


def waits(root: Path, number: int) -> bool:
    """Whether people have been asked, and their answers are not in the pool yet."""
    return (root / queue_file(number)).exists() and not is_whole(root, number)


def model_of(root: Path, policy: str, spare: Path) -> tuple[Path, str]:
    """A model's folder and what it is: a policy of params.yaml, ``sft``, or a version (``champion``, a number, models:/...).

    A version that is not on this machine is fetched below ``spare``.
    """
    from pipelines import generate

    params = config.load(root / config.PARAMS)
    if policy == "sft" or policy in params.policies:
        folder = generate.folder_of(root, policy, params)
        return folder, described(policy, folder)
    from tasks import registry

    office = registry.opened(root)
    version = office.registry.version(policy)
    return registry.folder_of(office, version, spare), f"{version.uri} (content {version.tags[registry.CONTENT][:12]})"


def described(name: str, folder: Path) -> str:
    """A model by its name and what is in its folder."""
    return f"{name} (content {card.content_of(card.manifest(folder))[:12]})"


def draw(root: Path, number: int, model: Path, what: str) -> dict[str, Any]:
    """Let ``model`` answer and its pairs be labelled: into the pool, or into the queue of people. Returns counts and ``file``.

    ``what`` the model is stands in DVC's note. Raises ConfigurationError where the round is there already: a file of the pool is
    never changed.
    """
    _refuse(root, number)
    facts = _run(root, number, ["--model", str(model)])
    if facts["labels"] == "people":
        target = root / queue_file(number)
        target.parent.mkdir(parents=True, exist_ok=True)
        _scratch(root, number, QUEUE_FILE).replace(target)
        return facts | {"file": str(queue_file(number))}
    return facts | _keep(root, number, f"answers of {what}", facts["judge"])


def read_back(root: Path, number: int) -> dict[str, Any]:
    """What people have written into the queue's file becomes the round's file of the pool."""
    _refuse(root, number)
    facts = _run(root, number, ["--answered", str(queue_file(number))])
    return facts | _keep(root, number, f"people's answers in {queue_file(number)}", facts["judge"])


def _refuse(root: Path, number: int) -> None:
    """Refuse a round that is there. A file without DVC's note is what a crash has left: it is put aside and made again."""
    if number < 1:
        raise ConfigurationError(f"--round {number}: rounds count from 1")
    path = pool_file(number)
    if is_whole(root, number):
        raise ConfigurationError(
            f"{path}: is there already, and a file of the pool is never changed; --round {next_round(root)} is the next"
        )
    if (root / path).exists():
        (root / SCRATCH).mkdir(parents=True, exist_ok=True)
        (root / path).replace(root / SCRATCH / f"{name_of(number)}-left.parquet")


def _run(root: Path, number: int, arguments: list[str]) -> dict[str, Any]:
    """``python -m pipelines collect``; raises the error that it names."""
    out = root / SCRATCH / name_of(number)
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    command = processes.command("pipelines", ["collect", "--name", name_of(number), "--out", str(out), *arguments])
    with subprocess.Popen(command, cwd=root, env=repository.environment(root), stderr=subprocess.PIPE, text=True) as child:
        try:
            _, said = child.communicate()
        except BaseException:
            child.terminate()
            raise
    if child.returncode:
        fault = {2: DataError, 3: ConfigurationError}.get(child.returncode, EnvironmentFault)
        lines = [line for line in said.splitlines() if line.strip()] or [f"ended with {child.returncode}"]
        raise fault(lines[-1].removeprefix("error: "))
    facts = dict(json.loads((out / FACTS_FILE).read_text(encoding="utf-8")))
    return facts | {"round": number, "labels": "judge" if (out / PAIRS_FILE).exists() else "people"}


def _keep(root: Path, number: int, source: str, judge: str) -> dict[str, Any]:
    """Move the round's table into the pool and version it."""
    path = pool_file(number)
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    _scratch(root, number, PAIRS_FILE).replace(root / path)
    repository.track(root, path, {"source": source, "judge": judge})
    return {"file": str(path)}


def _scratch(root: Path, number: int, file: str) -> Path:
    return root / SCRATCH / name_of(number) / file
