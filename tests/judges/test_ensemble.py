"""Several judges as one, standardised by hand; a kept reward model."""

from pathlib import Path

import pandas as pd
import pytest
import torch

from pipelines.config import Judge, SavedReward
from pipelines.data.schemas import PROMPTS
from pipelines.data.tables import write_table
from pipelines.data.tokens import encode_completion, encode_prompt
from pipelines.errors import DataError
from pipelines.judges import callables, make_judge, name_of
from pipelines.models.loading import load_tokenizer
from pipelines.models.reward import collate, load_reward, new_reward, save_reward
from tests import small


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two prompts in training, whose references have 1 and 3 letters; one in test, which plays no part."""
    (tmp_path / "measure.py").write_text(
        "def letters(prompts, answers): return [len(a) for a in answers]\n"
        "def tens(prompts, answers): return [10 * len(a) for a in answers]\n"
        "def flat(prompts, answers): return [1.0] * len(answers)\n",
        encoding="utf-8",
    )
    monkeypatch.setattr(callables, "ROOT", tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    same = {"template": "plain", "source": "test", "group": "lear"}
    rows = [
        {"id": f"q{letters}", "prompt": f"LEAR: {letters}", "reference": "a" * letters} | same | {"split": split}
        for letters, split in ((1, "train"), (3, "train"), (40, "test"))
    ]
    write_table(pd.DataFrame(rows), tmp_path / "artifacts/prepared/prompts.parquet", PROMPTS)
    return tmp_path


def _of(*functions: str) -> Judge:
    return Judge(kind="ensemble", ensemble=[{"kind": "callable", "callable": f"measure:{name}"} for name in functions])


def test_the_mean_of_standardised_scores_by_hand(project: Path) -> None:
    """The references give letters 1 and 3 (mean 2, deviation 1) and tens 10 and 30 (20, 10): 5 letters are 3 deviations above
    by both. What an answer gets does not depend on who is judged with it."""
    judge = make_judge(_of("letters", "tens"), project)
    assert judge(["", ""], ["abcde", "ab"]) == pytest.approx([3.0, 0.0])
    assert judge([""], ["abcde"]) == pytest.approx([3.0])
    assert name_of(_of("letters", "tens")) == "ensemble"


def test_a_member_that_tells_no_references_apart_is_refused(project: Path) -> None:
    """VADER's score of both references is 0."""
    mixed = Judge(kind="ensemble", ensemble=[{"kind": "callable", "callable": "measure:letters"}, {"kind": "lexicon"}])
    with pytest.raises(DataError, match="judge lexicon: gives all 2 reference answers the same score"):
        make_judge(mixed, project)(["", ""], ["a", "b"])
    with pytest.raises(DataError, match="measure:flat: gives all 2"):
        make_judge(_of("letters", "flat"), project)([""], ["a"])


def test_a_kept_reward_model_scores_prompt_and_answer(tmp_path: Path) -> None:
    """The oracle is one row at a time, without padding, through the model itself."""
    kept = tmp_path / "data/judges/mine"
    sft = small.model_folder(kept / "sft" / "model")
    model = new_reward(sft, "mean")
    torch.manual_seed(3)
    torch.nn.init.normal_(model.head.weight)
    save_reward(model, kept / "reward")
    judge = Judge(kind="reward", reward=SavedReward(folder="data/judges/mine", batch_size=2, precision="float32"))
    prompts, answers = ["LEAR: Blow", "JULIET: Good", "LEAR: Blow"], [" winds", " night, good night", " rage!"]
    tokenizer, loaded = load_tokenizer(sft), load_reward(kept / "reward", sft)
    expected = [
        loaded(**collate([(encode_prompt(tokenizer, prompt), encode_completion(tokenizer, answer))])).logits.item()
        for prompt, answer in zip(prompts, answers, strict=True)
    ]
    assert make_judge(judge, tmp_path)(prompts, answers) == pytest.approx(expected, abs=1e-5)
    assert name_of(judge) == "reward:mine"
