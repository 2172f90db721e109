"""A process that dies at any point between ledger, alias and tag: the next command makes them agree; nothing is done twice."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tasks import audit, registry
from tests.project import Project
from tests.registry import house

DIES = """
import os, sys
from pathlib import Path
from pipelines.adapters.registry import Registry
from tasks import promotion, registry
from tasks.ledger import Transaction
left = int(sys.argv[2])
def mortal(owner, name):
    whole = getattr(owner, name)
    def call(*arguments):
        global left
        left -= 1
        if left == 0:
            os._exit(9)
        return whole(*arguments)
    setattr(owner, name, call)
for owner, name in ((Registry, "set_alias"), (Registry, "tag"), (Registry, "create"), (Transaction, "append")):
    mortal(owner, name)
office = registry.opened(Path.cwd())
if sys.argv[1] == "promote":
    promotion.promote(office, registry.register(office, "ppo")[0])
else:
    promotion.rollback(office, "bad", key="the alarm of noon")
"""


def die(project: Project, command: str, at: int) -> int:
    """Run a command that dies just before its ``at``-th write to the ledger or to MLflow; return the exit code."""
    done = subprocess.run([sys.executable, "-c", DIES, command, str(at)], cwd=project.folder, env=project.environment)
    return done.returncode


def agree(project: Project) -> tuple[str, list[str]]:
    """Open the office, as every command does; check that MLflow says what the ledger says. Champion, and kinds of entries."""
    office = registry.opened(project.folder)
    entries = office.ledger.entries()
    now = office.standing()
    aliases = office.registry.aliases()
    assert (aliases.get("champion", ""), aliases.get("previous", "")) == (now.champion, now.previous)
    for version in office.registry.versions():
        promoted = [entry for entry in entries if entry.kind == "promote" and entry.version == version.number]
        assert ("prefloop.promoted" in version.tags) == bool(promoted)
        assert ("prefloop.rolled_back" in version.tags) == (version.number in now.rolled_back)
        if promoted:
            assert re.search(f"ledger entry {promoted[-1].number} ", version.tags["prefloop.promoted"])
    assert audit.faults(office) == []
    assert registry.converge(office) == [], "nothing is left to do"
    return now.champion, [entry.kind for entry in entries]


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_every_point_converges(project: Project, tmp_path: Path) -> None:
    """Every write of a registration with its promotion, and of a rollback, is once the one before which the process dies."""
    assert die(project, "promote", 10_000) == 0
    house.candidate(project, 2, 0.8)
    for command, before, after, least in (("promote", "1", "2", 6), ("rollback", "2", "1", 3)):
        for point in range(1, 100):
            copy = Project(house.copy(project.folder, tmp_path / f"{command}-{point}"), project.environment)
            code = die(copy, command, point)
            assert code in (0, 9)
            assert agree(copy)[0] in (before, after)
            if code == 0:
                break
            assert die(copy, command, 10_000) == 0, "the same command again, whole"
            champion, kinds = agree(copy)
            assert champion == after
            assert kinds.count("promote") == 2, "one record each, whatever happened"
            assert kinds.count("rollback") == (1 if command == "rollback" else 0)
            assert kinds.count("register") == 2
            shutil.rmtree(copy.folder)
        assert point > least
        assert die(project, command, 10_000) == 0
