"""``python -m pipelines compare A B``: two models' answers to the held-out prompts, head to head, by any judge.

Reads     artifacts/evaluations/NAME/samples.parquet of a policy and of ``sft`` where it is there; other models (``base``, a
          folder) answer the same prompts from the same seeds now
Writes    nothing
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from pipelines import challenge, config
from pipelines.context import seed_for
from pipelines.data.tables import read_table
from pipelines.errors import ConfigurationError, PrefloopError
from pipelines.evaluation.comparison import Comparison, Paired, paired, summed
from pipelines.evaluation.figures import describe
from pipelines.evaluation.samples import SAMPLES
from pipelines.evaluation.votes import judged_by, read_votes

SFT = "sft"


def main(arguments: Sequence[str], root: Path) -> int:
    """Compare two models and print the figures; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m pipelines compare")
    parser.add_argument("models", nargs=2)
    parser.add_argument("--judge", default="gold")
    options = parser.parse_args(arguments)
    try:
        params = config.load()
        names = (shown_name(options.models[0]), shown_name(options.models[1]))
        tables = [samples_of(root, params, name) for name in options.models]
        print("\n".join(report(names, tables, summed_by(options.judge, names, tables, params))))
        return 0
    except PrefloopError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.code
    except KeyboardInterrupt:
        return 130


def summed_by(judge: str, names: tuple[str, str], tables: Sequence[pd.DataFrame], params: config.Params) -> Comparison:
    """The comparison by ``gold`` (the recipe's judge), ``reward`` (the reward model) or a file of people's votes."""
    return summed(compared(judge, names, tables, params), params.evaluate.bootstrap, seed_for(params.seed, "bootstrap"))


def compared(judge: str, names: tuple[str, str], tables: Sequence[pd.DataFrame], params: config.Params) -> Paired:
    """The comparisons one by one. Scores of the reward model have no natural margin: only equal ones tie."""
    if judge in ("gold", "reward"):
        return paired(tables[0], tables[1], judge, params.evaluate.tie_margin if judge == "gold" else 0.0)
    path = Path(judge)
    if not path.is_file():
        raise ConfigurationError(f"--judge {judge}: gold (the recipe's judge), reward (its reward model), or a file of votes")
    if names[0] == names[1]:
        raise ConfigurationError(f"{names[0]} {names[1]}: votes name the winner, so the two models need different names")
    return judged_by(read_votes(path, names), tables[0], tables[1], path.name)


def samples_of(root: Path, params: config.Params, model: str) -> pd.DataFrame:
    """A model's answers to the held-out prompts: those of its evaluation, else drawn, scored and judged now."""
    there = root / "artifacts" / "evaluations" / model / "samples.parquet"
    if model in (SFT, *params.policies) and there.exists():
        return read_table(there, SAMPLES)
    return challenge.answers(root, params, SFT, folder_of(root, params, model))


def folder_of(root: Path, params: config.Params, model: str) -> Path:
    """The model folder of a policy, of ``sft``, of ``base``, or a folder that is named itself.

    Raises ConfigurationError for what is none of them, DataError for a model that is not trained yet.
    """
    from pipelines import generate

    if model in ("base", SFT, *params.policies):
        return generate.folder_of(root, model, params)
    if not Path(model).is_dir():
        known = ", ".join(["base", SFT, *params.policies])
        raise ConfigurationError(f"{model}: neither a model of params.yaml ({known}) nor a folder")
    return Path(model)


def report(names: tuple[str, str], tables: Sequence[pd.DataFrame], found: Comparison) -> list[str]:
    """The comparison in lines: who wins, how surely, and what both models' answers are like."""
    low, high = found.interval
    verdict = "beats" if low > 0.5 else "loses to" if high < 0.5 else "is not surely different from"
    lines = [
        f"{names[0]} {verdict} {names[1]}",
        "",
        f"win rate           {100 * found.win_rate:.1f} %   95 % interval {100 * low:.1f} to {100 * high:.1f} %"
        f"   ({found.comparisons} comparisons)",
        f"win / lose / tie   {100 * found.win:.1f} / {100 * found.lose:.1f} / {100 * found.tie:.1f} %",
        f"length-controlled  {100 * found.length_controlled:.1f} %   95 % interval "
        f"{100 * found.length_controlled_interval[0]:.1f} to {100 * found.length_controlled_interval[1]:.1f} %",
        f"sign test          {found.signs.won} prompts won, {found.signs.lost} lost, p = {found.signs.p:.3g}",
        "",
        f"{'':<18} {names[0]:>12} {names[1]:>12}",
    ]
    figures = [describe(table) for table in tables]
    for label, key in (("gold score", "gold_mean"), ("reward", "reward_mean"), ("KL to SFT (nats)", "kl"), ("tokens", "length"),
                       ("ends by itself", "eos_rate"), ("perplexity", "perplexity")):  # fmt: skip
        lines.append(f"{label:<18} {figures[0][key]:>12.3f} {figures[1][key]:>12.3f}")
    return lines


def shown_name(model: str) -> str:
    """How a model is named in the output and in votes: a folder by its last part."""
    return Path(model).name if "/" in model else model
