"""``prefloop data add``: a file or folder becomes ``data/external/NAME``, which git ignores and DVC versions."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

from ruamel.yaml import YAML

from pipelines.config.section import NAME
from pipelines.errors import ConfigurationError, DataError, EnvironmentFault
from tasks import repository

EXTERNAL = Path("data/external")


def add(root: Path, path: Path, name: str, source: str, licence: str) -> Path:
    """Copy, ``dvc add``, and keep source and licence in the .dvc file, which is committed. Returns the new path."""
    name = name or path.name
    if not re.match(NAME, name):
        raise ConfigurationError(f"--name {name!r}: letters, digits, dots, dashes and underscores only")
    if not source.strip() or not licence.strip():
        raise ConfigurationError("--source and --licence: say where the data comes from and under which terms it may be used")
    if not path.exists():
        raise DataError(f"unreadable {path.name}: No such file or directory | a file or folder | check the path")
    links = [each for each in (path, *path.rglob("*")) if each.is_symlink()]
    if links:
        raise DataError(f"link {links[0].name}: a symbolic link | plain files only | copy what it points to")
    target = root / EXTERNAL / name
    if target.exists():
        raise ConfigurationError(
            f"{EXTERNAL / name}: is there already; remove it (its versions stay in DVC) or give another --name"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        shutil.copytree(path, target)
        for each in (target, *target.rglob("*")):
            each.chmod(0o755 if each.is_dir() else 0o644)
    else:
        shutil.copyfile(path, target)
    command = [sys.executable, "-m", "dvc", "add", "--quiet", str(EXTERNAL / name)]
    done = subprocess.run(command, cwd=root, env=repository.environment(root), capture_output=True, text=True, check=False)
    if done.returncode:
        shutil.rmtree(target) if target.is_dir() else target.unlink()
        raise EnvironmentFault(f"dvc add {EXTERNAL / name}: {' '.join(done.stderr.split())}")
    _describe(target.with_name(f"{name}.dvc"), source, licence)
    return EXTERNAL / name


def _describe(path: Path, source: str, licence: str) -> None:
    yaml = YAML()
    facts = yaml.load(path.read_text(encoding="utf-8"))
    facts["meta"] = {"source": source.strip(), "licence": licence.strip()}
    with path.open("w", encoding="utf-8") as file:
        yaml.dump(facts, file)
