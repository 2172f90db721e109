"""The report page: one HTML file with everything inside (styles, script, plots, answers) that asks no network for anything."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from pipelines.diagnosis.actions import told
from pipelines.diagnosis.audit import Audit
from pipelines.evaluation import summary
from pipelines.evaluation.comparison import GREEDY
from pipelines.evaluation.findings import SFT, Findings, in_hash_order
from pipelines.evaluation.groups import questions
from pipelines.evaluation.plots import colour_of
from pipelines.evaluation.svg import SERIES, Plot, inline

FOLDER = Path(__file__).parent
QUESTIONS = 3
"""Held-out questions whose answers are shown as each group sees them."""
Cell = dict[str, Any]

FIGURES: tuple[tuple[str, str, str], ...] = (
    ("gold_mean", "Gold score, mean", "+.3f"),
    ("gold_mean_greedy", "Gold score of the greedy answers", "+.3f"),
    ("reward_mean", "Reward model's score, mean", "+.3f"),
    ("win_rate", "Win rate against SFT, by the judge", "%"),
    ("length_controlled_win_rate", "at equal lengths", "%"),
    ("rating", "Rating (Elo points above SFT)", "+.0f"),
    ("sign_p", "Sign test over prompts, p", ".2g"),
    ("reward_win_rate", "Win rate against SFT, by the reward model", "%"),
    ("kl", "KL to SFT (nats a sequence)", ".2f"),
    ("kl_se", "its standard error", ".2f"),
    ("kl_per_token", "KL to SFT (nats a token)", ".3f"),
    ("kl_per_token_se", "its standard error", ".3f"),
    ("length", "Length (tokens)", ".1f"),
    ("eos_rate", "Answers that end by themselves", "%"),
    ("entropy", "Entropy (nats a token)", ".2f"),
    ("perplexity", "Perplexity under the base model", ".1f"),
    ("perplexity_ratio", "against SFT's", ".2fx"),
    ("distinct_1", "Distinct-1", ".3f"),
    ("distinct_2", "Distinct-2", ".3f"),
    ("distinct_2_ratio", "against SFT's", ".2fx"),
    ("distinct_3", "Distinct-3", ".3f"),
    ("repetition", "Repetition within an answer (3-grams)", ".3f"),
    ("copied", "Runs of five words copied from the training text", "%"),
    ("demonstration_perplexity", "Perplexity of held-out demonstrations", ".1f"),
    ("exact_match", "Greedy answers that match the reference", "%"),
    ("rouge_l", "ROUGE-L of greedy answers and references", ".3f"),
    ("rouge_l_unseen_templates", "in templates not trained on", ".3f"),
    ("rouge_l_unseen_tasks", "in tasks not trained on", ".3f"),
    ("posix", "Sensitivity to the prompt's wording (POSIX)", ".3f"),
    ("posix_se", "its standard error", ".3f"),
)


TOKENS: tuple[tuple[str, str], ...] = (
    ("tokens", "demonstrations"),
    ("tokens_learnt", "of these, learnt"),
    ("prompt_tokens", "prompts of the pairs"),
    ("chosen_tokens", "chosen answers"),
    ("rejected_tokens", "rejected answers"),
)


def render(found: Findings, plots: list[Plot], examples: int, audited: Audit | None = None) -> str:
    """The page as HTML. Texts of models and users are escaped: an answer can hold any characters."""
    environment = Environment(
        loader=FileSystemLoader(FOLDER), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    sections: dict[str, list[dict[str, Any]]] = {}
    for plot in plots:
        shown = {"svg": Markup(inline(plot)), "caption": plot.caption, "name": plot.name}
        sections.setdefault(plot.section, []).append(shown)
    metrics = found.metrics
    return environment.get_template("page.html.j2").render(
        seed=found.seed,
        judge=metrics["sft"]["judge"],
        judge_is_gold=metrics["sft"]["judge_is_gold"],
        baseline=metrics["sft"],
        comparisons=metrics["sft"]["answers"],
        verdict=summary.verdict(metrics).replace(" %", "\u00a0%"),
        reward_line=summary.reward_line(metrics),
        checks=summary.checks(metrics),
        cards=[_card(found, name) for name in found.policies],
        plots=sections,
        reward=_reward_facts(metrics["reward"]),
        reward_groups=_reward_groups(metrics["reward"]),
        groups=_groups(found),
        tables=_tables(found.quality),
        quality=_facts({key: value for key, value in found.quality.items() if key != "tables"}),
        tokens=_token_facts(found.tokens),
        pairs=_pair_facts(found.pairs),
        examples=_examples(found, examples),
        figures=_figures(found),
        audit=audited,
        acted={name: [told(one) for one in some] for name, some in found.actions.items()},
        models=[SFT, *found.policies],
        shown_first=max(found.policies, key=lambda name: metrics["policies"][name]["win_rate"], default=SFT),
        colours={name: slot(found, name) for name in [SFT, *found.policies]},
        data=Markup(_embedded(found)),
    )


def slot(found: Findings, name: str) -> str:
    """The page's colour variable of a model."""
    return "s-sft" if name == SFT else f"s-{SERIES.index(colour_of(found, name))}"


def shown(value: float | None, form: str) -> str:
    """A figure as text: ``%`` = a share, ``x`` at the end = a ratio; a dash where it is unknown or does not apply."""
    if value is None or math.isnan(value):
        return "–"
    if form == "%":
        return summary.percent(value)
    return format(value, form.removesuffix("x")).replace("-", "−") + (" ×" if form.endswith("x") else "")


def _card(found: Findings, name: str) -> Cell:
    """One row of the win table."""
    row = found.metrics["policies"][name]
    sft = found.metrics["sft"]
    low, high = row["win_rate_ci"]
    return {
        "name": name,
        "method": row["method"],
        "slot": slot(found, name),
        "standing": summary.standing(row),
        "win_rate": shown(row["win_rate"], "%"),
        "interval": f"{100 * low:.1f} to {100 * high:.1f} %",
        "rate": f"{100 * row['win_rate']:.2f}",
        "low": f"{100 * low:.2f}",
        "width": f"{100 * (high - low):.2f}",
        "shares": [(key, f"{100 * row[key]:.2f}", f"{100 * row[key]:.0f}") for key in ("win", "tie", "lose")],
        "controlled": shown(row["length_controlled_win_rate"], "%"),
        "signs": f"{row['prompts_won']} prompts won, {row['prompts_lost']} lost, p {_p(row['sign_p'])}",
        "rating": shown(row["rating"], "+.0f"),
        "rating_interval": " to ".join(shown(end, "+.0f") for end in row["rating_ci"]),
        "gold": shown(row["gold_mean"], "+.3f"),
        "gold_sft": shown(sft["gold_mean"], "+.3f"),
        "proxy": shown(row["reward_win_rate"], "%"),
        "kl": shown(row["kl"], ".2f"),
        "kl_se": shown(row["kl_se"], ".2f"),
        "perplexity": shown(row["perplexity_ratio"], ".2fx"),
        "distinct": shown(row["distinct_2_ratio"], ".2fx"),
        "length": shown(row["length"], ".1f"),
        "eos": shown(row["eos_rate"], "%"),
    }


def _p(value: float) -> str:
    """A p-value; rounded figures cannot tell less than a millionth."""
    return "< 0.001" if value < 0.001 else f"= {value:.3f}"


def _figures(found: Findings) -> list[tuple[str, list[str]]]:
    """The whole table of figures: label, one cell a model."""
    models = [found.metrics["sft"], *found.metrics["policies"].values()]
    rows = [(label, [shown(model.get(key), form) for model in models]) for key, label, form in FIGURES]
    suites: dict[str, dict[str, None]] = {}
    for model in models:
        for name, figures in model.get("suites", {}).items():  # the reward model is asked for the SFT model alone
            suites.setdefault(name, {}).update(dict.fromkeys(figures))
    for suite, keys in sorted(suites.items()):
        for key in keys:
            form = ",.0f" if key == "rows" else ".3f"
            cells = [shown(model.get("suites", {}).get(suite, {}).get(key), form) for model in models]
            rows.append((f"{suite}: {key.replace('_', ' ')}", cells))
    return rows


def _reward_facts(reward: dict[str, Any]) -> list[tuple[str, str, str]]:
    """The reward model's figures: label, value, what it means."""
    low, high = reward.get("pair_accuracy_ci", (None, None))
    interval = f" (95 % interval {100 * low:.1f} to {100 * high:.1f})" if low is not None else ""
    filler = reward.get("filler", {})
    return [
        ("Pair accuracy", shown(reward.get("pair_accuracy"), "%"), f"held-out pairs in the labelled order{interval}"),
        ("Ceiling", shown(reward.get("pair_accuracy_ceiling"), "%"), "the labels' own agreement with the judge on these pairs"),
        ("Log loss", shown(reward.get("log_loss"), ".3f"), "nats a pair; 0.693 is a coin"),
        ("Longer wins", shown(reward.get("longer_wins"), "%"), "what counting tokens alone would reach"),
        ("Rank correlation", shown(reward.get("gold_rank_correlation"), ".2f"), "with the judge, on SFT's held-out answers"),
        ("Calibration error", shown(reward.get("calibration_error"), "%"), "how far its confidence is from its accuracy"),
        ("Filler", shown(filler.get("change_sd"), "+.2f"), "standard deviations that empty words behind an answer add"),
    ]


def _reward_groups(reward: dict[str, Any]) -> list[tuple[str, str, str, str, str]]:
    """Accuracy by source, group and length: kind, name, pairs, accuracy with its interval, what longer answers would reach."""
    rows = []
    for key, kind in (("by_source", "source"), ("by_group", "group"), ("by_length", "chosen answer")):
        for name, found in reward.get(key, {}).items():
            low, high = found["accuracy_ci"]
            accuracy = f"{shown(found['accuracy'], '%')} ({100 * low:.0f} to {100 * high:.0f})"
            rows.append((kind, name, f"{found['pairs']:,}", accuracy, shown(found["longer_wins"], "%")))
    people = reward.get("people")
    if people:
        low, high = people["agreement_ci"]
        rows.append(
            (
                "judge",
                "people",
                f"{people['pairs']:,}",
                f"{shown(people['agreement'], '%')} ({100 * low:.0f} to {100 * high:.0f})",
                "–",
            )
        )
    return rows


def _groups(found: Findings) -> Cell:
    """What each group's own reward model says: of the other groups' pairs, of the policies, of some answers; {} without any."""
    told = found.metrics["reward"].get("groups")
    if not told:
        return {}
    names, agreement = told["groups"], told["agreement"]
    agreed = [(u, [shown(agreement[u][v], "%") for v in names]) for u in names]
    rows = found.metrics["policies"]
    rates = [(u, [shown(rows[name]["groups"][u]["win_rate"], "%") for name in found.policies]) for u in names]
    worst = [f"{name}: {rows[name]['worst_group']} ({shown(rows[name]['worst_group_win_rate'], '%')})" for name in found.policies]
    prompts = in_hash_order(found.group_scores["prompt"])
    asked = questions(found.group_scores, QUESTIONS, prompts)
    for question in asked:
        question["rows"] = [(name, [shown(value, ".3f") for value in values]) for name, values in question["rows"].items()]
    members = {name: [who for who, own in told["annotators"].items() if own == name] for name in names}
    return {"names": names, "agreed": agreed, "rates": rates, "worst": worst, "questions": asked, "members": members}


def _pair_facts(pairs: pd.DataFrame) -> list[tuple[str, str]]:
    """The preference pairs in figures."""
    counts = Counter(pairs["split"])
    facts = [(f"pairs, {split}", f"{counts[split]:,}") for split in ("train", "validation", "test")]
    facts += [("prompts with a pair", f"{pairs['prompt_id'].nunique():,}")]
    facts += [(f"from {source}", f"{count:,}") for source, count in sorted(Counter(pairs["source"]).items())]
    margins = pairs["margin"].dropna().to_numpy()
    return [*facts, ("margin, median", shown(float(np.median(margins)), ".3f"))] if len(margins) else facts


def _token_facts(tokens: dict[str, float]) -> list[tuple[str, str]]:
    """How long rows are in tokens: median, tenth and ninetieth percentile, longest."""
    facts = []
    for name, label in TOKENS:
        if f"{name}_q50" in tokens:
            low, median, high, longest = (
                shown(tokens[f"{name}_{quantile}"], ".0f") for quantile in ("q10", "q50", "q90", "q100")
            )
            facts.append((label, f"{median} ({low} to {high}), longest {longest}"))
    return facts


def _tables(quality: dict[str, Any]) -> list[tuple[str, list[str], str]]:
    """The prepared tables: name, counts, median words of each of its texts."""
    rows = []
    for name, facts in sorted(quality.get("tables", {}).items()):
        splits = [facts["per_split"].get(split, 0) for split in ("train", "validation", "test")]
        counts = [facts["rows"], *splits, facts["groups"], facts["duplicates"]]
        medians = [f"{text} {lengths['q50']:.0f}" for text, lengths in sorted(facts["words"].items()) if lengths]
        rows.append((name, [f"{count:,}" for count in counts], ", ".join(medians)))
    return rows


def _facts(tree: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """quality.json as label and value; nested names are joined, lists are shown by their items."""
    facts: list[tuple[str, str]] = []
    for key, value in sorted(tree.items()):
        label = f"{prefix}{key}".replace("_", " ")
        if isinstance(value, dict):
            facts += _facts(value, f"{label}, ")
        elif isinstance(value, list):
            facts.append((label, ", ".join(map(str, value)) or "none"))
        elif isinstance(value, float):
            facts.append((label, f"{value:,.3f}"))
        else:
            facts.append((label, f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)))
    return facts


def _examples(found: Findings, count: int) -> list[Cell]:
    """Answer A of every model to the first prompts in hash order: nobody has chosen them."""
    first = in_hash_order(found.samples[SFT]["prompt_id"])[:count]
    by_model = {
        name: {row["prompt_id"]: row for row in table[table["answer"] == "A"].to_dict("records")}
        for name, table in found.samples.items()
    }
    examples = []
    for id_ in first:
        answers = [_answer(found, name, rows[id_]) for name, rows in by_model.items()]
        examples.append({"prompt": by_model[SFT][id_]["prompt"], "answers": answers})
    return examples


def _answer(found: Findings, name: str, row: dict[Any, Any]) -> Cell:
    return {"model": name, "slot": slot(found, name), "text": row["text"].strip(), "ended": bool(row["ended"]),
            "gold": shown(row["gold"], "+.2f"), "reward": shown(row["reward"], "+.2f")}  # fmt: skip


def _embedded(found: Findings) -> str:
    """All answers for the table of comparisons, as JSON that cannot close its script element.

    A row: prompt index, model index, answer's name, text, gold, reward, log pi - log pi_sft (null for greedy answers).
    """
    prompts = in_hash_order(found.samples[SFT]["prompt_id"])
    place = {id_: index for index, id_ in enumerate(prompts)}
    texts = {row["prompt_id"]: row["prompt"] for row in found.samples[SFT].to_dict("records")}
    rows: list[list[Any]] = []
    for model, table in enumerate(found.samples.values()):
        for row in table.to_dict("records"):
            scores = [_rounded(value) for value in (row["gold"], row["reward"], row["logprob"] - row["logprob_sft"])]
            rows.append([place[row["prompt_id"]], model, row["answer"], row["text"].strip(), *scores])
    rows.sort(key=lambda row: (row[0], row[2] == GREEDY, row[2], row[1]))
    data = {"prompts": [texts[id_] for id_ in prompts], "models": list(found.samples), "rows": rows,
            "slots": [slot(found, name) for name in found.samples]}  # fmt: skip
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e").replace("\u2028", "\\u2028")


def _rounded(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 3)
