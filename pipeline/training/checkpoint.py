"""Training checkpoints: complete or absent, never half.

`<folder>/step-<n>/` holds the float32 masters of what is trained, the optimizer's moments, what the objective carries
along, and a manifest with the hash of each file, written last; the whole is made under a temporary name, flushed and
renamed. Order of data and random numbers are functions of (seed, step), so the step is the only other state there is.
Of several processes each copies its own rows of the tensors to the CPU and writes them from a thread while training
goes on; once all have, the first one seals and renames. Any number of processes can go on, each reads its rows.
"""

import contextlib
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from pipeline import clock
from pipeline.files import file_hash, read_sealed, sync, write_sealed
from pipeline.training import optim, shards
from pipeline.training.distribute import like
from pipeline.training.gradients import ALONE, World

_MODEL, _OPTIMIZER, _EXTRA = "model.safetensors", "optimizer.safetensors", "extra.safetensors"
_STATES = (_MODEL, _OPTIMIZER, _EXTRA)
_MANIFEST = "manifest.json"
_WRITTEN = "written"  # by each process once its files are on the disk: their hashes; gone when all have
_LOOK = 0.05  # seconds between two looks for it


@dataclass(frozen=True)
class Loaded:
    """Where a checkpoint stands."""

    step: int  # of this stage
    updates: int  # of the optimizer, earlier stages included
    extra: dict[str, Tensor]  # what the objective carries from step to step


@dataclass
class Writing:
    """The checkpoint that a thread is writing, one at a time, and how long training has to stand still for one."""

    thread: threading.Thread | None = None
    failed: list[BaseException] = field(default_factory=list)
    since: float = field(default_factory=time.monotonic)  # when the last one was begun, or training
    pause: float = 0.0  # seconds that it kept training waiting

    def due(self, seconds: float | None, share: float = 0.05) -> bool:
        """Whether it is time for the next: `seconds` after the last, more where its pause is over `share` of them. Not
        while one is being written. seconds: None: never.
        """
        waited = time.monotonic() - self.since
        busy = self.thread is not None and self.thread.is_alive()
        return seconds is not None and not busy and waited >= max(seconds, self.pause / share)

    def start(self, work: Callable[[], None]) -> None:
        def run() -> None:
            try:
                work()
            except BaseException as error:  # raised again in the thread that trains
                self.failed.append(error)

        self.thread = threading.Thread(target=run, daemon=True)  # a process that fails does not wait for it
        self.thread.start()

    def check(self) -> None:
        """Raises what the thread has raised."""
        if self.failed:
            raise self.failed[0]

    def end(self) -> None:
        """Wait until what was begun is written. Raises what the thread has raised."""
        with self.ended():
            pass

    @contextlib.contextmanager
    def ended(self) -> Iterator[None]:
        """Whatever ends the body, what was begun is written first."""
        try:
            yield
        finally:
            if self.thread is not None:
                self.thread.join()
        self.check()


@clock.spending(clock.WRITE)
def save(folder: Path, model: Any, optimizer: torch.optim.Optimizer, at: Loaded, keep: int,
         world: World = ALONE, writing: Writing | None = None) -> Path:
    """Write the state after step `at.step` and drop all but `keep`. Every process calls it.

    A single process writes at once. Several wait for the one before, copy and return; `writing` goes on, None: wait.
    """
    mine, begun = writing or Writing(), time.monotonic()
    mine.end()
    world.settle()
    target, temporary = folder / f"step-{at.step:08d}", folder / f".step-{at.step:08d}.tmp"
    if world.first:
        for stale in folder.glob(".step-*.tmp"):
            shutil.rmtree(stale)
        temporary.mkdir(parents=True)
    finish = partial(_finish, folder, temporary, target, at, keep)
    states = {_MODEL: weights(model), _OPTIMIZER: optim.state_tensors(model, optimizer), _EXTRA: at.extra}
    if world.size == 1:
        for name, tensors in states.items():  # one file after the other: as little memory as can be
            save_file(world.whole(tensors), temporary / name)
        finish({name: file_hash(temporary / name) for name in _STATES})
    else:
        world.wait()  # until the folder is there
        own = {shards.file_of(name, world.rank, world.size): shards.staged(tensors, world)
               for name, tensors in states.items()}
        mine.start(partial(_write, temporary, own, world, finish))
    mine.since, mine.pause = time.monotonic(), time.monotonic() - begun
    if writing is None:
        mine.end()
    return target


def _write(temporary: Path, own: dict[str, dict[str, Tensor]], world: World,
           finish: Callable[[dict[str, str]], None]) -> None:
    """Write this process's files; the first one waits for those of the others. Files tell, not messages: those would
    cross the training's own.
    """
    for name, tensors in own.items():
        save_file(tensors, temporary / name)
        sync(temporary / name)
    write_sealed(temporary / f"{_WRITTEN}-{world.rank}", {name: file_hash(temporary / name) for name in own})
    if world.first:
        hashes: dict[str, str] = {}
        for rank in range(world.size):
            while (theirs := read_sealed(temporary / f"{_WRITTEN}-{rank}")) is None:
                time.sleep(_LOOK)
            hashes |= theirs
        for told in temporary.glob(f"{_WRITTEN}-*"):
            told.unlink()
        finish(hashes)


def _finish(folder: Path, temporary: Path, target: Path, at: Loaded, keep: int, hashes: dict[str, str]) -> None:
    write_sealed(temporary / _MANIFEST, {"step": at.step, "updates": at.updates, "sha256": hashes})
    for path in (*temporary.iterdir(), temporary):
        sync(path)
    if target.exists():  # left damaged by something else; `newest` passed over it
        shutil.rmtree(target)
    os.replace(temporary, target)
    sync(folder)
    for old in sorted(folder.glob("step-*"))[:-keep]:
        shutil.rmtree(old)


def newest(folder: Path, world: World = ALONE) -> Path | None:
    """The newest checkpoint whose files have the hashes of its manifest. Several processes hash a part each."""
    found = world.agree(sorted(folder.glob("step-*"), reverse=True))
    return next((path for path in found if all(world.gather(_complete(path, world)))), None)


@clock.spending(clock.LOAD)
def load(path: Path, model: Any, optimizer: torch.optim.Optimizer) -> Loaded:
    """Put the state back, sharded as the model is: of the files each process reads its own rows."""
    manifest = read_sealed(path / _MANIFEST)
    assert manifest is not None, "`newest` has read it"
    size, live = len(manifest["sha256"]) // len(_STATES), optim.trained(model)
    whole, moments, extra = (
        shards.Saved.of([path / shards.file_of(name, rank, size) for rank in range(size)]).load(live)
        for name in _STATES)
    put(model, whole)
    optim.load_state(model, optimizer, moments, manifest["updates"])
    return Loaded(int(manifest["step"]), int(manifest["updates"]), extra)


@contextlib.contextmanager
def told_to_stop() -> Iterator[list[int]]:
    """A list that SIGTERM is put into, so that the step that is being made is ended and kept. A second one ends the
    process at once, as does the first where the body comes to its end first. Outside the main thread nothing changes.
    """
    told: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield told
        return
    before = signal.getsignal(signal.SIGTERM)

    def note(number: int, _frame: object) -> None:
        signal.signal(signal.SIGTERM, before)
        told.append(number)

    signal.signal(signal.SIGTERM, note)
    try:
        yield told
    finally:
        signal.signal(signal.SIGTERM, before)
    if told:
        os.kill(os.getpid(), signal.SIGTERM)


def weights(model: Any) -> dict[str, Tensor]:
    """What is trained, by name, as it lies."""
    return {name: p.detach() for name, p in optim.trained(model).items()}


@torch.no_grad()
def put(model: Any, saved: dict[str, Tensor]) -> None:
    """Give the trained parameters the values of `saved`, whole tensors or such as lie as the parameters do."""
    live = optim.trained(model)
    assert live.keys() == saved.keys(), "a checkpoint lives in the work folder of one key, so of one model"
    for name, p in live.items():
        p.copy_(like(saved[name], p))


def _complete(path: Path, world: World) -> bool:
    """Whether this process's share of the files is as it was written."""
    try:
        manifest = read_sealed(path / _MANIFEST)
        return manifest is not None and all(
            file_hash(path / name) == wanted
            for name, wanted in sorted(manifest["sha256"].items())[world.rank::world.size])
    except (OSError, KeyError):
        return False
