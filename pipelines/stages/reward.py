"""A reward model that orders answers as the pairs do: the SFT model's trunk with a linear head.

Reads:   preferences/pairs.parquet, sft
Writes:  reward/{head.safetensors, reward.json, adapter/ or trunk.safetensors, history.parquet, metrics.json};
         further members of an ensemble the same in reward/members/N/
Params:  seed, reward
Metrics: loss, eval_loss, eval_accuracy while training; pair_accuracy, log_loss, longer_wins on the pairs of the test split;
         prompt_tokens_QUANTILE, chosen_tokens_QUANTILE, rejected_tokens_QUANTILE of the pairs trained on
Paper:   Bradley and Terry 1952; Stiennon et al. 2020, section 3.4
"""

from __future__ import annotations

import json

from pipelines.context import Context, seed_for


def run(ctx: Context) -> dict[str, float]:
    """Train every member on the workers; the first one's figures on held-out pairs are the stage's metrics."""
    from pipelines.models.reward import member_folder
    from pipelines.training import reward

    out = ctx.out("reward")
    for member in range(ctx.params.reward.members):
        job = reward.Job(
            sft=ctx.artifacts / "sft" / "model",
            pairs=ctx.artifacts / "preferences" / "pairs.parquet",
            out=member_folder(out, member),
            scratch=member_folder(ctx.scratch, member),
            training=ctx.params.reward,
            seed=seed_for(ctx.params.seed, "reward", *([member] if member else [])),  # the first is as if it were alone
        )
        ctx.cluster.train(reward.train, job, job.scratch)
    return json.loads((out / "metrics.json").read_text(encoding="utf-8"))
