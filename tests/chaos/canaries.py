"""Keys that must not be found anywhere: what a user may have in the environment, and where it is looked for."""

from __future__ import annotations

from pathlib import Path

import psutil

NAMES = ("WANDB_API_KEY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "ALIGNLOOP_ENGINE_KEY", "ALIGNLOOP_JUDGE_KEY",
         "ALIGNLOOP_SMTP_PASSWORD", "OPENAI_API_KEY", "PREFECT_API_KEY")
KEYS = {name: f"canary-{name.lower().replace('_', '-')}-7f3a9c51d2e8b604f3a9c51d" for name in NAMES}
FOUND = "the key is in "


def holding(keys: dict[str, str], *folders: Path) -> list[str]:
    """Every file below the folders that has one of the keys in it, or in its name."""
    found = []
    for path in (path for folder in folders for path in folder.rglob("*") if path.is_file()):
        content = str(path).encode() + path.read_bytes()
        found += [f"{name}: {FOUND}{path}" for name, key in keys.items() if key.encode() in content]
    return found


def shown(keys: dict[str, str]) -> list[str]:
    """Every process of this machine whose command line, which any user can read, has one of the keys in it."""
    found = []
    for process in psutil.process_iter():
        line = "\0".join(_words(process))
        found += [f"{name}: {FOUND}the command line of {line[:60]!r}" for name, key in keys.items() if key in line]
    return found


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []
