"""What is said about bad rows: a code, the place, what was found, how often, the limit, and how to fix it.

``CODE file:line [field] what was found in 3 of 40 rows (7.5%) | limit | how to fix``. Rows are named by their place and the
first characters of their SHA-256, never by their text, which may be private.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.errors import DataError

EXAMPLES = 20
NO_BAD_ROWS = "limit 0 (prepare.max_bad_fraction)"


class BadRow(Exception):
    """One row that cannot be used. ``name`` is the field at fault, empty where it is the row."""

    def __init__(self, code: str, what: str, fix: str, name: str = "", limit: str = NO_BAD_ROWS) -> None:
        super().__init__(what)
        self.code, self.what, self.fix, self.name, self.limit = code, what, fix, name, limit


@dataclass
class Kind:
    """All rows with one fault: how many, the first in full, the places of the first twenty."""

    first: str
    what: str
    fix: str
    name: str
    limit: str
    places: list[str] = field(default_factory=list)
    count: int = 0

    def line(self, code: str, rows: int) -> str:
        """The message of the contract, on one line."""
        named = f" [{self.name}]" if self.name else ""
        others = f"; also {', '.join(self.places[1:])}" if len(self.places) > 1 else ""
        more = f" and {self.count - len(self.places)} more" if self.count > len(self.places) else ""
        share = f"in {self.count} of {rows} rows ({100 * self.count / max(rows, 1):.3g}%)"
        return f"{code} {self.first}{named} {self.what} {share}{others}{more} | {self.limit} | {self.fix}"


class Ledger:
    """Counts what is wrong (``bad``: the row is not used) and what is only strange (``warnings``) while rows stream by."""

    def __init__(self, quarantine: Path | None = None) -> None:
        self.rows = 0
        self.blank = 0
        self.bad: dict[str, Kind] = {}
        self.warnings: dict[str, Kind] = {}
        self.dropped: Counter[str] = Counter()
        self.quarantine = quarantine

    @property
    def bad_rows(self) -> int:
        """How many rows were put aside."""
        return sum(kind.count for kind in self.bad.values())

    def refuse(self, place: str, bad: BadRow, raw: bytes = b"") -> None:
        """Put a row aside; its place, fault and hash (of what could be read) go to the quarantine file."""
        _note(self.bad, place, bad)
        if self.quarantine is not None:
            entry = {"code": bad.code, "place": place, "field": bad.name, "reason": bad.what, "fix": bad.fix}
            if raw:
                entry["sha256"] = hashlib.sha256(raw).hexdigest()[:12]
            with self.quarantine.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry, ensure_ascii=True, sort_keys=True) + "\n")

    def warn(self, place: str, code: str, what: str, fix: str, name: str = "") -> None:
        """Say that a row is strange, and keep it."""
        _note(self.warnings, place, BadRow(code, what, fix, name, "warning"))

    def lines(self) -> list[str]:
        """One line a kind of bad row, the most frequent first."""
        return _lines(self.bad, self.rows)

    def warning_lines(self) -> list[str]:
        """One line a kind of warning."""
        return _lines(self.warnings, self.rows)

    def settle(self, max_bad_fraction: float, shown: str) -> None:
        """Raise DataError if there are no rows, or more bad ones than may be."""
        if not self.rows:
            raise DataError(f"empty {shown}: 0 rows ({self.blank} blank lines) | limit 1 | it needs one row a line")
        if self.bad_rows > max_bad_fraction * self.rows:
            allowed = "" if not max_bad_fraction else f" ({self.bad_rows} of {self.rows} rows, {max_bad_fraction:.3g} allowed)"
            raise DataError("; ".join(self.lines()) + allowed)
        if self.bad_rows == self.rows:
            rules = ", ".join(f"{code} {kind.count}" for code, kind in sorted(self.bad.items()))
            raise DataError(f"all-filtered {shown}: 0 of {self.rows} rows left: {rules} | limit 1 | mend the rows")

    def facts(self) -> dict[str, Any]:
        """Counts for quality.json: rows read, put aside and dropped by rule, warnings by code."""
        return {
            "read": self.rows,
            "blank_lines": self.blank,
            "quarantined": {code: kind.count for code, kind in sorted(self.bad.items())},
            "dropped": dict(sorted(self.dropped.items())),
            "warnings": {code: kind.count for code, kind in sorted(self.warnings.items())},
        }


def _note(kinds: dict[str, Kind], place: str, bad: BadRow) -> None:
    kind = kinds.get(bad.code)
    if kind is None:
        kind = kinds[bad.code] = Kind(place, bad.what, bad.fix, bad.name, bad.limit)
    kind.count += 1
    if len(kind.places) < EXAMPLES:
        kind.places.append(place)


def _lines(kinds: dict[str, Kind], rows: int) -> list[str]:
    ordered = sorted(kinds.items(), key=lambda item: (-item[1].count, item[0]))
    return [kind.line(code, rows) for code, kind in ordered]
