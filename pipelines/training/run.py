"""One on-policy run: what it is given, what changes from step to step, how it starts, is kept, and recovers."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.distributed.device_mesh import init_device_mesh

from pipelines.config import Ppo
from pipelines.context import Worker, seed_for
from pipelines.errors import ConfigurationError, PrefloopError
from pipelines.models.adapters import add_adapter
from pipelines.models.generation import check_prompts
from pipelines.models.loading import load_causal_lm, load_tokenizer
from pipelines.models.reward import RewardModel
from pipelines.models.soft_prompt import prompt_of
from pipelines.training import checkpoints
from pipelines.training.distributed import barrier
from pipelines.training.engines import Engine, open_engine
from pipelines.training.learner import Learner, make_learner, whole
from pipelines.training.precision import tell_if_slow
from pipelines.training.results import snapshot
from pipelines.training.rewards import LearnedReward, OpenTerm, Row, Term, open_terms
from pipelines.training.rollout import NonFinite, Normaliser

INCIDENT_WINDOW = 100
"""Steps within which a second non-finite batch rolls back, and a third one stops the run."""


@dataclass(frozen=True)
class Job:
    """Paths, settings and tokenised prompts; ``plot`` is the CSV of the history for DVC's plots."""

    sft: Path
    prompts: list[Row]
    rewards: tuple[Term, ...]
    params: Ppo
    seed: int
    out: Path
    scratch: Path
    plot: Path | None = None
    held_out: Term | None = None
    """A judge that only watches."""


@dataclass
class Progress:
    """What changes from step to step beside the weights; a checkpoint holds all of it."""

    step: int = 0
    beta: float = 0.0
    normaliser: Normaliser = field(default_factory=Normaliser)
    history: list[dict[str, float]] = field(default_factory=list)
    left_out: list[int] = field(default_factory=list)
    """Steps whose batch met a number that is not finite, in the order in which it happened."""
    rate_scale: float = 1.0
    """What the learning rate is multiplied by: less than 1 after an action of the detectors."""
    actions: list[dict[str, Any]] = field(default_factory=list)
    """What the detectors have done: at which ``step``, which ``detector``, which ``action``, the step it went on ``after``."""
    finished: bool = False
    """A detector has ended the run before its last step."""

    def record(self, step: int, detector: str, action: str) -> None:
        """Add an action, taken at ``step``; the run goes on after the step that it is at now."""
        self.actions = [*self.actions, {"step": step, "detector": detector, "action": action, "after": self.step}]

    @property
    def leave_out(self) -> set[int]:
        """Steps whose batch is not trained on."""
        return {*self.left_out, *(one["step"] for one in self.actions if one["action"] == "skip")}


@dataclass
class Run:
    """One worker's part of a training run."""

    job: Job
    worker: Worker
    tokenizer: Any
    engine: Engine
    learner: Learner
    rewards: list[OpenTerm]
    progress: Progress
    held_out: OpenTerm | None = None


def begin(job: Job, worker: Worker, engine: Engine | None = None, before: float = math.inf) -> Run:
    """Load the models and the reward, and go on from the newest checkpoint (of a step below ``before``) if there is one.

    An open ``engine`` is kept.
    """
    if job.params.batch_size < worker.world_size:
        raise ConfigurationError(
            f"batch_size {job.params.batch_size} leaves some of the {worker.world_size} workers idle; raise it"
        )
    if torch.device(worker.device).type == "cuda":
        torch.cuda.set_device(worker.device)
    tell_if_slow(job.params.precision, worker, job.params.steps)
    tokenizer = load_tokenizer(job.sft)
    longest = max(len(prompt) for prompt in job.prompts)
    engine = engine or open_engine(job.params, job.sft, tokenizer, longest, worker.device)
    # what is to be split over the workers is loaded beside the GPU, and moved there layer by layer
    mesh = init_device_mesh(torch.device(worker.device).type, (worker.world_size,)) if worker.shard else None
    place = worker.device if mesh is None else "cpu"
    critic = _critic(job, place)
    seed = seed_for(job.seed, "adapter") % 2**31
    model = load_causal_lm(job.sft, place)
    if mesh is not None and (job.params.adapter == "prompt" or prompt_of(model) is not None):
        raise ConfigurationError("runtime.shard: a soft prompt is not split over workers; leave shard out, or take adapter lora")
    check_prompts(model, job.prompts, job.params.generation)  # all of them now, not each in its step
    learner = make_learner(model, job.params, seed, critic, mesh)
    rewards = open_terms(job.rewards, tokenizer, worker.device)
    watching = open_terms([job.held_out] if job.held_out else [], tokenizer, worker.device)
    for term in [*rewards, *watching]:  # a reward that raises or returns something else does so before training
        term.score(job.prompts[:1], [[tokenizer.eos_token_id]], [True])
    progress = Progress(beta=job.params.beta)
    found = checkpoints.newest(folder(job), lambda note: worker.journal.log(0, job.params.steps, note=note), before)
    if found is not None:
        step, states = found
        learner.restore(**states["learner"])
        kept = states["progress"]
        progress = Progress(**(kept | {"step": step, "normaliser": Normaliser(**kept["normaliser"])}))
        torch.set_rng_state(states["random"])
    return Run(job, worker, tokenizer, engine, learner, rewards, progress, watching[0] if watching else None)


def _critic(job: Job, device: str) -> RewardModel | None:
    """The reward model that the critic begins as, where it is to be a model of its own."""
    if job.params.critic == "shared":
        return None
    learned = [term.source for term in job.rewards if isinstance(term.source, LearnedReward)]
    if not learned:
        raise ConfigurationError("critic: reward needs a reward model among the rewards; use critic: shared")
    return learned[0].model(device)


def keep(run: Run) -> None:
    """Save a checkpoint every ``save_steps`` steps and at the end, a snapshot every ``snapshot_every`` steps (rank 0)."""
    job, step = run.job, run.progress.step
    if job.params.snapshot_every and step % job.params.snapshot_every == 0:
        policy = whole_policy(run)
        if run.worker.rank == 0:
            snapshot(job.scratch, step, policy)
    if step % job.params.save_steps == 0 or step == job.params.steps:
        save(run)
        barrier()


def save(run: Run) -> None:
    """Save a checkpoint of the run as it is (rank 0; all workers have to call)."""
    first = run.worker.rank == 0
    learner = run.learner.state() if first or run.learner.sharded else {}
    if first:
        progress = {name: value for name, value in vars(run.progress).items() if name != "step"}
        progress["normaliser"] = vars(run.progress.normaliser)
        states = {"learner": learner, "progress": progress, "random": torch.get_rng_state()}
        checkpoints.save(folder(run.job), run.progress.step, states)


def whole_policy(run: Run) -> Any:
    """The policy; where it is split over the workers, a plain one with its weights (all workers have to call)."""
    if not run.learner.sharded:
        return run.learner.policy
    trained = whole(run.learner.named())
    policy = add_adapter(load_causal_lm(run.job.sft), run.job.params)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(trained[name])
    return policy


def note_rollout(run: Run, step: int) -> None:
    """Append to ``rollouts.jsonl`` (beside the timings) what the step's answers were sampled with; rank 0 alone."""
    job = run.job
    if run.worker.rank == 0:
        version = step - 1  # optimiser updates of the policy that sampled, in steps
        sampling = {
            "policy_version": version,
            "seed": job.seed,
            "engine": job.params.engine,
            **job.params.generation.model_dump(),
        }
        job.scratch.mkdir(parents=True, exist_ok=True)
        with (job.scratch / "rollouts.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **sampling}) + "\n")


def recovered(run: Run, step: int, fault: NonFinite) -> Run:
    """The batch of ``step`` is left out; a second one within 100 steps rolls back to the last checkpoint, a third stops."""
    before = run.progress
    left_out = [*before.left_out, step]
    recent = [other for other in left_out if step - other < INCIDENT_WINDOW]
    where = f"step {step}: {fault} is not finite"
    if len(recent) >= 3:
        steps = ", ".join(map(str, recent))
        raise PrefloopError(
            f"training stopped at {where}, the third batch within {INCIDENT_WINDOW} steps (steps {steps}); lower"
            " learning_rate or use precision float32, and check the reward on these prompts"
        )
    if len(recent) == 2:
        run = begin(run.job, run.worker, run.engine)
        if run.job.params.diagnosis.act:  # what the detectors have done stays done
            run.progress.rate_scale, run.progress.beta = before.rate_scale, before.beta
        where += f"; rolled back to step {run.progress.step}"
    run.progress.left_out = left_out
    run.progress.actions = before.actions
    run.progress.record(step, "D1", "roll_back" if len(recent) == 2 else "skip")
    run.worker.journal.log(step, run.job.params.steps, note=f"{where}; its batch is left out")
    return run


def folder(job: Job) -> Path:
    """Where the checkpoints are."""
    return job.scratch / "checkpoints"
