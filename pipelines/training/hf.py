"""What the trainers of TRL share here: arguments, data order, whole checkpoints, history, no hidden failures.

Hugging Face's Trainer hides three failures, which are closed here: a loss that is not finite is logged as 0 and trained
on; a checkpoint without its optimizer resumes silently; a half-written checkpoint is picked because it is the newest.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import shutil
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import trl.trainer.utils
from safetensors.torch import load_file, save_file
from transformers import PrinterCallback, Trainer, TrainerCallback

from pipelines.config import Offline, Precision, Reward, Sft, Training
from pipelines.context import Worker, seed_for
from pipelines.data import lengths
from pipelines.data.tables import write_json, write_table
from pipelines.errors import ConfigurationError, DataError
from pipelines.journal import Journal
from pipelines.models.attention import attention_for
from pipelines.training.precision import tell_if_slow

TRAINABLE, BEST, MANIFEST = "trainable.safetensors", "best.safetensors", "whole.json"
KEPT = 2
# TRL's arguments set `gradient_checkpointing`, whatever we pass, and transformers says each time that it will be renamed.
warnings.filterwarnings("ignore", category=FutureWarning, message=".*gradient_checkpointing.*")
# Off Triton, TRL's output layer scores every position, prompts and padding too, and then masks them away, so that compilers
# see equal shapes. Nothing is compiled here: labelled positions alone give the same loss, and a step takes a third less.
trl.trainer.utils._use_triton = lambda device: True
UNREPEATABLE = ("runtime", "_per_second", "train_loss", "total_flos", "epoch", "num_tokens")
log = logging.getLogger(__name__)


class Frame(Trainer):
    """Put before a TRL trainer among a class's bases: fixed data order, whole checkpoints, finite losses, no telemetry."""

    order: Sequence[int] = ()
    """Row numbers in the order in which they are trained on, over all epochs: whole global batches."""
    best: dict[str, torch.Tensor] | None = None
    """The trainable weights with the lowest evaluation loss so far, where a callback keeps them."""

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """One micro-batch; a loss that is not finite stops the training before it touches the weights."""
        loss = super().training_step(*args, **kwargs)
        _refuse_non_finite({"loss": float(loss)}, self.state.global_step + 1)
        return loss

    def trainable(self) -> dict[str, torch.Tensor]:
        """The weights that are trained, by name, on the CPU, detached copies."""
        named = self.accelerator.unwrap_model(self.model).named_parameters()
        return {name: weight.detach().cpu().clone() for name, weight in sorted(named) if weight.requires_grad}

    def restore(self, weights: dict[str, torch.Tensor]) -> None:
        """Put back what ``trainable`` gave; every trained weight has to be there."""
        named = {n: w for n, w in self.accelerator.unwrap_model(self.model).named_parameters() if w.requires_grad}
        if set(named) != set(weights):
            raise DataError(f"{self.args.output_dir}: the checkpoint holds other weights than are trained; delete the folder")
        with torch.no_grad():
            for name, weight in named.items():
                weight.copy_(weights[name])

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return self.order

    def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
        """Rows come tokenised (masks are born in pipelines.data.tokens only)."""
        return dataset

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """The trained weights only: what is frozen lies in an earlier stage's output."""
        folder = Path(str(output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        weights = self.trainable()
        bad = [name for name, weight in weights.items() if not bool(weight.isfinite().all())]
        if bad:
            raise ConfigurationError(f"step {self.state.global_step}: {bad[0]} is not finite; lower learning_rate")
        save_file(weights, folder / TRAINABLE)
        if self.best is not None:
            save_file(self.best, folder / BEST)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Hugging Face's checkpoint; when every rank has written its part, the manifest makes it whole; older ones go."""
        folder = Path(str(self.args.output_dir))
        whole = folder / f"checkpoint-{self.state.global_step}"
        if self.args.should_save:
            shutil.rmtree(whole, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            write_json(whole / MANIFEST, {file.name: _digest(file) for file in _files(whole)})
            for old in checkpoints(folder)[KEPT:]:
                shutil.rmtree(old)
        self.accelerator.wait_for_everyone()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        folder = Path(resume_from_checkpoint)
        self.restore(load_file(folder / TRAINABLE))
        self.best = load_file(folder / BEST) if (folder / BEST).exists() else None

    def _send_telemetry(self) -> None:
        """Nothing leaves the machine."""

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """No README.md with dates in a checkpoint."""


class JournalCallback(TrainerCallback):
    """Logs every step to the stage's journal; a number that is not finite stops the training before it is saved."""

    def __init__(self, journal: Journal) -> None:
        self.journal, self.started = journal, time.monotonic()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        """Trainer's logs: training steps have ``loss``, evaluations ``eval_loss``."""
        metrics = repeatable(logs or {})
        if not metrics:
            return
        _refuse_non_finite({k: metrics[k] for k in ("loss", "grad_norm", "eval_loss") if k in metrics}, state.global_step)
        now = time.monotonic()
        self.journal.log(state.global_step, state.max_steps, metrics, {"step_seconds": now - self.started})
        self.started = now


def arguments(training: Training, worker: Worker, folder: Path, steps: int, seed: int) -> dict[str, Any]:
    """TRL's arguments. The global batch is ``batch_size`` whatever the number of workers: accumulation makes up for it."""
    micro = micro_batch(training, worker.world_size)
    on_cpu = torch.device(worker.device).type == "cpu"
    return {
        "output_dir": str(folder),
        "per_device_train_batch_size": micro,
        "per_device_eval_batch_size": micro,
        "gradient_accumulation_steps": training.batch_size // (micro * worker.world_size),
        "num_train_epochs": 1,
        "learning_rate": training.learning_rate,
        "lr_scheduler_type": training.lr_scheduler_type,
        "warmup_steps": round(training.warmup_ratio * steps),
        "weight_decay": training.weight_decay,
        "max_grad_norm": training.max_grad_norm,
        "optim": "adamw_torch",
        "bf16": training.precision == "bf16",
        "use_cpu": on_cpu,
        "ddp_backend": "gloo" if on_cpu and torch.distributed.is_initialized() else None,
        "ddp_find_unused_parameters": False,
        "gradient_checkpointing": False,
        "dataloader_pin_memory": not on_cpu,
        "remove_unused_columns": False,
        "max_length": None,
        "save_strategy": "steps",
        "save_steps": training.save_steps,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "report_to": "none",
        "disable_tqdm": True,
        "log_level": "error",
        "seed": seed % 2**32,
    }


def micro_batch(training: Training, world_size: int) -> int:
    """Rows a worker holds at once; the workers' micro-batches have to fill the global batch."""
    micro = min(training.micro_batch_size, max(training.batch_size // world_size, 1))
    if training.batch_size % (micro * world_size):
        raise ConfigurationError(
            f"batch_size {training.batch_size} cannot be shared out to {world_size} workers in micro-batches of {micro}; "
            "set batch_size to a multiple of micro_batch_size times runtime.workers"
        )
    return micro


def row_order(training: Sft | Reward | Offline, sizes: Sequence[int], seed: int) -> list[int]:
    """Row numbers in the order of training, from the tokens of every row; in batches of like length where asked."""
    order = data_order(len(sizes), training.num_train_epochs, training.batch_size, seed)
    return lengths.bucketed(order, sizes, training.batch_size, seed) if training.group_by_length else order


def data_order(rows: int, epochs: int, batch_size: int, seed: int) -> list[int]:
    """Row numbers for whole global batches over all epochs: a pure function of the seed, epoch by epoch permuted.

    What is left over at the very end (less than a batch) is left out; a table smaller than a batch is gone through until
    one batch is full.
    """
    steps = max(rows * epochs // batch_size, 1)
    stream = _permutations(rows, seed)
    return [next(stream) for _ in range(steps * batch_size)]


def resume_and_train(trainer: Frame, precision: Precision, worker: Worker, longest: int) -> None:
    """Train from the newest whole checkpoint, or from the start. A finished run is loaded and trains no further step."""
    tell_if_slow(precision, worker, len(trainer.order) // int(trainer.get_total_train_batch_size(trainer.args)))
    folder = newest_checkpoint(Path(str(trainer.args.output_dir)))
    trainer.remove_callback(PrinterCallback)
    with attention_for(precision, worker.device, longest):
        trainer.train(resume_from_checkpoint=str(folder) if folder else None)


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint whose files are all there and unchanged; damaged ones are passed over with a warning."""
    for path in checkpoints(folder):
        fault = _fault(path)
        if fault is None:
            return path
        log.warning("checkpoint %s passed over: %s", path.name, fault)
    return None


def checkpoints(folder: Path) -> list[Path]:
    """Checkpoint folders, the newest first."""
    found = [path for path in folder.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdigit()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("checkpoint-")), reverse=True)


def history(logs: list[dict[str, float]]) -> pd.DataFrame:
    """The trainer's log as a table: one row a step, ``step`` first, nothing that differs from run to run."""
    rows: dict[int, dict[str, float]] = {}
    for entry in logs:
        rows.setdefault(int(entry["step"]), {}).update(repeatable(entry))
    frame = pd.DataFrame([{"step": step, **values} for step, values in sorted(rows.items()) if values])
    return frame[["step", *sorted(set(frame.columns) - {"step"})]]


def write_history(trainer: Frame, folder: Path) -> pd.DataFrame:
    """Write history.parquet and give it back."""
    frame = history(trainer.state.log_history)
    write_table(frame, folder / "history.parquet")
    return frame


def repeatable(logs: dict[str, float]) -> dict[str, float]:
    """The logged numbers without clocks and counts of the machine, as floats."""
    kept = {key: value for key, value in logs.items() if key != "step" and not any(part in key for part in UNREPEATABLE)}
    return {key: float(value) for key, value in kept.items()}


def refuse_empty(rows: Sequence[Any], table: str) -> None:
    """Raise DataError for an empty table."""
    if not rows:
        raise DataError(f"{table}: 0 rows to train or evaluate on; raise the counts under prepare, or mend the splits")


def _permutations(rows: int, seed: int) -> Iterator[int]:
    epoch = 0
    while True:
        generator = torch.Generator().manual_seed(seed_for(seed, "order", epoch))
        yield from torch.randperm(rows, generator=generator).tolist()
        epoch += 1


def _refuse_non_finite(values: dict[str, float], step: int) -> None:
    for name, value in values.items():
        if not math.isfinite(value):
            raise ConfigurationError(f"step {step}: {name} is {value}, the training has diverged; lower learning_rate")


def _fault(path: Path) -> str | None:
    """What is wrong with a checkpoint; None if it is whole."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        for name, digest in manifest.items():
            if _digest(path / name) != digest:
                return f"{name} has changed since it was written"
    except (OSError, ValueError) as error:
        return f"not whole ({error.__class__.__name__}: {getattr(error, 'filename', None) or MANIFEST})"
    return None


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.is_file() and file.name != MANIFEST)


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
