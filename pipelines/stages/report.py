"""One page that shows the whole run: verdict, win table, curves, reward model, data, answers.

Reads:   evaluations, policies, sft and reward (histories and figures), preferences, prepared/quality.json
Writes:  report/{index.html, metrics.json}, report/plots/*.{svg, png}, report/data/*.csv (DVC plots)
Params:  seed, evaluate, report, policies (only the policies named there are shown)
Metrics: policies (how many are shown), pair_accuracy, each policy's win rate, and alarms (of the detectors)
Paper:   Gao et al. 2022 (gold and proxy against KL), Rafailov et al. 2023, figure 2 (the reward-KL frontier)
"""

from __future__ import annotations

from pipelines.context import Context
from pipelines.data.tables import whole_file, write_json
from pipelines.diagnosis.audit import Known, audit
from pipelines.evaluation import findings, page, plots, tables


def run(ctx: Context) -> dict[str, float]:
    """Beats: gather, draw, examine, write."""
    # 1. everything that earlier stages have found
    methods: dict[str, str] = {name: policy.method for name, policy in sorted(ctx.params.policies.items())}
    found = findings.gather(ctx.artifacts, methods, ctx.params.evaluate, ctx.params.seed)
    ctx.journal.log(1, 3, note="gathered")

    # 2. plots, as files on white
    drawn = plots.draw(found)
    for plot in drawn:
        with whole_file(ctx.out(f"report/plots/{plot.name}.svg")) as partial:
            partial.write_text(plot.svg, encoding="utf-8")
        with whole_file(ctx.out(f"report/plots/{plot.name}.png")) as partial:
            partial.write_bytes(plot.png)
    ctx.journal.log(2, 3, note="drawn")

    # 3. what the detectors say of every training, and which stage is at fault where a policy disappoints
    audited = audit(_known(ctx, found))

    # 4. the figures, tables for DVC's plots, and the page
    for name, table in tables.draw(found).items():
        with whole_file(ctx.out(f"report/data/{name}.csv")) as partial:
            table.to_csv(partial, index=False, lineterminator="\n")
    write_json(ctx.out("report/metrics.json"), found.metrics)
    with whole_file(ctx.out("report/index.html")) as partial:
        partial.write_text(page.render(found, drawn, ctx.params.report.examples, audited), encoding="utf-8")
    ctx.journal.log(3, 3, note="written")
    return _watched(found) | {"alarms": float(len(audited.blocking))}


def _known(ctx: Context, found: findings.Findings) -> Known:
    """What the detectors look at: no journal and no recorded run, which are no inputs of a stage."""
    reward = found.metrics["reward"] | {"known_pairs": len(found.pairs)}
    golden = {key: value for key, value in found.quality.items() if key == "golden_accuracy"}
    settings = {name: policy.model_dump() for name, policy in ctx.params.policies.items()}
    return Known(found.histories, found.metrics | {"reward": reward | golden}, settings, found.samples, actions=found.actions)


def _watched(found: findings.Findings) -> dict[str, float]:
    """The numbers to watch, for the tracker."""
    accuracy = found.metrics["reward"].get("pair_accuracy")
    watched = {"policies": float(len(found.policies))}
    watched |= {"pair_accuracy": float(accuracy)} if accuracy is not None else {}
    for name, row in found.metrics["policies"].items():
        watched |= {f"{name}/win_rate": row["win_rate"], f"{name}/gold_mean": row["gold_mean"], f"{name}/kl": row["kl"]}
    return watched
