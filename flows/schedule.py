"""Which steps of a run go on at the same time: pure functions of what is done, what runs and what each step needs."""

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from flows import gates, machine
from pipeline.config import load_part
from pipeline.engines.engine import Backend
from pipeline.plan import Step

_ALL = 10**9


@dataclass(frozen=True)
class Need:
    """What a step holds while it runs."""

    devices: int = 0  # of the run's
    engine: bool = False  # the sampling engine, which serves one model at a time


@dataclass(frozen=True)
class Room:
    """What there is for the steps of a run."""

    jobs: int = 1  # steps at a time
    devices: int = 1

    def __post_init__(self) -> None:
        assert self.jobs >= 1 and self.devices >= 1


def room(hardware: Mapping[str, Any]) -> Room:
    """Of a run's hardware. Cores are not dealt out: `jobs` steps share those of a CPU."""
    jobs: int = hardware.get("jobs", 1)  # records of older code do not say it
    if jobs == 1 or not machine.on_cuda(str(hardware["training"]["device"])):
        return Room(jobs, jobs)
    return Room(jobs, hardware["devices"] or len(machine.devices()) or 1)


def need(step: Step, engine_devices: int, devices: int) -> Need:
    """Of a step that is to be computed. engine_devices: as that function says. devices: those there are."""
    declared = step.plugin.devices
    own = declared if isinstance(declared, int) else declared(step.settings, step.runtime)
    return Need(min(devices, max(own, engine_devices if step.plugin.samples else 0)), step.plugin.samples)


def devices(need: Need, given: Room, taken: Set[str]) -> tuple[str, ...]:
    """Which CUDA devices such a step gets, of those not `taken`; () where it needs none, or may use all."""
    if not 0 < need.devices < given.devices or given.jobs == 1:
        return ()
    free = [name for name in machine.gpus() or map(str, range(given.devices)) if name not in taken]
    return tuple(free[: need.devices])


def seeing(devices: Sequence[str]) -> dict[str, str]:
    """The environment in which a step sees its own devices alone."""
    return {"CUDA_VISIBLE_DEVICES": ",".join(devices)} if devices else {}


def engine_devices(spec: dict[str, Any]) -> int:
    """Devices of a step that samples: all, where training needs those of the engine's service; none, where it has its
    own; one, where the engine is in the step's own process."""
    part = load_part(spec, "engine", Backend)
    return _ALL if part.of(part.plugin.shares_device) else 0 if part.plugin.start_service is not None else 1


def after(steps: Sequence[Step]) -> dict[str, frozenset[str]]:
    """Step -> those that must be done before it: what it reads, and every gate before it, which may stop the run."""
    found, before = dict[str, frozenset[str]](), frozenset[str]()
    for step in steps:
        found[step.name] = before | {ref.step for refs in step.inputs.values() for ref in refs}
        before |= {step.name} if step.stage == gates.KIND else frozenset()
    return found


def following(waits: Mapping[str, Set[str]], done: Set[str], running: Mapping[str, Need],
              needs: Callable[[str], Need], given: Room) -> str | None:
    """The next step to start, None where none can be: the first in running order that is ready and has room.

    waits: step -> those it comes after, in running order. What a step that is ready waits for is kept for it: no later
    one takes it. With jobs=1 the steps run in that order.
    """
    if len(running) >= given.jobs:
        return None
    free = given.devices - sum(held.devices for held in running.values())
    engine = not any(held.engine for held in running.values())
    for name, before in waits.items():
        if name in done or name in running or not before <= done:
            continue
        wanted = needs(name)
        if wanted.devices <= free and (engine or not wanted.engine):
            return name
        free, engine = (0 if wanted.devices else free), engine and not wanted.engine
    return None


def span(waits: Mapping[str, Set[str]], seconds: Mapping[str, float], needs: Callable[[str], Need], given: Room,
         running: Sequence[str] = ()) -> float:
    """Seconds that the steps in `seconds` take together, from now on, where those `running` go on already."""
    done, now = {name for name in waits if name not in seconds}, 0.0
    left = {name: seconds[name] for name in running if name in seconds}
    while True:
        held = {name: needs(name) for name in left}
        while (name := following(waits, done, held, needs, given)) is not None:
            left[name], held[name] = seconds[name], needs(name)
        if not left:
            return now
        step = min(left.values())
        now += step
        done |= {name for name, rest in left.items() if rest <= step}
        left = {name: rest - step for name, rest in left.items() if rest > step}


def together(config: Mapping[str, Any], steps: Sequence[Step]) -> Callable[[Mapping[str, float], Sequence[str]], float]:
    """(step -> its seconds, those that go on) -> seconds until the last of them ends, by the run's own schedule."""
    given, waits = room(config["hardware"]), after(steps)
    if given.jobs == 1:
        return lambda seconds, running: sum(seconds.values())
    engine = engine_devices(config["engine"])
    needs = {step.name: need(step, engine, given.devices) for step in steps}
    return lambda seconds, running: span(waits, seconds, needs.__getitem__, given, running)
