"""MaxMin-RLHF against the single reward model on the same pairs: what the worst group gains and what the others pay.

    python benchmarks/maxmin.py --seeds 1 2 3

A small model from scratch (recipe ``tiny``), people of two groups with tastes of their own, as in the small experiment of
Chakraborty et al. 2024 (most want a kind tone, some want few words). Some minutes a seed on one core; each seed's result is
kept under .runs/maxmin. ``--collect`` only records what is there.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import ROOT, facts, save
from staged import run_stage

SHARES = {"kind": 0.8, "brief": 0.2}
PEOPLE = 10
PPO: dict[str, Any] = {
    "method": "ppo",
    "adapter": "none",
    "precision": "float32",
    "learning_rate": 2e-4,
    "steps": 60,
    "save_steps": 1000,
    "batch_size": 64,
    "mini_batch_size": 64,
    "micro_batch_size": 64,
}
SETTINGS: dict[str, dict[str, Any]] = {
    "prepare": {"train_prompts": 200, "validation_prompts": 50, "test_prompts": 64},
    "preferences": {"answers": 4, "bradley_terry_temperature": 0.1, "min_margin": 0.2},
    "reward": {"num_train_epochs": 4, "early_stopping_patience": 6, "groups": "given"},
}
KEPT = ROOT / ".runs" / "maxmin"


def main() -> None:
    """Run (unless told to collect only), then record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--collect", action="store_true", help="only record what is there")
    options = parser.parse_args()
    KEPT.mkdir(parents=True, exist_ok=True)
    for seed in [] if options.collect else options.seeds:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder) / "clone"
            subprocess.run(["git", "clone", "--quiet", str(ROOT), str(root)], check=True)
            found = measured(root, seed)
        (KEPT / f"seed-{seed}.json").write_text(json.dumps(found), encoding="utf-8")
        print(seed, json.dumps(found["policies"]), flush=True)
    seeds = {str(seed): json.loads((KEPT / f"seed-{seed}.json").read_text(encoding="utf-8")) for seed in options.seeds}
    command = "python benchmarks/maxmin.py --seeds " + " ".join(map(str, options.seeds))
    save("maxmin", {**facts(command), "groups": SHARES, "seeds": seeds})


def measured(root: Path, seed: int) -> dict[str, Any]:
    """One seed: the SFT model, pairs of both groups, reward models, both policies, every group's win rates."""
    from pipelines.data.schemas import PAIRS, PROMPTS
    from pipelines.data.tables import read_table, write_table

    params = settings(seed)
    for stage in ("prepare", "base", "sft"):
        run_stage(stage, params, root)
    prompts = read_table(root / "artifacts" / "prepared" / "prompts.parquet", PROMPTS)
    pairs = compared(params, root, prompts)
    write_table(pairs, root / "artifacts" / "preferences" / "pairs.parquet", PAIRS)
    found = right_groups(params, root)
    for stage in ("reward", "policy@single", "policy@maxmin"):
        run_stage(stage, params, root)
    tested = prompts[prompts["split"] == "test"]
    policies = {name: against_sft(params, root, tested, name) for name in params.policies}
    counts = pairs[pairs["split"] == "train"]["group"].value_counts().to_dict()
    accuracy = json.loads((root / "artifacts" / "reward" / "groups.json").read_text(encoding="utf-8"))["agreement"]
    return {"pairs": counts, "agreement": accuracy, "found": found, "policies": policies}


def settings(seed: int) -> Any:
    """The recipe ``tiny`` with this benchmark's settings and the two policies."""
    from ruamel.yaml import YAML

    from pipelines.config import Params

    raw = YAML(typ="safe").load((ROOT / "recipes" / "tiny.yaml").read_text(encoding="utf-8"))
    for section, changes in SETTINGS.items():
        raw[section].update(changes)
    maxmin = PPO | {"rewards": [{"kind": "maxmin"}]}
    return Params.model_validate(raw | {"seed": seed, "policies": {"single": PPO, "maxmin": maxmin}})


def judges() -> dict[str, Callable[[list[str], list[str]], list[float]]]:
    """What each group wants: VADER's compound score; few words, in tenths."""
    from pipelines.config import Judge
    from pipelines.judges import make_judge

    return {"kind": make_judge(Judge()), "brief": lambda prompts, answers: [-len(answer.split()) / 10 for answer in answers]}


def compared(params: Any, root: Path, prompts: Any) -> Any:
    """Pairs of the SFT model's answers: a prompt's are compared by one person, who wants what the person's group wants."""
    import pandas as pd

    from pipelines.context import seed_for
    from pipelines.stages import preferences

    answers = sampled(params, root / "artifacts" / "sft" / "model", prompts, params.preferences.answers)
    answers = answers.merge(prompts[["id", "split"]], left_on="prompt_id", right_on="id")
    people = [name for name, share in SHARES.items() for _ in range(round(PEOPLE * share))]
    person = {id_: seed_for(params.seed, "person", id_) % PEOPLE for id_ in prompts["id"]}
    judged = judges()
    tables = []
    for number, group in enumerate(people):
        own = answers[answers["prompt_id"].map(person) == number].assign(group=group)
        own["gold"] = judged[group](own["prompt"].tolist(), own["answer"].tolist())
        pairs, _ = preferences.judged_pairs(own, params.preferences, params.seed)
        tables.append(pairs.assign(annotator=f"person {number}"))
    return pd.concat(tables, ignore_index=True)


def right_groups(params: Any, root: Path) -> float:
    """The share of people whom expectation maximisation puts into the right one of two groups, however it calls them."""
    from pipelines.context import Worker, seed_for
    from pipelines.data.schemas import PAIRS
    from pipelines.data.tables import read_table
    from pipelines.journal import Journal
    from pipelines.models import scoring
    from pipelines.training.groups import found_groups

    pairs = read_table(root / "artifacts" / "preferences" / "pairs.parquet", PAIRS)
    train = pairs[pairs["split"] == "train"]
    answers, reward = scoring.answers_of(train), params.reward
    job = scoring.Job(root / "artifacts" / "sft" / "model", (), 64, "float32", reward.pooling, reward.layers)
    worth = dict(zip(answers, scoring.features(job, answers, Worker(0, 1, "cpu", Journal(None))), strict=True))
    found = found_groups(train, worth, 2, seed_for(params.seed, "groups"))
    truth = dict(zip(train["annotator"], train["group"], strict=True))
    agreed = sum((found[person] == "group-1") == (truth[person] == "kind") for person in truth) / len(truth)
    return max(agreed, 1 - agreed)


def against_sft(params: Any, root: Path, tested: Any, name: str) -> dict[str, Any]:
    """A policy's answers to held-out prompts against SFT's from the same seeds, by the judge of each group."""
    from pipelines.data.tables import read_table
    from pipelines.evaluation.comparison import outcomes

    folder = root / "artifacts" / "policies" / name
    ours, theirs = (sampled(params, path / "model", tested, 3) for path in (folder, root / "artifacts" / "sft"))
    found: dict[str, Any] = {"win_rate": {}, "score": {}}
    for group, judge in judges().items():
        own, other = (judge(table["prompt"].tolist(), table["answer"].tolist()) for table in (ours, theirs))
        found["win_rate"][group] = float(outcomes(own, other, params.evaluate.tie_margin).mean())  # type: ignore[arg-type]
        found["score"][group] = [sum(other) / len(other), sum(own) / len(own)]
    history = read_table(folder / "history.parquet")
    return found | {
        "words": float(ours["answer"].str.split().str.len().mean()),
        "kl": float(history["objective/kl"].iloc[-1]),
        "groups": {column: history[column].iloc[[0, -1]].tolist() for column in history if column.startswith("group/")},
    }


def sampled(params: Any, model: Path, prompts: Any, answers: int) -> Any:
    """Answers of a model to prompts, each from a seed of its own."""
    import pandas as pd

    from pipelines.context import Worker
    from pipelines.journal import Journal
    from pipelines.stages import preferences

    job = preferences.Job(model, params.preferences.generation, "float32", answers, params.seed)
    asked = list(zip(prompts["id"], prompts["prompt"], strict=True))
    return pd.DataFrame(preferences.answer(job, asked, Worker(0, 1, "cpu", Journal(None))))


if __name__ == "__main__":
    main()
