"""Supervised fine-tuning: the base model learns to answer as the demonstrations do, and to stop.

Reads:   base, prepared/demonstrations.parquet
Writes:  sft/{model/, adapter/ (LoRA only), history.parquet, metrics.json}
Params:  seed, sft
Metrics: loss, eval_loss (nats a completion token, the latter on validation demonstrations), grad_norm, learning_rate;
         tokens_QUANTILE of the rows, tokens_learnt_QUANTILE of what is learnt of them
Paper:   Ouyang et al. 2022, section 3.5; Hu et al. 2021 (LoRA)
"""

from __future__ import annotations

import json

from pipelines.context import Context, seed_for


def run(ctx: Context) -> dict[str, float]:
    """Train on the workers; the results' figures are the stage's metrics."""
    from pipelines.training import sft

    out = ctx.out("sft")
    job = sft.Job(
        base=ctx.artifacts / "base",
        demonstrations=ctx.artifacts / "prepared" / "demonstrations.parquet",
        out=out,
        scratch=ctx.scratch,
        training=ctx.params.sft,
        seed=seed_for(ctx.params.seed, "sft"),
    )
    ctx.cluster.train(sft.train, job, ctx.scratch)
    return json.loads((out / "metrics.json").read_text(encoding="utf-8"))
