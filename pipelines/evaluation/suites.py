"""Sets from outside: local files of pairs or of prompts with references, and tasks of lm-evaluation-harness.

A file's rows are all of one kind: ``{"prompt", "chosen", "rejected"}`` or ``{"prompt", "reference"}``. Of pairs it is asked which
answer the model finds likelier; prompts with a reference are answered greedily.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.config import Generation, Precision, Suite
from pipelines.context import Worker
from pipelines.data import jsonl
from pipelines.data.tokens import decode, encode_prompt
from pipelines.errors import DataError, EnvironmentFault
from pipelines.evaluation.metrics import cluster_mean, exact_match, perplexity, rouge_l
from pipelines.evaluation.reading import Tokens, context_of, tokens_of
from pipelines.models.generation import response_logprobs, sample
from pipelines.models.loading import load_causal_lm, load_tokenizer
from pipelines.models.reward import load_members, score_members

KINDS = {"pairs": ("prompt", "chosen", "rejected"), "references": ("prompt", "reference")}
MAX_BYTES = 2**22
HARNESS = "lm-evaluation-harness"

Row = dict[str, str]


@dataclass(frozen=True)
class Job:
    """A model, the reward model (None: it is not asked), and how they run."""

    model: Path
    sft: Path
    reward: Path | None
    generation: Generation
    precision: Precision


def read_rows(path: Path, shown: str, limit: int) -> list[Row]:
    """The first ``limit`` rows (0 = all) of a suite's file. Raises DataError with file and line for a row of another kind."""
    rows: list[Row] = []
    kind: tuple[str, ...] = ()
    for number, record in jsonl.records(path, shown, MAX_BYTES):
        kind = kind or next((fields for fields in KINDS.values() if set(fields) <= set(record)), ())
        if not kind or not all(isinstance(record.get(name), str) and record[name].strip() for name in kind):
            wanted = ", ".join(kind) or " or ".join(" + ".join(fields) for fields in KINDS.values())
            raise DataError(f"wrong-columns {shown}:{number} has {', '.join(sorted(record))} | texts {wanted} | mend the row")
        rows.append({name: record[name] for name in kind})
        if len(rows) == limit:
            break
    if not rows:
        raise DataError(f"empty {shown}: 0 rows | limit 1 | it needs one row a line")
    return rows


def ask(job: Job, rows: Sequence[Row], worker: Worker) -> list[dict[str, float]]:
    """What the model makes of every row of one kind: the columns that ``figures`` averages."""
    if not rows:
        return []
    found = _pairs(job, rows, worker) if "chosen" in rows[0] else _references(job, rows, worker)
    worker.journal.log(1, 1, note="a suite")
    return found


def figures(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """Means over the rows with standard errors; of prompts with references also the perplexity of the references."""
    found: dict[str, float] = {"rows": len(rows)}
    for name in ("accuracy", "accuracy_per_token", "reward_accuracy", "exact_match", "rouge_l"):
        if name in rows[0]:
            found[name], found[f"{name}_se"] = cluster_mean([row[name] for row in rows], range(len(rows)))
    if "nll" in rows[0]:
        found["perplexity"] = perplexity([row["nll"] for row in rows], [row["tokens"] for row in rows])
    return found


def harness(name: str, suite: Suite, model: Path, folder: Path, batch_size: int) -> dict[str, float]:
    """The metrics of lm-evaluation-harness for ``suite.tasks``, as ``TASK/METRIC``; ``folder`` may describe tasks of its own.

    Raises EnvironmentFault where the package is not installed, DataError for a task that it does not know.
    """
    check_harness(name)
    import lm_eval
    import torch
    from lm_eval.tasks import TaskManager

    tasks = TaskManager(include_path=str(folder))
    unknown = [task for task in suite.tasks if not tasks.match_tasks([task])]
    if unknown:
        raise DataError(f"evaluate.suites.{name}: {HARNESS} has no task {unknown[0]!r}, nor is it described below data/suites/")
    done = lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": str(model), "dtype": "float32", "trust_remote_code": False},
        device="cuda" if torch.cuda.is_available() else "cpu",  # the harness takes a GPU for granted
        tasks=list(suite.tasks),
        batch_size=batch_size,
        limit=suite.limit or None,
        task_manager=tasks,
        log_samples=False,
    )
    found: dict[str, float] = {}
    for task, metrics in sorted(done["results"].items()):
        numbers = {key.partition(",")[0]: value for key, value in metrics.items() if isinstance(value, int | float)}
        found |= {f"{task}/{key}": float(value) for key, value in sorted(numbers.items())}
    return found


def check_harness(name: str) -> None:
    """Raise EnvironmentFault where lm-evaluation-harness is not installed."""
    try:
        import lm_eval  # noqa: F401
    except ModuleNotFoundError as error:
        raise EnvironmentFault(
            f"evaluate.suites.{name}: tasks are those of {HARNESS}, which is not installed: "
            "`.venv/bin/pip install lm-eval==0.4.13`, or give path: a JSONL file below data/suites/"
        ) from error


def _pairs(job: Job, rows: Sequence[Row], worker: Worker) -> list[dict[str, float]]:
    """Whether the chosen answer is likelier, in all and a token, and whether the reward model scores it higher."""
    tokenizer, model = load_tokenizer(job.model), load_causal_lm(job.model, worker.device)
    read = [tokens_of(tokenizer, row["prompt"], row[side], context_of(model)) for row in rows for side in ("chosen", "rejected")]
    sums = [math.fsum(logprobs) for logprobs in _logprobs(job, model, read)]
    means = [total / len(answer) for total, (_, answer) in zip(sums, read, strict=True)]
    found = [{"accuracy": _better(*both)} for both in _two(sums)]
    for row, both in zip(found, _two(means), strict=True):
        row["accuracy_per_token"] = _better(*both)
    if job.reward is not None:
        del model
        members = load_members(job.reward, job.sft, worker.device)
        prompts, answers = [asked for asked, _ in read], [answer for _, answer in read]
        scores = score_members(members, prompts, answers, job.generation.batch_size, job.precision).mean(0).tolist()
        for row, both in zip(found, _two(scores), strict=True):
            row["reward_accuracy"] = _better(*both)
    return found


def _references(job: Job, rows: Sequence[Row], worker: Worker) -> list[dict[str, float]]:
    """How near the greedy answer comes to the reference, and how likely the reference is."""
    tokenizer, model = load_tokenizer(job.model), load_causal_lm(job.model, worker.device)
    room = context_of(model) - job.generation.max_new_tokens
    prompts = [encode_prompt(tokenizer, row["prompt"])[-room:] for row in rows]
    eos, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    said = sample(model, eos, pad, prompts, job.generation, [], job.precision, greedy=True).tokens
    read = [tokens_of(tokenizer, row["prompt"], row["reference"], context_of(model)) for row in rows]
    found = []
    for row, answer, logprobs in zip(rows, said, _logprobs(job, model, read), strict=True):
        text = decode(tokenizer, answer)
        near = {"exact_match": exact_match(text, row["reference"]), "rouge_l": rouge_l(text, row["reference"])}
        found.append(near | {"nll": -math.fsum(logprobs), "tokens": float(len(logprobs))})
    return found


def _logprobs(job: Job, model: Any, read: Sequence[Tokens]) -> list[list[float]]:
    prompts, answers = [asked for asked, _ in read], [answer for _, answer in read]
    logprobs = response_logprobs(model, prompts, answers, 1.0, job.precision, job.generation.batch_size)
    return [row.tolist() for row in logprobs]


def _two(values: Sequence[float]) -> list[tuple[float, float]]:
    return list(zip(values[::2], values[1::2], strict=True))


def _better(chosen: float, rejected: float) -> float:
    return float(chosen > rejected) + 0.5 * (chosen == rejected)
