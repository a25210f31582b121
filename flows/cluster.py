"""`align doctor --cluster`: what each node that a launcher reaches sees of the workspace, and what it lacks."""

import importlib.metadata
import json
import os
import secrets
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from flows import launching, screen
from flows.compose import compose
from flows.place import Place
from pipeline import __version__, files
from pipeline.errors import UserError
from pipeline.launchers.contract import Lost, Order
from pipeline.launchers.seen import CONTENT, LOCK, TURN

_OFF = 1.0  # seconds a clock may differ: what nodes write is dated by it
_GRACE = 5.0


def check(words: list[str], nodes: int) -> int:
    """Print what the nodes see. Exit code 1 if a run would not be safe there."""
    recipe = [] if any(word.startswith("recipe=") for word in words) else ["recipe=sft"]
    composed = compose([*recipe, *words])
    if problems := [*composed.problems, *launching.problems(composed.config, composed.given)]:
        raise UserError(*problems)
    place = launching.of(composed.config)
    if not place.elsewhere:
        raise UserError("launcher: local has no other nodes; say which: align doctor --cluster launcher=slurm")
    folder = Path(composed.config["workspace"]) / f".cluster-{os.getpid()}"
    folder.mkdir(parents=True)
    try:
        with files.locked(folder / LOCK, "align doctor"):
            found, why = _asked(place, folder, nodes if place.part.plugin.places else 1)
            content = files.file_hash(folder / CONTENT)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    columns = ["node", "alignloop", "torch", "python", "a rename is seen after", "clock"]
    rows = [[one["host"], one["alignloop"], one["torch"], one["python"],
             "never" if one["seen"] is None else f"{one['seen']:.1f} s",
             "" if one["offset"] is None else f"{one['offset']:+.1f} s"] for one in found]
    screen.table(f"{len(found)} of {nodes} nodes", columns, rows)
    problems = ([f"{nodes - len(found)} nodes do not answer: {why}"] if len(found) < nodes else [])
    problems += [f"{one['host']}: {text}" for one in found for text in wrong(one, content)]
    for problem in problems:
        screen.say(f"problem: {problem}")
    screen.say(f"{len(problems)} problems" if problems else "every node can run steps")
    return 1 if problems else 0


def wrong(one: dict[str, Any], content: str) -> list[str]:
    """What a node's report says that a run cannot do with. content: the hash of the file it read."""
    here = {"alignloop": __version__, "torch": importlib.metadata.version("torch"), "python": sys.version.split()[0]}
    problems = [f"{name} {one[name]}, here {version}; give it the same environment, or launcher.python"
                for name, version in here.items() if one[name] != version]
    if one["hash"] != content:
        problems.append("a file written here has another content there; the file system does not show what was closed")
    if not one["locked"] or not one["held"]:
        problems.append("a lock held on one side does not exclude the other: mount the file system with flock (NFS 4, "
                        "Lustre's option flock)")
    if one["seen"] is None:
        problems.append("a file put in another one's place here is not seen there; the workspace is another folder, "
                        "or attributes are kept for more than a minute (NFS: actimeo)")
    if one["offset"] is not None and abs(one["offset"]) > _OFF:
        problems.append(f"its clock is {one['offset']:+.1f} s off; set it by NTP")
    return problems


def _asked(place: Place, folder: Path, nodes: int) -> tuple[list[dict[str, Any]], str]:
    """The reports of the nodes, and why there are not more of them."""
    (folder / CONTENT).write_bytes(secrets.token_bytes(2**20))
    (folder / TURN).write_text("")
    (folder / "step.json").write_text("{}")
    order = Order(folder / "step.json", folder / "log", _GRACE, 300.0, {**os.environ, "PYTHONUNBUFFERED": "1"},
                  "doctor", "cluster", "data", nodes, module="pipeline.launchers.seen", names=place.names)
    held: dict[str, bool] = {}
    at: dict[str, float] = {}
    try:
        process = place.start(order)
        try:
            while process.poll(0.05) is None:
                for path in [path for path in folder.glob("*-*.json") if path.stem not in held]:
                    at[path.stem], held[path.stem] = time.time(), files.is_locked(path.with_suffix(".lock"))
                    if len(held) == nodes:
                        now = time.time()
                        files.write_atomic(folder / TURN, json.dumps({me: (then, now) for me, then in at.items()}))
        except BaseException as error:
            if not isinstance(error, Lost):
                process.stop()
            raise
        why = ""
    except Lost as lost:
        why = str(lost)
    log = folder / "log"
    last = log.read_text(errors="replace").strip().splitlines()[-1:] if log.exists() else []
    reports = [{**json.loads(path.read_text()), "held": held.get(path.stem, False)} for path in folder.glob("*-*.json")]
    return sorted(reports, key=lambda one: str(one["host"])), "; ".join([why, *last])
