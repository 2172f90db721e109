"""Write the tables of docs/benchmarks.md (and the README's) from the raw JSON under benchmarks/results.

A table stands between ``<!-- table: NAME -->`` and ``<!-- end -->``; a name without results says so.
"""

from __future__ import annotations

import itertools
import json
import re
import statistics
from collections.abc import Collection
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "results"
PAGES = (ROOT / "README.md", ROOT / "docs" / "benchmarks.md", ROOT / "docs" / "judges.md", ROOT / "docs" / "methods.md")
PLACE = re.compile(r"(<!-- table: (?P<name>\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def main() -> None:
    """Renew every table in place."""
    for page in PAGES:
        page.write_text(renewed(page.read_text(encoding="utf-8")), encoding="utf-8")


def renewed(text: str) -> str:
    """``text`` with every table made anew from its results."""
    return PLACE.sub(lambda match: match[1] + table(match["name"]) + match[3], text)


def table(name: str) -> str:
    """The table called ``name``."""
    path = RESULTS / f"{FROM.get(name, name)}.json"
    return TABLES[name](json.loads(path.read_text(encoding="utf-8"))) if path.exists() else "Not measured yet.\n"


def seeds(result: dict[str, Any]) -> str:
    """One row a seed and policy, with the interval, the language checks, and the mean over seeds."""
    rows = ["| seed | policy | gold SFT → policy | KL (nats) | win / lose / tie | win rate [95 %] | RM win rate | perplexity "
            "ratio | distinct-2 ratio | pair accuracy | SFT EOS rate |", "|" + "---|" * 11]  # fmt: skip
    rates: dict[str, list[float]] = {}
    for seed, run in _numbered(result["seeds"]):
        report = run["report"]
        for name, policy in sorted(report["policies"].items()):
            rates.setdefault(name, []).append(policy["win_rate"])
            low, high = policy["win_rate_ci"]
            rows.append(
                f"| {seed} | {name} | {report['sft']['gold_mean']:.3f} → {policy['gold_mean']:.3f} | {policy['kl']:.2f} "
                f"| {policy['win']:.2f} / {policy['lose']:.2f} / {policy['tie']:.2f} "
                f"| {policy['win_rate']:.3f} [{low:.3f}, {high:.3f}] "
                f"| {policy['reward_win_rate']:.3f} | {policy['perplexity_ratio']:.2f} | {policy['distinct_2_ratio']:.2f} "
                f"| {report['reward']['pair_accuracy']:.3f} | {report['sft']['eos_rate']:.2f} |"
            )
    means = "; ".join(
        f"{name} {statistics.mean(values):.3f} (lowest {min(values):.3f})" for name, values in sorted(rates.items())
    )
    return "\n".join(rows) + f"\n\nMean win rate over {len(result['seeds'])} seeds: {means}. {_provenance(result)}\n"


def default_run(result: dict[str, Any]) -> str:
    """The first seed's win table, for the README."""
    seed = min(result["seeds"], key=int)
    report = result["seeds"][seed]["report"]
    rows = ["| model | gold reward | KL to SFT (nats) | win / lose / tie against SFT | win rate [95 %] |",
            "|---|---|---|---|---|", f"| sft | {report['sft']['gold_mean']:.3f} | 0 | | |"]  # fmt: skip
    for name, policy in sorted(report["policies"].items()):
        low, high = policy["win_rate_ci"]
        rows.append(f"| {name} | {policy['gold_mean']:.3f} | {policy['kl']:.2f} "
                    f"| {policy['win']:.2f} / {policy['lose']:.2f} / {policy['tie']:.2f} "
                    f"| {policy['win_rate']:.3f} [{low:.3f}, {high:.3f}] |")  # fmt: skip
    return "\n".join(rows) + f"\n\nSeed {seed}; the other seeds are in docs/benchmarks.md.\n"


def budget(result: dict[str, Any]) -> str:
    """The default recipe stage by stage: seconds bare and in the flow, share, memory, output."""
    flow = result["stages"]["flow"]
    names = [name for name in ORDER if name in flow] + sorted(set(flow) - set(ORDER))
    bare_s, flow_s = ({name: result["stages"][side][name]["seconds"] for name in names} for side in ("bare", "flow"))
    total = sum(flow_s.values())
    rows = ["| stage | bare (s) | in the flow (s) | share | peak memory (GB) | output (MB) |", "|" + "---|" * 6]
    for name in names:
        memory, size = flow[name]["peak_rss_bytes"] / 1e9, flow[name]["out_bytes"] / 1e6
        rows.append(
            f"| {name} | {bare_s[name]:.0f} | {flow_s[name]:.0f} | {flow_s[name] / total:.0%} | {memory:.2f} | {size:.1f} |"
        )
    return "\n".join([*rows, f"| **all** | **{sum(bare_s.values()):.0f}** | **{total:.0f}** | | | |"]) + (
        f"\n\n{_provenance(result)}\n"
    )


def orchestration(result: dict[str, Any]) -> str:
    """The flow of the default recipe against the bare process."""
    bare, flow = result["seconds"]["bare"], result["seconds"]["flow"]
    rows = ["| recipe | bare process (s) | flow (s) | ratio |", "|---|---|---|---|",
            f"| {result['recipe']} | {bare:.0f} | {flow:.0f} | {result['ratio']:.3f} |"]  # fmt: skip
    return "\n".join(rows) + f"\n\n{_provenance(result)}\n"


def ppo(result: dict[str, Any]) -> str:
    """Our PPO against TRL's, a row a case."""
    rows = [f"| case | ours (episodes/s) | {result['peer']} (episodes/s) | times its speed | ours (GB) | peer (GB) "
            "| of its memory | outside the phases |", "|" + "---|" * 8]  # fmt: skip
    for name, case in result["cases"].items():
        rate, memory = case["episodes_per_second"], case["peak_rss_bytes"]
        steps = [(wall, sum(phases.values())) for run in case["runs"]["ours"]
                 for wall, phases in zip(run["seconds"][1:], run["phases"][1:], strict=True)]  # fmt: skip
        rest = 1.0 - sum(inside for _, inside in steps) / sum(wall for wall, _ in steps)
        rows.append(
            f"| {name} | {rate['ours']:.2f} | {rate['peer']:.2f} | **{case['speed']:.2f}** | {memory['ours'] / 1e9:.2f} "
            f"| {memory['peer'] / 1e9:.2f} | **{case['memory']:.2f}** | {rest:.1%} |"
        )
    phases = ("rollout", "score", "update")
    rows += ["", f"| a step of ours (s) | {' | '.join(phases)} | floor of each | times the floor |", "|" + "---|" * 6]
    for name, case in result["cases"].items():
        runs = case["runs"]["ours"]
        spent = [statistics.median(step[phase] for run in runs for step in run["phases"][1:]) for phase in phases]
        floor = [statistics.median(run["floor"]["seconds"][phase] for run in runs) for phase in phases]
        cells = [*(f"{seconds:.2f}" for seconds in spent), ", ".join(f"{seconds:.2f}" for seconds in floor)]
        rows.append(f"| {name} | {' | '.join(cells)} | {sum(spent) / sum(floor):.1f} |")
    return "\n".join(rows) + f"\n\n{_provenance(result)}\n"


def data(result: dict[str, Any]) -> str:
    """Seconds and memory of the data's way, ours and the peer's."""
    labels = {
        "rows": "read, check, drop repeats, split, write Parquet",
        "stage": "the same, near duplicates, contamination, the other tables, quality.json: all of the stage",
        "peer": "datasets + pandas, checks row by row: as the first line",
    }
    rows = ["| rows | what | seconds | processor seconds | peak memory (GB) |", "|---|---|---|---|---|"]
    for count, parts in _numbered(result["parts"]):
        for name, part in parts.items():
            if name == "bytes":
                continue
            rows.append(
                f"| {int(count):,} ({parts['bytes'] / 1e9:.2f} GB) | {labels[name]} | {part['seconds']:.0f} "
                f"| {part['cpu_seconds']:.0f} | {part['peak_rss_bytes'] / 1e9:.2f} |"
            )
    said = " ".join(filter(None, [_growth(result["parts"]), result["note"], _provenance(result)]))
    return "\n".join(rows) + f"\n\n{said}\n"


def _growth(sizes: dict[str, dict[str, Any]]) -> str:
    """What more rows cost, in processor seconds and memory: the first line, and the whole stage."""
    counts = sorted(sizes, key=int)
    said = []
    for few, many in itertools.pairwise(counts):
        costs = [
            f"{name} {sizes[many][part]['cpu_seconds'] / sizes[few][part]['cpu_seconds']:.1f} times the processor seconds and "
            f"{sizes[many][part]['peak_rss_bytes'] / sizes[few][part]['peak_rss_bytes']:.2f} times the memory"
            for part, name in (("rows", "the first line"), ("stage", "the stage"))
            if part in sizes[few] and part in sizes[many]
        ]
        said += [f"{int(many) / int(few):g} times the rows (from {int(few):,}) cost {', '.join(costs)}."] if costs else []
    return " ".join(said)


def diagnosis(result: dict[str, Any]) -> str:
    """A row a detector: its fault, when it spoke, its near miss, how often it spoke in clean runs; then the confusion matrix."""
    runs = [spoken for seeds in result["clean"].values() for spoken in seeds.values()]
    rows = ["| detector | injected fault | there at (step) | spoke at (step) | found, first cause right | also spoke "
            "| near miss | silent | clean runs with a finding |", "|" + "---|" * 9]  # fmt: skip
    for name, case in sorted(result["cases"].items(), key=lambda item: int(item[0][1:])):
        false = sum(any(one["detector"] == name for one in spoken) for spoken in runs)
        rows.append(
            f"| {name} | {case['fault']} | {case['onset']} | {case['first'] or 'never'} | {_mark(case['found'])} "
            f"| {', '.join(case['also']) or 'none'} | {case['near']} | {_mark(case['near_silent'])} | {false} of {len(runs)} |"
        )
    cases = result["cases"].values()
    found, silent = sum(case["found"] for case in cases), sum(case["near_silent"] for case in cases)
    clean = sum(not spoken for spoken in runs)
    matrix = ["", "| | the detector spoke | it was silent |", "|---|---|---|",
              f"| its fault | **{found}** | {len(cases) - found} |", f"| its near miss | {len(cases) - silent} | **{silent}** |",
              f"| a clean run (any detector) | {len(runs) - clean} | **{clean}** |"]  # fmt: skip
    kinds = "; ".join(f"{name} {len(seeds)}" for name, seeds in result["clean"].items())
    return "\n".join([*rows, *matrix]) + f"\n\nClean runs: {kinds}. {_provenance(result)}\n"


def _mark(good: bool) -> str:
    return "yes" if good else "**no**"


def evaluation(result: dict[str, Any]) -> str:
    """Scoring against generation, the other metrics apart, and the report."""
    rows = ["| what | seconds | of generation | allowed |", "|---|---|---|---|"]
    models, report = result.get("models"), result.get("report")
    for name, phases in sorted(models["seconds"].items() if models else ()):
        made = phases["sampled answers"]
        scoring = sum(phases[part] for part in ("KL to SFT", "reward model", "judge"))
        rows.append(f"| {name}: {models['answers']} sampled answers | {made:.1f} | | |")
        rows.append(f"| {name}: scoring them | {scoring:.1f} | **{scoring / made:.2f}** | 0.7 |")
        for part in ("KL to SFT", "reward model", "judge", "base model", "greedy answers", "demonstrations", "phrasings"):
            rows.append(f"| {name}: {part} | {phases[part]:.1f} | {phases[part] / made:.2f} | |")
    if report:
        rows.append(
            f"| report of {report['policies']} policies, {report['answers']:,} answers | {report['seconds']:.1f} | | 20 |"
        )
        rows.append(f"| opened ({report['bytes'] / 1e6:.1f} MB) | {report['opened']:.2f} | | 2 |")
    return "\n".join(rows) + f"\n\n{' '.join(_provenance(part) for part in (models, report) if part)}\n"


def over_optimisation(result: dict[str, Any]) -> str:
    """Where gold is highest along PPO's steps and best-of-n, and what becomes of it, a row a seed."""
    rows = ["| seed | series | proxy, first → last (SFT's sd) | gold, first → peak → last | peak at KL "
            "| fell by (standard errors) | fit alpha, beta | R2 |", "|" + "---|" * 8]  # fmt: skip
    for seed, run in _numbered(result["seeds"]):
        for name, found in run.items():
            points, fit, sd = found["points"], found["fit"], found["sd"]["reward"]
            first, last, peak = points[0], points[-1], max(points, key=lambda point: point["gold"])
            error = (peak["gold_se"] ** 2 + last["gold_se"] ** 2) ** 0.5
            fitted = f"{fit['alpha']:.3f}, {fit['beta']:.3f} | {fit['r2']:.2f}" if "alpha" in fit else "| "
            rows.append(
                f"| {seed} | {name} | {first['reward'] / sd:.2f} → {last['reward'] / sd:.2f} "
                f"| {first['gold']:.3f} → {peak['gold']:.3f} → {last['gold']:.3f} | {peak['kl']:.1f} "
                f"| {(peak['gold'] - last['gold']) / error:.1f} | {fitted} |"
            )
    return "\n".join(rows) + f"\n\n{_provenance(result)}\n"


def policies(result: dict[str, Any]) -> str:
    """A row a policy of a recipe: one seed with its interval, or means over seeds with the lowest win rate of any."""
    seeds = list(result["seeds"].values())
    spread = "lowest seed" if len(seeds) > 1 else "95 % interval"
    rows = [f"| entry | method | win rate against SFT ({spread}) | at equal lengths | gold reward | KL (nats) "
            "| answers that end | training (s) | peak memory (GB) |", "|" + "---|" * 9]  # fmt: skip
    for entry in seeds[0]:
        runs = [seed[entry] for seed in seeds]
        rates = [run["win_rate"] for run in runs if "win_rate" in run]
        least = f"{min(rates):.3f}" if len(rates) > 1 else " to ".join(f"{end:.3f}" for end in runs[0].get("win_rate_ci", ()))
        digits = {"length_controlled_win_rate": 3, "gold_mean": 3, "kl": 2, "eos_rate": 2, "seconds": 0}
        cells = [f"{statistics.mean(rates):.3f} ({least})" if rates else "", *(_mean(runs, *item) for item in digits.items())]
        memory = [run["peak_rss_bytes"] / 1e9 for run in runs if run.get("peak_rss_bytes")]
        rows.append(f"| {entry} | {runs[0]['method']} | {' | '.join(cells)} | {f'{max(memory):.2f}' if memory else ''} |")
    said = f"Means over {len(seeds)} seeds." if len(seeds) > 1 else f"Seed {next(iter(result['seeds']))}."
    return "\n".join(rows) + f"\n\n{said} {_provenance(result)}\n"


def _mean(runs: list[dict[str, Any]], key: str, digits: int) -> str:
    """The mean of those runs that have it."""
    known = [run[key] for run in runs if run.get(key) is not None]
    return f"{statistics.mean(known):.{digits}f}" if known else ""


def soft_prompts(result: dict[str, Any]) -> str:
    """A row a model: what held-out answers cost it with each soft prompt, and three differences with their range over seeds."""
    cost: dict[str, dict[str, dict[int, float]]] = {}
    for entry in result["entries"]:
        cost.setdefault(entry["model"], {}).setdefault(entry["prompt"], {})[entry["seed"]] = entry["nats"]
    size = {entry["model"]: entry["parameters"] for entry in result["entries"] if "parameters" in entry}
    prompts = list(dict.fromkeys(entry["prompt"] for entry in result["entries"]))
    pairs = {"1 less 16 vectors": ("1, vocabulary", "16, vocabulary"), "random less vocabulary": ("16, random", "16, vocabulary"),
             "text less vocabulary": ("16, text", "16, vocabulary")}  # fmt: skip
    rows = [f"| parameters | {' | '.join(prompts)} | {' | '.join(pairs)} |", "|" + "---|" * (1 + len(prompts) + len(pairs))]
    for model, own in cost.items():
        means = [f"{statistics.mean(own[name].values()):.3f}" if name in own else "" for name in prompts]
        gaps = [_gap(own.get(one, {}), own.get(other, {})) for one, other in pairs.values()]
        rows.append(f"| {size[model]:,} | {' | '.join(means)} | {' | '.join(gaps)} |")
    seeds = len({entry["seed"] for entry in result["entries"]})
    return "\n".join(rows) + (
        f"\n\nNats a token of held-out answers, means over {seeds} seeds; of differences also the lowest and the highest seed. "
        f"{_provenance(result)}\n"
    )


def mixtures(result: dict[str, Any]) -> str:
    """A row a mixture: what the answers to held-out tasks and templates cost; then what each knob changes, seed by seed."""
    kinds = {"held_out_tasks": "held-out tasks", "held_out_templates": "held-out templates"}
    cost: dict[str, dict[str, dict[int, float]]] = {}
    for entry in result["entries"]:
        for kind in kinds:
            cost.setdefault(entry["mixture"], {}).setdefault(kind, {})[entry["seed"]] = entry[kind]
    rows = [f"| learnt from | {' | '.join(kinds.values())} |", "|---|---|---|"]
    for name, own in cost.items():
        cells = [f"{statistics.mean(own[kind].values()):.3f} ({_range(own[kind].values())})" for kind in kinds]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    knobs = (("6 tasks", "1 task"), ("6 tasks", "1 template a task"), ("temperature 8", "temperature 1"))
    rows += ["", f"| difference | {' | '.join(kinds.values())} |", "|---|---|---|"]
    for one, other in knobs:
        if one in cost and other in cost:
            rows.append(f"| {one} less {other} | {' | '.join(_gap(cost[one][kind], cost[other][kind]) for kind in kinds)} |")
    seeds, read = len({entry["seed"] for entry in result["entries"]}), result["entries"][0]
    return "\n".join(rows) + (
        f"\n\nNats a token, means over {seeds} seeds with the lowest and the highest; {read['held_out_tasks_answers']} and "
        f"{read['held_out_templates_answers']} answers. {_provenance(result)}\n"
    )


def _gap(ours: dict[int, float], theirs: dict[int, float]) -> str:
    """The mean difference over the seeds that both have, and its range."""
    gaps = [ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())]
    return f"{statistics.mean(gaps):+.3f} ({_range(gaps, '+')})" if gaps else ""


def _range(values: Collection[float], sign: str = "") -> str:
    return f"{min(values):{sign}.3f} to {max(values):{sign}.3f}"


def judges(result: dict[str, Any]) -> str:
    """SmolLM2 as the judge of a constitution: a row what the harsh answer says to it."""
    rows = ["| the harsh answer goes on with | agrees, one order | agrees, both orders | position bias (nats) "
            "| decided by position | mean preference (nats) |", "|" + "---|" * 6]  # fmt: skip
    for said, found in result["compared"].items():
        shown = f"`{json.dumps(said)[1:-1]}`" if said else "nothing"
        rows.append(
            f"| {shown} | {found['one_order']:.3f} | **{found['agreement']:.3f}** | {found['position_bias']:+.2f} "
            f"| {found['position_decided']:.2f} | {found['preference']:.2f} |"
        )
    alone = ""
    if "alone" in result:
        alone = f"Each answer alone (does it follow the principle?): the kind one scores higher in {result['alone']:.3f}. "
    return "\n".join(rows) + f"\n\n{result['pairs']} pairs. {alone}{_provenance(result)}\n"


def maxmin(result: dict[str, Any]) -> str:
    """The single reward model against MaxMin: every group's win rate over SFT by its own judge, a row a seed and policy."""
    names = list(result["groups"])
    heads = " | ".join(f"{name} ({result['groups'][name]:.0%} of people): win rate" for name in names)
    rows = [f"| seed | policy | {heads} | worst group | words an answer | KL (nats) |", "|" + "---|" * (5 + len(names))]
    rates: dict[str, dict[str, list[float]]] = {}
    for seed, run in _numbered(result["seeds"]):
        for policy, found in run["policies"].items():
            won = [found["win_rate"][name] for name in names]
            for name, rate in zip(["worst", *names], [min(won), *won], strict=True):
                rates.setdefault(policy, {}).setdefault(name, []).append(rate)
            cells = " | ".join(f"{rate:.3f}" for rate in won)
            rows.append(f"| {seed} | {policy} | {cells} | **{min(won):.3f}** | {found['words']:.1f} | {found['kl']:.2f} |")
    means = {policy: {name: statistics.mean(values) for name, values in own.items()} for policy, own in rates.items()}
    worst = ", ".join(f"{own['worst']:.3f} ({policy})" for policy, own in means.items())
    paid = "; ".join(f"{name} {means['maxmin'][name] - means['single'][name]:+.3f}" for name in names)
    right = ", ".join(f"{run['found']:.2f}" for _, run in _numbered(result["seeds"]))
    return "\n".join(rows) + (
        f"\n\nMean over {len(result['seeds'])} seeds: the worst group's win rate {worst}. MaxMin less single, by group: {paid}. "
        f"People whom expectation maximisation put into the right group, a share a seed: {right}. {_provenance(result)}\n"
    )


def iterate(result: dict[str, Any]) -> str:
    """A row a seed and round: gold at its KL, and the single round's gold at the same KL; how many seeds lie above."""
    rows = ["| seed | round | pairs | pair accuracy | KL (nats) | gold | single round's gold there | difference |",
            "|" + "---|" * 8]  # fmt: skip
    means, seconds = [], []
    for seed, run in _numbered(result["seeds"]):
        points, single = run["rounds"], run["single"]
        gaps = []
        for point in points:
            there = _between(single["curve"], point["kl"])
            gap = point["gold"] - there
            gaps += [gap] if point["number"] else []
            rows.append(f"| {seed} | {point['number']} | {point['labels']} | {point['pair_accuracy']:.3f} | {point['kl']:.2f} "
                        f"| {point['gold']:.3f} | {there:.3f} | {gap:+.3f} |")  # fmt: skip
        last = single["curve"][-1]
        rows.append(f"| {seed} | single | {single['labels']} | {single['pair_accuracy']:.3f} | {last['kl']:.2f} "
                    f"| {last['gold']:.3f} | | |")  # fmt: skip
        means.append(statistics.mean(gaps))
        seconds.append(run["seconds"])
    above = sum(mean > 0 for mean in means)
    shown = ", ".join(f"{mean:+.3f}" for mean in means)
    return "\n".join(rows) + (
        f"\n\nMean difference of the rounds after round 0, seed by seed: {shown}; above 0 for {above} of {len(means)} seeds. "
        f"Seconds of the loop, round 0 included: {', '.join(f'{each:.0f}' for each in seconds)}. {_provenance(result)}\n"
    )


def registry(result: dict[str, Any]) -> str:
    """Seconds of what stands between a trained policy and what serves, each with its aim."""
    rows = ["| what | seconds | aim |", "|---|---|---|"]
    for policy, one in result["registered"].items():
        command, size = f"prefloop register --policy {policy}", one["bytes"] / 1e9
        rows.append(f"| `{command}`: {size:.2f} GB into MLflow's store and DVC's remote | {one['seconds']:.1f} | |")
        rest = one["seconds"] - one["copying"]
        rows.append(f"| the same, less what copying these files takes ({one['copying']:.1f} s) | **{rest:.1f}** | 10 |")
    rows.append(f"| the first one again: {result['again']['bytes']:,} bytes | {result['again']['seconds']:.1f} | |")
    for number, one in result["decided"].items():
        compared = f"without its comparison ({one['comparison']:.1f} s)"
        rows.append(f"| deciding on version {number} {compared} | **{one['decision']:.2f}** | 2 |")
    rows.append(f"| `prefloop rollback` | **{result['rollback']:.1f}** | 5 |")
    rows.append(f"| the flow `retrain` with nothing to do | **{result['nothing_to_do']:.1f}** | 15 |")
    share = result["store"] / sum(result["models"].values())
    return "\n".join(rows) + f"\n\nMLflow's store holds {share:.3f} times the bytes of the two models. {_provenance(result)}\n"


def _between(curve: list[dict[str, float]], kl: float) -> float:
    """A curve's gold at a KL, on straight lines between its points in the order of KL; beyond its ends its last value."""
    points = sorted((point["kl"], point["gold"]) for point in curve)
    if kl <= points[0][0] or kl >= points[-1][0]:
        return points[0][1] if kl <= points[0][0] else points[-1][1]
    right = next(place for place, point in enumerate(points) if point[0] >= kl)
    (x0, y0), (x1, y1) = points[right - 1], points[right]
    return y0 + (y1 - y0) * (kl - x0) / (x1 - x0)


ORDER = ["prepare", "base", "sft", "preferences", "reward", "evaluate_sft", "report"]
TABLES = {
    "seeds": seeds, "default_run": default_run, "budget": budget, "orchestration": orchestration, "ppo": ppo, "data": data,
    "diagnosis": diagnosis, "evaluation": evaluation, "over_optimisation": over_optimisation, "methods": policies,
    "betas": policies, "soft_prompts": soft_prompts, "mixtures": mixtures, "judges": judges, "maxmin": maxmin,
    "iterate": iterate, "registry": registry,
}  # fmt: skip
FROM = {"default_run": "seeds", "budget": "orchestration_shakespeare", "orchestration": "orchestration_shakespeare"}
"""The results of a table, where they have another name."""


def _numbered(entries: dict[str, dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    """Entries whose names are numbers (seeds, rows), in the order of the numbers."""
    return sorted(entries.items(), key=lambda item: int(item[0]))


def _provenance(result: dict[str, Any]) -> str:
    dirty = " with uncommitted changes" if result["uncommitted_changes"] else ""
    return f"Made by `{result['command']}` at {result['commit'][:10]}{dirty} on {result['cores']} cores, {result['processor']}."


if __name__ == "__main__":
    main()
