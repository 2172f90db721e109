"""A language model behind an OpenAI-compatible server: asked slowly, patiently, and once.

Every reply is recorded as a line of .runs/judges/replies/MODEL.jsonl, and a recorded reply is used before the server is asked.
A line is found by the hash of its request (model, text and sampling; not the address), so such a file, kept below data/judges/
and named as ``replies``, repeats a run without the server. Its key comes from the environment and is written nowhere.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.config import Endpoint
from pipelines.errors import ConfigurationError, DataError, EnvironmentFault
from pipelines.judges.asking import Lean, Leaning

if TYPE_CHECKING:
    import httpx

REPLIES = Path(".runs/judges/replies")
AT_ONCE = 8
"""Requests under way at a time, from each worker."""
LISTED = 20
"""Tokens whose log-probabilities are asked for: the most that OpenAI gives."""
PASSING = {408, 409, 425, 429, 500, 502, 503, 504, 529}
"""Statuses that a later attempt may not get."""
FIRST_WAIT, LONGEST_WAIT = 0.5, 60.0

Reply = dict[str, Any]
"""text, logprobs ([[token, log-probability], ...] of the first token), prompt_tokens, completion_tokens."""


def open_letters(settings: Endpoint, root: Path, workers: int) -> Lean:
    """log P("A") - log P("B") of the first token of each reply. Raises DataError where the server does not tell."""
    sampling = {"max_tokens": 1, "temperature": 0, "logprobs": True, "top_logprobs": LISTED}
    replies = open_replies(settings, root, workers, sampling)

    def lean(questions: list[str]) -> list[Leaning]:
        found = replies(questions)
        if not all(said["logprobs"] for said in found):
            raise DataError(
                f"{settings.url}: replies come without log-probabilities (top_logprobs); take a server that gives them"
            )
        return [Leaning(odds(said["logprobs"]), said["prompt_tokens"], said["completion_tokens"]) for said in found]

    return lean


def odds(listed: list[list[Any]]) -> float:
    """log P("A") - log P("B") from the listed tokens, spaces around the letter apart.

    A letter that is not listed counts as likely as the least likely token that is: an upper bound. Neither: 0, no opinion.
    """
    least = min(value for _, value in listed)
    found = [[value for token, value in listed if token.strip() == letter] or [least] for letter in "AB"]
    return _logsumexp(found[0]) - _logsumexp(found[1])


def open_replies(settings: Endpoint, root: Path, workers: int, sampling: dict[str, Any]) -> Callable[[list[str]], list[Reply]]:
    """A function from questions to replies, recorded ones first."""
    own = root / REPLIES / f"{re.sub(r'[^A-Za-z0-9._-]+', '-', settings.model)}.jsonl"
    known = _recorded(own) | (_recorded(root / settings.replies, settings.replies) if settings.replies else {})
    pace = Pace(settings.requests_per_minute / workers)

    def replies(questions: list[str]) -> list[Reply]:
        requests = [{"model": settings.model, "messages": [{"role": "user", "content": text}], **sampling} for text in questions]
        keys = [hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest() for request in requests]
        missing = {key: request for key, request in zip(keys, requests, strict=True) if key not in known}
        if missing:
            import httpx

            with httpx.Client(timeout=settings.timeout) as client, ThreadPoolExecutor(AT_ONCE) as pool:

                def ask(key: str) -> None:
                    said = _read(_post(client, settings, missing[key], pace), settings)
                    _record(own, {"key": key, "request": missing[key], "reply": said})
                    known[key] = said

                list(pool.map(ask, missing))
        return [known[key] for key in keys]

    return replies


class Pace:
    """Lets callers through at no more than so many a minute, evenly."""

    def __init__(self, per_minute: float) -> None:
        self.gap = 60.0 / per_minute
        self.next = 0.0
        self.lock = threading.Lock()

    def wait(self) -> None:
        """Sleep until it is this caller's turn."""
        with self.lock:
            turn = max(time.monotonic(), self.next)
            self.next = turn + self.gap
        time.sleep(max(0.0, turn - time.monotonic()))


def _post(client: httpx.Client, settings: Endpoint, request: dict[str, Any], pace: Pace) -> Any:
    """The server's answer as JSON, after as many attempts as are allowed; waits double, or are what the server asks for.

    Raises EnvironmentFault where there is none, ConfigurationError for a request that the server refuses.
    """
    import httpx

    url, key = f"{settings.url.rstrip('/')}/chat/completions", _key(settings)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    reason = ""
    for attempt in range(settings.attempts):
        pace.wait()
        wait = min(FIRST_WAIT * 2**attempt, LONGEST_WAIT)
        try:
            answer = client.post(url, json=request, headers=headers)  # follows no redirect, which could take the key elsewhere
            if answer.status_code == 200:
                return answer.json()
            reason = f"{answer.status_code} {' '.join(answer.text.split())[:200]}"
            if answer.status_code not in PASSING:
                raise _refused(settings, url, answer.status_code, _without(key, reason))
            wait = _asked_for(answer, wait)
        except (httpx.HTTPError, json.JSONDecodeError) as error:
            reason = f"{type(error).__name__}: {error}"
        if attempt + 1 < settings.attempts:
            time.sleep(wait)
    raise EnvironmentFault(
        f"{url}: no reply in {settings.attempts} attempts ({_without(key, reason)}); start the server, or name a file of "
        "recorded replies (preferences.judge.constitution.endpoint.replies)"
    )


def _logsumexp(values: list[float]) -> float:
    high = max(values)
    return high + math.log(sum(math.exp(value - high) for value in values))


def _key(settings: Endpoint) -> str:
    if not settings.key_variable:
        return ""
    key = os.environ.get(settings.key_variable, "").strip()
    if not key:
        raise EnvironmentFault(f"{settings.url} needs a key: set the environment variable {settings.key_variable}")
    return key


def _without(key: str, reason: str) -> str:
    return reason.replace(key, "...") if key else reason


def _refused(settings: Endpoint, url: str, status: int, reason: str) -> EnvironmentFault | ConfigurationError:
    if status in (401, 403):
        return EnvironmentFault(f"{url}: {reason}; is the key in {settings.key_variable or 'key_variable'} right?")
    return ConfigurationError(f"{url}: {reason}; check url and model of preferences.judge.constitution.endpoint")


def _asked_for(answer: httpx.Response, otherwise: float) -> float:
    """Seconds to wait: the server's Retry-After, where it says a number."""
    try:
        return min(max(0.0, float(answer.headers["retry-after"])), LONGEST_WAIT)
    except (KeyError, ValueError):
        return otherwise


def _read(answer: Any, settings: Endpoint) -> Reply:
    """What is kept of a server's answer. Raises DataError where it is no chat completion, or has no log-probabilities."""
    try:
        choice, usage = answer["choices"][0], answer.get("usage") or {}
        first = (choice.get("logprobs") or {}).get("content") or []
        return {
            "text": str(choice["message"]["content"] or ""),
            "logprobs": [[str(one["token"]), float(one["logprob"])] for one in first[0]["top_logprobs"]] if first else [],
            "prompt_tokens": int(usage.get("prompt_tokens", 0)),
            "completion_tokens": int(usage.get("completion_tokens", 0)),
        }
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{settings.url}: the reply is no chat completion ({type(error).__name__}: {error})") from error


def _recorded(path: Path, named: str = "") -> dict[str, Reply]:
    """Key -> reply. A line that is not whole (the run was killed) is left out: it is asked for again."""
    if not path.is_file():
        if named:
            raise DataError(
                f"{named}: no such file; take {REPLIES}/MODEL.jsonl of a run that had the endpoint, or leave replies out"
            )
        return {}
    return dict(_lines(path))


def _lines(path: Path) -> Iterator[tuple[str, Reply]]:
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                record = json.loads(line)
                reply = record["reply"]
                yield record["key"], {name: reply[name] for name in ("text", "logprobs", "prompt_tokens", "completion_tokens")}
            except (ValueError, LookupError, TypeError):
                continue


def _record(path: Path, record: dict[str, Any]) -> None:
    """Append a line, whole, while others append too; behind a line that was cut it begins a new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        if size := file.seek(0, os.SEEK_END):
            file.seek(size - 1)
            cut = file.read(1) != b"\n"
            file.write(b"\n" if cut else b"")
        file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
        file.flush()
