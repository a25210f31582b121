"""Whole runs that cost seconds: two iterations of PCO on a few rows with a model of 20,000 weights.

Parts of four prompts and a checkpoint every second step, so that a kill finds something begun in every stage.
"""

from __future__ import annotations

import collections
import contextlib
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from pipeline import files, runs, store

ROOT = Path(__file__).parents[2]
ROWS = {"sft": 32, "pref": 24, "unlabeled": 32, "eval": 4}
NOWHERE = {"PREFECT_API_URL": "http://127.0.0.1:9/api"}
MARK = "ALIGNLOOP_CHAOS"  # in the environment of every process of a run under test: how those left over are found
START, BETWEEN, END = "start", "between", "end"  # what a run does while no step is being computed
_LETS_GO = 5.0  # seconds in which the kernel closes the files of a process that was killed; it has no words by then
RESUMED = ("generate", "score", "reference_logprobs")
SMALL = (
    "model.arch.hidden_size=32", "model.arch.intermediate_size=64", "model.arch.layers=1", "model.arch.heads=2",
    "model.arch.kv_heads=2", "model.arch.vocab_size=384", "model.max_prompt_tokens=250",
    "model.max_completion_tokens=250", "trainer.sft.epochs=1", "trainer.sft.batch_size=4", "trainer.reward.epochs=1",
    "trainer.reward.batch_size=4", "trainer.preference.batch_size=4", "trainer.preference.max_steps=8",
    "sampling.prompts_per_iteration=12", "sampling.max_tokens=12", "evaluation.sampling.n=1",
    "hardware.training.threads=1", "hardware.training.checkpoint_every_steps=2", "hardware.training.log_every=1",
    "hardware.grace_seconds=10", "stage.generate.runtime.part_size=4")


def world(folder: Path) -> Path:
    """The first rows of the built-in world."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, number in ROWS.items():
        lines = (ROOT / "data" / "minifarm" / f"{name}.jsonl").read_text().splitlines()[:number]
        (folder / f"{name}.jsonl").write_text("".join(f"{line}\n" for line in lines))
    return folder


def command(workspace: Path, rows: Path, *more: str, recipe: str = "pco") -> list[str]:
    """The argv of `align run` of a small run called "small"."""
    words = ["run", f"recipe={recipe}", "run=small", f"workspace={workspace}", f"data.root={rows}", *SMALL, *more]
    return [sys.executable, "-m", "flows.cli", *words]


@dataclass(frozen=True)
class Warm:
    """A process that has torch imported and forks stages: tests/warm."""

    address: Path
    pid: int

    def forks(self) -> list[psutil.Process]:
        """The stages that run now."""
        return [p for p in psutil.Process(self.pid).children(recursive=True) if p.status() != psutil.STATUS_ZOMBIE]


@contextlib.contextmanager
def warm(folder: Path, **more: str) -> Iterator[Warm]:
    """Processes of stages fork from the one this starts, with `more` in its environment."""
    folder.mkdir(parents=True, exist_ok=True)
    address = folder / f"warm-{os.getpid()}"
    server = [sys.executable, str(ROOT / "tests/warm/server.py"), str(address)]
    with address.with_suffix(".log").open("w") as log:
        process = subprocess.Popen(server, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
                                   env={**os.environ, "PYTHONPATH": str(ROOT), **more}, start_new_session=True)
    assert process.stdin and process.stdout and process.stdout.readline() == b"ready\n"
    try:
        yield Warm(address, process.pid)
    finally:
        process.stdin.close()
        process.wait(30)
        address.unlink(missing_ok=True)


def environment(folder: Path, mark: str, forking: Path | None, **more: str) -> dict[str, str]:
    """Of a run under test, which has a folder of its own for temporary files. forking: the warm server's address."""
    temporary = folder / "tmp"
    temporary.mkdir(parents=True, exist_ok=True)
    own = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT", "WANDB", "ALIGNLOOP"))}
    paths = [str(ROOT / "tests/warm")] if forking else []
    given = {"ALIGNLOOP_WARM": str(forking)} if forking else {}
    return {**own, "PYTHONPATH": os.pathsep.join([*paths, str(ROOT)]), "TMPDIR": str(temporary), "OMP_NUM_THREADS": "1",
            MARK: mark, **given, **more}


def marked(mark: str) -> list[psutil.Process]:
    """Every living process of the run under test, whoever its parent is, and what those have started: one that gives
    itself a title, as a fork of the warm process and vLLM's engine do, has no environment left to be found by."""
    found, parents, wanted = {}, {}, f"{MARK}={mark}".encode()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            parents[process] = process.ppid()
            if wanted in Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0"):
                found[process.pid] = process
    while more := {p.pid: p for p, parent in parents.items() if parent in found and p.pid not in found}:
        found |= more
    return [process for process in found.values() if alive(process)]


def alive(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def until_nobody(mark: str, warm: Warm | None, patience: float,
                 known: Iterable[psutil.Process] = ()) -> tuple[float, list[str]]:
    """Seconds until every process of the run had ended; the command lines of those that had not in `patience` s.

    known: processes of it that were seen.
    """
    began = time.monotonic()
    while True:
        left = {*marked(mark), *(warm.forks() if warm else []), *filter(alive, known)}
        took = time.monotonic() - began
        if not left or took > patience:
            return took, [" ".join(words(p))[:200] for p in left]
        time.sleep(0.05)


def words(process: psutil.Process) -> list[str]:
    """Its command line; [] once it has ended."""
    try:
        return " ".join(process.cmdline()).split()  # a fork's is one word
    except psutil.Error:
        return []


def made(workspace: Path) -> dict[str, store.Artifact]:
    """The artifact of every step of the run, by the step's name. AssertionError where one is not there."""
    run = runs.load(workspace, "small")
    assert run is not None
    found = {}
    for step in run.steps:
        artifact = store.find(workspace, step["stage"], step["key"])
        assert artifact is not None, f"{step['name']} has no artifact"
        found[step["name"]] = artifact
    return found


def differing(workspace: Path, reference: Path) -> list[str]:
    """Every step, and file of it, that is not byte for byte that of the reference's run."""
    problems, good = [], made(reference)
    for name, artifact in made(workspace).items():
        wanted = good[name]
        if artifact.key != wanted.key:
            problems.append(f"{name}: key {artifact.key}, undisturbed {wanted.key}")
        here, there = artifact.manifest["files"], wanted.manifest["files"]
        names = sorted(here.keys() | there.keys())
        problems += [f"{name}/{file}" for file in names if here.get(file) != there.get(file)]
        problems += store.damage(artifact)
    return problems


def left_over(workspace: Path, temporary: Path, finished: bool) -> list[str]:
    """Locks that are held although nobody runs; of a finished run also temporary files and unfinished work."""
    locks = [*(workspace / "locks").glob("*.lock"), *(workspace / "runs").glob("*/.lock")]
    deadline = time.monotonic() + _LETS_GO
    while (held := [path for path in locks if files.is_locked(path)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    problems = [f"{path} is held" for path in held]
    if finished:
        odd = [*workspace.rglob(".*.tmp"), *workspace.rglob("*.tmp"), *(workspace / "artifacts").glob("*/.*"),
               *workspace.rglob(".reserve")]
        problems += [f"{path} is left" for path in [*odd, *temporary.iterdir()]]
    return problems


def numbers(workspace: Path) -> list[tuple[str, str]]:
    """(step and place, the numbers that are no times) of every line of metrics.jsonl."""
    timed = ("time", "seconds", "second", "utilisation", "memory")
    found = files.parsed_lines((runs.folder(workspace, "small") / "metrics.jsonl").read_bytes(), step=str)
    return [(f"{line['step']} at {line['at']} {sorted(line)}",
             json.dumps({k: v for k, v in line.items() if not any(word in k for word in timed)})) for line in found]


def odd_numbers(workspace: Path, reference: Path, kills: int) -> list[str]:
    """Metrics that stand twice, differ from the undisturbed run's, or lack although no kill can have lost them."""
    found, good = numbers(workspace), dict(numbers(reference))
    names = [name for name, _ in found]
    problems = [f"metrics: {name} twice" for name in set(names) if names.count(name) > 1]
    problems += [f"metrics: {name}: {line}" for name, line in found if good.get(name) != line]
    lost = good.keys() - set(names)
    return problems + ([f"metrics: {len(lost)} lines lacking: {sorted(lost)[:3]}"] if len(lost) > kills else [])


def running(workspace: Path, mark: str) -> str:
    """What the run does: the step that is being computed, BETWEEN two, START before its driver works, END after it."""
    if not any("flows.driver" in words(process) for process in marked(mark)):
        return START
    run = runs.load(workspace, "small")
    if run is not None and run.outcome == runs.DONE:
        return END
    return next((step["name"] for step in run.steps if step["state"] == "running"), BETWEEN) if run else START


def gets_on(process: subprocess.Popen[bytes], workspace: Path, further: int, within: float = math.inf) -> bool:
    """Wait until the run has finished so many further steps; False where it ended before, or the seconds are over."""
    begun, deadline = _finished(workspace), time.monotonic() + within
    while process.poll() is None and time.monotonic() < deadline:
        if _finished(workspace) >= begun + further:
            return True
        time.sleep(0.05)
    return False


def _finished(workspace: Path) -> int:
    """Steps that the run has finished, by its events."""
    path = runs.folder(workspace, "small") / "events.jsonl"
    lines = files.parsed_lines(path.read_bytes(), event=str) if path.exists() else []
    return sum(line["event"] == "finished" for line in lines)


def twice(workspace: Path) -> list[str]:
    """Steps that were finished more than once, by the run's events."""
    lines = files.parsed_lines((runs.folder(workspace, "small") / "events.jsonl").read_bytes(), step=str, event=str)
    found = collections.Counter(line["step"] for line in lines if line["event"] == "finished")
    return [f"{step} was finished {times} times" for step, times in found.items() if times > 1]


def commit() -> str:
    """Of the code under test, "+" behind it where files were changed since."""
    git = ["git", "-C", str(ROOT)]
    revision = subprocess.run([*git, "rev-parse", "--short=10", "HEAD"], capture_output=True, text=True).stdout.strip()
    dirty = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True).stdout.strip()
    return revision + ("+" if dirty else "")


def parts(workspace: Path) -> dict[str, tuple[int, int]]:
    """Every finished part and checkpoint of work that is not: its inode and time of change, by its place.

    Of the stages that go on part by part; those that only convert or select tables begin anew.
    """
    found = {}
    for work in (workspace / "artifacts").glob("*/.work-*"):
        finished = work.glob("out/**/part-*") if work.parent.name in RESUMED else ()
        for path in [*finished, *work.glob("**/step-*")]:
            with contextlib.suppress(FileNotFoundError):
                at = path.stat()
                found[str(path)] = (at.st_ino, at.st_mtime_ns)
    return found


def again(before: dict[str, tuple[int, int]], after: dict[str, tuple[int, int]]) -> list[str]:
    """What was finished and was made once more all the same."""
    return [f"{path} was made again" for path, seen in before.items() if path in after and after[path] != seen]

