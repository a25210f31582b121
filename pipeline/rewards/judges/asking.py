"""Ask a judge many questions at once, each until it is answered, and none twice.

What is to be asked comes from programs: generators that yield lists of requests and are sent the answers, so that a
tournament, whose next question hangs on the last answer, and a table of comparisons run alike and side by side.

One thread decides; a thread per call waits for the server. A call that fails for the moment goes back in the queue and
takes up no place while it waits there. One that takes far longer than others do is asked once more beside it. Every
answer is on disk before it is used.
"""

import contextlib
import heapq
import queue
import random
import threading
import time
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pipeline.errors import UserError
from pipeline.rewards.contract import Desk
from pipeline.rewards.judges import client, kept
from pipeline.rewards.judges.client import Again, Endpoint, Refused
from pipeline.rewards.judges.kept import Reply, Spent

T = TypeVar("T")
Messages = list[dict[str, str]]
Answer = Reply | str  # a str: why there is none
Program = Generator[list[Messages], list[Answer], T]

_PAUSE, _LONGEST_PAUSE = 0.25, 60.0  # seconds before the first retry, doubled for each further one
_FEW = 20  # answers after which it is known how long one takes
_SLOW, _SHORTEST = 3.0, 1.0  # a call is slow after so many times the 95th percentile, and so many seconds
_GRACE = 5.0  # seconds for the calls in flight when the judge turns out to be out of reach
_REFUSALS = 16  # first answers that are all refusals: something is wrong with the request itself


@dataclass(eq=False)
class _Pending:
    key: str
    messages: Messages
    waiting: list[tuple[int, int]] = field(default_factory=list)  # (program, place in its list)
    tries: int = 0
    done: bool = False


@dataclass
class _Running:
    program: Program[Any]
    answers: list[Answer | None] = field(default_factory=list)
    missing: int = 0


class Asker:
    """Runs programs against one endpoint. Keeps what it knows of the endpoint between runs."""

    def __init__(self, endpoint: Endpoint, sampling: Mapping[str, Any], desk: Desk) -> None:
        self.endpoint, self.sampling, self.desk = endpoint, sampling, desk
        self._limits, self._folder = desk.limits, desk.answers.expanduser().absolute()
        self._took: deque[float] = deque(maxlen=200)  # seconds of the last answers
        self._answered = self._refused = 0
        self._next = 0.0  # when the next call may begin
        self._inbox: queue.Queue[tuple[int, Reply | Exception]] = queue.Queue()
        self._flying: dict[int, tuple[_Pending, float]] = {}  # call -> what it asks, when it began
        self._given_up: dict[int, tuple[_Pending, float]] = {}  # likewise, of those that are waited for no longer
        self._calls = 0
        self._spent = Spent()
        self._deadline = 0.0

    def run(self, programs: Sequence[Program[T]]) -> list[T]:
        """What each program returns. Raises UserError where the judge cannot be asked, or the budget is used up: what
        was answered by then is kept, and the same call goes on from there.
        """
        self._running = dict(enumerate(map(_Running, programs)))
        self._results: dict[int, Any] = {}
        self._pending: dict[str, _Pending] = {}
        self._ready: deque[_Pending] = deque()
        self._later: list[tuple[float, int, _Pending]] = []
        self._stop: UserError | None = None
        self._flying, self._given_up = {}, {}
        self._spent = kept.spent(self._folder, self.desk.run, self._limits.prices)
        for index in list(self._running):
            self._advance(index, None)
        while self._running:
            self._begin()
            if self._stop is not None and (not self._flying or time.monotonic() >= self._deadline):
                raise self._stop
            with contextlib.suppress(queue.Empty):
                self._land(*self._inbox.get(timeout=self._wait()))
            self._give_up_slow()
        return [self._results[index] for index in range(len(programs))]

    def _advance(self, index: int, answers: list[Answer] | None) -> None:
        """Give a program its answers and queue what it asks next; answers that are kept go back to it at once."""
        running = self._running[index]
        while True:
            try:
                wanted = running.program.send(answers) if answers is not None else next(running.program)
            except StopIteration as end:
                self._results[index] = end.value
                del self._running[index]
                return
            running.answers, running.missing = [None] * len(wanted), 0
            for place, messages in enumerate(wanted):
                key = kept.key_of(self.endpoint.model, messages, self.sampling)
                known = None if key in self._pending else kept.find(self._folder, key)
                running.answers[place] = known
                if known is None:
                    running.missing += 1
                    self._queue(key, messages, (index, place))
            if running.missing:
                return
            answers = [answer for answer in running.answers if answer is not None]

    def _queue(self, key: str, messages: Messages, place: tuple[int, int]) -> None:
        if key not in self._pending:
            self._pending[key] = _Pending(key, messages)
            self._ready.append(self._pending[key])
        self._pending[key].waiting.append(place)

    def _begin(self) -> None:
        """Start as many calls as there is room, rate and budget for."""
        now = time.monotonic()
        while self._later and self._later[0][0] <= now:
            self._ready.appendleft(heapq.heappop(self._later)[2])
        while self._ready and self._stop is None and len(self._flying) < self._limits.concurrency and now >= self._next:
            pending = self._ready[0]
            if pending.done:
                self._ready.popleft()
                continue
            if short := self._short_of(pending):
                self._stop = None if self._flying else self._used_up(short)
                return  # what is in flight may cost less than it may
            self._ready.popleft()
            self._calls += 1
            self._flying[self._calls] = pending, now
            threading.Thread(target=self._call, args=(self._calls, pending), daemon=True).start()
            if self._limits.per_minute is not None:
                self._next = now + 60.0 / self._limits.per_minute

    def _call(self, call: int, pending: _Pending) -> None:
        try:
            seconds = self._limits.timeout_seconds
            self._inbox.put((call, client.ask(self.endpoint, pending.messages, self.sampling, seconds)))
        except Exception as error:  # the deciding thread says what it means
            self._inbox.put((call, error))

    def _land(self, call: int, outcome: Reply | Exception) -> None:
        late = call in self._given_up
        if not late and call not in self._flying:  # of a run that is over
            return
        pending, began = (self._given_up if late else self._flying).pop(call)
        if isinstance(outcome, Reply):
            kept.pay(self._folder, self.desk.run, self.endpoint.model, outcome)
            kept.keep(self._folder, pending.key, outcome)
            self._spent += self._cost(outcome.prompt_tokens, outcome.reply_tokens)
            self._answered += 1
            self._took.append(time.monotonic() - began)  # of a late one too: the server may have become slow
            self._settle(pending, outcome)
        elif late or pending.done:
            return  # it is being asked again already
        elif isinstance(outcome, Refused):
            self._refused += 1
            if self._refused >= _REFUSALS and not self._answered:
                self._give_in(UserError(
                    f"judge: {self.endpoint.base_url} refuses every request ({outcome}); check sampling, of which it "
                    "may not know a name: null leaves one out"))
            self._settle(pending, f"the judge refuses the request ({outcome})")
        elif isinstance(outcome, Again):
            self._retry(pending, outcome)
        elif isinstance(outcome, UserError):
            self._give_in(outcome)
        else:
            raise outcome

    def _give_in(self, why: UserError) -> None:
        if self._stop is None:
            self._stop, self._deadline = why, time.monotonic() + _GRACE

    def _retry(self, pending: _Pending, failed: Again) -> None:
        if failed.lost:
            kept.pay(self._folder, self.desk.run, self.endpoint.model, None)
            self._spent += Spent(calls=1)
        pending.tries += 1
        if pending.tries > self._limits.retries:
            if not self._answered:
                return self._give_in(UserError(
                    f"judge: {failed}; asked {pending.tries} times, and nothing was ever answered. Start the server, "
                    "or check base_url; the same command goes on from here"))
            return self._settle(pending, f"the judge failed {pending.tries} times ({failed})")
        pause = min(_LONGEST_PAUSE, _PAUSE * 2.0 ** (pending.tries - 1))
        pause *= random.Random(f"{pending.key} {pending.tries}").uniform(0.5, 1.5)  # so that not all come back at once
        now = time.monotonic()
        if failed.after is not None:  # the server wants to be left alone
            self._next, pause = max(self._next, now + failed.after), max(pause, failed.after)
        heapq.heappush(self._later, (now + pause, id(pending), pending))
        return None

    def _settle(self, pending: _Pending, answer: Answer) -> None:
        """Hand an answer to the programs that wait for it."""
        if pending.done:
            return
        pending.done = True
        del self._pending[pending.key]
        for index, place in pending.waiting:
            running = self._running[index]
            running.answers[place] = answer
            running.missing -= 1
            if not running.missing:
                self._advance(index, [one for one in running.answers if one is not None])

    def _due(self) -> dict[int, float]:
        """When each call in flight counts as slow; later for a request that was slow before."""
        most = self._limits.timeout_seconds
        usual = most if len(self._took) < _FEW else sorted(self._took)[int(0.95 * len(self._took))]
        patience = max(_SHORTEST, _SLOW * usual)
        return {call: began + min(most, patience * 2.0 ** pending.tries)
                for call, (pending, began) in self._flying.items()}

    def _give_up_slow(self) -> None:
        now = time.monotonic()
        for call, due in self._due().items():
            if now >= due:
                pending, began = self._given_up[call] = self._flying.pop(call)
                self._retry(pending, Again(f"no answer within {now - began:.1f} s", lost=True))

    def _wait(self) -> float:
        """Seconds until there may be something to do."""
        now = time.monotonic()
        moments = [*self._due().values()]
        moments += [self._later[0][0]] if self._later else []
        moments += [self._next] if self._ready and self._next > now else []
        return max(0.0, min([*moments, now + 1.0]) - now) + 0.001

    def _cost(self, prompt_tokens: int, reply_tokens: int) -> Spent:
        return kept.cost(self.endpoint.model, prompt_tokens, reply_tokens, self._limits.prices)

    def _most(self, pending: _Pending) -> Spent:
        """The most that a call may come to, about."""
        reply = max([0, *(v for k, v in self.sampling.items() if k.startswith("max_") and isinstance(v, int))])
        return self._cost(sum(client.tokens(m["content"]) for m in pending.messages), reply)

    def _short_of(self, pending: _Pending) -> str:
        """The budget that one more call may go beyond, "" where there is none."""
        budget = self._limits.budget
        if budget.calls is budget.tokens is budget.money is None:
            return ""
        most = sum((self._most(one) for one, _ in self._flying.values()), self._spent + self._most(pending))
        pairs = {"calls": (most.calls, budget.calls), "tokens": (most.tokens, budget.tokens),
                 "money": (most.money, budget.money)}
        return next((name for name, (used, given) in pairs.items() if given is not None and used > given), "")

    def _used_up(self, name: str) -> UserError:
        left = len(self._pending)
        given, used = vars(self._limits.budget)[name], vars(self._spent)[name]
        return UserError(
            f"judge: the budget of {given:g} {name} is used up ({used:g} spent by this run, and the next call might go "
            f"beyond it); {left} requests are left to ask. Raise hardware.judge.budget.{name} and give the same "
            "command: it goes on from here, and nothing is asked twice")
