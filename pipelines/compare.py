"""``python -m pipelines compare A B``: two models' answers to the held-out prompts, head to head, by any judge.

Reads     artifacts/evaluations/NAME/samples.parquet of a policy and of ``sft`` where it is there; other models (``base``, a
          folder) answer the same prompts from the same seeds now
Writes    nothing but what a judge that is a model remembers under .runs/judges
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from pipelines import challenge, config
from pipelines.context import seed_for
from pipelines.data.tables import read_table
from pipelines.errors import ConfigurationError
from pipelines.evaluation.comparison import Comparison, Paired, paired, paired_by, summed
from pipelines.evaluation.figures import describe
from pipelines.evaluation.samples import SAMPLES
from pipelines.evaluation.votes import judged_by, read_votes
from pipelines.judges import compare, compares

SFT = "sft"


def main(arguments: Sequence[str], root: Path) -> None:
    """Compare two models and print the figures."""
    parser = argparse.ArgumentParser(prog="python -m pipelines compare")
    parser.add_argument("models", nargs=2)
    parser.add_argument("--judge", default="gold")
    options = parser.parse_args(arguments)
    params = config.load()
    names = (shown_name(options.models[0]), shown_name(options.models[1]))
    tables = [samples_of(root, params, name) for name in options.models]
    pairs, figures = compared(options.judge, names, tables, params, root)
    found = summed(pairs, params.evaluate.bootstrap, seed_for(params.seed, "bootstrap"))
    print("\n".join(report(names, tables, found, figures)))


def compared(
    judge: str, names: tuple[str, str], tables: Sequence[pd.DataFrame], params: config.Params, root: Path
) -> tuple[Paired, dict[str, float]]:
    """The comparisons one by one, and figures of the judge: ``gold`` (the recipe's judge), ``reward`` (the reward model), a YAML
    file with another judge, or a file of people's votes.

    Scores of the reward model have no natural margin: only equal ones tie. A language model is shown both answers, in both
    orders, whatever it said of each alone.
    """
    settings = params.preferences.judge
    if judge == "gold" and compares(settings):
        return _asked(settings, tables, params, root)
    if judge in ("gold", "reward"):
        return paired(tables[0], tables[1], judge, params.evaluate.tie_margin if judge == "gold" else 0.0), {}
    path = Path(judge)
    if not path.is_file():
        raise ConfigurationError(
            f"--judge {judge}: gold (the recipe's judge), reward (its reward model), a YAML file with a judge, or a file of votes"
        )
    if path.suffix in (".yaml", ".yml"):
        return _asked(config.load_judge(path), tables, params, root)
    if names[0] == names[1]:
        raise ConfigurationError(f"{names[0]} {names[1]}: votes name the winner, so the two models need different names")
    return judged_by(read_votes(path, names), tables[0], tables[1], path.name), {}


def _asked(
    judge: config.Judge, tables: Sequence[pd.DataFrame], params: config.Params, root: Path
) -> tuple[Paired, dict[str, float]]:
    """The comparisons by a judge who is asked now, and its figures."""
    from pipelines.adapters.cluster import connect

    figures: dict[str, float] = {}

    def better(prompts: list[str], ours: list[str], theirs: list[str]) -> list[float]:
        said = compare(judge, root, cluster, prompts, ours, theirs)
        figures.update(said.figures)
        return said.differences

    with tempfile.TemporaryDirectory(prefix="prefloop-") as place, connect(params.runtime, Path(place) / "journal") as cluster:
        return paired_by(tables[0], tables[1], better, params.evaluate.tie_margin), figures


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


def report(
    names: tuple[str, str], tables: Sequence[pd.DataFrame], found: Comparison, judge: Mapping[str, float] | None = None
) -> list[str]:
    """The comparison in lines: who wins, how surely, and what both models' answers are like. ``judge``: figures of the judge."""
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
    ]
    if judge and "position_bias" in judge:
        share = f"stronger than its preference in {100 * judge['position_decided']:.1f} % of the comparisons"
        lines.append(f"judge's leaning    {judge['position_bias']:+.2f} nats to the answer shown first, {share}; taken out")
    lines += ["", f"{'':<18} {names[0]:>12} {names[1]:>12}"]
    figures = [describe(table) for table in tables]
    for label, key in (("gold score", "gold_mean"), ("reward", "reward_mean"), ("KL to SFT (nats)", "kl"), ("tokens", "length"),
                       ("ends by itself", "eos_rate"), ("perplexity", "perplexity")):  # fmt: skip
        lines.append(f"{label:<18} {figures[0][key]:>12.3f} {figures[1][key]:>12.3f}")
    return lines


def shown_name(model: str) -> str:
    """How a model is named in the output and in votes: a folder by its last part."""
    return Path(model).name if "/" in model else model
