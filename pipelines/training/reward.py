"""A reward model with TRL's RewardTrainer, stopped early by held-out pairs.

Papers: Bradley and Terry 1952; Stiennon et al. 2020, section 3.4: loss = -log sigmoid(r(x, y_chosen) - r(x, y_rejected)); the
losses over a prompt's ranked answers are in ``algorithms.ranking``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import TrainerCallback
from trl import RewardConfig, RewardTrainer

from pipelines import config
from pipelines.algorithms.ranking import comparisons_loss, plackett_luce_loss
from pipelines.context import Worker
from pipelines.data import lengths
from pipelines.data.tables import write_json
from pipelines.errors import DataError
from pipelines.models.adapters import add_adapter
from pipelines.models.loading import load_tokenizer
from pipelines.models.reward import RewardModel, collate, new_reward, save_reward, score
from pipelines.models.soft_prompt import room
from pipelines.training import hf
from pipelines.training.calibration import calibration
from pipelines.training.listings import GRADES, WHOSE, collate_graded, collate_listings, graded, listings, standardised
from pipelines.training.pairs import Row, longest, read_rows, token_counts

Batch = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Job:
    """Paths and settings: the SFT model's folder, the pairs, where results and checkpoints go."""

    sft: Path
    pairs: Path
    out: Path
    scratch: Path
    training: config.Reward
    seed: int


class Reward(hf.Frame, RewardTrainer):
    """TRL's trainer in our frame."""


class Scored(Reward):
    """The same with a loss of ours over the scores of a batch's answers: TRL's knows pairs only."""

    objective: Callable[[torch.Tensor, Batch], torch.Tensor]

    def compute_loss(self, model: Any, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        """One forward pass of every answer, then the loss; the accuracy over the batch's comparisons is logged."""
        outputs = model(**{name: inputs[name] for name in ("input_ids", "attention_mask", "answer_mask")})
        scores_A = outputs.logits.squeeze(-1)
        loss = self.objective(scores_A, inputs)
        if "winners" in inputs:
            right = (scores_A[inputs["winners"]] > scores_A[inputs["losers"]]).float().mean()
            figures = self._metrics["train" if model.training else "eval"]
            figures["accuracy"].append(self.accelerator.gather_for_metrics(right).mean().item())
        return (loss, outputs) if return_outputs else loss


class KeepBest(TrainerCallback):
    """Keeps the weights with the lowest held-out loss and stops when it has not fallen for ``patience`` evaluations.

    Everything is read from the trainer's log, so a resumed training decides as an uninterrupted one.
    """

    def __init__(self, patience: int) -> None:
        self.patience = patience
        self.trainer: hf.Frame | None = None

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The last step is evaluated too."""
        if state.global_step >= state.max_steps:
            control.should_evaluate = True

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Compare with the evaluations so far."""
        losses = evaluations(state.log_history)
        best = losses.index(min(losses))
        if best == len(losses) - 1 and self.trainer is not None:
            self.trainer.best = self.trainer.trainable()
        if len(losses) - 1 - best >= self.patience:
            control.should_training_stop = True


def train(job: Job, worker: Worker) -> None:
    """Beats: pairs, model, trainer, training with early stopping, centre and held-out figures (rank 0 writes them)."""
    # 1. pairs, tokenised once
    tokenizer = load_tokenizer(job.sft)
    rows = read_rows(job.pairs, tokenizer, beside=_beside(job.training))

    # 2. the model: the SFT model's trunk, fresh adapters where asked, a head of zeros
    torch.manual_seed(job.seed)
    model = new_reward(job.sft, job.training.pooling, job.training.layers, worker.device)
    model.trunk = add_adapter(model.trunk, job.training)
    context, counts = room(model.trunk), {}
    for split, some in rows.items():
        where = f"{job.pairs.name} ({split})"
        rows[split], counts[split] = lengths.fit_pairs(some, context, job.training.excess_length, where)
        hf.refuse_empty(rows[split], where)

    # 3. the trainer
    examples = _examples(job, rows)
    trainer = _trainer(job, worker, model, tokenizer, examples)

    # 4. training; the weights of the lowest held-out loss are the result
    hf.resume_and_train(trainer, job.training.precision, worker, longest(rows["train"]))
    if trainer.best is not None:
        trainer.restore(trainer.best)

    # 5. results
    if worker.rank == 0:
        taken = {} if job.training.loss == "bradley_terry" else {"train_examples": float(len(examples["train"]))}
        _write(job, trainer, rows, counts["train"] | token_counts(rows["train"]) | taken)


def evaluations(logs: list[dict[str, float]]) -> list[float]:
    """The held-out losses logged so far, in order."""
    return [entry["eval_loss"] for entry in logs if "eval_loss" in entry]


def collate_pairs(rows: list[Row]) -> Batch:
    """Rows of pairs as [2B, T]: the chosen answers first, then the rejected ones, as TRL's loss takes them apart.

    ``margin`` [B] where the rows have one: what TRL's loss asks of the difference.
    """
    sides = [(row["prompt_ids"], row[side]) for side in ("chosen_ids", "rejected_ids") for row in rows]
    margins = {"margin": torch.tensor([row["margin"] for row in rows])} if "margin" in rows[0] else {}
    return collate(sides) | margins


def listed(loss: Callable[..., torch.Tensor]) -> Callable[[torch.Tensor, Batch], torch.Tensor]:
    """A loss of ``algorithms.ranking`` on the scores [A] of a batch of listings."""

    def objective(scores_A: torch.Tensor, batch: Batch) -> torch.Tensor:
        counts_P = batch["comparisons"]
        prompts_C = torch.arange(len(counts_P), device=counts_P.device).repeat_interleave(counts_P)
        return loss(scores_A, batch["winners"], batch["losers"], prompts_C)

    return objective


def squared_error(scores_A: torch.Tensor, batch: Batch) -> torch.Tensor:
    """The mean of (r - grade)^2 over the answers."""
    return torch.nn.functional.mse_loss(scores_A, batch["grades"])


OBJECTIVES: dict[str, Callable[[torch.Tensor, Batch], torch.Tensor]] = {
    "all_pairs": listed(comparisons_loss),
    "plackett_luce": listed(plackett_luce_loss),
    "regression": squared_error,
}


def held_out_figures(rows: list[Row], chosen: list[float], rejected: list[float]) -> dict[str, float]:
    """What the scores are worth on held-out pairs: accuracy (a tie counts half), log loss in nats, calibration, a plain baseline.

    ``longer_wins`` is the accuracy of preferring the answer with more tokens. Without pairs there are no figures.
    """
    if not rows:
        return {}
    margins = [a - b for a, b in zip(chosen, rejected, strict=True)]
    lengths = [float(len(row["chosen_ids"]) - len(row["rejected_ids"])) for row in rows]
    return {
        "pair_accuracy": _share_above_zero(margins),
        "log_loss": math.fsum(math.log1p(math.exp(-abs(m))) + max(-m, 0.0) for m in margins) / len(margins),
        "longer_wins": _share_above_zero(lengths),
    } | calibration(margins)


def disagreement(chosen: list[list[float]], rejected: list[list[float]]) -> dict[str, float]:
    """How far the members of an ensemble agree, from their scores [pairs][members] of held-out pairs.

    ``ensemble_accuracy``: pairs that the mean score orders as labelled (a tie counts half); ``members_split``: the share of pairs
    on whose order not all members agree.
    """
    margins = [[a - b for a, b in zip(*both, strict=True)] for both in zip(chosen, rejected, strict=True)]
    split = [len({(value > 0) - (value < 0) for value in own}) > 1 for own in margins]
    means = [math.fsum(own) / len(own) for own in margins]
    return {"ensemble_accuracy": _share_above_zero(means), "members_split": sum(split) / len(split)}


def _share_above_zero(values: list[float]) -> float:
    return sum((value > 0) + 0.5 * (value == 0) for value in values) / len(values)


def _beside(training: config.Reward) -> tuple[str, ...]:
    """What a loss needs of a pair beside its tokens."""
    if training.loss == "bradley_terry":
        return ("margin",) if training.margin else ()
    return GRADES if training.loss == "regression" else WHOSE


def _examples(job: Job, rows: dict[str, list[Row]]) -> dict[str, list[Row]]:
    """What a batch is made of: pairs, all comparisons of a prompt, or graded answers."""
    training, splits = job.training, ("train", "validation")
    if training.loss == "regression":
        return standardised({split: graded(rows[split], f"{job.pairs.name} ({split})") for split in splits})
    if training.loss != "bradley_terry":
        return {split: listings(rows[split]) for split in splits}
    if not training.margin:
        return {split: rows[split] for split in splits}
    if all(math.isnan(row["margin"]) for row in rows["train"]):
        raise DataError(f"{job.pairs.name}: no pair has a margin, which reward.margin {training.margin} asks for; set it to 0")
    known = {split: [0.0 if math.isnan(row["margin"]) else row["margin"] for row in rows[split]] for split in splits}
    return {
        split: [row | {"margin": training.margin * margin} for row, margin in zip(rows[split], known[split], strict=True)]
        for split in splits
    }


def _size(row: Row) -> int:
    """Tokens of an example's prompt with its longest answer."""
    answers = row.get("answers") or [row[name] for name in ("chosen_ids", "rejected_ids", "answer_ids") if name in row]
    return len(row["prompt_ids"]) + max(map(len, answers))


def _trainer(job: Job, worker: Worker, model: Any, tokenizer: Any, rows: dict[str, list[Row]]) -> Reward:
    training = job.training
    order = hf.row_order(training, [_size(row) for row in rows["train"]], job.seed)
    steps = len(order) // training.batch_size
    arguments = hf.arguments(training, worker, job.scratch / "checkpoints", steps, job.seed)
    centring = training.center_rewards_coefficient or None
    keep_best = KeepBest(training.early_stopping_patience)
    paired = training.loss == "bradley_terry"
    trainer = (Reward if paired else Scored)(
        model=model,
        args=RewardConfig(
            **arguments, eval_strategy="steps", eval_steps=training.eval_steps, center_rewards_coefficient=centring
        ),
        data_collator=collate_pairs if paired else collate_graded if training.loss == "regression" else collate_listings,
        train_dataset=Dataset.from_list(rows["train"]),
        eval_dataset=Dataset.from_list(rows["validation"]),
        processing_class=tokenizer,
        callbacks=[hf.JournalCallback(worker.journal), keep_best],
    )
    if isinstance(trainer, Scored):
        trainer.objective = OBJECTIVES[training.loss]
    trainer.order = order
    keep_best.trainer = trainer
    return trainer


def _write(job: Job, trainer: Reward, rows: dict[str, list[Row]], fitted: dict[str, float]) -> None:
    """Centre the scores on held-out answers, judge the model on the pairs of the test split, save."""
    model = trainer.accelerator.unwrap_model(trainer.model).eval()
    scores = {split: _scores(model, rows[split], job) for split in ("validation", "test")}
    every = [value for sides in scores.values() for side in sides for value in side]
    centre = math.fsum(every) / len(every)
    model.centre.fill_(centre)
    save_reward(model, job.out, "../../sft/model")
    hf.write_history(trainer, job.out)
    losses = evaluations(trainer.state.log_history)
    figures = held_out_figures(rows["test"], *scores["test"])
    counts = {f"{split}_pairs": len(some) for split, some in rows.items()}
    stop = {"steps": trainer.state.global_step, "eval_loss": min(losses)}
    write_json(job.out / "metrics.json", figures | counts | fitted | stop | {"centre": centre})


def _scores(model: RewardModel, rows: list[Row], job: Job) -> tuple[list[float], list[float]]:
    """The uncentred scores of the chosen and of the rejected answers."""
    prompts = [row["prompt_ids"] for row in rows]
    size, precision = job.training.batch_size, job.training.precision
    chosen = score(model, prompts, [row["chosen_ids"] for row in rows], size, precision)
    return chosen, score(model, prompts, [row["rejected_ids"] for row in rows], size, precision)
