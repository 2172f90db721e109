"""The flow ``iterate``: collect from the best policy, learn the reward model and a policy anew, keep the better one, again.

Paper: Ouyang et al. 2022, section 3.1: steps 2 and 3 are iterated, more comparisons being collected on the current best policy.
"""

from __future__ import annotations

from pathlib import Path

from prefect import flow

from flows import console, environment, estimates
from flows.train import train
from tasks import registry, rounds, versions
from tasks.stages import watched

FOLDER = Path(".runs/iterate")


@flow(name="iterate", retries=0, persist_result=False)
def iterate(root: str = ".", wanted: int = 3, policy: str = "") -> str:
    """Up to ``wanted`` rounds after the recipe's own (round 0), in a worktree; a loop that was interrupted goes on.

    Returns the table of all rounds; it ends early where gold has not grown for two rounds.
    """
    folder = Path(root).resolve()
    registry.use_store_of(folder)
    with environment.alone(folder / FOLDER):
        loop = rounds.opened(folder, policy)
        if loop.rounds:
            print(f"going on after round {loop.rounds[-1].number}", flush=True)
        while not loop.over(wanted):
            loop = one(loop)
        draw(loop)
        return table(loop, wanted)


def one(loop: rounds.Loop) -> rounds.Loop:
    """One round: new pairs, what follows from them, the record."""
    # 1. pairs of the best policy so far; round 0 is the recipe as it stands
    number = len(loop.rounds)
    print(f"\nround {number}", flush=True)
    if number:
        rounds.ask(loop, number)

    # 2. the reward model, the policy, its evaluation
    only = rounds.stages(loop)
    plan = versions.plan(loop.worktree, only)
    with console.Display(plan) as display, watched(display):
        train(only, False, str(loop.worktree))

    # 3. the record: one commit
    loop = rounds.record(loop)
    made = loop.rounds[-1]
    print(
        f"round {number}: gold {made.gold:.3f}, KL {made.kl:.2f} nats; {'kept' if loop.best is made else 'not better'}",
        flush=True,
    )
    return loop


def table(loop: rounds.Loop, wanted: int) -> str:
    """Every round, its commit, and why the loop ended."""
    head = ("round", "pairs", "pair accuracy", "gold", "KL (nats)", "win rate against SFT", "commit", "")
    rows: list[tuple[str, ...]] = [head]
    best = float("-inf")
    for made, commit in zip(loop.rounds, rounds.commits(loop), strict=True):
        word = "best" if made is loop.best else "kept" if made.gold > best else "not better"
        best = max(best, made.gold)
        accuracy = f"{made.pair_accuracy:.3f}" if made.pair_accuracy is not None else ""
        rows.append((str(made.number), str(made.labels), accuracy, _with_error(made.gold, made.gold_se),
                     _with_error(made.kl, made.kl_se), f"{made.win_rate:.3f}", commit[:10], word))  # fmt: skip
    done = loop.rounds[-1].number
    why = f"{done} rounds" if done >= wanted else f"ended after round {done}: gold has not grown for {rounds.PATIENCE} rounds"
    return "\n".join([*estimates.aligned(rows), "", f"{why}; the best is round {loop.best.number}; plot: {FOLDER}/rounds.svg"])


def draw(loop: rounds.Loop) -> None:
    """Gold against KL over the rounds: SVG, PNG and the points as CSV in the project's .runs/iterate."""
    from pipelines.evaluation.rounds import Point, plotted

    points = [Point(one.number, one.kl, one.kl_se or 0.0, one.gold, one.gold_se or 0.0) for one in loop.rounds]
    csv, svg, png = plotted(points, loop.best.number)
    folder = loop.root / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in (("rounds.csv", csv.encode()), ("rounds.svg", svg.encode()), ("rounds.png", png)):
        (folder / name).write_bytes(content)


def _with_error(value: float, error: float | None) -> str:
    return f"{value:.3f}" + (f" ± {1.96 * error:.3f}" if error else "")
