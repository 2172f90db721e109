"""The reward stage: one model, or the members of an ensemble."""

from pathlib import Path
from typing import Any

import torch

from pipelines.config import Params
from pipelines.context import Context
from pipelines.journal import Journal
from pipelines.models.reward import load_members, score_members
from pipelines.stages import reward
from tests import small
from tests.stages.local import Here
from tests.training import helpers

SMALL: dict[str, Any] = {"adapter": "none", "precision": "float32", "batch_size": 8, "micro_batch_size": 8, "layers": 1}


def trained(root: Path, members: int) -> Path:
    """The stage's output folder."""
    artifacts = root / "artifacts"
    small.model_folder(artifacts / "sft" / "model")
    (artifacts / "preferences").mkdir()
    helpers.pairs(artifacts / "preferences")
    sections = dict.fromkeys(("prepare", "base", "sft", "evaluate", "report"), {})
    params = sections | {"preferences": {"judge": {}}, "policies": {}, "reward": SMALL | {"members": members}}
    context = Context("reward", Params.model_validate(params), root, root / "run", Journal(None), Here(1))
    context.scratch.mkdir()
    assert 0.0 <= reward.run(context)["pair_accuracy"] <= 1.0
    return root / "run" / "outs" / "artifacts" / "reward"


def test_members_differ_and_the_first_is_the_one_that_would_be_alone(tmp_path: Path) -> None:
    folders = [trained(tmp_path / str(members), members) for members in (1, 3)]
    alone, three = (load_members(folder, tmp_path / "1" / "artifacts" / "sft" / "model") for folder in folders)
    assert (len(alone), len(three)) == (1, 3)
    asked, answered = [[5, 6, 7], [8, 9]], [[10, 11], [12, 13, 14]]
    scores = score_members(three, asked, answered, 2, "float32")
    assert torch.equal(score_members(alone, asked, answered, 2, "float32")[0], scores[0])
    assert len({tuple(row) for row in scores.tolist()}) == 3
