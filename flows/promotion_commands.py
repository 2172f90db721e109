"""The commands about versions: register, promote, approve, rollback and what they look at. Imports nothing heavy at the top."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tasks.ledger import Entry
    from tasks.registry import Office

VERSION = "a number, an alias (champion, challenger, previous), or models:/NAME@champion"


def add(commands: Any) -> None:
    """Add the commands to the command line."""
    register = commands.add_parser("register", help="make a trained policy a version of the registered model")
    register.add_argument("--policy", required=True, metavar="NAME")
    register.set_defaults(action=do_register)

    promote = commands.add_parser(
        "promote", help="compare a version with the champion; make it the champion if every gate passes"
    )
    promote.add_argument("version", nargs="?", default="challenger", metavar="VERSION", help=f"{VERSION} (default: challenger)")
    promote.add_argument("--policy", metavar="NAME", help="register this policy first, and promote what that gives")
    promote.set_defaults(action=do_promote)

    approve = commands.add_parser("approve", help="answer a promotion that waits for a person; the reason is recorded")
    approve.add_argument("version", metavar="VERSION")
    approve.add_argument("--reason", required=True, metavar="TEXT")
    approve.add_argument("--reject", action="store_true", help="say no")
    approve.set_defaults(action=do_approve)

    rollback = commands.add_parser("rollback", help="give the name back to the champion before; the present one never returns")
    rollback.add_argument("--reason", required=True, metavar="TEXT")
    rollback.set_defaults(action=do_rollback)

    commands.add_parser("champion", help="which version serves, since when, and what it is worth").set_defaults(
        action=do_champion
    )
    commands.add_parser("history", help="what was decided, by whom, on which evidence").set_defaults(action=do_history)

    audit = commands.add_parser("audit", help="verify the ledger's chain of hashes; export it")
    audit.add_argument("--export", type=Path, metavar="FILE", help="write every entry as a line of JSON")
    audit.set_defaults(action=do_audit)

    impact = commands.add_parser("impact", help="which versions learned from this data")
    impact.add_argument("what", metavar="FILE|ROW-ID|HASH")
    impact.set_defaults(action=do_impact)

    reproduce = commands.add_parser("reproduce", help="make a version again from its commit and compare file by file")
    reproduce.add_argument("version", metavar="VERSION", help=VERSION)
    reproduce.add_argument("--params", type=Path, metavar="FILE", help="with these parameters instead of the version's")
    reproduce.set_defaults(action=do_reproduce)

    pull = commands.add_parser("pull", help="fetch a version as a plain transformers folder, every file checked")
    pull.add_argument("version", metavar="VERSION", help=VERSION)
    pull.add_argument("--to", type=Path, metavar="FOLDER", help="default: .runs/versions/NUMBER")
    pull.set_defaults(action=do_pull)


def do_register(root: Path, options: argparse.Namespace) -> int:
    """Register a policy."""
    from tasks import registry

    version, fresh = registry.register(registry.opened(root), options.policy)
    print(f"{version.uri}: {'registered' if fresh else 'registered already'}, {version.tags['git.tag']}")
    return 0


def do_promote(root: Path, options: argparse.Namespace) -> int:
    """Register if asked to, compare, judge, promote; exit code 1 where a gate says no."""
    from tasks import promotion, registry

    office = registry.opened(root)
    version = registry.register(office, options.policy)[0] if options.policy else office.registry.version(options.version)
    outcome, entry = promotion.promote(office, version)
    if outcome == "champion":
        print(f"{version.uri} is the champion already")
        return 0
    number = entry.number if entry.kind == "decision" else entry.body["decision"]
    decision = next(one for one in office.ledger.entries(office.name) if one.number == number)
    print(gates_table(decision))
    print(
        "\n"
        + (f"{version.uri} is refused: {told(entry)}" if entry.kind == "approval" else outcome_line(office, outcome, decision))
    )
    return 1 if outcome == "refused" else 0


def do_approve(root: Path, options: argparse.Namespace) -> int:
    """Record a reviewer's answer, and promote where it is yes."""
    from flows import environment
    from tasks import promotion, registry

    office = registry.opened(root)
    version = office.registry.version(options.version)
    given, promoted = promotion.answer(office, version, not options.reject, options.reason)
    if environment.server_is_at_hand():  # a flow run may wait for this answer
        from flows import promote

        promote.resume(office, given)
    said = f"approved, and the champion (ledger entry {promoted.number})" if promoted else "rejected; the champion stays"
    print(f"{version.uri}: {said}; {given.body['who']}: {given.body['reason']}")
    return 0


def do_rollback(root: Path, options: argparse.Namespace) -> int:
    """Roll back."""
    from tasks import promotion, registry

    office = registry.opened(root)
    entry = promotion.rollback(office, options.reason)
    print(
        f"models:/{office.name}@champion is version {entry.version} again; version {entry.body['from']} is marked and stays out"
    )
    return 0


def do_champion(root: Path, options: argparse.Namespace) -> int:
    """The champion; exit code 1 where there is none."""
    from tasks import registry

    office = registry.opened(root)
    now = office.standing()
    if not now.champion:
        print(f"{office.name} has no champion; `prefloop promote --policy NAME` makes one")
        return 1
    version = office.registry.version(now.champion)
    entry = next(one for one in office.ledger.entries(office.name) if one.number == now.fence)
    metrics = {key.removeprefix("metric."): value for key, value in sorted(version.tags.items()) if key.startswith("metric.")}
    facts: dict[str, str] = {
        "version": version.uri,
        "since": f"{entry.time} (ledger entry {entry.number})",
        "previous": now.previous or "none",
        "policy": f"{version.tags.get('prefloop.policy', '')} ({version.tags.get('prefloop.method', '')})",
        "commit": f"{version.tags.get('git.commit', '')[:12]} ({version.tags.get('git.tag', '')})",
        "cost": version.tags.get("prefloop.cost", ""),
        **{key: metrics[key] for key in ("win_rate", "win_rate_ci", "gold_mean", "kl", "eos_rate") if key in metrics},
    }
    print(_aligned(list(facts.items())))
    return 0


def do_history(root: Path, options: argparse.Namespace) -> int:
    """The ledger in a line an entry."""
    from tasks import registry

    office = registry.opened(root)
    rows = [("entry", "time", "what", "version", "")]
    rows += [(str(one.number), one.time, one.kind, one.version, told(one)) for one in office.ledger.entries(office.name)]
    print(_aligned(rows) if len(rows) > 1 else f"{office.name}: nothing registered yet")
    return 0


def do_audit(root: Path, options: argparse.Namespace) -> int:
    """Verify the chain and what hangs on it; exit code 2 where something was changed."""
    from tasks import audit, registry

    office = registry.opened(root)
    wrong = audit.faults(office)
    if options.export:
        audit.export(office, options.export)
    entries = office.ledger.entries()
    print(f"{len(entries)} entries, last hash {entries[-1].hash}" if entries else "the ledger is empty")
    for fault in wrong:
        print(f"error: {fault}")
    print("the chain holds" if not wrong else f"{len(wrong)} faults")
    return 2 if wrong else 0


def do_impact(root: Path, options: argparse.Namespace) -> int:
    """The versions that learned from a file, a row or a hash."""
    from tasks import audit, registry

    rows = audit.impact(registry.opened(root), options.what)
    if not rows:
        print(f"no version learned from {options.what}")
        return 0
    print(_aligned([("version", "standing", "learned from it in"), *rows]))
    return 0


def do_reproduce(root: Path, options: argparse.Namespace) -> int:
    """Make a version again; exit code 1 where it differs."""
    from flows import reproduce
    from tasks import registry

    office = registry.opened(root)
    version = office.registry.version(options.version)
    verdict = reproduce.reproduce(office, version, options.params)
    print(reproduce.told(version, verdict))
    return 0 if verdict.identical else 1


def do_pull(root: Path, options: argparse.Namespace) -> int:
    """Fetch a version."""
    from pipelines.errors import ConfigurationError
    from tasks import registry

    office = registry.opened(root)
    version = office.registry.version(options.version)
    to = options.to or Path(".runs", "versions", version.number)
    if to.exists() and any(to.iterdir()):
        raise ConfigurationError(f"{to}: not empty; give another --to")
    print(registry.pull(office, version, to))
    return 0


def gates_table(decision: Entry) -> str:
    """Every gate of a decision: name, value, bound, pass or FAIL."""
    rows = [("gate", "value", "bound", "")]
    for gate in decision.body["gates"]:
        value = gate["value"]
        shown = "not measured" if value is None else value if isinstance(value, str) else f"{value:.4g}"
        rows.append((gate["name"], shown, gate["bound"], "pass" if gate["passed"] else "FAIL"))
    return _aligned(rows)


def outcome_line(office: Office, outcome: str, decision: Entry) -> str:
    """What came of a promotion, in one line."""
    version, before = f"models:/{office.name}/{decision.version}", decision.body["champion"]
    if outcome == "refused":
        failed = ", ".join(gate["name"] for gate in decision.body["gates"] if not gate["passed"])
        stays = f"version {before} stays champion" if before else "there is still no champion"
        return f"{version} is refused, {stays}: {failed} (ledger entry {decision.number})"
    if outcome == "waiting":
        return f"{version} passed and waits for a person: `prefloop approve {decision.version} --reason TEXT`"
    return f"{version} is the champion{f'; version {before} was' if before else ''} (ledger entry {decision.number})"


def told(entry: Entry) -> str:
    """An entry's content in a few words."""
    body = entry.body
    if entry.kind == "decision":
        failed = [gate["name"] for gate in body["gates"] if not gate["passed"]]
        against = f"against version {body['champion']}" if body["champion"] else "no champion before"
        return f"{'passed' if body['passed'] else 'refused'}, {against}{': ' + ', '.join(failed) if failed else ''}"
    if entry.kind == "approval":
        return f"{'yes' if body['approved'] else 'no'}, {body['who']}: {body['reason']}"
    if entry.kind in ("promote", "rollback"):
        after = f"after version {body['from']}" if body["from"] else "the first"
        return f"{after}{': ' + body['reason'] if body.get('reason') else ''}"
    return str(body.get("policy") or json.dumps(body, sort_keys=True)[:100])


def _aligned(rows: Sequence[tuple[str, ...]]) -> str:
    from flows.estimates import aligned

    return "\n".join(aligned(rows))
