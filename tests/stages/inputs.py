"""What the evaluate stages read: real models too small to be slow, and a few held-out prompts."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import torch

from pipelines.data.schemas import DEMONSTRATIONS, PAIRS, PHRASINGS, PROMPTS
from pipelines.data.tables import write_table
from pipelines.models.reward import new_reward, save_reward
from tests.small import llama, model_folder

TESTED = ["HAMLET: To be", "LEAR: Blow, winds", "JULIET: Good night"]

PHRASED = pd.DataFrame(
    [
        {"intent": "t0", "template": "colon", "prompt": "HAMLET: To be"},
        {"intent": "t0", "template": "says", "prompt": "HAMLET says: To be"},
        {"intent": "t2", "template": "colon", "prompt": "JULIET: Good night"},
        {"intent": "t2", "template": "stop", "prompt": "JULIET.\nGood night"},
    ]
)


def write_inputs(artifacts: Path) -> None:
    """The base model, the SFT model, a policy ``ppo`` with snapshots, a reward model with a random head, prompts and pairs."""
    for seed, name in enumerate(("base", "sft/model", "policies/ppo/model")):
        model_folder(artifacts / name, seed)
    policy = artifacts / "policies" / "ppo"
    llama(seed=3).save_pretrained(str(policy / "snapshots" / "step-000002"))
    llama(seed=2).save_pretrained(str(policy / "snapshots" / "step-000004"))  # the last step is the policy itself
    write_table(pd.DataFrame({"step": [1, 2, 3, 4]}), policy / "history.parquet")
    model = new_reward(artifacts / "sft" / "model", "mean")
    torch.nn.init.normal_(model.head.weight, generator=torch.Generator().manual_seed(1))
    save_reward(model, artifacts / "reward")
    rows = [(f"t{i}", text, "test") for i, text in enumerate(TESTED)] + [("v0", "ROMEO: But soft", "validation")]
    write_table(prompts(rows), artifacts / "prepared" / "prompts.parquet", PROMPTS)
    write_table(demonstrations(), artifacts / "prepared" / "demonstrations.parquet", DEMONSTRATIONS)
    write_table(PHRASED, artifacts / "prepared" / "phrasings.parquet", PHRASINGS)
    write_table(pairs(), artifacts / "preferences" / "pairs.parquet", PAIRS)


def demonstrations() -> pd.DataFrame:
    """Two of the test split, one of the training split."""
    told = [("d0", "IAGO: I am not", " what I am.", "test"), ("d1", "LEAR: Nothing", " will come", "test")]
    told += [("d2", "VIOLA: If music", " be the food of love", "train")]
    columns = {"template": "plain", "source": "test", "group": "play"}
    return pd.DataFrame([{"id": i, "prompt": p, "completion": c, **columns, "split": s} for i, p, c, s in told])


def pairs() -> pd.DataFrame:
    """Two pairs of the test split that share an answer, one of them cut, and a pair of the training split."""
    told = [("q0", "sweet", "foul", "test"), ("q1", "sweet", "a most foul night", "test"), ("q2", "joy", "hate", "train")]
    rows = []
    for id_, chosen, rejected, split in told:
        text = {"id": id_, "prompt_id": "t0", "prompt": TESTED[0], "chosen": f" {chosen}", "rejected": f" {rejected}"}
        origin = {"judge": "people", "group": "all", "margin": 1.0, "source": "test", "split": split}
        rows.append(text | origin | {"chosen_ended": True, "rejected_ended": id_ != "q1"})
    return pd.DataFrame(rows)


def prompts(rows: list[tuple[str, str, str]]) -> pd.DataFrame:
    """A table of prompts from id, text and split."""
    columns = {"reference": "so", "template": "plain", "source": "test", "group": "play"}
    return pd.DataFrame([{"id": id_, "prompt": text, **columns, "split": split} for id_, text, split in rows])
