"""Several rows in one sequence, so that no step is spent on padding: best-fit packing, by TRL.

A packed sequence has positions that start anew with every row, and no attention mask. From the positions transformers
builds a mask in blocks (PyTorch's attention) or hands the rows' borders to the kernel (flash attention); a model that takes
no notice of positions would see the row before, and is refused.

Paper: Krell et al. 2021 (arXiv:2107.02027). Axes: T tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from datasets import Dataset, disable_progress_bars
from trl import pack_dataset
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from pipelines.errors import ConfigurationError

TOLERANCE = 1e-4
"""Of the largest logit: float32 rounds to some 1e-6 of it, a row that is seen by another moves it by far more."""

Row = dict[str, list[int]]


def packed(rows: list[Row], length: int) -> list[Row]:
    """Rows (``input_ids`` [T], ``labels`` [T], T <= ``length``), each whole in one sequence of up to ``length`` tokens.

    A sequence has ``input_ids``, ``labels`` and ``seq_lengths``, the tokens of each of its rows.
    """
    disable_progress_bars()
    return pack_dataset(Dataset.from_list(rows), length, "bfd", {"batch_size": len(rows)}).to_list()


def collator(pad_token_id: int) -> Callable[[list[Row]], dict[str, Any]]:
    """Batches of packed sequences, joined into one of all their tokens; rows that are not packed are padded as ever."""
    joined = DataCollatorForLanguageModeling(pad_token_id, padding_free=True)
    padded = DataCollatorForLanguageModeling(pad_token_id)
    return lambda rows: (joined if "seq_lengths" in rows[0] else padded)(rows)


def check_apart(model: Any, rows: list[Row]) -> None:
    """Raise ConfigurationError if what a model says to a row hangs on the row that it is packed behind."""
    one, two = rows[0]["input_ids"], rows[-1]["input_ids"]
    device = next(model.parameters()).device
    ids, positions = torch.tensor([one + two]), torch.tensor([[*range(len(one)), *range(len(two))]])
    with torch.no_grad():
        alone = model(input_ids=torch.tensor([two], device=device), use_cache=False).logits[0]
        behind = model(input_ids=ids.to(device), position_ids=positions.to(device), use_cache=False).logits[0, len(one) :]
    gap = float((alone - behind).abs().max() / alone.abs().max())
    if gap > TOLERANCE:
        raise ConfigurationError(
            f"sft.packing: {model.config.model_type} looks from a packed row into the one before it (its logits move by"
            f" {gap:.2g} of the largest); set packing: false, and group_by_length: true to save padding"
        )
