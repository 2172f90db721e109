"""The reward stage: one model, the members of an ensemble, or one for each group."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.config import Params
from pipelines.context import Context
from pipelines.data.schemas import GROUP_SCORES, PAIRS
from pipelines.data.tables import read_table, write_table
from pipelines.errors import DataError
from pipelines.journal import Journal
from pipelines.models.reward import group_names, load_groups, load_members, score_members
from pipelines.stages import reward
from tests import small
from tests.stages.local import Here
from tests.training import helpers

SMALL: dict[str, Any] = {"adapter": "none", "precision": "float32", "batch_size": 8, "micro_batch_size": 8, "layers": 1}


def trained(root: Path, made: Callable[[Path], Path] = helpers.pairs, **changes: Any) -> Path:
    """The stage's output folder."""
    artifacts = root / "artifacts"
    small.model_folder(artifacts / "sft" / "model")
    (artifacts / "preferences").mkdir()
    made(artifacts / "preferences")
    sections = dict.fromkeys(("prepare", "base", "sft", "evaluate", "report"), {})
    params = sections | {"preferences": {"judge": {}}, "policies": {}, "reward": SMALL | changes}
    context = Context("reward", Params.model_validate(params), root, root / "run", Journal(None), Here(1))
    context.scratch.mkdir()
    assert 0.0 <= reward.run(context)["pair_accuracy"] <= 1.0
    return root / "run" / "outs" / "artifacts" / "reward"


def test_members_differ_and_the_first_is_the_one_that_would_be_alone(tmp_path: Path) -> None:
    folders = [trained(tmp_path / str(members), members=members) for members in (1, 3)]
    alone, three = (load_members(folder, tmp_path / "1" / "artifacts" / "sft" / "model") for folder in folders)
    assert (len(alone), len(three)) == (1, 3)
    asked, answered = [[5, 6, 7], [8, 9]], [[10, 11], [12, 13, 14]]
    scores = score_members(three, asked, answered, 2, "float32")
    assert torch.equal(score_members(alone, asked, answered, 2, "float32")[0], scores[0])
    assert len({tuple(row) for row in scores.tolist()}) == 3
    figures = json.loads((folders[1] / "metrics.json").read_text(encoding="utf-8"))
    assert 0.0 <= figures["members_split"] <= 1.0
    assert "members_split" not in json.loads((folders[0] / "metrics.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("groups", ["given", "found"])
def test_groups_that_contradict_each_other_get_a_model_each(tmp_path: Path, groups: str) -> None:
    """Romeo wants day, Juliet night. Together every pair stands beside its opposite, so one model is right on exactly half of
    them (a tie counts half); each group's own model orders all of its answers. Found: who thinks alike is put together."""
    settings = {"num_train_epochs": 8, "learning_rate": 1e-2, "groups": groups}
    out = trained(tmp_path, helpers.contradicting, **settings)
    assert json.loads((out / "metrics.json").read_text(encoding="utf-8"))["pair_accuracy"] == 0.5
    told = json.loads((out / "groups.json").read_text(encoding="utf-8"))
    if groups == "found":
        assert {frozenset(e for e, own in told["annotators"].items() if own == name) for name in told["groups"]} == {
            frozenset({"e0", "e2"}),
            frozenset({"e1", "e3"}),
        }
        lover_of_day = told["annotators"]["e0"]
    else:
        assert (told["groups"], told["annotators"]) == (["juliet", "romeo"], {})
        lover_of_day = "romeo"
    assert group_names(out) == sorted(told["groups"])
    for name, others in told["agreement"].items():
        assert others[name] > 0.9
        assert sum(others.values()) == pytest.approx(1.0, abs=0.01)  # the other group's pairs are the same, turned round
    scores = read_table(out / "group_scores.parquet", GROUP_SCORES)
    assert len(scores) == 4 * 3 * 2  # prompts of the test split, answers, groups
    for name, own in scores.groupby("group"):
        day, noon, night = (own[own["answer"] == answer]["score"].mean() for answer in helpers.RANKED)
        assert (day > noon > night) == (name == lover_of_day)
        assert abs(own["score"].mean()) < 0.3  # 0 over the answers of both held-out splits, of which these are half
    models = load_groups(out, tmp_path / "artifacts" / "sft" / "model")
    assert list(models) == sorted(told["groups"])


def test_a_group_without_held_out_pairs_is_named(tmp_path: Path) -> None:
    def lopsided(folder: Path) -> Path:
        table = read_table(helpers.contradicting(folder), PAIRS)
        write_table(table[(table["group"] == "romeo") | (table["split"] == "train")], folder / "pairs.parquet", PAIRS)
        return folder / "pairs.parquet"

    with pytest.raises(DataError, match="group juliet has 0 pairs in the split validation"):
        trained(tmp_path / "one", lopsided, groups="given")
    with pytest.raises(DataError, match="needs two groups or more, there is romeo"):
        trained(tmp_path / "two", helpers.pairs, groups="given")
    with pytest.raises(DataError, match="4 annotators .* cannot make reward.clusters 5 groups"):
        trained(tmp_path / "three", helpers.contradicting, groups="found", clusters=5)
