"""What the terminal shows, with and without one."""

from __future__ import annotations

import os
import pty
import re
import select
import sys

import pytest

from flows.console import Display
from tasks.stages import Result
from tasks.versions import Plan, Planned
from tests.project import Project

PLAN = Plan((Planned("sft", "run", "", ()), Planned("report", "run", "", ("sft",))), ())


def test_plain_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.console.EVERY", 0.0)
    slow = "this machine multiplies 4.5 times slower in bf16"
    with Display(PLAN) as display:
        display.started("sft")
        display.line("sft", f"sft  0/48    0 %  0.00 step/s  -:-- left  {slow}")
        display.line("sft", f"sft  1/48    2 %  0.00 step/s  -:-- left  loss 2.4  {slow}")
        display.line("sft", "sft  12/48   25 %  1.90 step/s  0:19 left  loss 2.31")
        display.line("sft", "warning: the answer is cut")
        display.line("sft", "chatter of a library")
        display.line("sft", "sft  done in 65.0 s  eval_loss 2.2")
        display.ended(Result("sft", "ran", 65.0))
        display.ended(Result("report", "cached", 1.0))
    assert capsys.readouterr().out.splitlines() == [
        "[1/2] sft: starts",
        f"sft: {slow}",
        "sft  0 %  0/48  0.00 step/s  -:-- left",
        "sft  2 %  1/48  0.00 step/s  -:-- left  loss 2.4",
        "sft  25 %  12/48  1.90 step/s  0:19 left  loss 2.31",
        "sft: warning: the answer is cut",
        "[1/2] sft: ran, 1:05  eval_loss 2.2",
        "[2/2] report: restored from the run cache, 0:01",
    ]


def test_a_bar_with_rate_time_left_and_metric_on_a_terminal(project: Project) -> None:
    project.tell("first", sleep=1)
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(project.folder)
        os.execve(
            sys.executable,
            [sys.executable, "-m", "flows", "run", "--only", "first"],
            {**project.environment, "TERM": "xterm", "COLUMNS": "120"},
        )
    shown = b""
    while select.select([terminal], [], [], 60)[0]:
        try:
            shown += os.read(terminal, 65536)
        except OSError:
            break
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.decode())
    assert re.search(r"first .*━.* 1/2  1.00 step/s  0:01 left  loss 2.5", text)
    assert "[1/1] first: ran, 0:0" in text
    assert "hashes" not in text, "DVC's own bars stay away"
