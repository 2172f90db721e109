"""Prompts, demonstrations and evaluations of the candidates: more kindness, a higher score by the judge."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from pipelines import config
from pipelines.data.schemas import DEMONSTRATIONS, PROMPTS
from pipelines.data.tables import write_json, write_table
from pipelines.evaluation.figures import against, describe
from pipelines.evaluation.samples import SAMPLES
from tests.evaluation.synthetic import _samples


def write(artifacts: Path, seed: int, kindness: float) -> None:
    """Overwrite a synthetic run's evaluation of ppo, and add the prepared tables that it was made from."""
    sft = pd.read_parquet(artifacts / "evaluations/sft/samples.parquet")
    ours = _samples(kindness, 2.0, 40, seed=100 + seed)
    write_table(ours, artifacts / "evaluations/ppo/samples.parquet", SAMPLES)
    figures = describe(ours) | against(ours, sft, config.Evaluate(), 1) | {"judge": "lexicon", "judge_is_gold": True}
    write_json(artifacts / "evaluations/ppo/metrics.json", figures)
    prompts = ours.drop_duplicates("prompt_id")[["prompt_id", "prompt"]].rename(columns={"prompt_id": "id"})
    rest = {"reference": "so", "template": "plain", "source": "test"}
    table = prompts.assign(**rest, group=["even" if i % 2 == 0 else "odd" for i in range(len(prompts))], split="test")
    trained = pd.DataFrame([{"id": "q1", "prompt": "VIOLA: learnt", **rest, "group": "even", "split": "train"}])
    needed = [name for name, column in PROMPTS.columns.items() if column.required]
    write_table(pd.concat([table, trained], ignore_index=True)[needed], artifacts / "prepared/prompts.parquet", PROMPTS)
    rows = [
        {"id": f"d{i}", "prompt": f"HAMLET: {i}", "completion": " so.", "template": "plain", "source": "test", "group": "play",
         "split": "train" if i < 8 else "test"}
        for i in range(10)
    ]  # fmt: skip
    rows.append({**rows[0], "id": f"only-{seed}", "prompt": f"HAMLET: only {seed}"})
    rows.append({**rows[0], "id": f"moved-{seed}", "prompt": "HAMLET: moved"})
    write_table(pd.DataFrame(rows), artifacts / "prepared/demonstrations.parquet", DEMONSTRATIONS)
