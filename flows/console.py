"""What a person at the terminal sees: which stage runs, how far it is, its key metric; plain lines where there is no terminal."""

from __future__ import annotations

import re
import sys
import threading
import time
import traceback
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn
from rich.table import Table

from pipelines.errors import PrefloopError
from pipelines.progress import LINE, clock
from tasks import versions
from tasks.stages import Result, StageDied, Watcher

SHOWN = re.compile(r"^(warning|note): ")
DONE = re.compile(r"^(?P<stage>\S+)  done in [\d.]+ s(?:  (?P<metric>\S+) (?P<value>\S+))?")
SHORT = 3
"""Words of a note that only says what is going on."""
EVERY = 10.0
"""Seconds between two progress lines of a stage where there is no terminal."""

WORDS = {"ran": "ran", "cached": "restored from the run cache", "unchanged": "up to date"}


class Display(Watcher):
    """Shows the stages of one flow run while they run; a context manager."""

    def __init__(self, plan: versions.Plan) -> None:
        self.console = Console(highlight=False, soft_wrap=True)
        self.total = len(plan.stages)
        self.results: dict[str, Result] = {}
        self.metrics: dict[str, str] = {}
        self._bars: dict[str, TaskID] = {}
        self._said: dict[str, float] = {}
        self._told: set[tuple[str, str]] = set()
        self._lock = threading.RLock()
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.fields[stage]}"),
            BarColumn(bar_width=30),
            TextColumn("{task.fields[status]}"),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )

    def __enter__(self) -> Display:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._progress.stop()

    def note(self, text: str) -> None:
        """A line that stays."""
        with self._lock:
            self.console.print(text, markup=False)

    def started(self, stage: str) -> None:
        """Open the stage's bar."""
        with self._lock:
            again = stage in self._said
            self._said[stage] = time.monotonic()
            self._close(stage)
            if self.console.is_terminal:
                self._bars[stage] = self._progress.add_task("", total=None, stage=stage, status="starting")
            else:
                self.note(f"{self._place()} {stage}: {'starts again' if again else 'starts'}")

    def line(self, stage: str, text: str) -> None:
        """Move the bar, or print a progress line now and then; warnings stay on the screen."""
        with self._lock:
            if SHOWN.match(text):
                self.note(f"{stage}: {text}")
            elif done := DONE.match(text):
                self.metrics[stage] = f"{done['metric']} {done['value']}" if done["metric"] else ""
            elif match := LINE.match(text):
                self._move(stage, match, text)

    def ended(self, result: Result) -> None:
        """Close the bar and leave one line behind."""
        with self._lock:
            self._close(result.stage)
            self.results[result.stage] = result
            if result.outcome != "unchanged":
                shown = f"{WORDS[result.outcome]}, {clock(result.seconds)}  {self.metrics.get(result.stage, '')}"
                self.note(f"{self._place(done=True)} {result.stage}: {shown.rstrip()}")

    def failed(self, stage: str, message: str) -> None:
        """Close the bar; the error itself is printed by whoever catches it, unless the stage is tried again."""
        with self._lock:
            self._close(stage)
            self.note(f"{self._place()} {stage}: failed: {message}")

    def _move(self, stage: str, match: re.Match[str], text: str) -> None:
        shown = [part for part in text.partition(" left")[2].split("  ") if part]
        for note in [part for part in shown if len(part.split()) > SHORT]:  # a sentence: told once, and it stays
            shown.remove(note)
            if (stage, note) not in self._told:
                self._told.add((stage, note))
                self.note(f"{stage}: {note}")
        status = "  ".join([f"{match['step']}/{match['total']}  {match['rate']} step/s  {match['left']} left", *shown])
        if stage in self._bars:
            self._progress.update(self._bars[stage], total=int(match["total"]), completed=int(match["step"]), status=status)
        elif not self.console.is_terminal and time.monotonic() - self._said.get(stage, 0.0) >= EVERY:
            self._said[stage] = time.monotonic()
            self.note(f"{stage}  {match['percent']} %  {status}")

    def _close(self, stage: str) -> None:
        if stage in self._bars:
            self._progress.remove_task(self._bars.pop(stage))

    def _place(self, done: bool = False) -> str:
        return f"[{min(len(self.results) + (not done), self.total)}/{self.total}]"


def announce(plan: versions.Plan, flow_api: str) -> None:
    """One line before the first stage: how much there is to do."""
    counts = [
        (plan.names("run"), "to run"),
        (plan.names("restore"), "to restore from the run cache"),
        (plan.names("unchanged"), "up to date"),
    ]
    shown = ", ".join(f"{len(names)} {word}" for names, word in counts if names)
    print(f"prefloop: {len(plan.stages)} stages: {shown}{f'; Prefect at {flow_api}' if flow_api else ''}", flush=True)


def outcomes(results: list[dict[str, Any]], metrics: dict[str, str]) -> None:
    """The stages of a run with outcome, time and key metric."""
    table = Table("stage", "outcome", "time", "key metric", box=None, pad_edge=False, header_style="")
    for result in results:
        ran = result["outcome"] != "unchanged"
        seconds = clock(result["seconds"]) if ran else ""
        table.add_row(result["stage"], WORDS[result["outcome"]], seconds, metrics.get(result["stage"], ""))
    print()
    Console(highlight=False, width=None if sys.stdout.isatty() else 120).print(table)


def summary(root: Path, page: Path | None) -> None:
    """Policies against SFT, and where the report is."""
    from pipelines.evaluation import summary as made

    path = root / "artifacts" / "report" / "metrics.json"
    if path.exists():
        print("\n" + made.plain(made.load(path)))
    if page is not None:
        print(f"\nreport: {page}", flush=True)


def complain(error: BaseException, command: str = "run") -> int:
    """Print what a person has to know in one line; return the exit code."""
    if isinstance(error, KeyboardInterrupt):
        print(
            f"\ninterrupted: every stage is stopped; `prefloop {command}` goes on from the last checkpoint",
            file=sys.stderr,
            flush=True,
        )
        return 130
    if not isinstance(error, PrefloopError | StageDied):
        traceback.print_exception(error)
    print(f"error: {error or type(error).__name__}", file=sys.stderr, flush=True)
    return error.code if isinstance(error, PrefloopError) else 1
