"""The commands of the loop: collect, iterate, retrain, monitor, deploy, serve, gc. Imports nothing heavy at the top."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add(commands: Any) -> None:
    """Add the commands to the command line."""
    collect = commands.add_parser("collect", help="new preference pairs of a policy's answers, as a new file of data/preferences")
    collect.add_argument("--round", type=int, default=0, metavar="N", help="default: the next")
    collect.add_argument(
        "--policy", default="champion", metavar="NAME", help="a policy of params.yaml, sft, or a version (default: champion)"
    )
    collect.set_defaults(action=do_collect)

    iterate = commands.add_parser("iterate", help="collect, learn the reward model and a policy anew, keep the better one; again")
    iterate.add_argument("--rounds", type=int, required=True, metavar="N", help="at most; a loop that was interrupted goes on")
    iterate.add_argument("--policy", default="", metavar="NAME", help="of params.yaml (default: retrain.policy, or the only one)")
    iterate.set_defaults(action=do_iterate)

    retrain = commands.add_parser("retrain", help="train where something has changed, challenge the champion, promote or keep")
    retrain.add_argument("--reason", default="by hand", metavar="TEXT")
    retrain.set_defaults(action=do_retrain)

    monitor = commands.add_parser("monitor", help="compare a window of served traffic with the champion's evaluation")
    monitor.add_argument("--log", type=Path, metavar="FILE", help="JSONL or Parquet (default: data/served/replies.jsonl)")
    monitor.set_defaults(action=do_monitor)

    commands.add_parser("deploy", help="set up prefect.yaml's schedules on the configured Prefect server").set_defaults(
        action=do_deploy
    )
    commands.add_parser("serve", help="run a Prefect server with these schedules, and a worker, until Ctrl-C").set_defaults(
        action=do_serve
    )

    gc = commands.add_parser("gc", help="free what no version, branch or recipe needs in DVC's cache")
    gc.add_argument("--dry-run", action="store_true", help="say how much, remove nothing")
    gc.set_defaults(action=do_gc)


def do_collect(root: Path, options: argparse.Namespace) -> int:
    """Collect a round, or read back what people have answered."""
    from flows import environment
    from pipelines import config

    with environment.server_if_needed():
        from flows.collect import collect, told

        result = collect(str(root), options.round, options.policy)
    print(told(result))
    if config.load().preferences.source == "judge":
        print("note: preferences.source is judge, so the pool is not learned from; set both, or pool")
    return 0


def do_iterate(root: Path, options: argparse.Namespace) -> int:
    """Go round; Ctrl-C stops the stages, and the same command goes on."""
    from flows import console, environment
    from pipelines.errors import ConfigurationError

    if options.rounds < 1:
        raise ConfigurationError(f"--rounds {options.rounds}: at least 1")
    try:
        with environment.server_if_needed():
            from flows.iterate import iterate

            print("\n" + iterate(str(root), options.rounds, options.policy))
    except (KeyboardInterrupt, Exception) as error:
        return console.complain(error, "iterate")
    return 0


def do_retrain(root: Path, options: argparse.Namespace) -> int:
    """Retrain now; exit code 0 whatever became of the challenger."""
    from flows import environment

    with environment.server_if_needed():
        from flows.retrain import retrain

        result = retrain(str(root), options.reason)
    champion = f"the champion is version {result['champion']}" if result["champion"] else "there is no champion"
    version = f" (version {result['version']})" if result["version"] else ""
    print(f"{result['outcome']}{version}: {result['why']}; {champion}")
    return 0


def do_monitor(root: Path, options: argparse.Namespace) -> int:
    """Monitor one window; exit code 1 where it is an alarm."""
    from flows import environment

    with environment.server_if_needed():
        from flows.monitor import monitor, told

        result = monitor(str(root), str(options.log) if options.log else "")
    print(told(result))
    return 1 if result["level"] == "alarm" else 0


def do_deploy(root: Path, options: argparse.Namespace) -> int:
    """Deploy."""
    from flows import deploy, environment
    from pipelines.errors import ConfigurationError

    if not environment.server_is_configured():
        raise ConfigurationError(
            "PREFECT_API_URL: not set, so there is nowhere to deploy to; `prefloop serve` starts a server here"
        )
    print("deployed: " + ", ".join(deploy.deploy(root)))
    return 0


def do_gc(root: Path, options: argparse.Namespace) -> int:
    """Clean up, or say what a clean-up would free."""
    from flows import environment
    from tasks import cleaning

    with environment.alone(root):
        freed = cleaning.collect(root, options.dry_run)
    word = "would free" if options.dry_run else "freed"
    print(f"{word} {freed.size / 2**20:.1f} MiB in {freed.objects} objects; kept: versions, branches, worktrees"
          + (f", recipes {', '.join(freed.recipes)}" if freed.recipes else ""))  # fmt: skip
    return 0


def do_serve(root: Path, options: argparse.Namespace) -> int:
    """Serve until Ctrl-C."""
    from flows import deploy

    return deploy.serve(root)
