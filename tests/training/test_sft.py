"""SFT: labels token by token, the loss against cross-entropy by hand, resumption to the last bit, failures that show."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import TrainingArguments

from pipelines import config
from pipelines.data.schemas import DEMONSTRATIONS
from pipelines.data.tables import read_table
from pipelines.data.tokens import encode_completions, encode_prompt, examples
from pipelines.errors import ConfigurationError, DataError
from pipelines.models.loading import load_causal_lm, load_tokenizer
from pipelines.training import hf, sft
from tests import small
from tests.training import helpers

SMALL: dict[str, Any] = {
    "adapter": "none",
    "precision": "float32",
    "learning_rate": 1e-2,
    "batch_size": 8,
    "micro_batch_size": 8,
    "save_steps": 2,
    "num_train_epochs": 2,
}


def _job(folder: Path, name: str = "run", **some: Any) -> sft.Job:
    base = folder / "base" if (folder / "base").exists() else small.model_folder(folder / "base")
    table = folder / "demonstrations.parquet"
    return sft.Job(
        base=base,
        demonstrations=table if table.exists() else helpers.demonstrations(folder),
        out=folder / name / "out",
        scratch=folder / name,
        training=config.Sft(**(SMALL | some)),
        seed=7,
    )


def test_labels_token_by_token(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(small.model_folder(tmp_path / "base"))
    prompt, completion = "HAMLET: To be,", " or not to be"
    row = sft.labelled(examples(tokenizer, [prompt], [completion])[0])
    asked, answered = encode_prompt(tokenizer, prompt), encode_completions(tokenizer, [completion], [True])[0]
    assert row["input_ids"] == asked + answered
    assert row["labels"] == [-100] * len(asked) + answered
    assert row["labels"][-1] == tokenizer.eos_token_id != tokenizer.pad_token_id


def test_the_first_loss_is_cross_entropy_over_the_completions_of_the_global_batch(tmp_path: Path) -> None:
    """Oracle: the untrained model, row by row without padding, log-probabilities of completion tokens and EOS only."""
    job = _job(tmp_path)
    sft.train(job, helpers.worker())
    table = read_table(job.demonstrations, DEMONSTRATIONS)
    train = table[table["split"] == "train"].reset_index(drop=True)
    tokenizer, model = load_tokenizer(job.base), load_causal_lm(job.base)
    total, count = 0.0, 0
    for number in hf.data_order(len(train), 2, 8, 7)[:8]:
        asked = encode_prompt(tokenizer, train["prompt"][number])
        answered = encode_completions(tokenizer, [train["completion"][number]], [True])[0]
        with torch.no_grad():
            logps = torch.log_softmax(model(input_ids=torch.tensor([asked + answered])).logits[0].double(), -1)
        total -= sum(float(logps[len(asked) + place - 1, token]) for place, token in enumerate(answered))
        count += len(answered)
    history = read_table(job.out / "history.parquet")
    assert history["loss"][0] == pytest.approx(total / count, abs=1e-5)
    assert history.columns[0] == "step"
    assert history["step"].tolist() == [1, 2, 3, 4, 5, 6]
    assert history["learning_rate"][0] == 1e-2
    assert history["loss"].iloc[-1] < history["loss"][0] - 0.5


@pytest.mark.parametrize("micro", [2, 4])
def test_micro_batches_give_the_step_of_the_whole_batch(tmp_path: Path, micro: int) -> None:
    whole, parts = _job(tmp_path, "whole"), _job(tmp_path, "parts", micro_batch_size=micro)
    for job in (whole, parts):
        sft.train(job, helpers.worker())
    one, two = (read_table(job.out / "history.parquet") for job in (whole, parts))
    np.testing.assert_allclose(one["loss"], two["loss"], atol=1e-5)
    np.testing.assert_allclose(one["grad_norm"], two["grad_norm"], rtol=1e-4)


@pytest.mark.parametrize(("adapter", "precision"), [("lora", "bf16"), ("none", "float32"), ("prompt", "float32")])
def test_a_run_repeats_and_resumes_to_the_last_bit(tmp_path: Path, adapter: str, precision: str) -> None:
    once, killed = (_job(tmp_path, name, adapter=adapter, precision=precision) for name in ("once", "killed"))
    for job in (once, killed):
        sft.train(job, helpers.worker())
    expected = helpers.digests(once.out)
    assert helpers.digests(killed.out) == expected
    assert ("adapter/adapter_config.json" in expected) == (adapter != "none")
    assert not [name for name in expected if name.endswith((".bin", ".md", ".pt"))]
    # killed after step 4 of 6, before its next checkpoint
    shutil.rmtree(killed.scratch / "checkpoints" / "checkpoint-6")
    shutil.rmtree(killed.out)
    journal = tmp_path / "journal"
    sft.train(killed, helpers.worker(journal))
    assert helpers.steps(journal) == [5, 6]
    assert helpers.digests(killed.out) == expected
    # and once more when all was done: no step more
    shutil.rmtree(killed.out)
    sft.train(killed, helpers.worker(tmp_path / "again"))
    assert helpers.steps(tmp_path / "again") == []
    assert helpers.digests(killed.out) == expected


@pytest.mark.parametrize("damage", ["flip", "cut", "optimizer gone", "manifest gone", "empty"])
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    job = _job(tmp_path, adapter="lora")
    sft.train(job, helpers.worker())
    expected = helpers.digests(job.out)
    newest = job.scratch / "checkpoints" / "checkpoint-6"
    weights = newest / hf.TRAINABLE
    content = bytearray(weights.read_bytes())
    if damage == "flip":
        content[-5] ^= 1
        weights.write_bytes(bytes(content))
    elif damage == "cut":
        weights.write_bytes(bytes(content[: len(content) // 2]))
    elif damage == "optimizer gone":
        (newest / "optimizer.pt").unlink()
    elif damage == "manifest gone":
        (newest / hf.MANIFEST).unlink()
    else:
        shutil.rmtree(newest)
        newest.mkdir()
    journal = tmp_path / "journal"
    sft.train(job, helpers.worker(journal))
    assert "checkpoint-6 passed over" in caplog.text
    assert helpers.steps(journal) == [5, 6]
    assert helpers.digests(job.out) == expected


def test_a_loss_that_is_not_finite_is_an_error_and_never_saved(tmp_path: Path) -> None:
    job = _job(tmp_path, learning_rate=1e30, save_steps=1)
    with pytest.raises(ConfigurationError, match="lower learning_rate"):
        sft.train(job, helpers.worker())
    for folder in hf.checkpoints(job.scratch / "checkpoints"):
        if (folder / hf.MANIFEST).exists():
            weights = hf.load_file(folder / hf.TRAINABLE)
            assert all(bool(weight.isfinite().all()) for weight in weights.values())
    assert not (job.out / "model").exists()


def test_data_order_is_a_pure_function_of_seed_epoch_and_step() -> None:
    order = hf.data_order(10, 3, 4, 7)
    assert len(order) == 28  # 30 rows, whole batches of 4
    assert sorted(order[:10]) == sorted(order[10:20]) == list(range(10))
    assert order[:10] != order[10:20]
    assert order == hf.data_order(10, 3, 4, 7) != hf.data_order(10, 3, 4, 8)
    assert hf.data_order(10, 2, 4, 7) == order[:20]
    assert len(hf.data_order(3, 1, 8, 7)) == 8


def test_bad_tables_are_refused(tmp_path: Path) -> None:
    helpers.demonstrations(tmp_path, train=4, validation=0)
    with pytest.raises(DataError, match=r"demonstrations \(validation\): 0 rows"):
        sft.train(_job(tmp_path), helpers.worker())
    table = pd.DataFrame(read_table(tmp_path / "demonstrations.parquet"))
    table.loc[0, "prompt"] = "word " * 200
    from pipelines.data.tables import write_table

    write_table(table, tmp_path / "demonstrations.parquet", DEMONSTRATIONS)
    with pytest.raises(DataError, match="exceeds the model's context of 128"):
        sft.train(_job(tmp_path), helpers.worker())


def test_rows_that_are_cut_or_left_out_are_counted(tmp_path: Path) -> None:
    """A prompt of 200 words is cut, an answer of 200 words does not fit; the other 22 rows are as they were."""
    helpers.demonstrations(tmp_path)
    table = pd.DataFrame(read_table(tmp_path / "demonstrations.parquet"))
    table.loc[0, "prompt"] = "word " * 200
    table.loc[1, "completion"] = " word" * 200
    from pipelines.data.tables import write_table

    write_table(table, tmp_path / "demonstrations.parquet", DEMONSTRATIONS)
    job = _job(tmp_path, excess_length="truncate", num_train_epochs=1)
    sft.train(job, helpers.worker())
    figures = helpers.figures(job.out)
    assert (figures["rows_truncated"], figures["rows_dropped_by_length"], figures["demonstrations"]) == (1, 1, 23)
    assert figures["tokens_q100"] == 128.0


def test_the_global_batch_is_shared_out_or_refused() -> None:
    training = config.Training(batch_size=32, micro_batch_size=32)
    assert [hf.micro_batch(training, workers) for workers in (1, 2, 4)] == [32, 16, 8]
    with pytest.raises(ConfigurationError, match="3 workers"):
        hf.micro_batch(training, 3)


def test_arguments_hide_nothing(tmp_path: Path) -> None:
    job = _job(tmp_path)
    arguments = TrainingArguments(
        **{k: v for k, v in hf.arguments(job.training, helpers.worker(), tmp_path, 6, 7).items() if k != "max_length"}
    )
    assert not arguments.logging_nan_inf_filter
    assert arguments.report_to == []
    assert arguments.use_cpu
