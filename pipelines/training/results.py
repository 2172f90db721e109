"""What an on-policy run leaves behind: a plain merged model, the adapter, the history, the last figures, snapshots."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from pipelines.data.tables import whole_file, write_json, write_table
from pipelines.models import soft_prompt
from pipelines.models.adapters import is_adapted, load_adapter, merge, save_adapter
from pipelines.models.loading import load_causal_lm, save_model

if TYPE_CHECKING:
    from pipelines.training.run import Job, Progress

SFT = "../../../sft/model"
"""From a policy's adapter to the model it sits on, inside ``artifacts/``."""
LAST = 5
"""Steps over which the figures of metrics.json are averaged."""


def write_results(job: Job, policy: Any, tokenizer: Any, progress: Progress) -> None:
    """Write everything below ``job.out``. An adapter is merged into the weights as they are on disk, in float32."""
    frame = pd.DataFrame(progress.history).astype({"step": int})
    write_table(frame, job.out / "history.parquet")
    if job.plot is not None:
        with whole_file(job.plot) as partial:
            frame.to_csv(partial, index=False, lineterminator="\n")
    recent = frame.drop(columns="step").tail(LAST).mean().to_dict()
    counts = {"steps": len(frame), "skipped": len(progress.left_out), "actions": len(progress.actions)}
    write_json(job.out / "metrics.json", recent | counts)
    if progress.actions:
        write_json(job.out / "actions.json", progress.actions)
    if (job.scratch / "snapshots").exists():
        shutil.copytree(job.scratch / "snapshots", job.out / "snapshots", dirs_exist_ok=True)
    if soft_prompt.trains_prompt(policy):
        save_adapter(policy, job.out / "adapter", SFT)
    if is_adapted(policy):
        save_adapter(policy, job.out / "adapter", SFT)
        policy = merge(load_adapter(load_causal_lm(job.sft), job.out / "adapter"))
    save_model(policy, tokenizer, job.out / "model")


def drop_snapshots(scratch: Path, step: int) -> None:
    """Remove the snapshots of ``step`` and later: the run was rolled back behind them."""
    for place in (scratch / "snapshots").glob("step-*"):
        if int(place.name[5:]) >= step:
            shutil.rmtree(place)


def snapshot(scratch: Path, step: int, policy: Any) -> None:
    """Keep the policy as it is after ``step``: its adapter, or all weights where there is none."""
    place = scratch / "snapshots" / f"step-{step:06d}"
    if is_adapted(policy) or soft_prompt.trains_prompt(policy):
        save_adapter(policy, place, "../" * 4 + "sft/model")
    else:
        with soft_prompt.without(policy):
            policy.save_pretrained(str(place))
        soft_prompt.write(policy, place / soft_prompt.NAME)
