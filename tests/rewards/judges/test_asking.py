"""Asking a judge: a real server in a process of its own, with errors, hangs, budgets, a wrong key, and a real kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.records import Completion, Group, Message
from pipeline.rewards import judge
from pipeline.rewards.contract import Budget, Desk, Limits
from pipeline.rewards.judges import client, kept
from tests.rewards.judges.server import asked, serving

ROOT = Path(__file__).parent.parent.parent.parent


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A judge that answers at once."""
    with serving(tmp_path_factory.mktemp("judge") / "log") as url:
        yield url


def pairs(number: int, start: int = 0) -> list[Group]:
    """Prompts with an answer of 4 letters against one of 2 (even) or 6 (odd)."""
    return [Group(f"p{i}", (Message("user", f"question {i}"),), (Completion("four"), Completion("x" * (2 + i % 2 * 4))))
            for i in range(start, start + number)]


def scores(url: str, desk: Desk, groups: Sequence[Group], **settings: object) -> list[Sequence[float]]:
    made = judge.Settings(**{"model": "judge", "base_url": url, "scheme": "baseline", **settings})
    return [list(of_group) for of_group in judge.scorer(made, desk=desk)(groups)]


def test_a_slow_server_with_errors_and_hangs(tmp_path: Path) -> None:
    """60 comparisons, 120 calls, 12 at a time of 0.1 s: 1 s at best. A tenth fails with 503, a fortieth hangs."""
    log = tmp_path / "log"
    with serving(log, 0.1, 0.1, 0.025) as url:
        desk, began = Desk(Limits(concurrency=12), tmp_path / "kept"), time.monotonic()
        found = scores(url, desk, pairs(60))
        seconds = time.monotonic() - began
    assert found == [[0.5, 0.0], [0.5, 1.0]] * 30
    assert [row["outcome"] for row in desk.rows] == [0.0, 1.0] * 30
    assert (len(asked(log, 200)), len(set(asked(log, 200)))) == (120, 120)
    assert len(asked(log, 503)) + len(asked(log, 0)) > 0
    assert seconds < 8.0, "a call that hangs is given up long before its time-out of 300 s"


@pytest.mark.long
def test_500_comparisons_end_in_little_more_than_the_ideal_time(tmp_path: Path) -> None:
    """1,000 calls of 0.2 s, 20 at a time: 10 s at best; a twentieth fails, a hundredth hangs. Every question is
    answered once; killed in the middle, all but those in flight are.
    """
    log, folder = tmp_path / "log", tmp_path / "killed"
    with serving(log, 0.2, 0.05, 0.01) as url:
        desk, began = Desk(Limits(concurrency=20), tmp_path / "kept"), time.monotonic()
        found = scores(url, desk, pairs(500))
        seconds = time.monotonic() - began
    assert found == [[0.5, 0.0], [0.5, 1.0]] * 250
    assert (len(asked(log, 200)), len(set(asked(log, 200)))) == (1000, 1000)
    assert 30 < len(asked(log, 503)) < 75 and 3 < len(asked(log, 0)) < 25
    assert seconds < 1.3 * 10.0
    log = tmp_path / "log of the killed"
    with serving(log, 0.2, 0.05, 0.01) as url:
        killed(url, folder, log, 500, 20, answers=400)
        assert scores(url, Desk(Limits(concurrency=20), folder), pairs(500)) == [[0.5, 0.0], [0.5, 1.0]] * 250
    times = Counter(asked(log, 200))
    assert len(times) == 1000 and max(times.values()) <= 2 and times.total() <= 1000 + 20


def killed(url: str, folder: Path, log: Path, comparisons: int, concurrency: int, answers: int) -> None:
    """So many comparisons in a process of their own, killed once the server has answered `answers` calls."""
    code = ("import sys; from pathlib import Path; from tests.rewards.judges import test_asking as t\n"
            "from pipeline.rewards.contract import Desk, Limits\n"
            f"desk = Desk(Limits(concurrency={concurrency}), Path(sys.argv[2]))\n"
            f"t.scores(sys.argv[1], desk, t.pairs({comparisons}))")
    process = subprocess.Popen([sys.executable, "-c", code, url, str(folder)], cwd=ROOT,
                               env={**os.environ, "PYTHONPATH": str(ROOT)})
    while len(asked(log)) < answers:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(0.4)  # what was in flight is answered to nobody


def test_nothing_is_asked_twice_after_kill_9(tmp_path: Path) -> None:
    """Killed in the middle, the run asks again what was in flight at most; a third run asks nothing."""
    log, folder = tmp_path / "log", tmp_path / "kept"
    with serving(log, 0.05) as url:
        killed(url, folder, log, 50, 4, answers=30)
        answered = len(list((folder / "answers").rglob("*.json")))
        before = len(asked(log))
        assert before - 4 <= answered <= before < 100
        assert scores(url, Desk(Limits(), folder), pairs(50)) == [[0.5, 0.0], [0.5, 1.0]] * 25
        assert len(asked(log)) == before + 100 - answered
        assert Counter(Counter(asked(log)).values())[2] == before - answered <= 4
        scores(url, Desk(Limits(), folder, "another run"), pairs(50))
        assert len(asked(log)) == before + 100 - answered


def test_a_kept_answer_whose_bytes_changed_is_asked_for_again(tmp_path: Path) -> None:
    """It would be another verdict, for good."""
    log, folder = tmp_path / "log", tmp_path / "kept"
    with serving(log) as url:
        first = scores(url, Desk(Limits(), folder), pairs(2))
        calls = len(asked(log))
        kept_one = sorted((folder / "answers").rglob("*.json"))[0]
        good = kept_one.read_bytes()
        kept_one.write_bytes(good.replace(b"stop", b"stoq"))
        assert scores(url, Desk(Limits(), folder), pairs(2)) == first
        assert len(asked(log)) == calls + 1 and kept_one.read_bytes() == good


@pytest.mark.parametrize(("budget", "most"), [
    (Budget(calls=7), 7), (Budget(tokens=2000), 18), (Budget(money=0.003), 25), (Budget(calls=0), 0),
    (Budget(tokens=0), 0), (Budget(money=0.0), 0)])
def test_a_budget_stops_cleanly_and_can_be_raised(budget: Budget, most: int, tmp_path: Path) -> None:
    """110 tokens a call, 0.00012 at the prices given. A call may come to 400 tokens of reply, 350 of prompt: what may
    go beyond is not begun. With a higher budget it goes on; what was spent before counts.
    """
    log = tmp_path / "log"
    sampling = {"temperature": 0.0, "max_tokens": 400} if budget.calls is None else {}
    with serving(log) as url:
        limits = Limits(budget=budget, prices={"judge": (1.0, 2.0)})
        with pytest.raises(UserError, match=r"hardware\.judge\.budget") as stopped:
            scores(url, Desk(limits, tmp_path, "run"), pairs(20), sampling=sampling)
        (problem,) = stopped.value.problems
        assert problem.endswith("it goes on from here, and nothing is asked twice")
        used = len(asked(log))
        assert used <= most
        assert kept.spent(tmp_path, "run", limits.prices).calls == used
        with pytest.raises(UserError, match="is used up"):
            scores(url, Desk(limits, tmp_path, "run"), pairs(20), sampling=sampling)
        assert len(asked(log)) == used
        scores(url, Desk(Limits(budget=Budget(calls=40)), tmp_path, "run"), pairs(20), sampling=sampling)
        assert len(asked(log)) == len(set(asked(log))) == 40


def test_a_rate_limit_holds(tmp_path: Path, plain: str) -> None:
    """6 calls at 600 a minute: 0.1 s between two, so half a second."""
    began = time.monotonic()
    scores(plain, Desk(Limits(per_minute=600), tmp_path), pairs(3))
    assert 0.5 <= time.monotonic() - began < 3.0


@pytest.mark.parametrize(("settings", "key", "problem"), [
    ({}, "wrong", r"refuses the key in the environment variable ALIGNLOOP_JUDGE_KEY \(401: Incorrect API key "
                  r"provided: \(the key\)\.\)"),
    ({"model": "gpt-none"}, "", r"has no model 'gpt-none', or is no OpenAI-compatible address \(404: The model"),
    ({"model": "html"}, "", r"answered HTML where JSON of /chat/completions was expected \('<!DOCTYPE html>"),
    ({"base_url": "http://127.0.0.1:9/v1"}, "", r"127.0.0.1:9/v1 cannot be reached .* nothing was ever answered"),
])
def test_what_cannot_be_asked_is_one_clear_line(settings: dict[str, str], key: str, problem: str, tmp_path: Path,
                                                plain: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGNLOOP_JUDGE_KEY", key)
    with pytest.raises(UserError, match=problem) as found:
        scores(plain, Desk(Limits(retries=1), tmp_path), pairs(2), **settings)
    assert len(found.value.problems) == 1
    assert not key or all(key not in file.read_text() for file in tmp_path.rglob("*") if file.is_file())
    assert not key or key not in str(found.value)


def test_the_key_is_never_written(tmp_path: Path, plain: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGNLOOP_JUDGE_KEY", "sk-very-secret")
    desk = Desk(Limits(), tmp_path)
    scores(plain, desk, pairs(2))
    written = [file.read_text() for file in tmp_path.rglob("*") if file.is_file()]
    assert len(written) == 5, "four answers and what was spent"
    assert not any("secret" in text for text in [*written, json.dumps(desk.rows)])


def test_what_is_wrong_with_where_to_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key is asked for at plan where the server is elsewhere; a budget in money needs a price."""
    monkeypatch.delenv("ALIGNLOOP_JUDGE_KEY", raising=False)
    there = judge.Settings("m", "https://judge.example/v1")
    assert judge.check(judge.Settings("m"), Limits()) == []
    assert [key for key, _ in judge.check(there, Limits(budget=Budget(money=1.0)))] == ["key", "model"]
    assert judge.check(there, Limits(budget=Budget(money=0.0), prices={"m": (1.0, 2.0)}))[0][1].startswith(
        "the environment variable ALIGNLOOP_JUDGE_KEY is not set; put the key of judge.example into it")
    assert client.problems(client.Endpoint("localhost:8000", None, "m"))[0][0] == "base_url"
