"""The process that tells of a run: `python -m flows.watcher WORKSPACE RUN PID`, started by `align run` with notify=.

It stands beside the run and outlives it, so an address that does not answer delays nothing and a killed run is told of,
too. It reads the run's files, as the dashboard does. What could not be sent stands in logs/notify.log.
"""

import itertools
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from flows import gates, results, screen
from flows.failures import meaning
from flows.notify import Message, Notify, ways
from pipeline import files, runs, store, supervisor, tables
from pipeline.config import build
from pipeline.errors import UserError, command

_POLL_SECONDS = 1.0
_AGAIN = (0.0, 5.0, 30.0)  # seconds before each attempt to send
_FINISHED = ("done", "cached")


def start(workspace: Path, run: runs.Run, process: int) -> None:
    """Watch the run that `process` drives, where its settings say that somebody is to be told."""
    if "notify" not in run.config or not build(Notify, run.config["notify"], "notify").on:
        return
    log = runs.log_path(workspace, run.name, "notify")
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file:  # apart from the terminal: Ctrl-C is for the run
            subprocess.Popen([sys.executable, "-P", "-m", "flows.watcher", str(workspace), run.name, str(process)],
                             stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True,
                             env={**os.environ, **supervisor.imports()})
    except OSError as error:
        screen.say(f"note: nobody will be told of this run ({error}); it goes on")


@dataclass
class Watcher:
    """What has been told of a run, and what its files say now."""

    workspace: Path
    name: str
    settings: Notify
    told: set[str] = field(default_factory=set)  # steps
    stuck_since: float = 0.0  # the last sign of life that was told of as too old

    def begin(self) -> None:
        """What was finished before needs no message."""
        self.told = {s["name"] for s in self._run().steps if s["state"] in _FINISHED}

    def news(self, now: float) -> Iterator[Message]:
        """While the run goes on. now: Unix time."""
        run = self._run()
        for step in run.steps:
            if step["state"] in _FINISHED and step["name"] not in self.told:
                self.told.add(step["name"])
                artifact = store.find(self.workspace, step["stage"], step["key"])
                if artifact is not None:
                    yield from self._of_step(step["name"], artifact)
        alive = runs.sign_of_life(self.workspace, self.name)
        if alive != self.stuck_since and now - alive > 60 * self.settings.stuck_minutes:
            self.stuck_since = alive
            running = ", ".join(s["name"] for s in run.steps if s["state"] == "running") or "between two steps"
            yield self._message("stuck", f"no progress for {screen.age(now - alive)}", [
                f"step: {running}", f"look:{command(self.workspace, 'logs', self.name)}"])

    def end(self) -> Message:
        """How the run has ended; its process is no more."""
        run = self._run()
        done = [s for s in run.steps if s["state"] in _FINISHED]
        facts = [f"{len(done)} of {len(run.steps)} steps are done"]
        judged = [s for s in done if s["stage"] in ("evaluate", "report")]
        for step in judged[-2:]:
            artifact = store.find(self.workspace, step["stage"], step["key"])
            facts += [f"{step['name']}: {results.of(artifact)}"] if artifact else []
        if run.outcome == runs.DONE or run.outcome.startswith(runs.STOPPED_BY):
            return self._message("finished", run.outcome.replace(runs.DONE, "finished"), [
                *facts, *self._samples(run), f"look:{command(self.workspace, 'dashboard')}"])
        how = "failed" if run.outcome == runs.FAILED else "was interrupted"
        broken = [s["name"] for s in run.steps if s["state"] in ("running", runs.FAILED, runs.INTERRUPTED)]
        return self._message("failed", f"{how}{f' at {broken[0]}' if broken else ''}", [
            *facts, *self._why(), f"look:{command(self.workspace, 'logs', self.name)}",
            f"go on with:{command(self.workspace, 'run', f'run={self.name}')}"])

    def _of_step(self, step: str, artifact: store.Artifact) -> Iterator[Message]:
        decision = gates.read(artifact)
        if decision is not None and decision["reasons"]:
            yield self._message("gate", f"{step} has closed", [line.strip() for line in gates.lines(step, decision)])
        counts = artifact.manifest["counts"]
        if artifact.kind == "report" and "gain" in counts and counts["gain"] < 0:
            clear = "clear of zero" if counts["gain_high"] < 0 else "not clear of zero"
            what = f"the judge's win rate falls at {step}"
            yield self._message("falling", what, [f"{results.of(artifact)}, {clear}"])

    def _why(self) -> list[str]:
        """Of the last failed step, from its exit code."""
        path = runs.folder(self.workspace, self.name) / "events.jsonl"
        lines = files.parsed_lines(path.read_bytes(), step=str, event=str) if path.exists() else []
        last = lines[-1] if lines else {}
        return [f"why: {meaning(last['code'])}"] if last.get("event") == "failed" and "code" in last else []

    def _samples(self, run: runs.Run) -> list[str]:
        """Prompts and answers of the last scored step, as many as are asked for."""
        scored = [s for s in run.steps if s["stage"] == "score" and s["state"] in _FINISHED]
        places = runs.groups_of(run.steps, scored[-1]["name"]) if scored and self.settings.samples else []
        found = list[str]()
        for step, part in places[:1]:
            artifact = store.find(self.workspace, step["stage"], step["key"])
            groups = tables.read(artifact.path / part) if artifact else iter(())
            for group in itertools.islice(groups, self.settings.samples):
                found += ["", f"> {group.messages[-1].content}", *(c.text for c in group.completions[:1])]
        return found

    def _run(self) -> runs.Run:
        run = runs.load(self.workspace, self.name)
        assert run is not None
        return run

    def _message(self, event: str, what: str, lines: list[str]) -> Message:
        return Message(event, self.name, f"{self.name}: {what}", "\n".join([*lines, f"on {socket.gethostname()}"]),
                       str(self.workspace))


def tell(settings: Notify, message: Message, sleep: Callable[[float], None] = time.sleep) -> None:
    """Send it every way, each up to three times. What does not arrive is a line of the log, without the address."""
    if message.event not in settings.wanted:
        return
    for name, send in ways(settings).items():
        for wait in _AGAIN:
            sleep(wait)
            try:
                send(message)
            except OSError as error:
                print(f"{name}: {message.event}: not sent ({error})", flush=True)
            else:
                print(f"{name}: {message.event}: sent", flush=True)
                break


def main(workspace: Path, name: str, pid: int) -> int:
    run = runs.load(workspace, name)
    assert run is not None
    settings = build(Notify, run.config["notify"], "notify")
    watcher = Watcher(workspace, name, settings)
    watcher.begin()
    try:
        driver = psutil.Process(pid)
        while driver.is_running() and driver.status() != psutil.STATUS_ZOMBIE:
            for message in watcher.news(time.time()):
                tell(settings, message)
            time.sleep(_POLL_SECONDS)
    except psutil.NoSuchProcess:
        pass
    for message in [*watcher.news(0.0), watcher.end()]:  # now=0: nothing is stuck any more
        tell(settings, message)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
    except UserError as error:
        sys.exit(str(error))
