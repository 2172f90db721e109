"""Packing: every row whole, none sees another, and the loss is that of the rows one by one, token by token."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import BloomConfig, BloomForCausalLM

from pipelines import config
from pipelines.data.schemas import DEMONSTRATIONS
from pipelines.data.tables import read_table
from pipelines.errors import ConfigurationError, DataError
from pipelines.models.adapters import add_adapter
from pipelines.models.loading import load_causal_lm, load_tokenizer
from pipelines.training import hf, sft
from pipelines.training.packing import check_apart, collator, packed
from tests import small
from tests.training import helpers
from tests.training.test_sft import SMALL, _job

ROWS = st.lists(st.integers(1, 12), min_size=1, max_size=30)


def _row(length: int, start: int) -> dict[str, list[int]]:
    """A row of distinct tokens; the first third is its prompt."""
    ids = [2 + (start + place) % 290 for place in range(length)]
    cut = max(length // 3, 1)
    return {"input_ids": ids, "labels": [-100] * cut + ids[cut:]}


def _parts(sequence: dict[str, list[int]]) -> list[dict[str, list[int]]]:
    """The rows of a packed sequence."""
    ends = [sum(sequence["seq_lengths"][: place + 1]) for place in range(len(sequence["seq_lengths"]))]
    return [
        {name: sequence[name][end - size : end] for name in ("input_ids", "labels")}
        for end, size in zip(ends, sequence["seq_lengths"], strict=True)
    ]


@given(sizes=ROWS)
@settings(max_examples=20, deadline=None)
def test_every_row_is_whole_in_one_sequence(sizes: list[int]) -> None:
    rows = [_row(size, 7 * number) for number, size in enumerate(sizes)]
    sequences = packed(rows, 12)
    assert all(len(sequence["input_ids"]) == sum(sequence["seq_lengths"]) <= 12 for sequence in sequences)
    found = [part for sequence in sequences for part in _parts(sequence)]
    assert sorted(found, key=str) == sorted(rows, key=str)


def _logps(model: Any, row: dict[str, list[int]]) -> list[float]:
    """Oracle: a row by itself, without padding; the log-probability of each of its labels."""
    with torch.no_grad():
        logps = torch.log_softmax(model(input_ids=torch.tensor([row["input_ids"]])).logits[0].double(), -1)
    return [float(logps[place - 1, label]) for place, label in enumerate(row["labels"]) if label != -100]


@pytest.mark.parametrize("kernel", [SDPBackend.MATH, SDPBackend.FLASH_ATTENTION, None], ids=["math", "flash", "eager"])
def test_the_packed_log_probabilities_are_those_of_the_rows_token_by_token(kernel: Any) -> None:
    model = small.llama()
    if kernel is None:
        model.set_attn_implementation("eager")
    rows = [_row(size, 31 * size) for size in (3, 17, 9, 2, 24, 5, 11)]
    sequences = packed(rows, 30)
    batch = collator(0)(sequences)
    labels = batch.pop("labels")[0]
    assert batch["input_ids"].shape == (1, sum(map(len, (row["input_ids"] for row in rows))))
    with torch.no_grad(), sdpa_kernel(kernel or SDPBackend.MATH):
        logps = torch.log_softmax(model(**batch, use_cache=False).logits[0].double(), -1)
    found = [float(logps[place - 1, label]) for place, label in enumerate(labels.tolist()) if label != -100]
    expected = [logp for sequence in sequences for part in _parts(sequence) for logp in _logps(model, part)]
    assert found == pytest.approx(expected, abs=1e-5)


def test_the_first_loss_is_that_of_the_rows_of_the_first_sequences(tmp_path: Path) -> None:
    """Oracle: the untrained model, row by row without padding or packing, over all rows of the step's sequences."""
    job = _job(tmp_path, packing=True, max_length=60, batch_size=4, micro_batch_size=2)
    sft.train(job, helpers.worker())
    tokenizer, model = load_tokenizer(job.base), load_causal_lm(job.base)
    table = read_table(job.demonstrations, DEMONSTRATIONS)
    sequences = packed(sft._rows(tokenizer, table[table["split"] == "train"], "completion"), 60)
    step = [sequences[number] for number in hf.data_order(len(sequences), 2, 4, 7)[:4]]
    logps = [logp for sequence in step for part in _parts(sequence) for logp in _logps(model, part)]
    history = read_table(job.out / "history.parquet")
    assert history["loss"][0] == pytest.approx(-sum(logps) / len(logps), abs=1e-5)
    assert history["loss"].iloc[-1] < history["loss"][0] - 0.3
    figures = helpers.figures(job.out)
    assert figures["packed_sequences"] == len(sequences) < figures["demonstrations"] == 24
    assert figures["tokens_q100"] <= 60


def test_the_held_out_loss_does_not_hang_on_packing(tmp_path: Path) -> None:
    jobs = [_job(tmp_path, str(packing), packing=packing, learning_rate=1e-12) for packing in (False, True)]
    for job in jobs:
        sft.train(job, helpers.worker())
    losses = [helpers.figures(job.out)["eval_loss"] for job in jobs]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


def test_a_packed_run_repeats_to_the_last_bit(tmp_path: Path) -> None:
    once, again = (_job(tmp_path, name, packing=True, max_length=48, batch_size=4, micro_batch_size=2) for name in "ab")
    for job in (once, again):
        sft.train(job, helpers.worker())
    assert helpers.digests(once.out) == helpers.digests(again.out)


def test_a_model_that_looks_across_rows_is_refused() -> None:
    """Bloom has no positions but distances to all tokens before, and takes no notice of ``position_ids``."""
    rows = [_row(6, 0), _row(9, 40)]
    bloom = BloomForCausalLM(BloomConfig(vocab_size=300, hidden_size=32, n_layer=2, n_head=2)).eval()
    with pytest.raises(ConfigurationError, match="sft.packing: bloom looks from a packed row into the one before it"):
        check_apart(bloom, rows)
    check_apart(small.llama(), rows)
    check_apart(add_adapter(small.llama(), config.Sft(adapter="lora", lora_r=2)), rows)


def test_rows_that_do_not_fit_are_refused_and_settings_that_contradict(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="exceeds the model's context of 12"):
        sft.train(_job(tmp_path, packing=True, max_length=12), helpers.worker())
    with pytest.raises(ConfigurationError, match=r"sft\.max_length 500 exceeds the model's context of 128"):
        sft.train(_job(tmp_path, max_length=500), helpers.worker())
    with pytest.raises(ValueError, match="packing and group_by_length exclude each other"):
        config.Sft(**SMALL, packing=True, group_by_length=True)
