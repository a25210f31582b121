"""Keeping servers busy and losing nothing: every way a server can go, with answers that name their request."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from pipeline.engines.engine import Answer, Request, Sample
from pipeline.engines.vllm.dispatch import Dispatcher, Lane, ServerLost


def requests(number: int, n: int = 1) -> list[Request]:
    return [Request((i,), n, 0.0, 1.0, 0, 1, (2,), seed=i) for i in range(number)]


def answer(request: Request) -> Answer:
    """Names its request: token i + 100 for prompt (i,)."""
    return Answer((Sample((request.prompt_ids[0] + 100,), "length", "", request.seed),))


def numbers(answers: list[Answer]) -> list[int]:
    return [a.samples[0].token_ids[0] - 100 if a.samples else -1 for a in answers]


class Server:
    """Answers in reverse order; breaks off before prompt i as often as `breaks[i]` says."""

    def __init__(self, breaks: dict[int, int] | None = None) -> None:
        self.breaks = dict(breaks or {})
        self.lock, self.together, self.most, self.asked = threading.Lock(), 0, 0, 0
        self.alone: list[int] = []

    def ask(self, batch: list[Request]) -> Iterator[tuple[int, Answer]]:
        with self.lock:
            self.together += sum(r.n for r in batch)
            self.most = max(self.most, self.together)
            self.asked += len(batch)
            if self.together == 1:
                self.alone.append(batch[0].prompt_ids[0])
        try:
            time.sleep(0.002)
            for k, request in reversed(list(enumerate(batch))):
                with self.lock:
                    if self.breaks.get(request.prompt_ids[0], 0) > 0:
                        self.breaks[request.prompt_ids[0]] -= 1
                        raise ConnectionError("gone")
                yield k, answer(request)
        finally:
            with self.lock:
                self.together -= sum(r.n for r in batch)


def ask(server: Server, batch: list[Request], connections: set) -> Iterator[tuple[int, Answer]]:
    return server.ask(batch)


def stays(server: Any, why: OSError | None, over: threading.Event) -> Any:
    """A recovery that has nothing to do."""
    return server


def dispatch(servers: list[Server], wanted: list[Request], limit: int = 16, batch: int = 4):
    recovered: list[tuple[Server, str]] = []

    def recover(server: Server, why: OSError | None, over: threading.Event) -> Server:
        recovered.append((server, str(why)))
        return server

    lanes = [Lane(server, limit, batch) for server in servers]
    return list(Dispatcher(lanes, ask, recover).answers(wanted)), recovered


@pytest.mark.parametrize("servers", [1, 3])
def test_every_answer_once_and_in_the_order_of_the_requests(servers):
    fleet = [Server() for _ in range(servers)]
    answers, recovered = dispatch(fleet, requests(500))
    assert numbers(answers) == list(range(500))
    assert sum(server.asked for server in fleet) == 500
    assert recovered == []
    assert all(server.asked > 50 for server in fleet)


def test_no_more_in_flight_than_allowed_but_the_next_before_the_last_is_done():
    """Limit 16 in samples, 4 samples at a time, 2 samples per request: at most 16 + 4 - 1 start together."""
    server = Server()
    dispatch([server], requests(200, n=2), limit=16, batch=4)
    assert 8 < server.most < 20


def test_a_lost_server_gets_what_it_had_not_answered_again():
    server = Server({37: 1, 120: 1})
    answers, recovered = dispatch([server], requests(200))
    assert numbers(answers) == list(range(200))
    assert recovered == [(server, "gone")] * 2


def test_the_others_go_on_while_a_lost_one_comes_back():
    """Server 0 breaks at prompt 8 and is not back before server 1 has answered 200 of 300 requests."""
    fleet = [Server({8: 1}), Server()]
    lanes = [Lane(server, 16, 4) for server in fleet]
    back, seen = threading.Event(), []

    def recover(server: Server, why: OSError | None, over: threading.Event) -> Server:
        assert back.wait(20)
        return server

    dispatcher = Dispatcher(lanes, ask, recover)
    for one in dispatcher.answers(requests(300)):
        seen.append(one)
        if len(seen) == 200:
            back.set()
    assert numbers(seen) == list(range(300))
    assert dispatcher.losses == 1


def test_one_that_does_not_come_back_is_done_without_and_the_last_one_ends_the_pass():
    def never(server: Any, why: OSError | None, over: threading.Event) -> Any:
        raise ServerLost(f"lost for good: {why}")

    fleet = [Server({8: 1}), Server()]
    dispatcher = Dispatcher([Lane(server, 16, 4) for server in fleet], ask, never)
    assert numbers(list(dispatcher.answers(requests(300)))) == list(range(300))
    assert (dispatcher.losses, dispatcher.gone) == (1, 1)
    both = [Server(dict.fromkeys(range(300), 9)), Server(dict.fromkeys(range(300), 9))]
    with pytest.raises(ServerLost, match="lost for good: gone"):
        list(Dispatcher([Lane(server, 16, 4) for server in both], ask, never).answers(requests(300)))


def test_nobody_waits_for_a_lost_server_once_everything_is_answered():
    told = threading.Event()

    def recover(server: Any, why: OSError | None, over: threading.Event) -> Any:
        assert over.wait(20)
        told.set()
        raise ServerLost("not needed")

    fleet = [Server({8: 1}), Server()]
    began = time.monotonic()
    answers = list(Dispatcher([Lane(server, 16, 4) for server in fleet], ask, recover).answers(requests(300)))
    assert numbers(answers) == list(range(300))
    assert told.is_set() and time.monotonic() - began < 10


def test_a_request_that_kills_the_server_is_refused_and_only_that_one():
    server = Server({50: 99})
    answers, recovered = dispatch([server], requests(100))
    assert [i for i, a in enumerate(answers) if a.refused] == [50]
    assert answers[50].refused == "the server was lost 3 times over this request"
    assert numbers(answers) == [*range(50), -1, *range(51, 100)]
    assert len(recovered) == 3
    assert 50 in server.alone  # the last time it was asked alone, so no other request is blamed


@pytest.mark.parametrize("poison", [{30, 47}, {30, 60, 70, 75}], ids=["two", "four"])
def test_a_crash_that_ends_every_call_in_flight_is_blamed_on_its_causes_only(poison):
    """A real server takes all its calls with it; at its third loss a request has to be the only one in flight."""
    lock, crashes, flying = threading.Lock(), [0], set()
    blamed: list[set[int]] = []

    def crashes_whole(server: Any, batch: list[Request], connections: set) -> Iterator[tuple[int, Answer]]:
        own = {request.prompt_ids[0] for request in batch}
        with lock:
            begun = crashes[0]
            flying.update(own)
        time.sleep(0.002)
        for k, request in enumerate(batch):
            with lock:
                if crashes[0] != begun or request.prompt_ids[0] in poison:
                    if crashes[0] == begun:
                        crashes[0] += 1
                        blamed.append(set(flying))
                    flying.difference_update(own)
                    raise ConnectionError("gone")
                flying.discard(request.prompt_ids[0])
            yield k, answer(request)

    answers = list(Dispatcher([Lane(None, 16, 4)], crashes_whole, stays).answers(requests(100)))
    assert {i for i, a in enumerate(answers) if a.refused} == poison
    assert all({one} in blamed for one in poison)


def test_a_request_bigger_than_the_limit_is_asked_all_the_same():
    answers, _ = dispatch([Server()], requests(5, n=40), limit=16, batch=4)
    assert numbers(answers) == list(range(5))


def test_what_recovery_raises_ends_the_pass():
    def wrong(server, why, over):
        raise RuntimeError("other weights")

    fleet = [Server({5: 1}), Server()]
    with pytest.raises(RuntimeError, match="other weights"):  # another replica is no help
        list(Dispatcher([Lane(server, 8, 2) for server in fleet], ask, wrong).answers(requests(2000)))


def test_an_answer_that_breaks_the_contract_ends_the_pass():
    def broken(server, batch, connections):
        raise RuntimeError("finish_reason")
        yield

    with pytest.raises(RuntimeError, match="finish_reason"):
        list(Dispatcher([Lane(None, 8, 2)], broken, stays).answers(requests(5)))


def test_the_stream_is_read_only_as_far_ahead_as_answers_may_overtake():
    """The first request takes until 16 times the 8 in flight are read, and a while longer: no more are, of 10,000."""
    read: list[Request] = []

    def slow(server, batch, connections):
        if batch[0].prompt_ids == (0,):
            deadline = time.monotonic() + 30
            while len(read) < 8 * 16 and time.monotonic() < deadline:
                time.sleep(0.01)
            time.sleep(0.2)
        yield from ((k, answer(request)) for k, request in enumerate(batch))

    def stream():
        for request in requests(10_000):
            read.append(request)
            yield request

    answers = Dispatcher([Lane(None, 8, 1)], slow, stays).answers(stream())
    first = next(answers)
    assert numbers([first]) == [0]
    assert len(read) == 8 * 16
    assert numbers(list(answers)) == list(range(1, 10_000))


def test_who_stops_reading_ends_the_calls():
    class Connection:
        closed = threading.Event()
        sock = property(lambda self: self)

        def shutdown(self, how: int) -> None:
            self.closed.set()

    def waits(server, batch, connections):
        connections.add(connection := Connection())
        yield 0, answer(batch[0])
        connection.closed.wait(30)
        raise OSError("closed")

    answers = Dispatcher([Lane(None, 2, 2)], waits, stays).answers(requests(100))
    next(answers)
    began = time.monotonic()
    answers.close()
    assert time.monotonic() - began < 5
