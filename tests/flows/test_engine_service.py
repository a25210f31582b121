"""When the run's engine starts, rests, wakes and is started anew: with an engine that writes down what it is told."""

from __future__ import annotations

import sys
import types
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest

from flows import engine_service
from flows.engine_service import EngineFailed, EngineHolder
from pipeline.engines.engine import Backend
from pipeline.errors import UserError

SAMPLES, TRAINS = "samples", "trains"


@dataclass(frozen=True)
class Settings:
    sleep_level: int = 0
    start_timeout: float = 1.0
    breaks: int = 0  # so many starts end before they serve
    hangs: bool = False
    unserved: bool = False  # no model of this family


class Service:
    def __init__(self, told: list[str], breaks: bool, hangs: bool) -> None:
        self.told, self.breaks, self.hangs, self.running = told, breaks, hangs, True
        self.environment = {"WHERE": "here"}
        told.append("start")

    def alive(self) -> bool:
        return self.running

    def wait_ready(self, timeout: float) -> None:
        self.running = not self.breaks
        if self.breaks or self.hangs:
            raise RuntimeError("vLLM is not ready after 1 s" if self.hangs else "vLLM ended with code 1\nits log")

    def rest(self) -> None:
        self.told.append("rest")

    def wake(self) -> None:
        self.told.append("wake")

    def stop(self) -> None:
        self.told.append("stop")


@pytest.fixture
def told() -> list[str]:
    return []


def refuse(model: Path, settings: Settings) -> None:
    if settings.unserved:
        raise UserError(f"{model} is not served")


@pytest.fixture
def hold(told, monkeypatch, tmp_path):
    """hold(**settings) -> a holder of an engine that notes what it is told."""
    module = types.ModuleType("noting_engine")
    module.BACKEND = Backend(
        Settings, open_engine=lambda model, settings, log: None,
        start_service=lambda model, log, settings: Service(
            told, told.count("start") < settings.breaks, settings.hangs),
        refuse_model=refuse,
        shares_device=lambda settings: settings.sleep_level > 0)
    monkeypatch.setitem(sys.modules, "noting_engine", module)
    monkeypatch.setattr(engine_service, "look_up", lambda workspace, step, done: SimpleNamespace(cached=step.cached))

    def make(**settings):
        return EngineHolder(tmp_path / "engine.log", {"module": "noting_engine", **settings}, tmp_path)

    return make


def step(kind: str, cached: bool = False) -> SimpleNamespace:
    return SimpleNamespace(name=kind, plugin=SimpleNamespace(samples=kind == SAMPLES), cached=cached)


MODEL = {"init": SimpleNamespace(path=Path("/model"), manifest={"files": {"model/generation_config.json": ""}})}


def walk(holder: EngineHolder, kinds: list[str], done=MODEL) -> list[dict]:
    """As flows.driver does, step by step."""
    steps = [step(kind) for kind in kinds]
    environments = []
    for i, one in enumerate(steps):
        holder.warm_up(steps[i:], done)
        environments.append(holder.environment(one))
    holder.close()
    return environments


def test_it_starts_early_and_only_sampling_steps_use_it(hold, told):
    environments = walk(hold(), [TRAINS, SAMPLES, TRAINS, SAMPLES])
    assert environments == [{}, {"WHERE": "here"}, {}, {"WHERE": "here"}]
    assert told == ["start", "stop"]


def test_where_it_shares_the_device_it_starts_late_and_rests_while_others_compute(hold, told):
    walk(hold(sleep_level=1), [TRAINS, SAMPLES, TRAINS, TRAINS, SAMPLES, SAMPLES, TRAINS])
    assert told == ["start", "rest", "wake", "rest", "stop"]


@pytest.mark.parametrize(("kinds", "done"), [([TRAINS, TRAINS], MODEL), ([SAMPLES], {})])
def test_it_does_not_start_without_a_use_or_without_a_model(hold, told, kinds, done):
    walk(hold(), kinds, done)
    assert told == []


def test_a_family_that_is_not_served_is_told_before_training_where_the_start_comes_later(hold, told):
    """Its server would start behind SFT, as training needs the device."""
    holder = hold(sleep_level=2, unserved=True)
    holder.warm_up([step(TRAINS), step(SAMPLES)], {})  # init has not run
    with pytest.raises(UserError, match="/model is not served"):
        holder.warm_up([step(TRAINS), step(SAMPLES)], MODEL)
    holder.warm_up([step(TRAINS), step(TRAINS)], MODEL)  # nothing samples
    assert told == []


def test_one_that_cannot_start_is_told_before_the_next_training(hold, told):
    holder = hold(breaks=9)
    holder.warm_up([step(TRAINS), step(SAMPLES)], MODEL)
    assert holder.environment(step(TRAINS)) == {}  # it is starting
    holder._service.running = False
    with pytest.raises(EngineFailed, match="before trains: steps behind it cannot sample: vLLM ended with code 1"):
        holder.environment(step(TRAINS))
    assert told == ["start", "stop", "start"]


def test_cached_samples_need_no_engine(hold, told):
    hold().warm_up([step(SAMPLES, cached=True)], MODEL)
    assert told == []


def test_one_that_has_ended_is_started_anew(hold, told):
    holder = hold()
    walking = [step(SAMPLES), step(SAMPLES)]
    holder.warm_up(walking, MODEL)
    holder.environment(walking[0])
    holder._service.running = False
    holder.environment(walking[1])
    assert told == ["start", "stop", "start"]


def test_one_that_ends_while_it_starts_is_started_once_more(hold, told, capsys):
    """It may have been killed: the run goes on."""
    assert walk(hold(breaks=1), [SAMPLES]) == [{"WHERE": "here"}]
    assert told == ["start", "stop", "start", "stop"]
    assert "note: the engine ended while it started (vLLM ended with code 1); starting it once more" in " ".join(
        capsys.readouterr().out.split())


@pytest.mark.parametrize(("settings", "said", "starts"), [
    ({"breaks": 9}, "vLLM ended with code 1", 2), ({"hangs": True}, "vLLM is not ready after 1 s", 1)])
def test_one_that_does_not_serve_fails_the_step_that_needs_it(hold, told, settings, said, starts):
    """A second end is no accident; one that hangs has had its time."""
    with pytest.raises(EngineFailed, match=f"samples cannot sample: {said}"):
        walk(hold(**settings), [SAMPLES])
    assert told.count("start") == starts


def test_it_is_lost_to_a_step_that_sampled_when_it_has_ended_for_good(hold):
    holder = hold()
    assert not holder.lost(step(SAMPLES))  # there is none
    holder.warm_up([step(SAMPLES)], MODEL)
    assert not holder.lost(step(SAMPLES))
    holder._service.running = False
    assert holder.lost(step(SAMPLES)) and not holder.lost(step(TRAINS))
