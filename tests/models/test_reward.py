"""The reward model: pooling worked by hand, scores independent of batching, files that give the same model back."""

import json
from pathlib import Path

import pytest
import torch

from pipelines.config import Training
from pipelines.errors import ConfigurationError, DataError
from pipelines.models.adapters import add_adapter
from pipelines.models.reward import (
    RewardModel,
    cautious,
    collate,
    load_members,
    load_reward,
    member_folder,
    new_reward,
    pool,
    save_reward,
    score,
    score_members,
)
from tests import small

PROMPTS = [[5, 6, 7], [8, 9], [10, 11, 12, 13], [14]]
ANSWERS = [[20, 21, 1], [22, 1], [23, 24, 25, 26, 27], [1]]


def _model(folder: Path, adapter: str = "lora", pooling: str = "mean") -> RewardModel:
    model = new_reward(small.model_folder(folder), pooling)  # type: ignore[arg-type]
    torch.manual_seed(1)
    model.trunk = add_adapter(model.trunk, Training(adapter=adapter, lora_r=4))  # type: ignore[arg-type]
    for name, parameter in model.named_parameters():
        if "lora_B" in name or name == "head.weight":
            torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


def test_pooling_by_hand() -> None:
    hidden = torch.tensor([[[9.0, 9.0], [1.0, 2.0], [3.0, 6.0], [9.0, 9.0]]])
    mask = torch.tensor([[0, 1, 1, 0]])
    assert pool(hidden, mask, "mean").tolist() == [[2.0, 4.0]]
    assert pool(hidden, mask, "last").tolist() == [[3.0, 6.0]]
    with pytest.raises(DataError, match="no answer token"):
        pool(hidden, torch.zeros_like(mask), "mean")


def test_rows_are_padded_on_the_right_and_masked_explicitly() -> None:
    batch = collate([([5, 0], [0, 1]), ([6], [7])])
    assert batch["input_ids"].tolist() == [[5, 0, 0, 1], [6, 7, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert batch["answer_mask"].tolist() == [[0, 0, 1, 1], [0, 1, 0, 0]]


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_scores_equal_the_head_on_hidden_states_one_row_at_a_time(tmp_path: Path, pooling: str) -> None:
    model = _model(tmp_path / "sft", pooling=pooling)
    model.centre.fill_(0.25)
    expected = []
    for prompt, answer in zip(PROMPTS, ANSWERS, strict=True):
        with torch.no_grad():
            hidden = model.trunk(input_ids=torch.tensor([prompt + answer])).last_hidden_state[0, len(prompt) :]
            vector = hidden.mean(0) if pooling == "mean" else hidden[-1]
            expected.append(float(model.head.weight[0] @ vector) - 0.25)
    for batch_size in (1, 3, 4):
        scores = score(model, PROMPTS, ANSWERS, batch_size, "float32")
        assert scores == pytest.approx(expected, abs=1e-6)


def test_an_untrained_head_scores_zero(tmp_path: Path) -> None:
    model = new_reward(small.model_folder(tmp_path / "sft"), "mean")
    assert score(model, PROMPTS, ANSWERS, 4, "bf16") == [0.0] * 4


@pytest.mark.parametrize("adapter", ["lora", "none"])
def test_a_saved_model_scores_the_same_and_its_files_repeat(tmp_path: Path, adapter: str) -> None:
    model = _model(tmp_path / "sft", adapter)
    model.centre.fill_(0.5)
    save_reward(model, tmp_path / "one", "../../sft/model")
    save_reward(model, tmp_path / "two", "../../sft/model")
    again = load_reward(tmp_path / "one", tmp_path / "sft")
    assert score(again, PROMPTS, ANSWERS, 4, "float32") == score(model, PROMPTS, ANSWERS, 4, "float32")
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file())
    trained = ["adapter/adapter_config.json", "adapter/adapter_model.safetensors"] if adapter == "lora" else ["trunk.safetensors"]
    assert sorted(map(str, files)) == sorted([*trained, "head.safetensors", "reward.json"])
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_the_lower_layers_alone_score_the_same_after_loading(tmp_path: Path) -> None:
    model = new_reward(small.model_folder(tmp_path / "sft"), "mean", layers=1)
    torch.nn.init.normal_(model.head.weight, std=0.1)
    assert len(model.trunk.layers) == 1
    save_reward(model, tmp_path / "reward")
    again = load_reward(tmp_path / "reward", tmp_path / "sft")
    assert score(again, PROMPTS, ANSWERS, 4, "float32") == score(model, PROMPTS, ANSWERS, 4, "float32")
    with pytest.raises(ConfigurationError, match="the model has 2 layers to name"):
        new_reward(tmp_path / "sft", "mean", layers=3)


def test_an_ensemble_is_its_members_and_cautious_where_they_disagree(tmp_path: Path) -> None:
    """Scores 1 and 3: mean 2, standard deviation 1, so 2 - 0.5 * 1 = 1.5; members that agree lose nothing."""
    assert cautious(torch.tensor([[1.0, 4.0], [3.0, 4.0]]), 0.5) == [1.5, 4.0]
    sft = small.model_folder(tmp_path / "sft")
    for member in range(3):
        model = new_reward(sft, "mean", layers=1)
        torch.nn.init.normal_(model.head.weight, generator=torch.Generator().manual_seed(member))
        save_reward(model, member_folder(tmp_path / "reward", member))
    members = load_members(tmp_path / "reward", sft)
    scores = score_members(members, PROMPTS, ANSWERS, 4, "float32")
    assert scores.shape == (3, len(PROMPTS))
    assert scores[2].tolist() == score(members[2], PROMPTS, ANSWERS, 4, "float32")
    assert (scores.std(0) > 0).all()


def test_a_reward_model_of_another_tokenizer_is_refused(tmp_path: Path) -> None:
    """The same shapes, but two tokens have changed places: the scores would be nonsense, silently."""
    save_reward(new_reward(small.model_folder(tmp_path / "sft"), "mean"), tmp_path / "reward")
    load_reward(tmp_path / "reward", tmp_path / "sft")
    file = small.model_folder(tmp_path / "other") / "tokenizer.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    words = content["model"]["vocab"]
    words["a"], words["b"] = words["b"], words["a"]
    file.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(DataError, match="another tokenizer"):
        load_reward(tmp_path / "reward", tmp_path / "other")


def test_a_missing_reward_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="run the stage reward"):
        load_reward(tmp_path / "nothing", small.model_folder(tmp_path / "sft"))
