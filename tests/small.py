"""Real models and tokenizers, too small to be slow: what tests train and sample."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from pipelines.models.loading import save_model

TEXT = [
    "HAMLET: To be, or not to be, that is the question.",
    "JULIET: Good night, good night! Parting is such sweet sorrow,",
    "MACBETH: Tomorrow, and tomorrow, and tomorrow, creeps in this petty pace",
    "LEAR: Blow, winds, and crack your cheeks! rage! blow!",
]
PAD, EOS = "<|endoftext|>", "<|im_end|>"


def tokenizer() -> Any:
    """A byte-level BPE tokenizer of 300 tokens with separate pad and EOS tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=[PAD, EOS], initial_alphabet=alphabet, show_progress=False)
    core.train_from_iterator(TEXT, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token=PAD, eos_token=EOS)


def llama(seed: int = 0, hidden: int = 32, layers: int = 2) -> Any:
    """A randomly initialised Llama over the small vocabulary."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
    )
    return LlamaForCausalLM(config).eval()


def model_folder(folder: Path, seed: int = 0, hidden: int = 32) -> Path:
    """A small model with its tokenizer as a plain transformers folder."""
    save_model(llama(seed, hidden), tokenizer(), folder)
    return folder
