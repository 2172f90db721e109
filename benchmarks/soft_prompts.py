"""Soft prompts of several lengths and beginnings before frozen models of three sizes: do the differences shrink with the model?

    python benchmarks/soft_prompts.py --seeds 1 2 3

The models (0.2, 1.1 and 7.3 million parameters) are trained from scratch on the text of the recipe ``tiny``, with as many
tokens each; then its SFT stage trains nothing but a soft prompt (Lester et al. 2021 asked the same of T5). Measured is what
the answers of held-out plays cost. The same command goes on after one that was cut. ``--only`` takes the
entries whose name contains one of its words.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from common import facts, save
from staged import Entry, demonstrations, made, measured, name_of, nats, params, place, recipe, run_stage

SIZES: dict[str, dict[str, int]] = {
    "small": {"hidden_size": 64, "layers": 2, "heads": 4},
    "middle": {"hidden_size": 128, "layers": 4, "heads": 4},
    "large": {"hidden_size": 256, "layers": 8, "heads": 8},
}
SCRATCH = {"steps": 400, "batch_size": 16, "learning_rate": 3e-3}
TEXT = "Speak on as the play does, in the speaker's own words, and stop where the clause ends:"
PROMPTS: dict[str, dict[str, Any] | None] = {
    "no prompt": None,
    "1, vocabulary": {"prompt_length": 1},
    "4, vocabulary": {"prompt_length": 4},
    "16, vocabulary": {"prompt_length": 16},
    "16, random": {"prompt_length": 16, "prompt_init": "random"},
    "16, text": {"prompt_length": 16, "prompt_init": "text", "prompt_text": TEXT},
}
SETTINGS: dict[str, dict[str, Any]] = {
    "prepare": {"demonstrations": 1024, "train_prompts": 8, "validation_prompts": 32, "test_prompts": 128},
    "sft": {"adapter": "prompt", "learning_rate": 0.03, "num_train_epochs": 2, "save_steps": 1000},
}
THREADS = {"small": 1, "middle": 1, "large": 2}
"""Where cores are shared, two threads spend a small model's time waiting for each other."""


def main() -> None:
    """Measure what has not been measured, then record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--only", nargs="+", default=[""], metavar="WORD", help="of the entries' names (default: all)")
    options = parser.parse_args()
    entries: list[Entry] = [
        {"model": size, "seed": seed, "prompt": prompt} for size in SIZES for seed in options.seeds for prompt in PROMPTS
    ]
    entries = [entry for entry in entries if any(word in name_of(entry) for word in options.only)]
    found = measured("soft_prompts", [SIZES, SCRATCH, PROMPTS, SETTINGS, THREADS], entries, one)
    command = "python benchmarks/soft_prompts.py --seeds " + " ".join(map(str, options.seeds))
    save("soft_prompts", {**facts(command), "entries": found})


def one(folder: Path, entry: Entry) -> Entry:
    """A soft prompt before a frozen model, which is made once for all seeds."""
    own, tuned = settings(entry)
    base = made(folder / entry["model"], own, ["prepare", "base"]) / "base"
    prepared = made(folder / f"prepared-{entry['seed']}", tuned, ["prepare"]) / "prepared"
    rows, precision = demonstrations(prepared, "test"), tuned.evaluate.precision
    if PROMPTS[entry["prompt"]] is None:
        return {"nats": nats(base, rows, precision), "parameters": parameters(base)}
    with place(folder, {"prepared": prepared, "base": base}) as root:
        run_stage("sft", tuned, root)
        return {"nats": nats(root / "artifacts" / "sft" / "model", rows, precision)}


def settings(entry: Entry) -> tuple[Any, Any]:
    """The parameters of the frozen model's making, and of the soft prompt's."""
    scratch = recipe("tiny")["base"]["scratch"] | SCRATCH | SIZES[entry["model"]]
    common = {**SETTINGS, "runtime": {"threads": THREADS[entry["model"]]}}
    tuned = params("tiny", entry["seed"], common, {"sft": PROMPTS[entry["prompt"]] or {}})
    return params("tiny", 1, common, {"base": {"scratch": scratch}}), tuned


def parameters(model: Path) -> int:
    """How many a model has."""
    from pipelines.models.loading import load_causal_lm

    return sum(weights.numel() for weights in load_causal_lm(model).parameters())


if __name__ == "__main__":
    main()
