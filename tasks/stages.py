"""One Prefect task = one stage = one ``dvc --wait-for-lock repro --single-item STAGE`` in a process group of its own.

DVC decides whether the stage's command runs, comes from the run cache or is up to date; the task streams what it prints,
names its final state after that outcome, and reads the error that the stage left behind (DVC's own exit code says nothing).
"""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from prefect import task
from prefect.client.schemas.objects import State
from prefect.logging import get_run_logger
from prefect.states import Completed

from pipelines.errors import ConfigurationError, DataError, EnvironmentFault, PrefloopError
from tasks import processes, repository, versions

Outcome = Literal["ran", "cached", "unchanged"]
OUTCOMES: dict[str, Outcome] = {
    r"^Running stage '": "ran",
    r"^Stage '.*' is cached - skipping run": "cached",
    r"^Stage '.*' didn't change, skipping": "unchanged",
}
CHATTER = re.compile(
    r"^(Updating lock file|Generating lock file|To track the changes with git|\s*git add |To enable auto staging"
    r"|\s*dvc config core\.autostage|Use `dvc push`|> python|$)"
)
FAULTS = {fault.code: fault for fault in (DataError, ConfigurationError, EnvironmentFault)}
RETRIES = 2


class StageDied(Exception):
    """A stage ended without saying that a person has to mend something: killed, out of memory, a defect. Tried again."""


@dataclass(frozen=True)
class Result:
    """How a stage ended and how long it took, in seconds."""

    stage: str
    outcome: Outcome
    seconds: float


class Watcher:
    """Is told what happens while it happens; the terminal's progress display is one. This one shows nothing."""

    def started(self, stage: str) -> None:
        """A stage begins, or begins again."""

    def line(self, stage: str, text: str) -> None:
        """The stage, or DVC, printed a line."""

    def ended(self, result: Result) -> None:
        """A stage ended well."""

    def failed(self, stage: str, message: str) -> None:
        """A stage ended otherwise; it may be tried again."""


watchers: list[Watcher] = [Watcher()]
"""The last one is told. Threads of the task runner share it."""


@contextmanager
def watched(watcher: Watcher) -> Iterator[None]:
    """Tell ``watcher`` what happens."""
    watchers.append(watcher)
    try:
        yield
    finally:
        watchers.remove(watcher)


def _worth_a_retry(task: Any, run: Any, state: State[Any]) -> bool:
    return isinstance(state.result(raise_on_failure=False), StageDied) and not processes.stopping.is_set()


@task(
    name="stage",
    task_run_name="{stage}",
    retries=RETRIES,
    retry_delay_seconds=2,
    retry_condition_fn=_worth_a_retry,
    persist_result=False,
)
def run_stage(stage: str, root: str, action: versions.Action, force: bool) -> State[dict[str, Any]]:
    """Bring one stage up to date; the state is named Completed, Cached or Unchanged.

    What the plan found unchanged starts nothing: only what is up to date itself and stands on such stages is.
    """
    result = Result(stage, "unchanged", 0.0)
    if action != "unchanged":
        result = reproduce(stage, Path(root), force)
    watchers[-1].ended(result)
    name = {"ran": "Completed", "cached": "Cached", "unchanged": "Unchanged"}[result.outcome]
    return Completed(name=name, message=f"{stage}: {result.outcome} in {result.seconds:.1f} s", data=asdict(result))


def reproduce(stage: str, root: Path, force: bool) -> Result:
    """Run DVC for one stage and wait. Raises the stage's own error, or StageDied when it left none."""
    folder = root / ".runs" / stage
    _prepare(folder, force)
    watchers[-1].started(stage)
    started = time.monotonic()
    arguments = ["--wait-for-lock", "repro", "--single-item", *(["--force"] if force else []), stage]
    process = processes.start("dvc", arguments, root, repository.environment(root))
    logger = get_run_logger()
    seen: list[str] = []
    with (folder / "output.log").open("w", encoding="utf-8") as log:

        def each_line(text: str) -> None:
            seen.append(text)
            log.write(text + "\n")
            log.flush()
            if not CHATTER.match(text):
                logger.info(text)
                watchers[-1].line(stage, text)

        code = processes.follow(process, each_line)
    if processes.stopping.is_set():
        raise KeyboardInterrupt
    if code:
        error = _error_of(stage, folder, code, seen)
        watchers[-1].failed(stage, str(error))
        raise error
    (folder / "unfinished").unlink(missing_ok=True)
    return Result(stage, _outcome(seen), time.monotonic() - started)


def _prepare(folder: Path, force: bool) -> None:
    """Drop a stale error, and with ``force`` the resumable state; mark that the outputs may be left half done."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "error.json").unlink(missing_ok=True)
    if force:
        for path in folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
    (folder / "unfinished").touch()


def _outcome(lines: list[str]) -> Outcome:
    """What DVC says that it did."""
    for line in lines:
        for pattern, outcome in OUTCOMES.items():
            if re.match(pattern, line):
                return outcome
    return "unchanged"


def _error_of(stage: str, folder: Path, code: int, lines: list[str]) -> Exception:
    """The error that the stage left; else DVC's own, when the stage never started; else it died."""
    try:
        left = json.loads((folder / "error.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        left = {}
    if left.get("code") in FAULTS:
        return FAULTS[left["code"]](left["message"])
    said = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    if not left and "ran" not in {_outcome([line]) for line in lines} and said:
        return EnvironmentFault(f"{stage}: DVC: {'; '.join(said)}")
    reason = left.get("message") or (said[-1] if said else f"DVC ended with {code}")
    return StageDied(f"{stage}: {reason.removeprefix(f'{stage}: ')} (its output: .runs/{stage}/output.log)")


__all__ = ["PrefloopError", "Result", "StageDied", "Watcher", "reproduce", "run_stage", "watched"]
