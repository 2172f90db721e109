"""PPO, A2C, RLOO and REINFORCE with a KL penalty: one trainer, the advantage estimator is a parameter (PPO.md).

Papers: Schulman et al. 2017 (PPO); Ziegler et al. 2019 and Ouyang et al. 2022 (language models); Huang et al. 2024 (details);
Ahmadian et al. 2024 (RLOO). A step is a pure function of the state before it, the seed and its number, so a run that was
killed goes on from its newest checkpoint to the same bits.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from pipelines.algorithms.kl import adapted_beta
from pipelines.config import Ppo
from pipelines.context import Worker, seed_for
from pipelines.errors import PrefloopError
from pipelines.models.loading import load_causal_lm, load_tokenizer
from pipelines.training import checkpoints
from pipelines.training.distributed import barrier, share
from pipelines.training.learner import Learner, learning_rate, make_learner
from pipelines.training.results import snapshot, write_results
from pipelines.training.rewards import RewardFunction, RewardSource, Row, checked
from pipelines.training.rollout import NonFinite, Normaliser, advantages_of, final_scores, objectives, roll_out, score
from pipelines.training.update import update

INCIDENT_WINDOW = 100
"""Steps within which a second non-finite batch rolls back, and a third one stops the run."""


@dataclass(frozen=True)
class Job:
    """Paths, settings and tokenised prompts; ``plot`` is the CSV of the history for DVC's plots."""

    sft: Path
    prompts: list[Row]
    reward: RewardSource
    params: Ppo
    seed: int
    out: Path
    scratch: Path
    plot: Path | None = None


@dataclass
class Progress:
    """What changes from step to step beside the weights; a checkpoint holds all of it."""

    step: int = 0
    beta: float = 0.0
    normaliser: Normaliser = field(default_factory=Normaliser)
    history: list[dict[str, float]] = field(default_factory=list)
    left_out: list[int] = field(default_factory=list)
    """Steps whose batch met a number that is not finite, in the order in which it happened."""


@dataclass
class Run:
    """One worker's part of a training run."""

    job: Job
    worker: Worker
    tokenizer: Any
    learner: Learner
    reward: RewardFunction
    progress: Progress


def train(job: Job, worker: Worker) -> None:
    """Train a policy on ``job.prompts``; rank 0 writes model, adapter, history and metrics below ``job.out``."""
    run = begin(job, worker)
    while run.progress.step < job.params.steps:
        step = run.progress.step + 1
        if step not in run.progress.left_out:
            try:
                one_step(run, step)
            except NonFinite as fault:
                run = recovered(run, step, fault)
                continue
        run.progress.step = step
        keep(run)
    if worker.rank == 0:
        write_results(job.out, job.plot, run.learner, run.tokenizer, run.progress.history, run.progress.left_out, job.scratch)
    barrier()


def one_step(run: Run, step: int) -> None:
    """Roll out, score, advantages, update, log: one batch of prompts from sampling to a row of the history."""
    job, learner, progress, timings = run.job, run.learner, run.progress, dict[str, float]()
    rate = learning_rate(job.params, step)
    for group in learner.optimizer.param_groups:
        group["lr"] = rate

    # 1. roll out: every worker answers its share of the step's prompts
    prompts, first_row = my_prompts(job, run.worker, step)
    with timed(timings, "seconds/rollout"):
        ids = (run.tokenizer.eos_token_id, run.tokenizer.pad_token_id)
        rollout = roll_out(learner, prompts, first_row, ids, job.seed, step)

    # 2. score
    with timed(timings, "seconds/score"):
        score(rollout, run.reward)
        scores_B = final_scores(rollout, job.params, progress.normaliser)

    # 3. advantages
    advantages_BT, returns_BT = advantages_of(rollout, scores_B, job.params, progress.beta)
    row = {"step": float(step)} | objectives(rollout, scores_B, progress.beta)

    # 4. update
    answers = job.params.batch_size * job.params.samples_per_prompt
    with timed(timings, "seconds/update"):
        row |= update(learner, rollout, advantages_BT, returns_BT, answers, job.seed, step)

    # 5. log, and set the price of KL for the next step
    row |= {"beta": progress.beta, "learning_rate": rate, "skipped": float(len(progress.left_out))}
    progress.history.append(row)
    if job.params.kl_target:
        kl, target, horizon = row["objective/kl"], job.params.kl_target, job.params.kl_horizon
        progress.beta = adapted_beta(progress.beta, kl, target, answers, horizon)
    timings["tokens_per_second"] = answers * row["tokens/response_length"] / sum(timings.values())
    timings["peak_memory_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0
    run.worker.journal.log(step, job.params.steps, {k: v for k, v in row.items() if k != "step"}, timings)


def begin(job: Job, worker: Worker) -> Run:
    """Load the models and the reward, and go on from the newest checkpoint if there is one."""
    tokenizer = load_tokenizer(job.sft)
    learner = make_learner(load_causal_lm(job.sft, worker.device), job.params, seed_for(job.seed, "adapter") % 2**31)
    reward = checked(job.reward.open(tokenizer, worker.device))
    reward(job.prompts[:1], [[tokenizer.eos_token_id]], [True])
    progress = Progress(beta=job.params.beta)
    found = checkpoints.newest(folder(job), warn=lambda note: worker.journal.log(0, job.params.steps, note=note))
    if found is not None:
        step, states = found
        learner.restore(states["learner"]["weights"], states["learner"]["optimizer"])
        kept = states["progress"]
        progress = Progress(step, kept["beta"], Normaliser(**kept["normaliser"]), kept["history"], kept["left_out"])
        torch.set_rng_state(states["random"])
    return Run(job, worker, tokenizer, learner, reward, progress)


def keep(run: Run) -> None:
    """Save a checkpoint every ``save_steps`` steps and at the end, a snapshot every ``snapshot_every`` steps (rank 0)."""
    job, step = run.job, run.progress.step
    due = step % job.params.save_steps == 0 or step == job.params.steps
    if run.worker.rank == 0:
        if job.params.snapshot_every and step % job.params.snapshot_every == 0:
            snapshot(job.scratch, step, run.learner)
        if due:
            progress = {name: value for name, value in vars(run.progress).items() if name != "step"}
            progress["normaliser"] = vars(run.progress.normaliser)
            states = {"learner": run.learner.state(), "progress": progress, "random": torch.get_rng_state()}
            checkpoints.save(folder(job), step, states)
    if due:
        barrier()


def recovered(run: Run, step: int, fault: NonFinite) -> Run:
    """The batch of ``step`` is left out; a second one within 100 steps rolls back to the last checkpoint, a third stops."""
    left_out = [*run.progress.left_out, step]
    recent = [other for other in left_out if step - other < INCIDENT_WINDOW]
    where = f"step {step}: {fault} is not finite"
    if len(recent) >= 3:
        steps = ", ".join(map(str, recent))
        raise PrefloopError(
            f"training stopped at {where}, the third batch within {INCIDENT_WINDOW} steps (steps {steps}); lower"
            " learning_rate or use precision float32, and check the reward on these prompts"
        )
    if len(recent) == 2:
        run = begin(run.job, run.worker)
        where += f"; rolled back to step {run.progress.step}"
    run.progress.left_out = left_out
    run.worker.journal.log(step, run.job.params.steps, note=f"{where}; its batch is left out")
    return run


def my_prompts(job: Job, worker: Worker, step: int) -> tuple[list[Row], int]:
    """This worker's prompts of a step, each ``samples_per_prompt`` times, and the number of its first answer.

    All steps walk through permutations of the prompts, one after the other, each a function of the seed and its number.
    """
    size, samples = job.params.batch_size, job.params.samples_per_prompt
    mine = share(size, worker.rank, worker.world_size)
    first, count = (step - 1) * size, len(job.prompts)
    epochs = range(first // count, (first + size - 1) // count + 1)
    generators = [torch.Generator().manual_seed(seed_for(job.seed, "prompts", epoch)) for epoch in epochs]
    order = [row for generator in generators for row in torch.randperm(count, generator=generator).tolist()]
    start = first - epochs.start * count
    rows = [job.prompts[row] for row in order[start + mine.start : start + mine.stop]]
    return [row for row in rows for _ in range(samples)], mine.start * samples


def folder(job: Job) -> Path:
    """Where the checkpoints are."""
    return job.scratch / "checkpoints"


@contextmanager
def timed(timings: dict[str, float], name: str) -> Iterator[None]:
    """Add the seconds of the block to ``timings[name]``."""
    start = time.perf_counter()
    yield
    timings[name] = timings.get(name, 0.0) + time.perf_counter() - start
