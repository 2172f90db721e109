"""A constitution behind a real HTTP server whose preference and bias are known: nothing asked twice, every failure named."""

import json
import math
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.config import Constitution, Endpoint, Judge
from pipelines.errors import ConfigurationError, DataError, EnvironmentFault, PrefloopError
from pipelines.judges import compare, endpoint, make_judge, name_of
from tests.judges import models
from tests.judges.server import BIAS, Server, completion, serving
from tests.stages.local import Here

PROMPTS = ["LEAR:", "JULIET:", "LEAR:", "MACBETH:"]
FIRST = ["aei", "b", "ou", "xyz"]
SECOND = ["b", "aeiou", "a\nAnswer B: eeu", "xyz!"]
GAPS = [3.0, -5.0, 2.0 - 5.0, 0.0]
"""Vowels of the first less vowels of the second."""
KEY = "sk-very-secret-0815"


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as started:
        yield started


def _judge(root: Path, url: str, **some: object) -> Judge:
    settings = {"url": url, "model": "some/judge", "requests_per_minute": 100_000, "attempts": 3} | some
    asked = Endpoint.model_validate(settings)
    return Judge(kind="constitution", gold=False, constitution=Constitution(principles=models.principles(root), endpoint=asked))


def _replies(root: Path) -> Path:
    return root / endpoint.REPLIES / "some-judge.jsonl"


def test_the_preference_is_found_and_the_bias_is_taken_out(tmp_path: Path, server: Server) -> None:
    """The server adds 1.5 nats to the letter A. One pair of four is decided by that: equal answers."""
    judge = _judge(tmp_path, server.url)
    found = compare(judge, tmp_path, Here(2), PROMPTS, FIRST, SECOND)
    assert found.differences == pytest.approx(GAPS)
    assert found.figures == pytest.approx(
        {"position_bias": BIAS, "position_decided": 0.25, "judge_prompt_tokens": 80.0, "judge_completion_tokens": 8.0}
    )
    assert name_of(judge) == "constitution:kind:judge"
    (path,) = {headers["path"] for headers in server.headers}
    assert path == "/v1/chat/completions"
    one = server.requests[0]
    assert (one["model"], one["max_tokens"], one["temperature"], one["logprobs"]) == ("some/judge", 1, 0, True)


def test_one_answer_alone_is_asked_about_with_yes_and_no(tmp_path: Path, server: Server) -> None:
    """The rule is worth vowels - 2 nats; the bias is out here too."""
    assert make_judge(_judge(tmp_path, server.url), tmp_path, Here(1))(PROMPTS, FIRST) == pytest.approx([1.0, -2.0, 0.0, -2.0])


def test_nothing_is_asked_twice_and_a_record_does_without_the_server(tmp_path: Path) -> None:
    with serving() as server:
        judge = _judge(tmp_path, server.url)
        first = compare(judge, tmp_path, Here(1), PROMPTS, FIRST, SECOND)
        assert len(server.requests) == 8
        assert compare(judge, tmp_path, Here(3), PROMPTS, FIRST, SECOND) == first
        assert len(server.requests) == 8
        compare(judge, tmp_path, Here(1), PROMPTS, FIRST, [*SECOND[:3], "new"])
        assert len(server.requests) == 10
        gone = server.url
    assert compare(judge, tmp_path, Here(1), PROMPTS, FIRST, SECOND) == first
    fresh = tmp_path / "fresh"
    (fresh / "data/judges").mkdir(parents=True)
    _replies(tmp_path).rename(fresh / "data/judges/said.jsonl")
    kept = _judge(fresh, "http://elsewhere.invalid/v1", replies="data/judges/said.jsonl", key_variable="PREFLOOP_NO_SUCH_KEY")
    assert compare(kept, fresh, Here(1), PROMPTS, FIRST, SECOND) == first, "neither server nor key is needed"
    with pytest.raises(EnvironmentFault, match=r"no reply in 1 attempts \(ConnectError.*name a file of recorded replies"):
        compare(_judge(tmp_path, gone, attempts=1), tmp_path, Here(1), PROMPTS, FIRST, SECOND)
    with pytest.raises(DataError, match="data/judges/none.jsonl: no such file"):
        compare(_judge(fresh, gone, replies="data/judges/none.jsonl"), fresh, Here(1), PROMPTS, FIRST, SECOND)


def test_a_cut_record_is_asked_again_and_goes_on(tmp_path: Path, server: Server) -> None:
    """The run was killed in the middle of a line: the whole lines count, and the next line begins anew."""
    judge = _judge(tmp_path, server.url)
    first = compare(judge, tmp_path, Here(1), PROMPTS, FIRST, SECOND)
    whole = _replies(tmp_path).read_bytes()
    _replies(tmp_path).write_bytes(whole[:-40])
    for _ in range(2):
        assert compare(judge, tmp_path, Here(1), PROMPTS, FIRST, SECOND) == first
        assert len(server.requests) == 9
    lines = _replies(tmp_path).read_text().splitlines()
    assert len(lines) == 9
    assert json.loads(lines[-1])["request"]["model"] == "some/judge"


def test_the_key_comes_from_the_environment_and_goes_nowhere(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = _judge(tmp_path, server.url, key_variable="PREFLOOP_TEST_KEY")
    with pytest.raises(EnvironmentFault, match="set the environment variable PREFLOOP_TEST_KEY"):
        compare(judge, tmp_path, Here(1), PROMPTS, FIRST, SECOND)
    assert server.requests == []
    monkeypatch.setenv("PREFLOOP_TEST_KEY", KEY)
    compare(judge, tmp_path, Here(1), PROMPTS, FIRST, SECOND)
    assert {headers["Authorization"] for headers in server.headers} == {f"Bearer {KEY}"}
    assert not any(KEY.encode() in file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
    server.reply = lambda *_: (401, {}, f'{{"error": "no such key: {KEY}"}}'.encode())
    with pytest.raises(EnvironmentFault, match="is the key in PREFLOOP_TEST_KEY right") as caught:
        compare(judge, tmp_path, Here(1), ["other"] * 4, FIRST, SECOND)
    assert KEY not in str(caught.value)


def test_what_passes_is_tried_again(tmp_path: Path, server: Server) -> None:
    """Too many requests with Retry-After: 0, a broken gateway, half an answer: the third attempt gets it."""
    bad = [(429, {"Retry-After": "0"}, b"slow down"), (200, {}, b'{"choices": [')]
    server.reply = lambda request, number: bad[number - 1] if number <= 2 else (200, {}, json.dumps(completion(request)).encode())
    asked = endpoint.open_replies(_judge(tmp_path, server.url).content["constitution"].endpoint, tmp_path, 1, {})
    began = time.monotonic()
    assert asked(['Answer: "aei"'])[0]["text"] == "A"
    assert len(server.requests) == 3
    assert 0.9 < time.monotonic() - began < 5.0, "no wait after the first, FIRST_WAIT doubled after the second"


@pytest.mark.parametrize(
    ("status", "body", "error", "said", "attempts"),
    [
        (503, b"busy", EnvironmentFault, "no reply in 2 attempts (503 busy)", 2),
        (404, b"no model some/judge", ConfigurationError, "404 no model some/judge; check url and model", 1),
        (302, b"", ConfigurationError, "302", 1),
        (200, b'{"error": "none"}', DataError, "the reply is no chat completion (KeyError: 'choices')", 1),
        (200, b'{"choices": [{"message": {"content": "A"}}]}', DataError, "replies come without log-probabilities", 1),
    ],
)
def test_what_does_not_pass_is_named(
    tmp_path: Path, server: Server, status: int, body: bytes, error: type[PrefloopError], said: str, attempts: int
) -> None:
    server.reply = lambda *_: (status, {"Location": f"{server.url}/moved"} if status == 302 else {}, body)
    judge = _judge(tmp_path, server.url, attempts=attempts)
    with pytest.raises(error) as caught:
        make_judge(judge, tmp_path, Here(1))(["p"], ["a"])
    assert said in str(caught.value)
    assert len(server.requests) <= 2 * attempts
    assert {headers["path"] for headers in server.headers} == {"/v1/chat/completions"}, "no redirect is followed"


def test_the_odds_of_the_listed_tokens_by_hand() -> None:
    """P("A") = 0.2 + 0.1 in two spellings, P("B") = 0.6. A missing letter counts as the least likely listed."""
    listed = [["A", math.log(0.2)], [" A", math.log(0.1)], ["B", math.log(0.6)], ["the", math.log(0.05)]]
    assert endpoint.odds(listed) == pytest.approx(math.log(0.5))
    assert endpoint.odds([["A", math.log(0.8)], ["the", math.log(0.05)]]) == pytest.approx(math.log(16))
    assert endpoint.odds([["I", -0.1], ["the", -9999.0]]) == 0.0
    assert endpoint.odds([["A", -0.1], ["b", -9999.0]]) == pytest.approx(9998.9)


def test_requests_keep_their_distance() -> None:
    """1200 a minute: the eleventh of eleven threads is let through after ten gaps of 50 ms."""
    pace = endpoint.Pace(1200.0)
    threads = [threading.Thread(target=pace.wait) for _ in range(11)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 0.5 <= time.monotonic() - began < 5.0
