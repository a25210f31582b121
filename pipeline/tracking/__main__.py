"""The mirror's own process: `python -m pipeline.tracking RUN_DIR [--follow]`."""

import json
import os
import select
import sys
import time
from pathlib import Path

from pipeline import files
from pipeline.config import build
from pipeline.tracking import Settings, Sink, mirror, tensorboard, wandb


def open_sinks(settings: Settings, run_dir: Path) -> list[Sink]:
    """The sinks the settings ask for."""
    sinks: list[Sink] = []
    if settings.wandb is not None:
        mode, why = wandb.find_mode(settings.wandb, os.environ)
        if mode == "disabled":
            print(f"W&B: off ({why}), nothing is mirrored")
        else:
            os.environ["WANDB_MODE"] = mode  # as W&B spells it
            sinks.append(wandb.Mirror(settings.wandb, mode, why, run_dir))
    if settings.tensorboard is not None:
        folder = settings.tensorboard.folder
        sinks.append(tensorboard.Mirror(Path(folder).expanduser() if folder else run_dir / "tensorboard"))
    return sinks


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
    settings = build(Settings, node, "tracking")
    started = time.monotonic()
    # the mirror of a killed run may still be finishing
    with files.locked(run_dir / ".tracking.lock", str(os.getpid()), wait=None):
        sinks = open_sinks(settings, run_dir)
        if not sinks:
            return 0
        mirror(run_dir, sinks, _stdin_open if "--follow" in arguments else lambda: False)
    print(f"{'; '.join(sink.said() for sink in sinks)} ({time.monotonic() - started:.0f} s)")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
