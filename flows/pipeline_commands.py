"""The commands that read rows or load models: generate, compare, revise, data, doctor; ``python -m pipelines`` does their work.

Imports nothing heavy at the top. Paths are the caller's, so they are made absolute before the project's root is the folder.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

FORMATS = ("auto", "completion", "messages", "preference", "hh", "alpaca", "ranked", "graded", "kto", "text")


def add(commands: Any) -> None:
    """Add the commands to the command line."""
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


def _data_commands(data: argparse.ArgumentParser) -> None:
    """``prefloop data ...``."""
    commands = data.add_subparsers(dest="data_command", required=True, metavar="COMMAND")
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


def do_revise(root: Path, options: argparse.Namespace) -> int:
    """``python -m pipelines revise`` loads the models."""
    return _hand_over(root, "revise", "--out", options.out, "--limit", str(options.limit))


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


def do_data_add(root: Path, options: argparse.Namespace) -> int:
    """Bring a set of data in."""
    from flows import external

    path = external.add(root, Path(options.path), options.name, options.source, options.licence)
    print(f"{path} is versioned by DVC; `prefloop data check {path}` validates it, docs/data.md shows how to train on it")
    return 0


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
