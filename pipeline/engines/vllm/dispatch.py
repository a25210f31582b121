"""Keep several servers busy with one stream of requests, and lose none of them when a server is lost.

Requests go out in small batches as soon as a server has room, answers come back in any order and leave in the order
of the requests. What was in flight on a server that is lost goes back in the queue; its seeds make the second answer
the first one. The others go on meanwhile, and without it where it does not come back. A request that was there at two
losses is asked alone, and one that loses a server alone is refused: it is what kills the server.
"""

import contextlib
import queue
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

from pipeline.engines.engine import Answer, Request

_AHEAD = 16  # times what is in flight: how far answers may overtake the oldest one
_SUSPECT = 2  # losses after which a request is asked alone

# ask(server, requests, connections): (index, answer) as they come; raises OSError when the server is lost.
Ask = Callable[[Any, list[Request], set], Iterable[tuple[int, Answer]]]
# recover(server, why it is lost, over): the server once it serves again; raises ServerLost when it never will, or
# when `over` is set: nobody waits for it any more.
Recover = Callable[[Any, OSError | None, threading.Event], Any]


class ServerLost(RuntimeError):
    """A server that will not come back."""


@dataclass(frozen=True)
class Lane:
    """One server and how much it gets at a time."""

    server: Any
    limit: int  # samples in flight
    batch: int  # samples asked for in one call, about


@dataclass
class _Pending:
    index: int
    request: Request
    losses: int = 0


class Dispatcher:
    """One pass over a stream of requests."""

    def __init__(self, lanes: list[Lane], ask: Ask, recover: Recover) -> None:
        self.lanes, self.ask, self.recover = lanes, ask, recover
        self.losses = 0  # times a server was lost
        self.gone = 0  # servers that did not come back
        self._window = sum(lane.limit for lane in lanes)
        self._servers = [lane.server for lane in lanes]
        self._up = [True] * len(lanes)
        self._lost: dict[int, OSError | None] = {}  # to get back once their last call has ended; why they are lost
        self._recovering: set[int] = set()
        self._over = threading.Event()
        self._load = [0] * len(lanes)  # samples in flight
        self._calls = [0] * len(lanes)  # batches in flight
        self._again: deque[_Pending] = deque()
        self._suspects: deque[_Pending] = deque()
        self._alone = False  # the call in flight is a suspect's
        self._events: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._ready: dict[int, Answer] = {}
        self._read = 0  # requests taken from the stream
        self._exhausted = False  # it has no more
        self._next = 0  # the request whose answer leaves next
        self._connections: set[Any] = set()

    def answers(self, requests: Iterable[Request]) -> Iterator[Answer]:
        """One answer per request, in order. Raises ServerLost when no server is left, and whatever else goes wrong."""
        reading = (_Pending(index, request) for index, request in enumerate(requests))
        with ThreadPoolExecutor(self._window + len(self.lanes), thread_name_prefix="ask") as pool:
            try:
                while True:
                    self._feed(reading, pool)
                    while self._next in self._ready:
                        answer = self._ready.pop(self._next)
                        self._next += 1
                        yield answer
                        self._feed(reading, pool)
                    if self._exhausted and self._next == self._read:
                        return
                    if any(self._calls) or self._recovering:
                        self._happen()
                    self._recover_lost(pool)
            finally:
                self._over.set()
                self._hang_up()

    def _happen(self) -> None:
        """Wait for the next event, and take those that are there already with it."""
        self._events.get()()
        with contextlib.suppress(queue.Empty):
            while True:
                self._events.get_nowait()()

    def _feed(self, reading: Iterator[_Pending], pool: ThreadPoolExecutor) -> None:
        """Give every server that is up as much as it may hold, the idlest one first."""
        while True:
            room = [i for i, lane in enumerate(self.lanes) if self._up[i] and self._load[i] < lane.limit]
            if not room:
                return
            server = min(room, key=lambda i: self._load[i] / self.lanes[i].limit)
            batch = self._batch(reading, self.lanes[server].batch)
            if not batch:
                return
            self._load[server] += sum(asked.request.n for asked in batch)
            self._calls[server] += 1
            pool.submit(self._call, server, batch)

    def _batch(self, reading: Iterator[_Pending], samples: int) -> list[_Pending]:
        """The next requests, about `samples` samples together. A suspect waits until it can be alone, and the others
        until it is done: a crash ends every call in flight and would be blamed on all of them.
        """
        if (self._suspects or self._alone) and any(self._calls):
            return []
        self._alone = bool(self._suspects)
        if self._suspects:
            return [self._suspects.popleft()]
        batch: list[_Pending] = []
        while sum(asked.request.n for asked in batch) < samples:
            if self._again:
                batch.append(self._again.popleft())
            elif self._exhausted or self._read - self._next >= _AHEAD * self._window:
                break
            elif asked := next(reading, None):
                batch.append(asked)
                self._read += 1
            else:
                self._exhausted = True
        return batch

    def _call(self, server: int, batch: list[_Pending]) -> None:
        """In a thread of the pool: everything it learns goes through the queue of events."""
        left = dict(enumerate(batch))
        why: OSError | None = None
        error: Exception | None = None
        try:
            for k, answer in self.ask(self._servers[server], [asked.request for asked in batch], self._connections):
                asked = left.pop(k)
                self._events.put(partial(self._answered, server, asked, answer))
        except OSError as caught:
            why = caught
        except Exception as caught:
            error = caught
        self._events.put(partial(self._ended, server, list(left.values()), why, error))

    def _answered(self, server: int, asked: _Pending, answer: Answer) -> None:
        self._load[server] -= asked.request.n
        self._ready[asked.index] = answer

    def _ended(self, server: int, unanswered: list[_Pending], why: OSError | None, error: Exception | None) -> None:
        self._calls[server] -= 1
        self._load[server] -= sum(asked.request.n for asked in unanswered)
        if error is not None:
            raise error
        for asked in unanswered:
            asked.losses += 1
            if asked.losses > _SUSPECT:
                self._ready[asked.index] = Answer(refused=f"the server was lost {asked.losses} times over this request")
            else:
                (self._suspects if asked.losses == _SUSPECT else self._again).append(asked)
        if unanswered:
            self._up[server] = False
            self._lost.setdefault(server, why)

    def _recover_lost(self, pool: ThreadPoolExecutor) -> None:
        """Get back, in a thread, every lost server of which no call is left."""
        for server in [server for server in self._lost if self._calls[server] == 0]:
            self.losses += 1
            self._recovering.add(server)
            pool.submit(self._recover, server, self._lost.pop(server))

    def _recover(self, server: int, why: OSError | None) -> None:
        """In a thread of the pool."""
        try:
            back, error = self.recover(self._servers[server], why, self._over), None
        except Exception as caught:
            back, error = None, caught
        self._events.put(partial(self._recovered, server, back, error))

    def _recovered(self, server: int, back: Any, error: Exception | None) -> None:
        self._recovering.discard(server)
        if error is None:
            self._servers[server], self._up[server] = back, True
            return
        self.gone += 1
        if not isinstance(error, ServerLost) or self.gone == len(self.lanes):
            raise error
        print(f"going on without it: {error}", flush=True)

    def _hang_up(self) -> None:
        """Who stops reading ends the requests in flight: a server drops what nobody waits for."""
        for connection in list(self._connections):
            with contextlib.suppress(OSError, AttributeError):
                connection.sock.shutdown(socket.SHUT_RDWR)
