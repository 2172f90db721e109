"""PPO, A2C, REINFORCE, RLOO and GRPO with a KL penalty: one trainer, the method names its advantages (docs/ppo.md).

Papers: Schulman et al. 2017 (PPO); Ziegler et al. 2019 and Ouyang et al. 2022 (language models); Huang et al. 2024 (details);
Ahmadian et al. 2024 (RLOO); Shao et al. 2024 (GRPO's advantage). A step is a pure function of the state before it, the seed and
its number, so a run that was killed goes on from its newest checkpoint to the same bits.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from pipelines.algorithms.kl import adapted_beta
from pipelines.context import Worker, seed_for
from pipelines.training.distributed import barrier, share
from pipelines.training.engines import LIMIT
from pipelines.training.learner import learning_rate
from pipelines.training.results import write_results
from pipelines.training.rewards import Row
from pipelines.training.rollout import (
    NonFinite,
    Rollout,
    Spike,
    advantages_of,
    disagreement,
    final_scores,
    objectives,
    roll_out,
    score,
)
from pipelines.training.run import Job, Run, begin, keep, note_rollout, recovered, whole_policy
from pipelines.training.spread import judged, spread
from pipelines.training.update import update
from pipelines.training.watch import limit_of, skipped, watched

__all__ = ["Job", "train"]


def train(job: Job, worker: Worker) -> None:
    """Train a policy on ``job.prompts``; rank 0 writes model, adapter, history and metrics below ``job.out``."""
    run = begin(job, worker)
    while run.progress.step < job.params.steps and not run.progress.finished:
        step = run.progress.step + 1
        if step not in run.progress.leave_out:
            try:
                one_step(run, step)
            except NonFinite as fault:
                run = recovered(run, step, fault)
                continue
            except Spike as fault:
                run = skipped(run, step, fault)
                continue
        run.progress.step = step
        run = watched(run, step)
        if run.progress.step == step:
            keep(run)
    policy = whole_policy(run)
    if worker.rank == 0:
        write_results(job, policy, run.tokenizer, run.progress)
    barrier()


def one_step(run: Run, step: int) -> None:
    """Roll out, score, advantages, update, log: one batch of prompts from sampling to a row of the history."""
    job, learner, progress, timings = run.job, run.learner, run.progress, dict[str, float]()
    rate = learning_rate(job.params, step) * progress.rate_scale
    for group in learner.optimizer.param_groups:
        group["lr"] = rate

    # 1. roll out: every worker answers its share of the step's prompts
    prompts, first_row = my_prompts(job, run.worker, step)
    with timed(timings, "seconds/rollout"), learner.gathered():
        rollout = roll_out(learner, prompts, first_row, run.engine, job.seed, step)
    note_rollout(run, step)

    # 2. score
    with timed(timings, "seconds/score"):
        score(rollout, run.rewards)
        scores_B = final_scores(rollout, job.params, progress.normaliser)

    # 3. advantages
    advantages_BT, returns_BT = advantages_of(rollout, scores_B, job.params, progress.beta)
    row = {"step": float(step)} | objectives(rollout, scores_B, progress.beta) | spread(rollout)
    if job.params.engine != "hf":
        row |= compared(run, rollout, step)
    if run.held_out is not None:
        row |= judged(torch.tensor(run.held_out.score(rollout.prompts, rollout.answers, rollout.ended)))

    # 4. update
    answers = job.params.batch_size * job.params.samples_per_prompt
    with timed(timings, "seconds/update"):
        row |= update(learner, rollout, advantages_BT, returns_BT, answers, job.seed, step, limit_of(run))

    # 5. log, and set the price of KL and what it is measured to for the next step
    row |= {"beta": progress.beta, "learning_rate": rate, "skipped": float(len(progress.left_out))}
    row["diagnosis/actions"] = float(len(progress.actions))
    progress.history.append(row)
    if job.params.kl_target:
        kl, target, horizon = row["objective/kl"], job.params.kl_target, job.params.kl_horizon
        progress.beta = adapted_beta(progress.beta, kl, target, answers, horizon)
    if job.params.reference_refresh_steps and step % job.params.reference_refresh_steps == 0:
        learner.refresh_reference()
    timings["tokens_per_second"] = answers * row["tokens/response_length"] / sum(timings.values())
    timings["peak_memory_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0
    run.worker.journal.log(step, job.params.steps, {k: v for k, v in row.items() if k != "step"}, timings)


def compared(run: Run, rollout: Rollout, step: int) -> dict[str, float]:
    """The engine's log-probabilities against the trainer's; above the limit the journal says so, and ``engine/alarm`` is 1."""
    found = disagreement(rollout)
    gap = found["engine/logprob_gap"]
    if gap > LIMIT:
        run.worker.journal.log(
            step,
            run.job.params.steps,
            note=f"step {step}: engine {run.job.params.engine} and trainer disagree by {gap:.3f} nats a token (limit {LIMIT});"
            " the importance weights no longer make up for that: use engine: hf, or the same precision in both",
        )
    return found | {"engine/alarm": float(gap > LIMIT)}


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


@contextmanager
def timed(timings: dict[str, float], name: str) -> Iterator[None]:
    """Add the seconds of the block to ``timings[name]``."""
    start = time.perf_counter()
    yield
    timings[name] = timings.get(name, 0.0) + time.perf_counter() - start
