"""Small jobs for the trainers: tables, workers, what a finished run left."""

from __future__ import annotations

import hashlib
import json
from itertools import combinations
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors.torch import load_file

from pipelines.context import Worker
from pipelines.data.schemas import DEMONSTRATIONS, PAIRS
from pipelines.data.tables import write_table
from pipelines.journal import Journal, read_from
from tests import small

SMALL: dict[str, Any] = {
    "adapter": "lora",
    "precision": "float32",
    "learning_rate": 1e-2,
    "batch_size": 8,
    "micro_batch_size": 4,
    "save_steps": 3,
    "num_train_epochs": 2,
}
"""Settings of a training that takes seconds: 8 steps of 32 rows."""


def sft_folder(folder: Path) -> Path:
    """The one SFT model of a test, made where it is not there yet."""
    made = folder / "sft"
    return made if made.exists() else small.model_folder(made)


def pairs_file(folder: Path) -> Path:
    """The test's own table of pairs, or ``pairs`` where it has written none."""
    table = folder / "pairs.parquet"
    return table if table.exists() else pairs(folder)


def worker(journal: Path | None = None) -> Worker:
    """The one worker of local mode."""
    return Worker(0, 1, "cpu", Journal(journal))


def demonstrations(folder: Path, train: int = 24, validation: int = 8) -> Path:
    """A table of demonstrations: every speaker says the same thing, in words of unequal length."""
    rows = [
        {
            "id": f"d{number}",
            "prompt": f"HAMLET: {'to be ' * (number % 3)}or {number}",
            "completion": f" not to be{', and so' * (number % 2)}.",
            "template": "plain",
            "source": "test",
            "group": "hamlet",
            "split": "train" if number < train else "validation",
        }
        for number in range(train + validation)
    ]
    write_table(pd.DataFrame(rows), folder / "demonstrations.parquet", DEMONSTRATIONS)
    return folder / "demonstrations.parquet"


def pairs(folder: Path, counts: tuple[int, int, int] = (32, 8, 8)) -> Path:
    """A table of pairs that one word decides: night loses to day; one answer in three was cut."""
    splits = [split for split, count in zip(("train", "validation", "test"), counts, strict=True) for _ in range(count)]
    rows = [
        {
            "id": f"p{number}",
            "prompt_id": f"q{number}",
            "prompt": f"JULIET: hour {number}",
            "chosen": f" sweet day{' and day' * (number % 2)}",
            "rejected": f" sour night{' and night' * (number % 3)}",
            "judge": "test",
            "group": "romeo",
            "margin": float("nan"),
            "source": "judge",
            "split": split,
            "chosen_ended": True,
            "rejected_ended": number % 3 != 2,
        }
        for number, split in enumerate(splits)
    ]
    write_table(pd.DataFrame(rows), folder / "pairs.parquet", PAIRS)
    return folder / "pairs.parquet"


RANKED = (" sweet day", " plain noon", " sour night")
"""Three answers to any prompt, the best one first."""


def ranked(folder: Path, counts: tuple[int, int, int] = (16, 4, 4), group: str = "romeo", turned: bool = False) -> Path:
    """All comparisons of three answers a prompt, with grades 2, 1, 0; ``turned``: the last answer is the best one."""
    splits = [split for split, count in zip(("train", "validation", "test"), counts, strict=True) for _ in range(count)]
    order = RANKED[::-1] if turned else RANKED
    rows = [
        {
            "id": f"{group}{number}-{one}-{two}",
            "prompt_id": f"q{number}",
            "prompt": f"JULIET: hour {number}",
            "chosen": order[one],
            "rejected": order[two],
            "judge": "people",
            "group": group,
            "margin": float(two - one),
            "source": "test",
            "split": split,
            "chosen_ended": True,
            "rejected_ended": True,
            "chosen_grade": 2.0 - one,
            "rejected_grade": 2.0 - two,
        }
        for number, split in enumerate(splits)
        for one, two in combinations(range(3), 2)
    ]
    write_table(pd.DataFrame(rows), folder / "pairs.parquet", PAIRS)
    return folder / "pairs.parquet"


def contradicting(folder: Path) -> Path:
    """The same comparisons by two groups of two people each, romeo (e0, e2) and juliet (e1, e3), who want the opposite."""
    tables = []
    for turned, group in enumerate(("romeo", "juliet")):
        table = pd.read_parquet(ranked(folder, group=group, turned=bool(turned)))
        people = [f"e{turned + 2 * (number % 2)}" for number in range(len(table))]
        tables.append(table.assign(annotator=people))
    both = pd.concat(tables, ignore_index=True)
    write_table(both[[name for name in PAIRS.columns if name in both]], folder / "pairs.parquet", PAIRS)
    return folder / "pairs.parquet"


def digests(folder: Path) -> dict[str, str]:
    """The sha256 of every file below a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def steps(journal: Path) -> list[int]:
    """The training steps in a journal, in order."""
    return [line["step"] for line in read_from(journal, 0)[0] if "loss" in line["metrics"]]


def figures(out: Path) -> dict[str, float]:
    """What a training function reported."""
    return json.loads((out / "metrics.json").read_text(encoding="utf-8"))


def tensors(out: Path) -> dict[str, torch.Tensor]:
    """Every tensor that a run wrote, by file and name."""
    files = sorted(out.rglob("*.safetensors"))
    return {f"{file.relative_to(out)}:{name}": value for file in files for name, value in load_file(file).items()}
