"""What an on-policy run leaves behind: a plain merged model, the adapter, the history, the last figures, snapshots."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pandas as pd

from pipelines.data.tables import whole_file, write_json, write_table
from pipelines.models.adapters import is_adapted, merge, save_adapter
from pipelines.models.loading import save_model
from pipelines.training.learner import Learner

SFT = "../../../sft/model"
"""From a policy's adapter to the model it sits on, inside ``artifacts/``."""
LAST = 5
"""Steps over which the figures of metrics.json are averaged."""


def write_results(
    out: Path,
    plot: Path | None,
    learner: Learner,
    tokenizer: Any,
    history: list[dict[str, float]],
    left_out: list[int],
    scratch: Path,
) -> None:
    """Write everything below ``out``; the policy is merged in place, so nothing can be trained afterwards."""
    frame = pd.DataFrame(history)
    frame = frame.astype({"step": int})
    write_table(frame, out / "history.parquet")
    if plot is not None:
        with whole_file(plot) as partial:
            frame.to_csv(partial, index=False, lineterminator="\n")
    recent = frame.drop(columns="step").tail(LAST).mean().to_dict()
    write_json(out / "metrics.json", recent | {"steps": len(frame), "skipped": len(left_out)})
    if (scratch / "snapshots").exists():
        shutil.copytree(scratch / "snapshots", out / "snapshots", dirs_exist_ok=True)
    if is_adapted(learner.policy):
        save_adapter(learner.policy, out / "adapter", SFT)
    save_model(merge(learner.policy), tokenizer, out / "model")


def snapshot(scratch: Path, step: int, learner: Learner) -> None:
    """Keep the policy as it is after ``step``: its adapter, or all weights where there is none."""
    place = scratch / "snapshots" / f"step-{step:06d}"
    if is_adapted(learner.policy):
        save_adapter(learner.policy, place, "../" * 4 + "sft/model")
    else:
        learner.policy.save_pretrained(str(place))
