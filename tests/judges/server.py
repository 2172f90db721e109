"""A real HTTP server on this machine that speaks the chat completions' protocol and judges by a rule."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

BIAS = 1.5
"""How far this judge leans to the letter A, in nats."""
Handled = tuple[int, dict[str, str], bytes]
"""Status, headers, body."""


def vowels(text: str) -> float:
    """The worth of an answer: its vowels, in nats."""
    return float(sum(text.count(vowel) for vowel in "aeiou"))


def judged(question: str) -> dict[str, float]:
    """Log-probabilities of the letters: log P("A") - log P("B") = worth of A - worth of B + BIAS; a pointwise yes is worth
    the vowels less two."""
    found = dict(re.findall(r'^(Answer(?: [AB])?): (".*")$', question, re.MULTILINE))
    if "Answer" in found:
        yes = vowels(json.loads(found["Answer"])) - 2.0
        gap = yes if "\nA: yes\n" in question else -yes
    else:
        gap = vowels(json.loads(found["Answer A"])) - vowels(json.loads(found["Answer B"]))
    return {"A": -1.0 + (gap + BIAS) / 2, " B": -1.0 - (gap + BIAS) / 2, "C": -9.0}


def completion(request: dict[str, Any]) -> dict[str, Any]:
    """A whole reply: ten tokens read and one written."""
    listed = judged(request["messages"][0]["content"])
    first = {"token": "A", "logprob": listed["A"], "top_logprobs": [{"token": t, "logprob": lp} for t, lp in listed.items()]}
    choice = {"index": 0, "message": {"role": "assistant", "content": "A"}, "logprobs": {"content": [first]}}
    return {"choices": [choice], "usage": {"prompt_tokens": 10, "completion_tokens": 1}}


class Server:
    """What it was asked, in order, and what it does with the next request (``reply`` gives status, headers and body)."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.reply: Callable[[dict[str, Any], int], Handled] = lambda request, _: (
            200,
            {},
            json.dumps(completion(request)).encode(),
        )


@contextmanager
def serving() -> Iterator[Server]:
    """Serve on a free port until the block ends."""
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                server.requests.append(request)
                server.headers.append({"path": self.path, **dict(self.headers.items())})
                number = len(server.requests)
            status, headers, body = server.reply(request, number)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Nothing on the terminal."""

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server = Server(f"http://127.0.0.1:{http.server_address[1]}/v1")
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        thread.join()
        http.server_close()
