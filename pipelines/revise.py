"""``python -m pipelines revise``: the SFT model's answers, criticised and revised by the constitution, as demonstrations.

Reads     artifacts/sft, prepared/prompts.parquet (split train); the model or endpoint and the principles of preferences.judge
Writes    ``--out``: a JSONL file of prompt and completion (the revision), with answer, principle and critique beside them
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from pipelines import config
from pipelines.context import seed_for
from pipelines.data.schemas import PROMPTS
from pipelines.data.tables import read_table, whole_file
from pipelines.errors import ConfigurationError, DataError
from pipelines.generate import Parser


def main(arguments: Sequence[str], root: Path) -> None:
    """Revise and write."""
    parser = Parser(prog="python -m pipelines revise")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=0)
    options = parser.parse_args(arguments)
    rows = revised(root, config.load(), options.limit)
    with whole_file(options.out) as partial:
        partial.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    print(f"{len(rows)} demonstrations in {options.out}: read them before you train on them")


def revised(root: Path, params: config.Params, limit: int) -> list[dict[str, str]]:
    """The rows to write, for the first ``limit`` prompts in training (0 = all). An empty revision is left out."""
    import torch

    from pipelines.data.tokens import decode, encode_prompts
    from pipelines.judges.principles import read_principles
    from pipelines.judges.revision import open_writer, revise
    from pipelines.models.generation import sample
    from pipelines.models.loading import load_causal_lm, load_tokenizer

    settings, generation = params.preferences.judge.constitution, params.preferences.generation
    if settings is None:
        raise ConfigurationError("preferences.judge.kind: a constitution revises answers; see docs/judges.md")
    torch.set_num_threads(params.runtime.threads)
    table = read_table(root / "artifacts" / "prepared" / "prompts.parquet", PROMPTS)
    prompts = table[table["split"] == "train"]["prompt"].tolist()[: limit or None]
    sft = root / "artifacts" / "sft" / "model"
    tokenizer, model = load_tokenizer(sft), load_causal_lm(sft)
    seeds = [seed_for(params.seed, "revise", prompt) for prompt in prompts]
    ids = (tokenizer.eos_token_id, tokenizer.pad_token_id)
    drawn = sample(model, *ids, encode_prompts(tokenizer, prompts), generation, seeds, params.preferences.precision)
    answers = [decode(tokenizer, tokens) for tokens in drawn.tokens]
    del model
    principles = read_principles(root / settings.principles, settings.principles).principles
    write = open_writer(settings, generation, root, params.seed)
    found = revise(prompts, answers, principles, write, generation.max_new_tokens, params.seed)
    rows = [
        {
            "prompt": row.prompt,
            "completion": row.revision,
            "answer": row.answer,
            "principle": row.principle,
            "critique": row.critique,
        }
        for row in found
        if row.revision
    ]
    if not rows:
        raise DataError(f"revise: no revision of {len(prompts)} answers has a text; ask another model, or raise max_new_tokens")
    return rows
