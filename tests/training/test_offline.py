"""ORPO, KTO and rejection sampling: what they report against our own log-probabilities, their rows, resumption."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pipelines import config
from pipelines.context import seed_for
from pipelines.data.schemas import LABELS
from pipelines.data.tables import write_table
from pipelines.errors import ConfigurationError, DataError
from pipelines.evaluation.optimisation import best_of_kl
from pipelines.models.generation import response_logprobs, sample
from pipelines.models.loading import load_causal_lm, load_tokenizer
from pipelines.training import kto, orpo, rejection
from pipelines.training.offline import Job
from pipelines.training.pairs import read_rows
from pipelines.training.rewards import Term
from tests import small
from tests.training import helpers, onpolicy, toy


def _job(method: str, folder: Path, name: str = "run", **some: Any) -> Any:
    sft, out, scratch = helpers.sft_folder(folder), folder / name / "out", folder / name
    if method == "rejection":
        best = folder / "best.parquet"
        rows = read_rows(helpers.pairs(folder), load_tokenizer(sft))["train"]
        kept = [{"prompt_ids": row["prompt_ids"], "answer_ids": row["chosen_ids"]} for row in rows]
        write_table(pd.DataFrame(kept).assign(score=1.0, score_mean=0.5, ended=True), best)
        return rejection.Job(sft, best, out, scratch, config.Rejection(method="rejection", **(helpers.SMALL | some)), 7)
    table = some.pop("table", None) or helpers.pairs(folder)
    kinds: dict[str, Any] = {"orpo": config.Orpo, "kto": config.Kto}
    return Job(sft, table, out, scratch, kinds[method](method=method, **(helpers.SMALL | some)), 7)


TRAIN = {"orpo": orpo.train, "kto": kto.train, "rejection": rejection.train}


@pytest.mark.parametrize(("method", "epochs"), [("orpo", 2), ("kto", 1), ("rejection", 2)])
def test_a_run_repeats_and_resumes_to_the_last_bit(tmp_path: Path, method: str, epochs: int) -> None:
    """32 pairs over 2 epochs in batches of 8 are 8 steps; kto has two answers a pair. Checkpoints are those of 6 and 8."""
    once, killed = (_job(method, tmp_path, name, num_train_epochs=epochs) for name in ("once", "killed"))
    for job in (once, killed):
        TRAIN[method](job, helpers.worker())
    expected = helpers.digests(once.out)
    assert helpers.digests(killed.out) == expected
    assert sorted(expected)[:2] == ["adapter/adapter_config.json", "adapter/adapter_model.safetensors"]
    shutil.rmtree(killed.scratch / "checkpoints" / "checkpoint-8")
    shutil.rmtree(killed.out)
    TRAIN[method](killed, helpers.worker(tmp_path / "journal"))
    assert helpers.steps(tmp_path / "journal") == [7, 8]
    assert helpers.digests(killed.out) == expected


def _logps(folder: Path, rows: list[dict[str, Any]], side: str) -> np.ndarray:
    """Log-probability of each answer under a model folder, by our own code: [B]."""
    answers = [row[side] for row in rows]
    values = response_logprobs(load_causal_lm(folder), [row["prompt_ids"] for row in rows], answers, 1.0, "float32", 4)
    return np.array([float(value.sum()) for value in values])


@pytest.mark.parametrize("adapter", ["lora", "none"])
def test_orpo_reports_the_mean_log_probability_of_a_token(tmp_path: Path, adapter: str) -> None:
    job = _job("orpo", tmp_path, adapter=adapter, learning_rate=1e-2 if adapter == "lora" else 1e-3, beta=0.5)
    before = helpers.digests(job.sft)
    orpo.train(job, helpers.worker())
    assert helpers.digests(job.sft) == before
    figures = helpers.figures(job.out)
    rows = read_rows(job.pairs, load_tokenizer(job.sft))["validation"]
    odds = {}
    for side in ("chosen", "rejected"):
        lengths = np.array([len(row[f"{side}_ids"]) for row in rows])
        logp = _logps(job.out / "model", rows, f"{side}_ids") / lengths
        assert figures[f"eval_rewards/{side}"] == pytest.approx(0.5 * logp.mean(), abs=1e-4)
        odds[side] = logp - np.log1p(-np.exp(logp))
    ratio = -np.log1p(np.exp(odds["rejected"] - odds["chosen"]))
    assert figures["eval_log_odds_ratio"] == pytest.approx(ratio.mean(), abs=1e-4)
    assert figures["eval_loss"] == pytest.approx(figures["eval_nll_loss"] - 0.5 * ratio.mean(), abs=1e-4)
    assert figures["eval_rewards/accuracies"] == 1.0
    assert figures["train_pairs"] == 32


@pytest.mark.parametrize("adapter", ["lora", "none"])
def test_kto_rewards_are_beta_times_the_log_ratio_to_the_sft_model(tmp_path: Path, adapter: str) -> None:
    """Micro-batches of 16 hold all 16 held-out answers, so their means are the table's."""
    rate = 1e-2 if adapter == "lora" else 1e-3
    job = _job("kto", tmp_path, adapter=adapter, learning_rate=rate, batch_size=16, micro_batch_size=16)
    kto.train(job, helpers.worker())
    figures = helpers.figures(job.out)
    rows = read_rows(job.pairs, load_tokenizer(job.sft))["validation"]
    for side in ("chosen", "rejected"):
        ratio = _logps(job.out / "model", rows, f"{side}_ids") - _logps(job.sft, rows, f"{side}_ids")
        assert figures[f"eval_rewards/{side}"] == pytest.approx(0.1 * ratio.mean(), abs=1e-4)
    margin = figures["eval_rewards/chosen"] - figures["eval_rewards/rejected"]
    assert figures["eval_rewards/margins"] == pytest.approx(margin, abs=1e-5)
    assert margin > 0.1
    assert figures["eval_kl"] >= 0.0
    assert figures["eval_loss"] < 0.5  # where it starts: 1 - sigmoid(0)
    assert (figures["train_answers"], figures["good"]) == (64, 0.5)


def test_kto_sets_each_prompt_beside_its_neighbours_answer() -> None:
    """The KL's answers of a micro-batch are its own, one further; padding is masked, not learnt."""
    rows = [
        {"prompt_ids": [5], "completion_ids": [6, 7], "label": True},
        {"prompt_ids": [8, 9], "completion_ids": [4], "label": False},
    ]
    batch = kto.Mismatched(pad_token_id=0)(rows)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 9, 4]]
    assert batch["KL_input_ids"].tolist() == [[5, 4, 0, 0], [8, 9, 6, 7]]
    assert batch["KL_completion_mask"].tolist() == [[0, 1, 0, 0], [0, 0, 1, 1]]
    assert batch["label"].tolist() == [True, False]


def _labels(folder: Path, good: list[bool]) -> Path:
    """People's labels on answers to as many prompts; the last two are the validation split."""
    rows = [
        {
            "id": f"l{number}",
            "prompt_id": f"q{number}",
            "prompt": f"JULIET: hour {number}",
            "completion": " sweet day" if label else " sour night",
            "label": label,
            "judge": "people",
            "group": "romeo",
            "source": "test",
            "split": "validation" if number >= len(good) - 2 else "train",
        }
        for number, label in enumerate(good)
    ]
    write_table(pd.DataFrame(rows), folder / "labels.parquet", LABELS)
    return folder / "labels.parquet"


def test_kto_learns_from_single_labels(tmp_path: Path) -> None:
    """No pairs: three in four answers are good, every one ends with EOS."""
    table = _labels(tmp_path, [True, True, True, False] * 6 + [True, False])
    job = _job("kto", tmp_path, table=table, learns_from=config.LABELS_FILE, undesirable_weight=3.0)
    rows, _ = kto.read_answers(job, load_tokenizer(small.model_folder(tmp_path / "other")), 128)
    assert {row["completion_ids"][-1] for row in rows["train"]} == {1}
    kto.train(job, helpers.worker())
    figures = helpers.figures(job.out)
    assert (figures["train_answers"], figures["good"]) == (24, 0.75)
    assert figures["eval_rewards/chosen"] > figures["eval_rewards/rejected"]


def test_kto_refuses_what_it_cannot_learn_from(tmp_path: Path) -> None:
    table = _labels(tmp_path, [True] * 10 + [True, False])
    job = _job("kto", tmp_path, table=table, learns_from=config.LABELS_FILE)
    with pytest.raises(DataError, match=r"labels.parquet \(train\): no answer is labelled bad"):
        kto.train(job, helpers.worker())
    alone = _job("kto", tmp_path, "alone", batch_size=2, micro_batch_size=2)
    crowd = helpers.worker()
    with pytest.raises(ConfigurationError, match="leaves 2 workers less than two answers each"):
        kto.make_trainer(alone, type(crowd)(0, 2, "cpu", crowd.journal), None, None, {"train": [], "validation": []})


def _sampling(folder: Path, reward: Any = None, answers: int = 5) -> rejection.Sampling:
    entry = config.Rejection(
        method="rejection",
        precision="float32",
        answers=answers,
        generation=config.Generation(max_new_tokens=6, batch_size=3),
    )
    return rejection.Sampling(folder, (Term("count", 2.0, reward or onpolicy.CountReward()),), entry, 5)


PROMPTS = [(f"q{number}", prompt) for number, prompt in enumerate(onpolicy.PROMPTS)]


def test_the_best_answer_is_kept(tmp_path: Path) -> None:
    """Against all answers drawn anew from their seeds and scored by hand; the same however the prompts are shared out."""
    folder = onpolicy.make_folder(tmp_path / "sft")
    job = _sampling(folder)
    rows = rejection.best_answers(job, PROMPTS, helpers.worker())
    model = load_causal_lm(folder)
    for (id_, prompt), row in zip(PROMPTS, rows, strict=True):
        seeds = [seed_for(5, "rejection", id_, number) for number in range(5)]
        drawn = sample(model, 1, 0, [prompt] * 5, job.params.generation, seeds, "float32")
        scores = [2.0 * sum(token % 2 == 0 for token in answer) / len(answer) for answer in drawn.tokens]
        assert row["score"] == pytest.approx(max(scores))
        assert row["answer_ids"] == drawn.tokens[scores.index(max(scores))]
        assert row["score_mean"] == pytest.approx(sum(scores) / 5)
        assert row["ended"] == (row["answer_ids"][-1] == 1)
    parts = [rejection.best_answers(job, part, helpers.worker()) for part in (PROMPTS[:2], PROMPTS[2:])]
    assert parts[0] + parts[1] == rows


def test_a_score_that_is_no_number_is_refused(tmp_path: Path) -> None:
    poison = onpolicy.Poison((tuple(onpolicy.PROMPTS[0]),))
    with pytest.raises(DataError, match="rewards: count gave nan for 5 of 15 answers"):
        rejection.best_answers(_sampling(onpolicy.make_folder(tmp_path / "sft"), poison), PROMPTS, helpers.worker())


@pytest.mark.slow
def test_rejection_reaches_the_best_of_n(tmp_path: Path) -> None:
    """The toy's 64 sequences as often as best of 4 gives them: F(r)^4 - F(r-)^4, F being the reference's distribution of rewards.

    SFT on them ends at that policy, whose KL to the reference is log 4 - 3/4 = 0.636 nats but for the sums of probabilities of
    single sequences, which a continuous reward would not have: the exact KL of the table is the oracle, and below the bound.
    """
    folder = toy.make_folder(tmp_path / "toy")
    reference = toy.distribution(folder)
    reference = reference / reference.sum()
    order = toy.rewards_table().argsort()
    below = reference[order].cumsum(0) - reference[order]
    best = reference.new_zeros(64).index_copy_(0, order, (below + reference[order]) ** 4 - below**4)
    counts = (1500 * best).round().int().tolist()
    rows = [
        {"prompt_ids": toy.PROMPT, "answer_ids": sequence}
        for sequence, count in zip(toy.SEQUENCES, counts, strict=True)
        for _ in range(count)
    ]
    write_table(pd.DataFrame(rows).assign(score=0.0, score_mean=0.0, ended=False), tmp_path / "best.parquet")
    entry = config.Rejection(
        method="rejection",
        adapter="none",
        precision="float32",
        learning_rate=1e-2,
        warmup_ratio=0.05,
        lr_scheduler_type="cosine",
        batch_size=len(rows),
        micro_batch_size=len(rows),
        num_train_epochs=200,
        save_steps=10_000,
    )
    job = rejection.Job(folder, tmp_path / "best.parquet", tmp_path / "out", tmp_path / "scratch", entry, 1)
    rejection.train(job, helpers.worker())
    found = toy.distribution(tmp_path / "out" / "model")
    assert toy.variation(found, best) < 0.02
    kl = float((found * (found / reference).log()).sum())
    exact = float((best * (best / reference).log()).sum())
    assert kl == pytest.approx(exact, abs=0.02)
    assert exact < float(best_of_kl(4))
    assert json.loads((tmp_path / "out" / "metrics.json").read_text(encoding="utf-8"))["prompts"] == len(rows)
