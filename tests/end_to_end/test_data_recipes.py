"""The recipes for data of people and of the hub, from rows of the same shape to the report, with a very small model."""

import importlib
import json
from pathlib import Path

import pytest

from pipelines.config import Params
from pipelines.context import Context
from pipelines.journal import Journal
from pipelines.stages import stage_of
from tests import small
from tests.data.test_real_data import shaped
from tests.stages.local import Here

SMALL = {"adapter": "none", "precision": "float32", "batch_size": 8, "micro_batch_size": 8}


def vowels(prompts: list[str], answers: list[str]) -> list[float]:
    """A judge for what a model of random weights writes, which has no words for a lexicon to know."""
    return [sum(answer.count(vowel) for vowel in "aeiou") / max(len(answer), 1) for answer in answers]


def _small(params: Params) -> Params:
    """One offline policy, a model of random weights with a context of 128 tokens, short answers."""
    judge = params.preferences.judge.model_copy(update={"kind": "callable", "callable": f"{__name__}:vowels"})
    generation = params.evaluate.generation.model_copy(update={"max_new_tokens": 8})
    return params.model_copy(
        update={
            "sft": params.sft.model_copy(update=SMALL),
            "preferences": params.preferences.model_copy(
                update={"precision": "float32", "generation": generation, "judge": judge, "min_margin": 0.01}
            ),
            "reward": params.reward.model_copy(update=SMALL | {"layers": 0}),
            "policies": {"dpo": params.policies["dpo"].model_copy(update=SMALL)},
            "evaluate": params.evaluate.model_copy(update={"precision": "float32", "generation": generation}),
        }
    )


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("recipe", ["tldr", "imdb", "hh"])
def test_a_recipe_runs_from_its_rows_to_the_report(tmp_path: Path, recipe: str) -> None:
    params = _small(shaped(tmp_path, recipe))
    (tmp_path / "scratch" / "outs" / "artifacts").mkdir(parents=True)
    (tmp_path / "artifacts").symlink_to(tmp_path / "scratch" / "outs" / "artifacts")
    small.model_folder(tmp_path / "artifacts" / "base")
    for stage in ("prepare", "sft", "preferences", "reward", "policy@dpo", "evaluate_sft", "evaluate@dpo", "report"):
        module = importlib.import_module(f"pipelines.stages.{stage_of(stage).module}")
        scratch = tmp_path / "scratch"
        module.run(Context(stage, params, tmp_path, scratch, Journal(None), Here(1)))
        if (scratch / "checkpoints").exists():
            (scratch / "checkpoints").rename(scratch / f"checkpoints-{stage}")
    found = json.loads((tmp_path / "artifacts/report/metrics.json").read_text())
    assert set(found["policies"]) == {"dpo"}
    assert 0.0 <= found["reward"]["pair_accuracy"] <= 1.0
    page = (tmp_path / "artifacts/report/index.html").read_text(encoding="utf-8")
    assert "near duplicates, rows" in page
    assert "contamination, test prompts" in page
