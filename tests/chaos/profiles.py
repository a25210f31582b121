"""The kinds of runs of a kill series, and how each of their processes is found."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field

import psutil

from tests.chaos import small

NOT_INNER = {"pipeline.supervisor", "pipeline.engines.vllm.keeper"}
COLD = "ALIGNLOOP_COLD"  # kinds of stages that are no forks: tests/warm/sitecustomize.py


def _has(*words: str) -> Callable[[list[str]], bool]:
    return lambda line: all(word in line for word in words)


def _inner(word: str) -> Callable[[list[str]], bool]:
    return lambda line: word in line and not NOT_INNER & set(line)


KINDS: dict[str, Callable[[list[str]], bool]] = {  # by the words of their command lines
    "command": _has("flows.cli"),
    "outer supervisor": _has("pipeline.supervisor", "flows.driver"),
    "driver": _inner("flows.driver"),
    "stage supervisor": _has("pipeline.supervisor", "pipeline.worker"),
    "stage": _inner("pipeline.worker"),
    "warm process": _inner("pipeline.warm"),
    "keeper": _has("pipeline.engines.vllm.keeper"),
    "engine supervisor": lambda line: (_has("pipeline.supervisor", "vllm.entrypoints.openai.api_server")(line)
                                       and "pipeline.engines.vllm.keeper" not in line),
    "engine": _inner("vllm.entrypoints.openai.api_server"),
    "core": lambda line: any(word.startswith("VLLM::EngineCore") for word in line),
    "engine worker": lambda line: any(word.startswith("VLLM::Worker") for word in line),
    "prefect": _has("uvicorn"),
    "tracker": _inner("pipeline.tracking"),
}
ENGINE = ("keeper", "engine supervisor", "engine", "core", "engine worker")
WATCHERS = ("prefect", "tracker", "warm process", *ENGINE)  # the run goes on without them
RANKS = ("rank", "launcher")  # they are there while a stage trains in two processes
FIVE = ("command", "outer supervisor", "driver", "stage supervisor", "stage")


@dataclass(frozen=True)
class Profile:
    """A kind of run: what it is told beside `small.SMALL`, and who is killed in it."""

    words: tuple[str, ...] = ("engine=transformers",)
    victims: tuple[str, ...] = (*FIVE, "warm process", "everything")
    kills: int = 12  # of one run
    wait: float = 1.5  # seconds at most between the end of a step and a kill
    warm: bool = True  # stages fork from a process that has torch imported
    environment: dict[str, str] = field(default_factory=lambda: small.NOWHERE)
    recipe: str = "pco"
    foreign: bool = False  # W&B, vLLM and torch's compiler keep temporary folders of their own


PROFILES = {
    "plain": Profile(),
    "short": Profile(kills=6),
    "cold": Profile(words=("engine=transformers", "iterations=1"), kills=6, wait=12.0, foreign=True,
                    environment={**small.NOWHERE, COLD: "sft,generate,score,reference_logprobs"}),
    "observed": Profile(
        words=("engine=transformers", "tracking=wandb"), kills=8, wait=3.0, foreign=True,
        environment={"WANDB_MODE": "offline"},
        victims=("prefect", "prefect", "tracker", "tracker", "command", "driver", "everything")),
    # Training starts cold: torchrun in a fork of the warm server would not be a child of its supervisor.
    "two": Profile(
        words=("engine=transformers", "hardware.training.processes=2", "hardware.training.strategy=ddp",
               "iterations=1"), kills=6, wait=12.0, foreign=True,
        environment={**small.NOWHERE, COLD: "sft,train_reward,train_preference"},
        victims=("rank", "rank", "rank", "launcher", "launcher", "stage supervisor", "everything")),
    "vllm": Profile(
        words=("engine.max_sequences=16", "model.arch.hidden_size=64", "model.arch.intermediate_size=128"),
        foreign=True, kills=3, wait=20.0, victims=(*ENGINE, "stage", "driver", "everything")),
}
# Most runs are of the kind that costs least; one of these a turn.
TURN = ("plain", "plain", "observed", "plain", "two", "plain", "vllm", "plain", "observed", "cold")


def victims(name: str, mark: str, forking: small.Warm | None) -> list[psutil.Process]:
    """The living processes of that name. A stage that is no process of the run's own is a fork of the warm server."""
    found = small.marked(mark)
    forks = forking.forks() if forking else []
    if name in RANKS:
        ranks = [p for p in found if _is_rank(p)]
        return ranks if name == "rank" else [p for p in map(psutil.Process.parent, ranks[:1]) if p is not None]
    if name == "everything":
        return found + forks
    return [p for p in forks if kind_of(p) == name] or [p for p in found if KINDS[name](small.words(p))]


def kind_of(process: psutil.Process) -> str:
    """What the ledger calls it."""
    if _is_rank(process):
        return "rank"
    line = small.words(process)
    if any(word.endswith("warm/server.py") for word in line):
        return "stage"
    return next((name for name, is_one in KINDS.items() if is_one(line)), "other")


def _is_rank(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return "pipeline.worker" in small.words(process) and "RANK" in process.environ()
    return False
