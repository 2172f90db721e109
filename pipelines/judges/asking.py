"""Asking a judge that is a model: in batches over the cluster's workers, and never twice.

Rows are put into batches by their content alone, and what is remembered is a whole batch: it gives the same numbers whether it
is computed or remembered, and whichever worker has it. Batches lie below .runs/judges/batches/, under a hash of the judge, its
settings, its model's files, the code, the libraries, the device and the texts. An endpoint's replies are recorded one by one
instead (``endpoint``).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pipelines.config import Classifier, Constitution, SavedReward
from pipelines.context import Cluster, Worker
from pipelines.errors import DataError

if TYPE_CHECKING:
    from pipelines.config import Scorer as Settings

BATCHES = Path(".runs/judges/batches")
CODE = Path(__file__).resolve().parents[1]
READ = ("algorithms", "data", "judges", "models")
"""The packages whose code a judge runs."""
LIBRARIES = ("tokenizers", "torch", "transformers")

Row = tuple[str, ...]
"""(prompt, answer) to be scored, or (prompt, first, second) to be compared."""


class Opinion(NamedTuple):
    """What a judge says of a row: a score, or by how much the first answer is better; and what it cost to know."""

    value: float
    bias: float = 0.0
    """How far the judge leant to the letter A, whatever stood there; nats."""
    read: int = 0
    """Tokens of the questions."""
    written: int = 0
    """Tokens of the replies."""


class Leaning(NamedTuple):
    """A model's reply to one question: log P("A") - log P("B") in nats, and the tokens read and written."""

    odds: float
    read: int
    written: int


Asked = Callable[[Sequence[Row]], list[Opinion]]
Lean = Callable[[list[str]], list[Leaning]]


@dataclass(frozen=True)
class Job:
    """What a worker needs: the judge, the project's folder, what the judge is made of (a hash)."""

    judge: Settings
    root: Path
    identity: str


def scorer(judge: Settings, root: Path, cluster: Cluster | None, device: str) -> Callable[[list[str], list[str]], list[float]]:
    """The judge as a function; without a cluster its model is loaded once, here."""
    if cluster is not None:
        spread = cluster
        return lambda prompts, answers: [
            said.value for said in ask(judge, root, spread, list(zip(prompts, answers, strict=True)))
        ]
    asked = opened(judge, root, device, workers=1)

    def scores(prompts: list[str], answers: list[str]) -> list[float]:
        known: dict[Row, Opinion] = {}
        for batch in batches(list(zip(prompts, answers, strict=True)), _section(judge).batch_size):
            known |= zip(batch, checked(asked(batch), judge.kind), strict=True)
        return [known[row].value for row in zip(prompts, answers, strict=True)]

    return scores


def ask(judge: Settings, root: Path, cluster: Cluster, rows: Sequence[Row]) -> list[Opinion]:
    """The judge's opinion on every row, in their order. A row that stands there several times is asked about once."""
    cut = list(batches(rows, _section(judge).batch_size))
    found = cluster.map(answered, Job(judge, root.resolve(), identity(judge, root)), cut) if cut else []
    known = {row: said for batch, opinions in zip(cut, found, strict=True) for row, said in zip(batch, opinions, strict=True)}
    return [known[row] for row in rows]


def answered(job: Job, cut: Sequence[list[Row]], worker: Worker) -> list[list[Opinion]]:
    """The opinions on each batch, remembered or asked for; the model is loaded for the first that is not remembered."""
    asked: Asked | None = None
    replies = []
    for number, batch in enumerate(cut, 1):
        place = _place(job, batch, worker.device)
        opinions = _remembered(place, len(batch)) if place else None
        if opinions is None:
            asked = asked or opened(job.judge, job.root, worker.device, worker.world_size)
            opinions = checked(asked(batch), job.judge.kind)
            if place:
                _remember(place, opinions)
        replies.append(opinions)
        cost = {"judge/prompt_tokens": sum(o.read for o in opinions), "judge/completion_tokens": sum(o.written for o in opinions)}
        worker.journal.log(number, len(cut), {name: float(tokens) for name, tokens in cost.items() if tokens}, note="judge")
    return replies


def opened(judge: Settings, root: Path, device: str, workers: int) -> Asked:
    """Load the judge's model, or get ready to ask its endpoint, of which each of ``workers`` uses its share."""
    section = _section(judge)
    if isinstance(section, Classifier):
        from pipelines.judges.classifier import open_classifier

        return open_classifier(section, root, device)
    if isinstance(section, SavedReward):
        from pipelines.judges.reward import open_reward

        return open_reward(section, root, device)
    from pipelines.judges.constitution import open_constitution

    return open_constitution(section, root, device, workers)


def batches(rows: Sequence[Row], size: int) -> Iterator[list[Row]]:
    """The different rows, those of like length together: a matter of which rows there are, not of their order."""
    different = sorted(set(rows), key=lambda row: (sum(map(len, row)), row))
    for start in range(0, len(different), size):
        yield different[start : start + size]


def checked(opinions: list[Opinion], name: str) -> list[Opinion]:
    """The opinions as they are; DataError where one is no finite number."""
    for said in opinions:
        if not math.isfinite(said.value):
            raise DataError(f"judge {name}: a score is {said.value}; its model is broken, or overflows in its precision")
    return opinions


def identity(judge: Settings, root: Path) -> str:
    """A hash of all that the opinions depend on but the texts and the machine: settings, files, code, libraries."""
    section = _section(judge)
    settings = [judge.kind, section.model_dump(mode="json")]
    files = [_digest(path, root) for path in _files(section, root)]
    code = [_digest(path, CODE) for package in READ for path in sorted((CODE / package).glob("*.py"))]
    return _hash([settings, files, code, [version(name) for name in LIBRARIES]])


def located(model: str, revision: str, root: Path, section: str) -> Path:
    """The folder of a judge's model: in the project, or the hub's at a revision."""
    if revision:
        from pipelines.models.hub import download

        return download(model, revision, section)
    folder = root / model
    if not folder.is_dir():
        raise DataError(f"{model}: no such folder; put the judge's model there or mend {section}.model")
    return folder


def model_name(section: Any) -> str:
    """The last part of what a judge's model is called."""
    if isinstance(section, SavedReward):
        return Path(section.folder).name
    if isinstance(section, Constitution):
        asked = section.endpoint.model if section.endpoint else section.model
        return f"{Path(section.principles).stem}:{Path(asked).name}"
    return Path(section.model).name


def _section(judge: Settings) -> Any:
    return judge.content[judge.kind]


def _files(section: Any, root: Path) -> list[Path]:
    """The files in the project that define a judge; a hub's model is defined by its revision."""
    places = [getattr(section, "principles", ""), getattr(section, "folder", "")]
    if not getattr(section, "revision", ""):
        places.append(getattr(section, "model", ""))
    found = []
    for place in filter(None, places):
        path = root / place
        found += [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    return found


def _place(job: Job, batch: list[Row], device: str) -> Path | None:
    """Where a batch is remembered; None for an endpoint, whose replies are recorded."""
    section = _section(job.judge)
    if isinstance(section, Constitution) and section.endpoint:
        return None
    import torch

    machine = [device, torch.get_num_threads(), torch.backends.cpu.get_cpu_capability()]
    machine += [torch.cuda.get_device_name(device)] if device.startswith("cuda") else []
    key = _hash([job.identity, machine, batch])
    return job.root / BATCHES / key[:2] / f"{key}.json"


def _remembered(place: Path, count: int) -> list[Opinion] | None:
    """The opinions of a batch; None where there are none, or a file that is not whole."""
    try:
        opinions = [Opinion(float(value), float(bias), int(read), int(written))
                    for value, bias, read, written in json.loads(place.read_text(encoding="utf-8"))]  # fmt: skip
    except (OSError, ValueError, TypeError):
        return None
    return opinions if len(opinions) == count else None


def _remember(place: Path, opinions: list[Opinion]) -> None:
    from pipelines.data.tables import whole_file

    with whole_file(place) as partial:
        partial.write_text(json.dumps(opinions), encoding="utf-8")


def _digest(path: Path, root: Path) -> tuple[str, str]:
    with path.open("rb") as file:
        return path.relative_to(root).as_posix(), hashlib.file_digest(file, "sha256").hexdigest()


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
