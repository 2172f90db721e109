"""The ledger: one winner, said to the loser; nothing changed afterwards without being noticed."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.errors import EnvironmentFault
from tasks.ledger import Ledger, Lost, verify
from tests.project import ROOT

RACER = """
import sys
from pathlib import Path
from tasks.ledger import Ledger, Lost
ledger, me = Ledger(Path(sys.argv[1])), int(sys.argv[2])
print("ready", flush=True)
for line in sys.stdin:
    race, expected = line.split()
    candidate = str((int(race) * 2 + me) % 4 + 1)
    try:
        entry = ledger.promote("m", candidate, "" if expected == "-" else expected, {"race": race}, f"{race}:{me}")
        print(f"won {candidate} {entry.number}", flush=True)
    except Lost as error:
        print(f"lost {error}", flush=True)
"""


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger")


def test_two_promoters_200_races_4_candidates(ledger: Ledger) -> None:
    """Two processes go for the name at once, each having seen the same champion: one wins, the other is told who."""
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, str(ledger.path), str(me)], cwd=ROOT, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )
        for me in (0, 1)
    ]  # fmt: skip
    assert [racer.stdout.readline() for racer in racers] == ["ready\n"] * 2
    champion, winners = "", []
    for race in range(200):
        for racer in racers:
            racer.stdin.write(f"{race} {champion or '-'}\n")
            racer.stdin.flush()
        answers = [racer.stdout.readline().split(maxsplit=1) for racer in racers]
        assert sorted(word for word, _ in answers) == ["lost", "won"], answers
        won, number = next(rest for word, rest in answers if word == "won").split()
        lost = next(rest for word, rest in answers if word == "lost")
        assert f"the champion is version {won} (ledger entry {number}) by now" in lost
        champion = won
        winners.append(next(i for i, (word, _) in enumerate(answers) if word == "won"))
        assert ledger.standing("m").champion == won
    for racer in racers:
        racer.stdin.close()
        assert racer.wait(10) == 0
    assert len(ledger.entries("m")) == 200
    assert verify(ledger.entries()) == []
    assert set(winners) == {0, 1}, "it was a race"


def test_a_key_counts_once(ledger: Ledger) -> None:
    first = ledger.promote("m", "1", "", {}, "schedule at noon")
    again = ledger.promote("m", "1", "", {}, "schedule at noon")
    assert again == first
    assert len(ledger.entries()) == 1


def test_a_rollback_goes_to_the_champion_before_and_bans(ledger: Ledger) -> None:
    for number, (version, before) in enumerate((("1", ""), ("2", "1"), ("3", "2"))):
        ledger.promote("m", version, before, {}, f"p{number}")
    assert ledger.rollback("m", {"reason": "bad"}, "r1").version == "2"
    standing = ledger.standing("m")
    assert (standing.champion, standing.previous, standing.rolled_back) == ("2", "1", {"3"})
    with pytest.raises(Lost, match="version 3 of m was rolled back; what was rolled back is not promoted again"):
        ledger.promote("m", "3", "2", {}, "p9")
    ledger.promote("m", "4", "2", {}, "p10")
    assert ledger.standing("m").previous == "2"
    ledger.rollback("m", {}, "r2")
    ledger.rollback("m", {}, "r3")
    assert ledger.standing("m").champion == "1"
    with pytest.raises(Lost, match="version 1 is the first champion of m"):
        ledger.rollback("m", {}, "r4")
    with pytest.raises(Lost, match="the champion is 1 by now"):
        ledger.rollback("m", {}, "r5", expected="2")


def test_two_models_share_a_ledger_and_nothing_else(ledger: Ledger) -> None:
    ledger.promote("one", "1", "", {}, "a")
    ledger.promote("two", "7", "", {}, "b")
    assert (ledger.standing("one").champion, ledger.standing("two").champion) == ("1", "7")
    assert ledger.standing("two").previous == ""


def test_it_is_append_only_and_its_chain_shows_what_was_done_to_it(ledger: Ledger) -> None:
    for number in range(4):
        ledger.append("m", "decision", "1", {"passed": number == 3}, f"d{number}")
    with sqlite3.connect(ledger.path) as raw:
        for command in ("UPDATE entries SET body = '{}'", "DELETE FROM entries"):
            with pytest.raises(sqlite3.IntegrityError, match="append-only"):
                raw.execute(command)
        raw.execute("DROP TRIGGER no_update")  # somebody with the file in hand
        raw.execute("DROP TRIGGER no_delete")
        raw.execute("UPDATE entries SET body = '{\"passed\": true}' WHERE number = 2")
        raw.commit()
        assert verify(ledger.entries()) == ["entry 2: its content is not what was hashed"]
        raw.execute("DELETE FROM entries WHERE number = 3")
    raw.close()
    assert [line.split(";")[0] for line in verify(ledger.entries())] == [
        "entry 2: its content is not what was hashed",
        "entry 4: follows entry 2",
        "entry 4: does not follow the hash of the entry before",
    ]


def test_a_killed_writer_leaves_nothing_half_done_and_frees_the_ledger(ledger: Ledger) -> None:
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom tasks.ledger import Ledger\n"
        "with Ledger(Path(sys.argv[1])).held() as transaction:\n"
        "    transaction.append('m', 'promote', '1', {}, 'k')\n    os._exit(9)\n"
    )
    assert subprocess.run([sys.executable, "-c", code, str(ledger.path)], cwd=ROOT).returncode == 9
    assert ledger.entries() == []
    ledger.promote("m", "2", "", {}, "k")
    assert ledger.standing("m").champion == "2"


def test_a_file_that_is_no_ledger_is_an_error_of_the_environment(tmp_path: Path) -> None:
    (tmp_path / "ledger").write_bytes(b"no database, far from it" * 50)
    with pytest.raises(EnvironmentFault, match="the ledger cannot be used"):
        Ledger(tmp_path / "ledger")
