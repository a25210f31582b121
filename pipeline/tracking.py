"""Mirror a run's metrics.jsonl to Weights & Biases, from a process of its own. The one file that imports wandb.

    python -m pipeline.tracking RUN_DIR            send what has not been sent yet, then end
    python -m pipeline.tracking RUN_DIR --follow   go on until standard input closes (what a run starts)

metrics.jsonl is the record; this is a copy. Stages never talk to W&B, so it can neither fail nor delay them: it starts
beside the run, and a run that ends waits for it no longer than `finish_timeout`. How far it came is kept in
`tracking.json`, so the same run started again sends the rest. One W&B run per step: group = the run, job_type = the
stage. Without a key, or where the service cannot be reached, it writes W&B's offline format for `wandb sync`.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import netrc
import os
import re
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from pipeline.build import build, setting

METRICS, STATE, LOG = "metrics.jsonl", "tracking.json", "logs/tracking.log"
_HOSTS = ["api.wandb.ai", "api.forge.coreweave.com"]  # the service's old and new name
_ENVELOPE = ("step", "time")  # what a line of metrics.jsonl says besides numbers


@dataclass(frozen=True)
class Wandb:
    """Where the mirror goes."""

    project: str = "alignloop"
    entity: str | None = None  # user or team; null: the key's default
    mode: str = setting("auto", choices=("auto", "online", "offline"))  # auto: online where a key is found
    init_timeout: float = setting(20.0, above=0.0)  # seconds to reach the service before going offline
    finish_timeout: float = setting(30.0, above=0.0)  # seconds a finished run waits for the mirror to finish


@dataclass(frozen=True)
class Settings:
    """Metrics always go to metrics.jsonl; `wandb` mirrors them."""

    wandb: Wandb | None = None


@contextlib.contextmanager
def mirrored(settings: Settings, run_dir: Path, say: Callable[[str], None] = print) -> Iterator[None]:
    """Mirror the run while the body runs. Never raises of its own; says one line at the end."""
    if settings.wandb is None:
        yield
        return
    log = run_dir / LOG
    log.parent.mkdir(parents=True, exist_ok=True)
    process = _start(run_dir, log)
    try:
        yield
    finally:
        say(_stop(process, settings.wandb.finish_timeout, log))


def _start(run_dir: Path, log: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "pipeline.tracking", str(run_dir.absolute()), "--follow"]
    code = str(Path(__file__).parent.parent)  # importable also where the package is not installed
    path = os.pathsep.join(filter(None, [code, os.environ.get("PYTHONPATH", "")]))
    # Apart from the terminal: Ctrl-C is for the run, which then closes the pipe and lets this finish.
    with log.open("ab") as file:
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=file, stderr=file, start_new_session=True,
                                env={**os.environ, "PYTHONPATH": path})


def _stop(process: subprocess.Popen[bytes], timeout: float, log: Path) -> str:
    if process.stdin is not None:
        process.stdin.close()
    try:
        code = process.wait(timeout)
    except subprocess.TimeoutExpired:
        process.terminate()
        try:
            process.wait(3)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        return f"W&B: not finished after {timeout:.0f} s, left; the same command sends the rest ({log})"
    lines = log.read_text(errors="replace").splitlines()
    return lines[-1] if code == 0 and lines else f"W&B: the mirror failed, metrics.jsonl has everything ({log})"


def find_mode(settings: Wandb, environment: Mapping[str, str], home: Path) -> tuple[str, str]:
    """("online" or "offline", why). In mode auto the user's WANDB_MODE wins, then a key decides."""
    if settings.mode != "auto":
        return settings.mode, f"tracking.wandb.mode={settings.mode}"
    if environment.get("WANDB_MODE") in ("online", "offline"):
        return environment["WANDB_MODE"], "WANDB_MODE"
    if environment.get("WANDB_API_KEY"):
        return "online", "WANDB_API_KEY"
    hosts = [urlparse(environment["WANDB_BASE_URL"]).hostname or ""] if "WANDB_BASE_URL" in environment else _HOSTS
    for path in [Path(environment["NETRC"])] if environment.get("NETRC") else [home / ".netrc", home / "_netrc"]:
        try:
            if path.exists() and any(netrc.netrc(path).authenticators(host) for host in hosts):
                return "online", str(path)
        except (netrc.NetrcParseError, OSError) as error:
            print(f"W&B: {path} cannot be read ({error})")
    return "offline", "no key found"


def read_lines(path: Path, offset: int) -> tuple[list[dict[str, Any]], int]:
    """The complete lines after byte `offset`, and the offset after them. A line still being written waits."""
    if not path.exists():
        return [], 0
    if path.stat().st_size < offset:
        offset = 0  # the file was made anew
    with path.open("rb") as file:
        file.seek(offset)
        data = file.read()
    whole = data[: data.rfind(b"\n") + 1]
    return [json.loads(line) for line in whole.splitlines() if line.strip()], offset + len(whole)


def run_id(run: Mapping[str, Any], step: str) -> str:
    """The same for the same step of the same run, another for a run of the same name elsewhere."""
    mark = hashlib.sha256(str(run["created"]).encode()).hexdigest()[:6]
    return re.sub(r"[^A-Za-z0-9_-]+", "-", f"{run['name']}-{step}").strip("-") + f"-{mark}"


@dataclass
class Mirror:
    """One step's W&B run is open at a time. `mode` falls to offline for good the first time online fails."""

    settings: Wandb
    mode: str
    why: str
    run_dir: Path
    step: str = ""
    handle: Any = None
    sent: int = 0

    def send(self, line: dict[str, Any]) -> None:
        if line["step"] != self.step:
            self.finish()
            self.handle = self._open(line["step"])
            self.step = line["step"]
        self.handle.log({key: value for key, value in line.items() if key not in _ENVELOPE})
        self.sent += 1

    def finish(self) -> None:
        if self.handle is not None:
            self.handle.finish()
        self.step, self.handle = "", None

    def _open(self, step: str) -> Any:
        try:
            return self._init(step)
        except Exception as error:  # whatever W&B raises: the run must not notice
            if self.mode == "offline":
                raise
            print(f"W&B: cannot go online ({type(error).__name__}: {error}); going on offline")
            import wandb

            wandb.teardown()  # the failed attempt would hold the run's id
            self.mode, self.why = "offline", "the service could not be reached"
            return self._init(step)

    def _init(self, step: str) -> Any:
        import wandb

        run = json.loads((self.run_dir / "run.json").read_text())
        facts: dict[str, Any] = next((s for s in run["steps"] if s["name"] == step), {})
        settings = wandb.Settings(
            mode="online" if self.mode == "online" else "offline",
            init_timeout=self.settings.init_timeout, login_timeout=self.settings.init_timeout,
            console="off", silent=True, disable_git=True, disable_code=True, disable_job_creation=True,
            x_disable_stats=True,
        )
        handle = wandb.init(
            project=self.settings.project, entity=self.settings.entity, id=run_id(run, step), name=step,
            group=run["name"], job_type=facts.get("stage"), config={"step": facts, **run["config"]}, resume="allow",
            settings=settings,
        )
        handle.define_metric("at")
        handle.define_metric("*", step_metric="at")
        return handle


def mirror(run_dir: Path, settings: Wandb, going_on: Callable[[], bool]) -> Mirror:
    """Send every line not sent yet; go on as long as `going_on()` (which waits a moment) says so, then once more."""
    mode, why = find_mode(settings, os.environ, Path.home())
    made = Mirror(settings, mode, why, run_dir)
    state = run_dir / STATE
    offset = json.loads(state.read_text())["offset"] if state.exists() else 0
    more = True
    while more:
        more = going_on()
        lines, offset = read_lines(run_dir / METRICS, offset)
        for line in lines:
            made.send(line)
        if lines:
            temporary = state.with_suffix(".tmp")
            temporary.write_text(json.dumps({"offset": offset}))
            temporary.replace(state)
    made.finish()
    return made


def _stdin_open(seconds: float = 1.0) -> bool:
    """Wait up to a second; False once the other end of standard input is closed."""
    ready, _, _ = select.select([sys.stdin.buffer], [], [], seconds)
    return not ready or bool(os.read(sys.stdin.fileno(), 1024))


def _environment(workspace: Path) -> dict[str, str]:
    """W&B keeps everything in the workspace and reports nothing about itself, unless the user's variables say so."""
    # Not in `.wandb`: W&B takes a folder of that name for its own and moves there in the middle of a run.
    inner = {f"WANDB_{name}_DIR": str(workspace / "wandb" / f".{name.lower()}") for name in ("CACHE", "DATA", "CONFIG")}
    return {**inner, "WANDB_DIR": str(workspace), "WANDB_ERROR_REPORTING": "false", **os.environ}


def main(arguments: list[str]) -> int:
    run_dir = Path(arguments[0]).resolve()
    os.environ.update(_environment(run_dir.parent.parent))
    node = json.loads((run_dir / "run.json").read_text())["config"]["tracking"]
    settings = build(Settings, node, "tracking").wandb or Wandb()
    started = time.monotonic()
    with (run_dir / ".tracking.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the mirror of a killed run may still be finishing
        made = mirror(run_dir, settings, _stdin_open if "--follow" in arguments else lambda: False)
    hint = "; `wandb sync` sends the offline-run folders" if made.mode == "offline" else ""
    print(f"W&B: {made.sent} lines sent {made.mode} ({made.why}) in {time.monotonic() - started:.0f} s{hint}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
