"""Which steps run at the same time: by hand, and by properties of two hundred drawn graphs."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest

from flows import machine, schedule
from flows.compose import compose
from flows.prepare import expand
from flows.schedule import Need, Room, following, span

ENGINE, ONE, BOTH, NONE = Need(0, True), Need(1), Need(2), Need()


def graph(**waits: str) -> dict[str, frozenset[str]]:
    return {name: frozenset(before.split()) for name, before in waits.items()}


#        a
#      / | \
#     b  c  d    and e after all of them
DIAMOND = graph(a="", b="a", c="a", d="a", e="b c d")


def chosen(waits, done, running, needs, room) -> list[str]:
    """Everything that is started at that moment, in order."""
    running, found = dict(running), []
    while (name := following(waits, set(done), running, needs.__getitem__, room)) is not None:
        running[name] = needs[name]
        found.append(name)
    return found


@pytest.mark.parametrize(("room", "needs", "expected"), [
    (Room(1, 2), {"b": ONE, "c": ONE, "d": ONE}, ["b"]),  # one job at a time
    (Room(3, 2), {"b": ONE, "c": ONE, "d": ONE}, ["b", "c"]),  # two devices
    (Room(3, 2), {"b": BOTH, "c": ONE, "d": NONE}, ["b", "d"]),  # what needs no device runs beside what needs all
    (Room(3, 2), {"b": ENGINE, "c": ENGINE, "d": ONE}, ["b", "d"]),  # the engine serves one step
    (Room(2, 2), {"b": ENGINE, "c": ENGINE, "d": ONE}, ["b", "d"]),
    (Room(3, 2), {"b": Need(2, True), "c": ONE, "d": ONE}, ["b"]),  # an engine that takes the devices as it samples
])
def test_steps_start_where_jobs_devices_and_the_engine_allow(room, needs, expected):
    assert chosen(DIAMOND, "a", {}, {**needs, "e": NONE}, room) == expected


def test_what_a_step_waits_for_is_kept_for_it():
    """b has one of two devices; c needs both, so d, which could have the second, waits: else c might for ever."""
    needs = {"b": ONE, "c": BOTH, "d": ONE, "e": NONE}
    assert chosen(DIAMOND, "a", {"b": ONE}, needs, Room(3, 2)) == []
    assert chosen(DIAMOND, "a", {"b": ONE}, {**needs, "d": NONE}, Room(3, 2)) == ["d"]
    assert chosen(DIAMOND, "ab", {}, needs, Room(3, 2)) == ["c"]


def test_times_by_hand():
    """b 5 s, c 3 s, d 4 s, a and e 1 s each. Two jobs: b and c, then d at 3 s, until 7: 1 + 7 + 1."""
    seconds, needs = {"a": 1.0, "b": 5.0, "c": 3.0, "d": 4.0, "e": 1.0}, dict.fromkeys("abcde", NONE).__getitem__
    assert span(DIAMOND, seconds, needs, Room(1, 1)) == 14.0
    assert span(DIAMOND, seconds, needs, Room(2, 2)) == 9.0
    assert span(DIAMOND, seconds, needs, Room(3, 3)) == 7.0
    left = {"b": 2.0, "d": 4.0, "e": 1.0}  # a and c are done, b has 2 s left
    assert span(DIAMOND, left, needs, Room(2, 2), running=["b"]) == 5.0


def drawn(seed: int) -> tuple[dict[str, frozenset[str]], dict[str, Need], dict[str, float], Room]:
    rng = random.Random(seed)
    names = [f"s{i}" for i in range(rng.randint(1, 14))]
    room = Room(rng.randint(1, 4), rng.randint(1, 4))
    waits = {name: frozenset(other for other in names[:i] if rng.random() < 0.25) for i, name in enumerate(names)}
    needs = {name: Need(rng.randint(0, room.devices), rng.random() < 0.3) for name in names}
    return waits, needs, {name: float(rng.randint(1, 9)) for name in names}, room


@pytest.mark.parametrize("seed", range(200))
def test_every_step_runs_once_after_what_it_reads_and_never_beyond_the_room(seed):
    waits, needs, seconds, room = drawn(seed)
    rng, order, done, running = random.Random(seed), [], set(), {}
    while True:
        while (name := following(waits, done, running, needs.__getitem__, room)) is not None:
            assert name not in running and name not in done and waits[name] <= done
            running[name] = needs[name]
            order.append(name)
        assert len(running) <= room.jobs and sum(n.devices for n in running.values()) <= room.devices
        assert sum(n.engine for n in running.values()) <= 1
        if not running:
            break
        ended = rng.choice(sorted(running))
        done.add(ended)
        del running[ended]
    assert sorted(order) == sorted(waits), "nothing is left, nothing is done twice"
    together = span(waits, seconds, needs.__getitem__, room)
    assert max(seconds.values()) <= together <= sum(seconds.values())
    assert span(waits, seconds, needs.__getitem__, Room(1, room.devices)) == sum(seconds.values())


@pytest.mark.parametrize("seed", range(50))
def test_one_job_is_the_running_order(seed):
    waits, needs, _, room = drawn(seed)
    order, done = [], set()
    while (name := following(waits, done, {}, needs.__getitem__, Room(1, room.devices))) is not None:
        order.append(name)
        done.add(name)
    assert order == list(waits)


# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def steps() -> dict:
    return {step.name: step for step in expand(compose(["recipe=pco", "gate=stop"]))}


def test_what_each_kind_of_step_needs(steps):
    """On four devices, with training in two processes, an engine that shares the devices and one that has its own."""
    two = {**steps, "train[1]": SimpleNamespace(plugin=steps["train[1]"].plugin, settings=steps["train[1]"].settings,
                                                runtime=SimpleNamespace(processes=2))}
    found = {name: schedule.need(two[name], 10**9, 4) for name in (
        "data", "tokens", "train[1]", "generate[2]", "score[2]", "pairs[2]", "evaluate[1]", "report[1]", "diagnose[1]")}
    assert found == {"data": NONE, "tokens": NONE, "train[1]": BOTH, "generate[2]": Need(4, True), "score[2]": ONE,
                     "pairs[2]": NONE, "evaluate[1]": NONE, "report[1]": NONE, "diagnose[1]": ONE}
    assert schedule.need(steps["generate[2]"], 0, 4) == ENGINE
    assert schedule.need(two["train[1]"], 0, 1) == ONE, "no more than there are"


@pytest.mark.parametrize(("spec", "devices"), [
    ({"module": "pipeline.engines.transformers"}, 1), ({"module": "pipeline.engines.vllm"}, 0),
    ({"module": "pipeline.engines.vllm", "sleep_level": 2}, 10**9)])
def test_what_the_engine_takes_of_the_devices(spec, devices):
    assert schedule.engine_devices(spec) == devices


def test_nothing_behind_a_gate_starts_before_it_has_decided(steps):
    waits = schedule.after(list(steps.values()))
    assert "gate[1]" in waits["prompts[2]"] and "gate[1]" not in waits["diagnose[1]"]
    assert waits["reward"] == {"sft", "tokens"} and "reward" not in waits["train[1]"]


def test_devices_are_dealt_out_by_name(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,7")
    room = Room(2, 3)
    assert schedule.devices(ONE, room, {"4"}) == ("5",) and schedule.devices(BOTH, room, set()) == ("4", "5")
    assert schedule.devices(Need(3), room, set()) == () == schedule.devices(NONE, room, set())
    assert schedule.devices(ONE, Room(1, 3), set()) == (), "a step that is alone sees what it always saw"
    assert schedule.seeing(("5", "7")) == {"CUDA_VISIBLE_DEVICES": "5,7"} and schedule.seeing(()) == {}


def test_room_is_of_devices_on_cuda_and_of_jobs_on_a_cpu(monkeypatch):
    monkeypatch.setattr(machine, "devices", lambda: (machine.Device("H", 1),) * 8)
    training = {"training": {"device": "cpu"}, "devices": None}
    assert schedule.room({**training}) == Room(1, 1), "a record of older code"
    assert schedule.room({**training, "jobs": 3}) == Room(3, 3)
    cuda = {"training": {"device": "cuda"}, "devices": None, "jobs": 3}
    assert schedule.room(cuda) == Room(3, 8) and schedule.room({**cuda, "devices": 4}) == Room(3, 4)
