"""``prefloop data add``: a file or folder becomes ``data/external/NAME``, which git ignores and DVC versions."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

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
    try:
        repository.track(root, EXTERNAL / name, {"source": source.strip(), "licence": licence.strip()})
    except EnvironmentFault:
        shutil.rmtree(target) if target.is_dir() else target.unlink()
        raise
    return EXTERNAL / name
