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

from flows import loop_commands, promotion_commands
from pipelines.errors import ConfigurationError, EnvironmentFault, PrefloopError

if TYPE_CHECKING:
    from tasks.versions import Plan


FORMATS = ("auto", "completion", "messages", "preference", "hh", "alpaca", "ranked", "graded", "kto", "text")


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

    generate = commands.add_parser("generate", help="try a model: stream its answer to a prompt")
    generate.add_argument("--policy", default="sft", metavar="NAME", help="a policy of params.yaml, sft or base (default: sft)")
    generate.add_argument("--max-new-tokens", type=int, default=64, metavar="N")
    generate.add_argument("--temperature", type=float, default=1.0, help="0 = always the most likely token")
    generate.add_argument("--seed", type=int, default=1)
    generate.add_argument("prompt", metavar="PROMPT")
    generate.set_defaults(action=do_generate)

    compare = commands.add_parser("compare", help="two models' answers to the held-out prompts, head to head")
    compare.add_argument(
        "models",
        nargs=2,
        metavar="MODEL",
        type=_model,
        help="a policy of params.yaml, sft, base, a model folder or a version (models:/NAME@champion)",
    )
    compare.add_argument(
        "--judge", default="gold", metavar="JUDGE", type=_judge,
        help="gold (the recipe's judge), reward (its reward model), a YAML file with another or a JSONL file of votes",
    )  # fmt: skip
    compare.set_defaults(action=do_compare)

    revise = commands.add_parser("revise", help="demonstrations: SFT's answers, criticised and revised by the constitution")
    revise.add_argument("--out", required=True, metavar="FILE", type=_absolute, help="the JSONL file to write")
    revise.add_argument("--limit", type=int, default=0, metavar="N", help="the first N prompts in training (default: all)")
    revise.set_defaults(action=do_revise)
    _data_commands(commands.add_parser("data", help="check, show, compare and add data"))

    doctor = commands.add_parser("doctor", help="is the training healthy, and if not, why: an audit of what was logged")
    doctor.add_argument(
        "what", nargs="?", default="", metavar="WHAT", type=_history,
        help="a policy of params.yaml, sft or reward; a history.parquet; an MLflow run's id (default: all that is trained)",
    )  # fmt: skip
    doctor.add_argument("--json", action="store_true", help="for machines: findings, attribution, what blocks a promotion")
    doctor.set_defaults(action=do_doctor)
    promotion_commands.add(commands)
    loop_commands.add(commands)
    return top


def _data_commands(data: argparse.ArgumentParser) -> None:
    """``prefloop data ...``; paths are the caller's, so they are made absolute before the project's root becomes the folder."""
    commands = data.add_subparsers(dest="data_command", required=True, metavar="COMMAND", parser_class=Parser)
    check = commands.add_parser("check", help="validate files without training (SPLIT=PATH: the rows are of that split)")
    check.add_argument("paths", nargs="+", metavar="PATH", type=_absolute)
    check.add_argument("--format", default="auto", choices=FORMATS, help="default: recognised by the fields")
    check.add_argument("--columns", nargs="+", default=[], metavar="OURS=THEIRS", help="our names for the file's columns")
    check.add_argument(
        "--golden", default="", metavar="FILE", type=_absolute, help="trusted pairs: how many labels agree with them"
    )
    show = commands.add_parser("show", help="the prepared tables: sources, splits, counts, examples")
    show.add_argument("--examples", type=int, default=2, metavar="N")
    commands.add_parser("diff", help="what changed in the prepared tables since a git revision").add_argument(
        "revision", metavar="REV"
    )
    for command in (check, show, commands.choices["diff"]):
        command.set_defaults(action=do_data)
    add = commands.add_parser("add", help="copy a file or folder to data/external/NAME and version it with DVC")
    add.add_argument("path", metavar="PATH", type=_absolute)
    add.add_argument("--name", default="", help="default: the file's or folder's name")
    add.add_argument("--source", required=True, help="where it comes from: an address, a commit, a person")
    add.add_argument("--licence", required=True, help="under which terms, as in MIT or CC-BY-4.0")
    add.set_defaults(action=do_data_add)


def _absolute(path: str) -> str:
    """The caller's path, also behind ``train=``; "" stays what it is (an option that was not given)."""
    split, mark, rest = path.partition("=")
    if mark and split in ("train", "validation", "test"):
        return f"{split}={os.path.abspath(rest)}"
    return os.path.abspath(path) if path else ""


def _history(what: str) -> str:
    """A file is the caller's path; a name stays a name."""
    return os.path.abspath(what) if what.endswith(".parquet") else what


def _model(name: str) -> str:
    """A model's name or a version as it is; a folder of the caller's made absolute."""
    if name.startswith("models:/"):
        return name
    return os.path.abspath(name) if os.sep in name or name in (".", "..") else name


def _judge(name: str) -> str:
    """A judge's name as it is; a file of the caller's made absolute."""
    return name if name in ("gold", "reward") else os.path.abspath(name)


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


def do_generate(root: Path, options: argparse.Namespace) -> int:
    """``python -m pipelines generate`` loads the model and streams."""
    sampling = ["--max-new-tokens", str(options.max_new_tokens), "--temperature", str(options.temperature)]
    return _hand_over(root, "generate", "--policy", options.policy, *sampling, "--seed", str(options.seed), "--", options.prompt)


def do_compare(root: Path, options: argparse.Namespace) -> int:
    """``python -m pipelines compare`` loads the models; registered versions as folders."""
    import tempfile

    with tempfile.TemporaryDirectory(prefix="prefloop-") as spare:
        models = [_folder_of_version(root, model, Path(spare)) for model in options.models]
        return _hand_over(root, "compare", *models, "--judge", options.judge)


def _folder_of_version(root: Path, model: str, spare: Path) -> str:
    """``models:/NAME@champion`` or ``models:/NAME/3`` as a folder that is named after the version; others as they are."""
    if not model.startswith("models:/"):
        return model
    from tasks import registry

    office = registry.opened(root)
    version = office.registry.version(model)
    named = spare / f"version-{version.number}"
    named.symlink_to(registry.folder_of(office, version, spare / "fetched").resolve())
    return str(named)


def do_revise(root: Path, options: argparse.Namespace) -> int:
    """Hand over to ``python -m pipelines revise``, which loads the models."""
    import subprocess

    from tasks import repository

    command = [sys.executable, "-m", "pipelines", "revise", "--out", str(options.out), "--limit", str(options.limit)]
    with subprocess.Popen(command, cwd=root, env=repository.environment(root)) as child:
        try:
            return child.wait()
        except KeyboardInterrupt:
            return child.wait() or 130


def do_data(root: Path, options: argparse.Namespace) -> int:
    """``python -m pipelines data`` reads the rows."""
    arguments = {
        "check": lambda: [*options.paths, "--format", options.format, "--golden", options.golden, "--columns", *options.columns],
        "show": lambda: ["--examples", str(options.examples)],
        "diff": lambda: [options.revision],
    }[options.data_command]()
    return _hand_over(root, "data", options.data_command, *arguments)


def do_doctor(root: Path, options: argparse.Namespace) -> int:
    """``python -m pipelines doctor`` reads histories."""
    return _hand_over(root, "doctor", *(["--json"] if options.json else []), "--", options.what)


def _hand_over(root: Path, command: str, *arguments: str) -> int:
    """Run ``python -m pipelines COMMAND`` in the project, which imports what we do not; Ctrl-C reaches it as well."""
    import subprocess

    from tasks import repository

    whole = [sys.executable, "-m", "pipelines", command, *arguments]
    with subprocess.Popen(whole, cwd=root, env=repository.environment(root)) as child:
        try:
            return child.wait()
        except KeyboardInterrupt:
            return child.wait() or 130


def do_data_add(root: Path, options: argparse.Namespace) -> int:
    """Bring a set of data in."""
    from flows import external

    path = external.add(root, Path(options.path), options.name, options.source, options.licence)
    print(f"{path} is versioned by DVC; `prefloop data check {path}` validates it, docs/data.md shows how to train on it")
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
