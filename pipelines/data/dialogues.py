"""Dialogues as text, in the form of hh-rlhf: ``\\n\\nHuman: ...\\n\\nAssistant: ...``; and as messages with roles.

A prompt of one user turn is that turn's text. Longer ones are kept in the dialogue form, from which ``turns`` gets the
messages back, so that one text column serves models that are spoken to plainly and those with a chat template.
Source of the form: Bai et al. 2022 (arXiv:2204.05862), github.com/anthropics/hh-rlhf.
"""

from __future__ import annotations

import re
from typing import Any

from pipelines.data.problems import BadRow

MARKS = {"system": "\n\nSystem:", "user": "\n\nHuman:", "assistant": "\n\nAssistant:"}
ROLES = {mark.strip("\n:"): role for role, mark in MARKS.items()}
TURN = re.compile(r"\n\n(System|Human|Assistant):")
Turn = tuple[str, str]


def turns(text: str) -> list[Turn]:
    """(role, text as it stands behind the mark) of every turn; empty for a text that is no dialogue."""
    if not text.startswith((MARKS["user"], MARKS["system"])):
        return []
    parts = TURN.split(text)
    return [(ROLES[name], content) for name, content in zip(parts[1::2], parts[2::2], strict=True)]


def split_last(dialogue: str, name: str) -> tuple[str, str]:
    """(prompt up to and with the last ``\\n\\nAssistant:``, the last answer). Raises BadRow for what is no such dialogue."""
    if not dialogue.startswith((MARKS["user"], MARKS["system"])):
        raise BadRow("not-a-dialogue", 'does not start with "\\n\\nHuman:"', "give prompt, chosen and rejected instead", name)
    before, mark, answer = dialogue.rpartition(MARKS["assistant"])
    if not mark or MARKS["user"] in answer:
        raise BadRow("not-a-dialogue", 'does not end with an answer behind "\\n\\nAssistant:"', "end with the answer", name)
    return before + mark, answer


def checked(messages: Any, name: str) -> list[Turn]:
    """(role, content) of a list of messages: an optional system turn, then user and assistant in turn.

    Raises BadRow that names the role at fault and the allowed ones.
    """
    if not isinstance(messages, list) or not messages:
        kind = "an empty list" if messages == [] else type(messages).__name__
        raise BadRow("wrong-type", f"{name}: expected a list of messages, got {kind}", "write [{role, content}, ...]", name)
    found: list[Turn] = []
    expected: tuple[str, ...] = ("system", "user")
    for message in messages:
        role, content = (message.get("role"), message.get("content")) if isinstance(message, dict) else (None, None)
        if role not in MARKS:
            what = f"role {str(role)[:40]!r}; allowed roles: {', '.join(MARKS)}"
            raise BadRow("unknown-role", what, "rename or remove the turn", name)
        if role not in expected:
            what = f"role {role!r} where {' or '.join(expected)} is due; allowed roles: {', '.join(MARKS)}, the last two in turn"
            raise BadRow("role-order", what, "join the turns, or remove one", name)
        if not isinstance(content, str) or not content.strip():
            raise BadRow("empty-text", f"{role}: content empty after strip, or no string", "fill it in or remove the turn", name)
        if TURN.search(content):
            raise BadRow("role-marker", "a turn that holds the mark of another turn", "remove it: it would forge a turn", name)
        expected = ("assistant",) if role == "user" else ("user",)
        found.append((role, content))
    return found


def prompt_of(found: list[Turn]) -> str:
    """The text of turns that end with the user: the turn itself where it is alone, else the dialogue up to the answer."""
    if len(found) == 1 and found[0][0] == "user":
        return found[0][1]
    return "".join(f"{MARKS[role]} {content}" for role, content in found) + MARKS["assistant"]
