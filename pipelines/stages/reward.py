"""A reward model that orders answers as the pairs do: the SFT model's trunk with a linear head.

Reads:   preferences/pairs.parquet, sft
Writes:  reward/{head.safetensors, reward.json, adapter/ or trunk.safetensors, history.parquet, metrics.json}
Params:  seed, reward
Metrics: loss, eval_loss, eval_accuracy while training; pair_accuracy, log_loss, longer_wins on the pairs of the test split
Paper:   Bradley and Terry 1952; Stiennon et al. 2020, section 3.4
"""

from __future__ import annotations

import json

from pipelines.context import Context, seed_for


def run(ctx: Context) -> dict[str, float]:
    """Train on the workers; the figures on held-out pairs are the stage's metrics."""
    from pipelines.training import reward

    out = ctx.out("reward")
    job = reward.Job(
        sft=ctx.artifacts / "sft" / "model",
        pairs=ctx.artifacts / "preferences" / "pairs.parquet",
        out=out,
        scratch=ctx.scratch,
        training=ctx.params.reward,
        seed=seed_for(ctx.params.seed, "reward"),
    )
    ctx.cluster.train(reward.train, job, ctx.scratch)
    return json.loads((out / "metrics.json").read_text(encoding="utf-8"))
