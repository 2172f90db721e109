"""The command line ``prefloop``. Only what a command needs is imported, when it needs it: ``--help`` answers at once.

Exit codes: 0, 2 the data, 3 the configuration, 4 the environment, 130 interrupted, 143 terminated, 1 a defect or a dead stage.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from flows import loop_commands, pipeline_commands, promotion_commands
from pipelines.errors import ConfigurationError, EnvironmentFault, PrefloopError

if TYPE_CHECKING:
    from tasks.versions import Plan


class Parser(argparse.ArgumentParser):
    """Argument errors are errors of the configuration: exit code 3."""

    def error(self, message: str) -> NoReturn:
        """Say what was wrong, on one line."""
        self.exit(ConfigurationError.code, f"error: {message} (`{self.prog} --help` shows what there is)\n")


def parser() -> argparse.ArgumentParser:
    """The commands and their options."""
    top = Parser(prog="prefloop", description="From preferences to a promoted model: train, compare, look, and go round again.")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)

    run = commands.add_parser("run", help="run what is not up to date")
    run.add_argument("--recipe", metavar="NAME", help="make a recipe the current params.yaml first")
    run.add_argument(
        "--only", nargs="+", default=[], metavar="STAGE", help="these stages only, on what is there (policy = every policy@...)"
    )
    run.add_argument(
        "--seeds", nargs="+", type=int, default=[], metavar="N", help="the whole pipeline once a seed, each in a git worktree"
    )
    run.add_argument(
        "--force", action="store_true", help="run the stages again, whatever DVC remembers; resumable state is discarded"
    )
    run.add_argument("--dry-run", action="store_true", help="show which stages would run, with estimated time, memory and disk")
    run.set_defaults(action=do_run)

    commands.add_parser("status", help="what is up to date, what would run, and why").set_defaults(action=do_status)
    commands.add_parser("recipes", help="list the recipes").set_defaults(action=do_recipes)

    use = commands.add_parser("use", help="make a recipe the current params.yaml")
    use.add_argument("name", metavar="NAME")
    use.add_argument("--force", action="store_true", help="overwrite edits of params.yaml that are recorded nowhere")
    use.set_defaults(action=do_use)

    commit = commands.add_parser("commit", help="record params.yaml and dvc.lock of a run worth keeping in git")
    commit.add_argument("-m", "--message", default="Record a run: its parameters and the hashes of its results")
    commit.set_defaults(action=do_commit)

    pipeline_commands.add(commands)
    promotion_commands.add(commands)
    loop_commands.add(commands)
    return top


def main(arguments: list[str] | None = None) -> int:
    """Run one command; every expected error ends as one line and its exit code."""
    options = parser().parse_args(arguments)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _terminated)
    try:
        from flows import environment

        root = environment.find_root()
        os.chdir(root)
        environment.prepare(root)
        return int(options.action(root, options))
    except PrefloopError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return error.code
    except ModuleNotFoundError as error:
        print(f"error: the package {error.name} is missing in {sys.prefix}: `make install` installs it", file=sys.stderr)
        return EnvironmentFault.code
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr, flush=True)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        print(f"error: {error.filename or Path.cwd()}: {error.strerror or error}", file=sys.stderr, flush=True)
        return EnvironmentFault.code


def do_run(root: Path, options: argparse.Namespace) -> int:
    """Check everything that can be checked, then bring the stages up to date, with Prefect only when there is work."""
    from flows import environment, estimates, recipes
    from pipelines import config
    from pipelines.runner import prune_stale_policies
    from tasks import versions

    if options.recipe and recipes.current(root) != options.recipe:
        recipes.use(root, options.recipe, force=False)
    params = config.load()
    if options.seeds:
        return _run_seeds(root, options)
    only = tuple(options.only)
    if options.dry_run:
        print(estimates.table(root, versions.plan(root, only, options.force)))
        return 0
    with environment.alone(root):
        prune_stale_policies(root, params)
        plan = versions.plan(root, only, options.force)
        if not options.force:
            versions.refuse_foreign(plan)
        if plan.idle and not environment.server_is_configured():
            return _nothing_to_do(root, plan)
        return _run_flow(root, plan, only, options.force)


def do_status(root: Path, options: argparse.Namespace) -> int:
    """One line a stage: up to date, or what a run would do with it and why."""
    from flows import estimates, recipes
    from pipelines import config
    from tasks import repository, versions

    config.load()
    plan = versions.plan(root)
    words = {"unchanged": "up to date", "restore": "would be restored", "run": "would run"}
    rows = [
        (planned.stage, words[planned.action], "" if planned.action == "unchanged" else planned.why) for planned in plan.stages
    ]
    print(f"params.yaml: {f'recipe {recipes.current(root)}' if recipes.current(root) else 'edited, no recipe has it'}")
    print("\n".join(estimates.aligned(rows)))
    for path in plan.foreign:
        print(f"changed by hand: {path} (`{repository.tool('dvc')} checkout --force {path}` restores it)")
    return 0


def do_recipes(root: Path, options: argparse.Namespace) -> int:
    """The recipes, the current one marked."""
    from flows import estimates, recipes

    current = recipes.current(root)
    rows = [("*" if name == current else "", name, recipes.title(root, name)) for name in recipes.names(root)]
    print("\n".join(estimates.aligned(rows)))
    return 0


def do_use(root: Path, options: argparse.Namespace) -> int:
    """Make a recipe the current params.yaml."""
    from flows import recipes

    recipes.use(root, options.name, options.force)
    print(f"params.yaml is now recipe {options.name}; `prefloop run` runs it")
    return 0


def do_commit(root: Path, options: argparse.Namespace) -> int:
    """Record the current run in git."""
    from flows import recipes

    print(f"recorded as {recipes.commit(root, options.message)}: params.yaml, dvc.lock")
    return 0


def _run_seeds(root: Path, options: argparse.Namespace) -> int:
    from flows import environment, seeds

    if options.only or options.dry_run:
        raise ConfigurationError("--seeds runs the whole pipeline: it goes with neither --only nor --dry-run")
    seeds.refuse_uncommitted(root)
    with environment.alone(root), environment.server_if_needed():
        return seeds.run(root, options.seeds, options.force)


def _nothing_to_do(root: Path, plan: Plan) -> int:
    """The no-op run: DVC says that all is up to date, so neither a flow nor a server is started."""
    from tasks import publish

    if not (root / publish.PAGE).exists():
        publish.report(root, "", "")
    print("everything is up to date" if len(plan.stages) > 1 else f"{plan.stages[0].stage} is up to date")
    _summarise(root, plan)
    return 0


def _run_flow(root: Path, plan: Plan, only: tuple[str, ...], force: bool) -> int:
    """The flow ``train`` with a display; the summary at the end."""
    from flows import console, environment

    started = time.monotonic()
    try:
        console.announce(plan, "")
        _warn_of_threads(root)
        _warm_tracking(root, plan)
        with environment.server_if_needed():
            from flows.train import train
            from tasks.stages import watched

            with console.Display(plan) as display, watched(display):
                results: list[dict[str, Any]] = train(only, force, str(root))
            console.outcomes(results, display.metrics)
            _summarise(root, plan)
            print(f"done in {time.monotonic() - started:.0f} s", flush=True)
    except (KeyboardInterrupt, Exception) as error:
        return console.complain(error)
    return 0


def _summarise(root: Path, plan: Plan) -> None:
    """The policies and the report's place, unless other stages alone were asked for: then they may be of an earlier run."""
    from flows import console
    from tasks import publish

    if any(planned.stage == publish.LAST for planned in plan.stages):
        console.summary(root, publish.PAGE if (root / publish.PAGE).exists() else None)


def _warn_of_threads(root: Path) -> None:
    """More threads than cores wait for one another: two stages of two threads on two cores took five times as long."""
    from pipelines import config

    runtime = config.load(root / config.PARAMS).runtime
    cores, wanted = os.cpu_count() or 1, runtime.threads * runtime.parallel_stages
    if runtime.parallel_stages > 1 and wanted > cores:
        print(
            f"warning: runtime: {runtime.parallel_stages} stages side by side of {runtime.threads} threads each on {cores} cores "
            f"slow one another several times; set threads: {max(1, cores // runtime.parallel_stages)}",
            flush=True,
        )


def _warm_tracking(root: Path, plan: Plan) -> None:
    """MLflow takes seconds to import: let its recorder do so while Prefect starts."""
    if plan.names("run"):
        from pipelines.adapters import tracking

        tracking.warm(root)


def _terminated(number: int, frame: object) -> NoReturn:
    sys.exit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
