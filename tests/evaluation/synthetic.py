"""A small finished run made of made-up tables, written under ``artifacts/`` as the stages would write it."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd

from pipelines import config
from pipelines.data.schemas import GOLD, PAIRS
from pipelines.data.tables import write_json, write_table
from pipelines.evaluation.figures import against, describe
from pipelines.evaluation.optimisation import best_of, curve
from pipelines.evaluation.samples import SAMPLES, SCORED_PAIRS

KIND = ("my", "good", "sweet", "lord,", "I", "love", "thee", "and", "thy", "gentle", "heart", "with", "joy;")
PLAIN = ("the", "king", "doth", "march", "upon", "the", "city,", "and", "his", "men", "go", "after", "him", "at", "dawn;")
GRIM = ("foul", "villain,", "thy", "hate", "and", "bloody", "death", "shall", "be", "my", "curse;")
SPEAKERS = ("HAMLET", "ROSALIND", "KING LEAR", "VIOLA", "IAGO", "PORTIA")
OPENINGS = ("What say you to the news that", "I pray thee, tell me where the", "If I should go to Rome then")
NASTY = 'He said "</script><script>alert(1)</script>" & <b>left</b>;'


def params(evaluate: config.Evaluate | None = None) -> config.Params:
    """A configuration with the policies ``ppo`` and ``dpo``."""
    return config.Params(
        prepare=config.Prepare(),
        base=config.Base(),
        sft=config.Sft(),
        preferences=config.Preferences(judge=config.Judge()),
        reward=config.Reward(),
        policies={"ppo": config.Ppo(method="ppo"), "dpo": config.Dpo(method="dpo")},
        evaluate=evaluate or config.Evaluate(),
        report=config.Report(),
        runtime=config.Runtime(threads=1),
    )


def write_run(root: Path, policies: dict[str, str], prompts: int = 64, nasty: bool = False) -> None:
    """Everything that the report stage reads; ``policies`` is name -> method, a later one is better than an earlier one."""
    artifacts = root / "artifacts"
    tables = {"sft": _samples(0.1, 0.0, prompts, seed=0)}
    for index, name in enumerate(policies):
        tables[name] = _samples(0.45 + 0.2 * index, 2.0 + 1.5 * index, prompts, seed=index + 1)
    if nasty:
        tables["sft"].loc[tables["sft"]["answer"] == "A", "text"] = NASTY
    for name, table in tables.items():
        figures = describe(table) | {"judge": "lexicon", "judge_is_gold": True}
        if name != "sft":
            figures |= against(table, tables["sft"], config.Evaluate(), seed=1)
        write_table(table, artifacts / "evaluations" / name / "samples.parquet", SAMPLES)
        write_json(artifacts / "evaluations" / name / "metrics.json", figures)
        points = best_of(table) if name == "sft" else curve({0: tables["sft"], 30: table})
        points.to_csv(artifacts / "evaluations" / name / "optimisation.csv", index=False, lineterminator="\n")
    for name, method in policies.items():
        _history(method).to_parquet(_made(artifacts / "policies" / name / "history.parquet"))
    _falling(40, 3.4, 2.3).to_parquet(_made(artifacts / "sft" / "history.parquet"))
    reward = _falling(40, 0.69, 0.45)
    reward["eval_accuracy"] = [0.5 + 0.2 * (1 - math.exp(-i / 10)) if i % 10 == 9 else np.nan for i in range(40)]
    reward.to_parquet(_made(artifacts / "reward" / "history.parquet"))
    write_json(
        artifacts / "reward" / "metrics.json",
        {"pair_accuracy": 0.725, "longer_wins": 0.5, "log_loss": 0.58, "calibration_error": 0.05},
    )
    tokens = {"tokens_q00": 12.0, "tokens_q10": 18.0, "tokens_q50": 30.5, "tokens_q90": 39.0, "tokens_q100": 45.0}
    write_json(artifacts / "sft" / "metrics.json", {"eval_loss": 2.3} | tokens)
    write_table(scored_pairs(), artifacts / "evaluations" / "sft" / "pairs.parquet", SCORED_PAIRS)
    pairs, gold = preferences()
    write_table(pairs, artifacts / "preferences" / "pairs.parquet", PAIRS)
    write_table(gold, artifacts / "preferences" / "gold.parquet", GOLD)
    tables = {"prompts": prepared(528, "prompt", "reference"), "demonstrations": prepared(1500, "completion", "prompt")}
    facts = {"tables": tables, "dropped": {"too short": 12_345, "empty": 0}, "prompts_in_two_splits": 0}
    write_json(artifacts / "prepared" / "quality.json", facts)


def prepared(rows: int, *texts: str) -> dict[str, object]:
    """Facts of a prepared table, as the prepare stage writes them."""
    splits = {"train": rows - 128, "validation": 64, "test": 64}
    words = {name: {"q00": 1.0, "q50": 9.0, "q100": 21.0} for name in texts}
    return {"rows": rows, "per_split": splits, "groups": 38, "duplicates": 0, "empty": 0, "words": words}


def preferences() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Four test pairs, three of them labelled in the gold order, and one training pair labelled against it."""
    pairs, gold = [], []
    for i in range(5):
        split = "test" if i < 4 else "train"
        better, worse = ("so sweet a day", "day") if i % 2 else ("sweet", "a most foul villain")
        chosen, rejected = (worse, better) if i >= 3 else (better, worse)
        id_, prompt = f"q{i}", f"VIOLA: line {i}"
        names = {"id": f"pair{i}", "prompt_id": id_, "prompt": prompt, "chosen": chosen, "rejected": rejected}
        origin = {"judge": "lexicon", "group": "all", "margin": 0.4, "source": "judge", "split": split}
        pairs.append(names | origin | {"chosen_ended": True, "rejected_ended": False})
        for index, (answer, score) in enumerate(((better, 0.6), (worse, -0.2))):
            row = {"answer_index": index, "answer": answer, "gold": score}
            gold.append({"prompt_id": id_, "prompt": prompt, **row, "split": split})
    return pd.DataFrame(pairs), pd.DataFrame(gold)


def scored_pairs(count: int = 80) -> pd.DataFrame:
    """Held-out pairs of which a well calibrated reward model knows the order in three of four."""
    rng = np.random.default_rng(11)
    rows = []
    for i in range(count):
        margin, worse = float(rng.normal(0.9, 1.2)), float(rng.normal())
        names = {"id": f"s{i}", "prompt_id": f"p{i // 2:03d}", "judge": "lexicon", "group": ("comedy", "tragedy")[i % 2]}
        lengths = {"chosen_tokens": int(rng.integers(4, 20)), "rejected_tokens": int(rng.integers(4, 20))}
        scores = {"chosen_reward": worse + margin, "rejected_reward": worse, "filler_reward": worse + margin - 0.2}
        rows.append(names | {"source": "judge", "margin": float("nan")} | lengths | scores)
    return pd.DataFrame(rows)


def _samples(kindness: float, drift: float, prompts: int, seed: int) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    rows = []
    for p in range(prompts):
        prompt = f"{SPEAKERS[p % len(SPEAKERS)]}:\n{OPENINGS[p % len(OPENINGS)]} {p}"
        for answer in ("greedy", "A", "B", "C"):
            pool = KIND if rng.random() < kindness else GRIM if rng.random() < 0.4 else PLAIN
            text = " " + " ".join(rng.choice(pool, size=int(rng.integers(4, 13)))) + ";"
            gold = {id(KIND): 0.7, id(GRIM): -0.6, id(PLAIN): 0.0}[id(pool)] + float(rng.normal(0, 0.1))
            rows.append(_row(f"p{p:03d}", prompt, answer, text, gold, drift, rng))
    return pd.DataFrame(rows)


def _row(id_: str, prompt: str, answer: str, text: str, gold: float, drift: float, rng: np.random.Generator) -> dict:
    greedy = answer == "greedy"
    tokens = len(text.split()) + 1
    under_sft = -2.4 * tokens + float(rng.normal(0, 2))
    shift = float(rng.normal(drift, 1.0)) if drift else 0.0
    nan = float("nan")
    return {
        "prompt_id": id_,
        "prompt": prompt,
        "answer": answer,
        "text": text,
        "tokens": tokens,
        "ended": bool(rng.random() < 0.8),
        "gold": gold,
        "reward": nan if greedy else 2.0 * gold + float(rng.normal(0, 0.6)),
        "logprob": nan if greedy else under_sft + shift,
        "logprob_sft": nan if greedy else under_sft,
        "base_nll": nan if greedy else 3.5 * (tokens - 1) + float(rng.normal(0, 1)),
        "base_tokens": tokens - 1,
        "entropy": nan if greedy else 2.6 - 0.2 * drift,
    }


def _history(method: str) -> pd.DataFrame:
    steps = np.arange(1, 31)
    rng = np.random.default_rng(9)
    rise = 1 - np.exp(-steps / 10)
    history = {"step": steps, "grad_norm": 1.0 + rng.random(30)}
    if method == "dpo":
        history |= {"loss": 0.693 - 0.25 * rise, "rewards/margins": 1.3 * rise}
        history |= {"rewards/accuracies": 0.5 + 0.35 * rise + rng.normal(0, 0.03, 30)}
        return pd.DataFrame(history)
    history |= {"objective/scores": 1.4 * rise + rng.normal(0, 0.12, 30), "objective/kl": 4 * rise}
    history |= {"objective/entropy": 2.6 - rise}
    history |= {"tokens/response_length": 14 + 2 * rise, "tokens/eos_rate": 0.7 + 0.2 * rise, "beta": np.full(30, 0.03)}
    history |= {"policy/approxkl": 0.01 + 0.004 * rng.random(30), "policy/clipfrac": 0.1 + 0.05 * rng.random(30)}
    return pd.DataFrame(history | {"val/explained_variance": 0.6 * rise})


def _falling(steps: int, start: float, end: float) -> pd.DataFrame:
    step = np.arange(1, steps + 1)
    loss = end + (start - end) * np.exp(-step / (steps / 4)) + np.random.default_rng(4).normal(0, 0.03, steps)
    held_out = np.where(step % 10 == 0, loss + 0.08, np.nan)
    return pd.DataFrame({"step": step, "loss": loss, "eval_loss": held_out})


def _made(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
