"""What the diversity of an instruction mixture is worth: number of tasks, of templates, and the mixture's temperature.

    python benchmarks/mixtures.py --data FOLDER --seeds 1 2 3

The recipe ``flan_mixture`` up to its SFT model, with 160 demonstrations whatever they are, from rows like T0's: FOLDER holds
.jsonl or .jsonl.gz files with dataset, template, row, prompt and completion. Three tasks, and one template of each of the six
others, are held out; measured is what held-out answers cost. The same command goes on after one that was cut. ``--only``
takes the entries whose name contains one of its words.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
from functools import partial
from pathlib import Path
from typing import Any

from common import facts, save
from staged import Entry, demonstrations, made, measured, name_of, nats, params, place, recipe, run_stage

HELD_OUT_TASKS = ("cosmos_qa", "quarel", "wiqa")
HELD_OUT_TEMPLATES = {
    "common_gen": "Example_prompt",
    "commonsense_qa": "most_suitable_answer",
    "paws_labeled_final": "Meaning",
    "qasc": "qa_with_separated_facts_5",
    "quartz": "having_read_above_passage",
    "social_i_qa": "I_was_wondering",
}
"""One of each task that is trained on."""
LONGEST = 400
"""Characters of a prompt: with longer ones every training takes a minute more."""
ANSWERS = 96
"""Held-out answers of each kind that are read, or as many as there are."""
SETTINGS: dict[str, dict[str, Any]] = {
    "prepare": {
        "demonstrations": 160,
        "train_prompts": 8,
        "validation_prompts": 16,
        "test_prompts": 8,
        "test_fraction": 0.25,
    },
    "sft": {"learning_rate": 1e-3, "batch_size": 8, "micro_batch_size": 8, "save_steps": 1000},
}
MIXTURES: dict[str, dict[str, Any] | None] = {
    "not tuned": None,
    "1 task": {"tasks": 1},
    "3 tasks": {"tasks": 3},
    "6 tasks": {},
    "1 template a task": {"templates": 1},
    "3 templates a task": {"templates": 3},
    "temperature 1": {"temperature": 1.0},
    "temperature 2": {"temperature": 2.0},
    "temperature 8": {"temperature": 8.0},
}
"""``6 tasks`` have all their templates. A temperature shares out tasks of unequal size."""


def main() -> None:
    """Measure what has not been measured, then record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--only", nargs="+", default=[""], metavar="WORD", help="of the entries' names (default: all)")
    options = parser.parse_args()
    rows = read(options.data)
    entries: list[Entry] = [{"seed": seed, "mixture": name} for seed in options.seeds for name in MIXTURES]
    entries = [entry for entry in entries if any(word in name_of(entry) for word in options.only)]
    settings = [HELD_OUT_TASKS, HELD_OUT_TEMPLATES, ANSWERS, SETTINGS, MIXTURES, rows]
    found = measured("mixtures", settings, entries, partial(one, rows))
    command = f"python benchmarks/mixtures.py --data {options.data.name} --seeds " + " ".join(map(str, options.seeds))
    save("mixtures", {**facts(command), "entries": found})


def one(rows: list[Entry], folder: Path, entry: Entry) -> Entry:
    """The base model tuned on a mixture of the tasks that are not held out."""
    seed, knob = entry["seed"], MIXTURES[entry["mixture"]]
    base = made(folder / "base", params("flan_mixture", 1), ["base"]) / "base"
    trained = [row for row in rows if row["dataset"] in HELD_OUT_TEMPLATES]
    held_out = [row for row in rows if row["dataset"] in HELD_OUT_TASKS]

    # 1. what is measured: the same for all entries of a seed
    everything = prepare({"sampling": "all"}, trained=trained, held_out=held_out)
    settings = params("flan_mixture", seed, SETTINGS, {"prepare": {**everything["prepare"], "test_prompts": len(rows)}})
    test = demonstrations(made(folder / f"test-{seed}", settings, ["prepare"], everything["files"]) / "prepared", "test")
    kinds = {
        "held_out_tasks": test[test["source"] == "held_out"].head(ANSWERS),
        "held_out_templates": test[test["template"].isin(HELD_OUT_TEMPLATES.values())].head(ANSWERS),
    }

    # 2. the mixture and its model
    if knob is None:
        return costs(base, kinds, settings)
    mixture = prepare(knob, trained=unequal(trained, seed) if "temperature" in knob else trained)
    settings = params("flan_mixture", seed, SETTINGS, {"prepare": mixture["prepare"]})
    with place(folder, {"base": base}, mixture["files"]) as root:
        run_stage("prepare", settings, root)
        run_stage("sft", settings, root)
        learnt = demonstrations(root / "artifacts" / "prepared", "train")["task"].value_counts()
        return costs(root / "artifacts" / "sft" / "model", kinds, settings) | {"learnt": learnt.to_dict()}


def read(data: Path) -> list[Entry]:
    """The rows of the tasks that are used. All phrasings of a record share its group, and so its split."""
    rows = []
    for file in sorted(data.glob("*.jsonl*")):
        content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        rows += [json.loads(line) for line in content.split(b"\n") if line]
    used = [row for row in rows if row["dataset"] in (*HELD_OUT_TASKS, *HELD_OUT_TEMPLATES) and len(row["prompt"]) <= LONGEST]
    if not used:
        raise SystemExit(f"{data}: 0 rows of {', '.join((*HELD_OUT_TASKS, *HELD_OUT_TEMPLATES))} in its .jsonl files")
    return [
        {name: row[name] for name in ("dataset", "template", "prompt", "completion")}
        | {"group": f"{row['dataset']} {row['row']}"}
        for row in used
    ]


def unequal(rows: list[Entry], seed: int) -> list[Entry]:
    """The first task whole, half of the second, a quarter of the third and so on, in an order drawn by seed."""
    draw, kept = random.Random(seed), list[Entry]()
    for number, task in enumerate(draw.sample(sorted(HELD_OUT_TEMPLATES), len(HELD_OUT_TEMPLATES))):
        own = [row for row in rows if row["dataset"] == task]
        kept += draw.sample(own, len(own) >> number)
    return kept


def prepare(knob: dict[str, Any], **rows: list[Entry]) -> dict[str, Any]:
    """The recipe's section with these sources and what an entry changes of its mixture, and the sources' files."""
    paths = {name: f"data/external/t0/{name}.jsonl" for name in rows}
    sources = {name: {"path": path, "split": "test" if name == "held_out" else "hash"} for name, path in paths.items()}
    own = {"templates": 0, "held_out_templates": list(HELD_OUT_TEMPLATES.values())}
    mixture = recipe("flan_mixture")["prepare"]["mixture"] | own | knob
    files = {paths[name]: "".join(json.dumps(row) + "\n" for row in some) for name, some in rows.items()}
    return {"prepare": {"sources": sources, "mixture": mixture}, "files": files}


def costs(model: Path, kinds: dict[str, Any], settings: Any) -> Entry:
    """What the answers of each kind cost a model, and how many there are."""
    found = {kind: nats(model, rows, settings.evaluate.precision) for kind, rows in kinds.items()}
    return found | {f"{kind}_answers": len(rows) for kind, rows in kinds.items()}


if __name__ == "__main__":
    main()
