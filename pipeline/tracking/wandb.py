"""The W&B side of the tracking mirror: one W&B run per step, grouped by run, and one for the run as a whole, with its
numbers over the iterations, grouped by sweep. The one file that imports wandb.

Numbers, a table of samples and the step's artifact go there; the artifact as a reference with our digest, never as a
copy. Without a key, or where the service cannot be reached, all of it goes to W&B's offline format for `wandb sync`.
"""

import hashlib
import itertools
import json
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import columns, files, runs, store, tables
from pipeline.config import setting
from pipeline.records import Group

_MOST_FILES = 1_000_000  # of one artifact; W&B's own limit is 10,000
_MODES = {"online": "online", "run": "online", "shared": "online", "offline": "offline", "dryrun": "offline",
          "disabled": "disabled"}  # what W&B calls them -> what is done
ENVELOPE = ("step", "time")  # what a line of metrics.jsonl says besides numbers
_WHOLE = ("evaluate", "diagnose", "report")  # stages whose counts are the run's numbers over the iterations


@dataclass(frozen=True)
class Wandb:
    """Where the mirror goes."""

    project: str = "alignloop"  # where the runs appear
    entity: str | None = None  # user or team; null: the key's default
    mode: str = setting("auto", choices=("auto", "online", "offline"))  # auto: online where a key is found
    init_timeout: float = setting(20.0, above=0.0)  # seconds to reach the service before going offline
    finish_timeout: float = setting(30.0, above=0.0)  # seconds a finished run waits for the mirror to finish
    alerts: bool = False  # a W&B alert when a step fails, a gate closes, gold falls, the run is stuck, and at its end
    stuck_minutes: float = setting(60.0, above=0.0)  # without any progress until a run counts as stuck
    samples: int = setting(32, low=0)  # prompts in the table of samples of a scored step; 0: no table


def find_mode(settings: Wandb, environment: Mapping[str, str]) -> tuple[str, str]:
    """("online", "offline" or "disabled", why). In mode auto the user's variables win, then W&B's own settings file,
    then whether W&B knows a key.
    """
    if settings.mode != "auto":
        return settings.mode, f"tracking.wandb.mode={settings.mode}"
    if environment.get("WANDB_DISABLED", "").strip().lower() not in ("", "0", "false", "no", "off"):
        return "disabled", "WANDB_DISABLED"
    if asked := environment.get("WANDB_MODE", ""):
        word = asked.strip().lower()
        return _MODES.get(word, "offline"), "WANDB_MODE" if word in _MODES else f"WANDB_MODE={asked} is no mode of W&B"
    import wandb

    # silent: else it asks the service for the user's name to print it
    kept = _MODES[wandb.setup(wandb.Settings(silent=True)).settings.mode]
    if kept != "online":
        return kept, "W&B's own settings"
    try:
        known = wandb.login(prompt=False, verify=False)  # looks into variables, settings files and netrc
    except wandb.errors.AuthenticationError as error:
        return "offline", str(error)
    return ("online", "W&B found a key") if known else ("offline", "no key found")


def run_id(run: Mapping[str, Any], step: str) -> str:
    """The same for the same step of the same run, another for a run of the same name elsewhere."""
    mark = hashlib.sha256(str(run["created"]).encode()).hexdigest()[:6]
    return re.sub(r"[^A-Za-z0-9_-]+", "-", f"{run['name']}-{step}").strip("-") + f"-{mark}"


def sweep_of(run_dir: Path) -> str | None:
    """The sweep that the run belongs to, None for one by itself."""
    for record in sorted((run_dir.parent.parent / "sweeps").glob("*/sweep.json")):
        lines = files.parsed_lines(record.read_bytes().replace(b"\n", b" "), runs=list)
        if any(isinstance(arm, dict) and arm.get("run") == run_dir.name for one in lines for arm in one["runs"]):
            return record.parent.name
    return None


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
    referenced: int = 0
    stuck_since: float = 0.0  # the last sign of life that was told of as too old

    def number(self, line: dict[str, Any]) -> None:
        """One line of metrics.jsonl."""
        self._turn_to(line["step"])
        # at its own step: a run that goes on after a crash goes on in the same curve
        self.handle.log({key: value for key, value in line.items() if key not in ENVELOPE}, step=int(line["at"]))
        self.sent += 1

    def finished(self, step: str, artifact: store.Artifact) -> None:
        """A step's artifact: its counts as the summary, its samples as a table, its files as references."""
        self._turn_to(step)
        self.handle.summary.update(artifact.manifest["counts"])
        if artifact.kind == "score" and self.settings.samples:
            self._samples(step, artifact)
        self._reference(step, artifact)
        self.referenced += 1
        if artifact.kind == "gate" and (reasons := json.loads((artifact.path / "gate.json").read_text())["reasons"]):
            self._alert(step, f"{step} has closed", "; ".join(reasons), "WARN")
        if artifact.kind == "report" and artifact.manifest["counts"].get("gain", 0.0) < 0:
            gain = artifact.manifest["counts"]["gain"]
            self._alert(step, f"the judge's win rate falls at {step}", f"{100 * gain:+.1f} points", "WARN")

    def failed(self, step: str, code: int) -> None:
        """A step's process ended badly."""
        self._alert(step, f"failed at {step}", f"exit code {code}; align logs {self.run_dir.name}", "ERROR")

    def quiet(self, since: float) -> None:
        """The run goes on, its last sign of life was at that Unix time: told of once, until it shows another."""
        gone = (time.time() - since) / 60
        if gone > self.settings.stuck_minutes and since != self.stuck_since:
            self.stuck_since = since
            self._alert(self.step, "stuck", f"no progress for {gone:.0f} minutes", "WARN")

    def _alert(self, step: str, what: str, text: str, level: str) -> None:
        if self.settings.alerts:
            self._turn_to(step)
            self.handle.alert(f"{self.run_dir.name}: {what}"[:63], text, level)  # W&B's longest title

    def close(self) -> None:
        """Finish the open W&B run, after that of the run as a whole."""
        rows = self._iterations() if self.sent or self.referenced else {}
        for iteration, numbers in sorted(rows.items()):
            self._turn_to("")
            self.handle.log({"iteration": iteration, **numbers}, step=iteration)
        outcome = json.loads((self.run_dir / "run.json").read_text()).get("outcome", "")
        if (self.sent or self.referenced) and (outcome == runs.DONE or outcome.startswith(runs.STOPPED_BY)):
            self._alert("", "finished", outcome, "INFO")
        elif (self.sent or self.referenced) and outcome in (runs.RUNNING, runs.INTERRUPTED):  # killed, or stopped
            self._alert("", "was interrupted", f"go on with: align run run={self.run_dir.name}", "ERROR")
        self._finish()

    def _finish(self) -> None:
        if self.handle is not None:
            self.handle.finish()
        self.step, self.handle = "", None

    def _iterations(self) -> dict[int, dict[str, float]]:
        """Iteration -> "stage.count" -> value, of every finished step of _WHOLE."""
        found: dict[int, dict[str, float]] = {}
        for step in json.loads((self.run_dir / "run.json").read_text())["steps"]:
            if step["stage"] in _WHOLE and step.get("iteration") and step.get("key"):
                artifact = store.find(self.run_dir.parent.parent, step["stage"], step["key"])
                for name, value in (artifact.manifest["counts"] if artifact else {}).items():
                    found.setdefault(step["iteration"], {})[f"{step['stage']}.{name}"] = value
        return found

    def said(self) -> str:
        """What was done, in a line."""
        hint = "; `wandb sync` sends the offline-run folders" if self.mode == "offline" else ""
        return f"W&B: {self.sent} lines and {self.referenced} artifact references sent {self.mode} ({self.why}){hint}"

    def _turn_to(self, step: str) -> None:
        if step != self.step or self.handle is None:
            self._finish()
            self.step, self.handle = step, self._open(step)

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
        settings = wandb.Settings(mode="online" if self.mode == "online" else "offline",
                                  init_timeout=self.settings.init_timeout, login_timeout=self.settings.init_timeout,
                                  console="off", silent=True, disable_git=True, disable_code=True,
                                  disable_job_creation=True, x_disable_stats=True)
        sweep, over = sweep_of(self.run_dir), "at" if step else "iteration"
        typed = dict(word.partition("=")[::2] for word in run.get("overrides", []))
        handle = wandb.init(project=self.settings.project, entity=self.settings.entity, id=run_id(run, step),
                            name=step or run["name"], group=run["name"] if step else sweep or run["name"],
                            job_type=facts.get("stage") if step else "run", tags=[sweep[:64]] if sweep else None,
                            config={"step": facts, "sweep": sweep, "set": typed, **run["config"]}, resume="allow",
                            settings=settings)
        handle.define_metric(over)
        handle.define_metric("*", step_metric=over)
        return handle

    def _reference(self, step: str, artifact: store.Artifact) -> None:
        """W&B reads and copies nothing: its entries say where the files are, the metadata what is in them."""
        import wandb

        run = json.loads((self.run_dir / "run.json").read_text())
        made = wandb.Artifact(run_id(run, step), type=artifact.kind, metadata={
            "digest": artifact.digest(), "key": artifact.key, "algorithm": artifact.manifest["algorithm"],
            "inputs": artifact.manifest["inputs"], "files": artifact.manifest["files"]})
        made.add_reference(artifact.path.as_uri(), name=artifact.key, checksum=False, max_objects=_MOST_FILES)
        self.handle.log_artifact(made)

    def _samples(self, step: str, artifact: store.Artifact) -> None:
        import wandb

        steps = json.loads((self.run_dir / "run.json").read_text())["steps"]
        for origin, part in runs.groups_of(steps, step):  # score reads one table
            groups = store.artifact_path(self.run_dir.parent.parent, origin["stage"], origin["key"]) / part
            header, rows = sample_rows(_scored(artifact, groups), self.settings.samples)
            if rows:
                self.handle.log({"samples": wandb.Table(columns=header, data=rows)})


def _scored(artifact: store.Artifact, groups: Path) -> Iterable[Group]:
    """The groups with the scores of a score artifact; one of an older version holds both."""
    if not (artifact.path / "scores").is_dir():
        return tables.read(artifact.path / "groups")
    source = columns.Source(groups, artifact.manifest["inputs"]["groups"][0])
    return columns.with_scores(source, [artifact.path / "scores"])


def sample_rows(groups: Iterable[Group], prompts: int) -> tuple[list[str | int], list[list[Any]]]:
    """The header and rows of a table of samples: every completion of the first `prompts` groups."""
    found = list(itertools.islice(groups, prompts))
    names = sorted({name for group in found for c in group.completions for name in c.scores})
    rows = [[g.id, g.messages[-1].content, c.sample, c.text, c.finish_reason, *(c.scores.get(name) for name in names)]
            for g in found for c in g.completions]
    return ["id", "prompt", "sample", "answer", "finish_reason", *names], rows
