"""Plays as Markdown inside an installed package: ``**SPEAKER**`` and lines, stage directions in italics."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path

from pipelines.errors import DataError, EnvironmentFault

HEADING = re.compile(r"(?m)^#.*$")
SPEAKER = re.compile(r"(?m)^\*\*(.+?)\*\* *$")
DIRECTION = re.compile(r"_+[^_]+_+|\*[^*]+\*|(?m:^\[[^_\n]*_ *$)|\\?\[[^]]*\]")
"""Italics of either kind, possibly over several lines, a few that lack their opening underscore, and what is in brackets."""

MARK = re.compile(r"[\\_*\[\]]")
"""Escapes, and the marks of the few directions that are never closed."""


@dataclass(frozen=True)
class Speech:
    """What one speaker says until the next one does, on one line."""

    id: str
    play: str
    speaker: str
    text: str


def read_plays(package: str) -> list[Speech]:
    """All speeches of ``<package>/plays/**/*.md`` in the order of the files; the package is found but not imported."""
    folder = package_folder(package) / "plays"
    files = sorted(folder.rglob("*.md"), key=lambda file: file.relative_to(folder).as_posix())
    speeches = [speech for file in files for speech in speeches_of(file.stem, file.read_text(encoding="utf-8"))]
    if not speeches:
        raise DataError(f"{package}/plays: 0 rows: no speeches in {len(files)} Markdown files; see prepare.package")
    return speeches


def speeches_of(play: str, markdown: str) -> list[Speech]:
    """The speeches of one play. A heading (act, scene) ends a speech, a stage direction inside it does not."""
    speeches: list[Speech] = []
    for scene in HEADING.split(markdown):
        parts = SPEAKER.split(scene)
        for speaker, body in zip(parts[1::2], parts[2::2], strict=True):
            text = spoken(body)
            if text:
                speeches.append(Speech(f"{play}-{len(speeches):04d}", play, " ".join(speaker.split()), text))
    return speeches


def spoken(body: str) -> str:
    """What is said, without stage directions and Markdown escapes; lines of verse are joined by a space."""
    text = MARK.sub("", DIRECTION.sub(" ", body)).replace("& c", "&c")
    return " ".join(text.split())


def package_folder(package: str) -> Path:
    """Where an installed package keeps its files, found without running any of its code."""
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise EnvironmentFault(f"package {package!r} is not installed; `make` installs it into .venv (see constraints.txt)")
    return Path(next(iter(spec.submodule_search_locations)))
