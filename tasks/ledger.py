"""The ledger: who is champion, decided by compare-and-set in one SQLite transaction; append-only, its hashes chained.

MLflow's aliases have no compare-and-set (two promoters both win), so they only show what stands here. An entry's number is
the fencing number of what follows from it. Entries hold ``previous`` (the hash before) and ``hash``, so that nothing can be
changed, left out or put in between without ``verify`` noticing.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipelines.errors import EnvironmentFault, PrefloopError

LEDGER = "PREFLOOP_LEDGER"
BEGINNING = "0" * 64
WAIT_SECONDS = 30.0
SCHEMA = """
CREATE TABLE IF NOT EXISTS entries (
  number INTEGER PRIMARY KEY, time TEXT NOT NULL, model TEXT NOT NULL, kind TEXT NOT NULL, version TEXT NOT NULL,
  body TEXT NOT NULL, key TEXT NOT NULL UNIQUE, previous TEXT NOT NULL UNIQUE, hash TEXT NOT NULL UNIQUE
);
CREATE TRIGGER IF NOT EXISTS no_update BEFORE UPDATE ON entries BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
CREATE TRIGGER IF NOT EXISTS no_delete BEFORE DELETE ON entries BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
"""
COLUMNS = "number, time, model, kind, version, body, key, previous, hash"


class Lost(PrefloopError):
    """Another promoter was quicker, or the evidence is about another champion: nothing was changed (exit code 1)."""


@dataclass(frozen=True)
class Entry:
    """One line of the ledger. ``kind``: register, decision, question, approval, promote, rollback, incident."""

    number: int
    time: str
    model: str
    kind: str
    version: str
    body: dict[str, Any]
    key: str
    previous: str
    hash: str


@dataclass(frozen=True)
class Standing:
    """What the ledger says of a model: version numbers ("" = none), and the entry that says so (the fencing number)."""

    champion: str = ""
    previous: str = ""
    rolled_back: frozenset[str] = frozenset()
    fence: int = 0


def path_of(root: Path, store: str) -> Path:
    """The ledger's file: PREFLOOP_LEDGER, or beside the SQLite store, or in the project where MLflow is a server."""
    if LEDGER in os.environ:
        return Path(os.environ[LEDGER])
    if store.startswith("sqlite:///"):
        return Path(store.removeprefix("sqlite:///").partition("?")[0] + ".ledger")
    return root.resolve() / "mlflow.db.ledger"


class Ledger:
    """The entries in one SQLite file; safe for any number of processes of one machine."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._connection() as connection:
            connection.executescript(SCHEMA)

    def entries(self, model: str = "") -> list[Entry]:
        """All entries, or those of one model, in order."""
        with self._connection() as connection:
            return _entries(connection, model)

    def standing(self, model: str) -> Standing:
        """Who is champion."""
        return standing_of(self.entries(model))

    def append(self, model: str, kind: str, version: str, body: Mapping[str, Any], key: str) -> Entry:
        """Add an entry; with a ``key`` that is there already, return that entry instead (the idempotency key)."""
        with self.held() as transaction:
            return transaction.append(model, kind, version, body, key)

    def promote(self, model: str, version: str, expected: str, body: Mapping[str, Any], key: str) -> Entry:
        """Make ``version`` the champion if ``expected`` ("" = nobody) still is. Raises Lost, which says who won."""
        with self.held() as transaction:
            before = transaction.known(key)
            if before is not None:
                return before
            now = standing_of(transaction.entries(model))
            if version in now.rolled_back:
                raise Lost(f"version {version} of {model} was rolled back; what was rolled back is not promoted again")
            if now.champion != expected:
                said = f"version {now.champion} (ledger entry {now.fence})" if now.champion else "nobody"
                whom = f"version {expected}" if expected else "nobody"
                raise Lost(
                    f"version {version} of {model} is not promoted: the champion is {said} by now, "
                    f"and it was compared with {whom}; `prefloop promote {version}` compares again"
                )
            return transaction.append(model, "promote", version, {**body, "from": expected}, key)

    def rollback(self, model: str, body: Mapping[str, Any], key: str, expected: str = "") -> Entry:
        """Give the name back to the champion before this one. Raises Lost where there is none, or it is not ``expected``."""
        with self.held() as transaction:
            before = transaction.known(key)
            if before is not None:
                return before
            now = standing_of(transaction.entries(model))
            if expected and now.champion != expected:
                raise Lost(f"version {expected} of {model} is not rolled back: the champion is {now.champion or 'nobody'} by now")
            if not now.previous:
                whom = f"version {now.champion} is the first champion of {model}" if now.champion else f"{model} has no champion"
                raise Lost(f"nothing to roll back to: {whom}")
            return transaction.append(model, "rollback", now.previous, {**body, "from": now.champion}, key)

    @contextmanager
    def held(self) -> Iterator[Transaction]:
        """The ledger for one writer: others wait. What is read here is still true when the block ends."""
        with self._connection() as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield Transaction(connection)
                connection.execute("COMMIT")
            except BaseException:
                connection.execute("ROLLBACK")
                raise

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        try:
            connection = sqlite3.connect(self.path, timeout=WAIT_SECONDS, isolation_level=None)
        except sqlite3.OperationalError as error:
            raise EnvironmentFault(f"{self.path}: the ledger cannot be opened ({error}); see {LEDGER}") from error
        try:
            connection.execute("PRAGMA synchronous = FULL")
            yield connection
        except sqlite3.DatabaseError as error:
            raise EnvironmentFault(f"{self.path}: the ledger cannot be used ({error})") from error
        finally:
            connection.close()


class Transaction:
    """What may be done while the ledger is held."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def entries(self, model: str = "") -> list[Entry]:
        """All entries, or those of one model, in order."""
        return _entries(self._connection, model)

    def known(self, key: str) -> Entry | None:
        """The entry with this idempotency key."""
        row = self._connection.execute(f"SELECT {COLUMNS} FROM entries WHERE key = ?", (key,)).fetchone()
        return _entry(row) if row else None

    def append(self, model: str, kind: str, version: str, body: Mapping[str, Any], key: str) -> Entry:
        """Add an entry behind the last one, unless its key is there."""
        before = self.known(key)
        if before is not None:
            return before
        last = self._connection.execute("SELECT number, hash FROM entries ORDER BY number DESC LIMIT 1").fetchone() or (
            0,
            BEGINNING,
        )
        content = {
            "number": last[0] + 1, "time": datetime.now(UTC).isoformat(timespec="seconds"), "model": model, "kind": kind,
            "version": version, "body": json.loads(json.dumps(body, default=str)), "key": key, "previous": last[1],
        }  # fmt: skip
        entry = Entry(**content, hash=digest(content))
        self._connection.execute(
            f"INSERT INTO entries ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            tuple(json.dumps(value, sort_keys=True) if isinstance(value, dict) else value for value in asdict(entry).values()),
        )
        return entry


def digest(content: Mapping[str, Any]) -> str:
    """The hash of an entry: all of it but the hash itself, the previous entry's hash included."""
    kept = {key: value for key, value in content.items() if key != "hash"}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def standing_of(entries: list[Entry]) -> Standing:
    """Replay promotions and rollbacks."""
    reign: list[str] = []
    banned: set[str] = set()
    fence = 0
    for entry in entries:
        if entry.kind == "promote":
            reign = [version for version in reign if version != entry.version] + [entry.version]
            fence = entry.number
        elif entry.kind == "rollback":
            banned.add(entry.body["from"])
            reign = [version for version in reign if version not in banned]
            fence = entry.number
    champion, previous = ([""] * 2 + reign)[-1], ([""] * 2 + reign)[-2]
    return Standing(champion, previous, frozenset(banned), fence)


def verify(entries: list[Entry]) -> list[str]:
    """What is wrong with the chain, one sentence an entry; empty when every link holds."""
    wrong = []
    before, number = BEGINNING, 0
    for entry in entries:
        if entry.number != number + 1:
            wrong.append(f"entry {entry.number}: follows entry {number}; what stood between is missing")
        if entry.previous != before:
            wrong.append(f"entry {entry.number}: does not follow the hash of the entry before")
        if entry.hash != digest(asdict(entry)):
            wrong.append(f"entry {entry.number}: its content is not what was hashed")
        before, number = entry.hash, entry.number
    return wrong


def _entries(connection: sqlite3.Connection, model: str) -> list[Entry]:
    where, values = ("WHERE model = ?", (model,)) if model else ("", ())
    return [_entry(row) for row in connection.execute(f"SELECT {COLUMNS} FROM entries {where} ORDER BY number", values)]


def _entry(row: tuple[Any, ...]) -> Entry:
    number, time, model, kind, version, body, *rest = row
    return Entry(number, time, model, kind, version, json.loads(body), *rest)
