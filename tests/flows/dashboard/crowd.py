"""A workspace as it is after a busy month: 60 runs, and everything that can be wrong with some of them."""

from __future__ import annotations

import copy
import json
import math
import shutil
from pathlib import Path
from typing import Any

from pipeline import runs, store
from pipeline.files import sealed
from tests.flows.dashboard import world

LONG = "a-run-with-a-name-as-long-as-a-name-can-be-" + "x" * 20
BETAS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)


def copies(workspace: Path, made: world.Maker, number: int, change: Any = None) -> None:
    """`number` more runs like the one made, each with evaluations of its own. change(i, record): what is its own."""
    record = json.loads((made.folder / "run.json").read_text())
    judged = [step for step in record["steps"] if step["stage"] == "evaluate"]
    for i in range(1, number + 1):
        for step in judged:
            folder = store.artifact_path(workspace, "evaluate", f"{i:04x}{step['key'][4:]}")
            shutil.copytree(store.artifact_path(workspace, "evaluate", step["key"]), folder)
            manifest = json.loads((folder / "manifest.json").read_text())
            rate = min(0.95, manifest["counts"]["win_rate"] + 0.002 * (i % 40))
            manifest |= {"key": folder.name, "counts": {**manifest["counts"], "win_rate": rate}}
            (folder / "manifest.json").write_text(json.dumps(sealed(
                {k: v for k, v in manifest.items() if k != store.SEAL}, store.SEAL)))
        own = copy.deepcopy({k: v for k, v in record.items() if k != runs.SEAL})
        own["steps"] = [{**s, "key": f"{i:04x}{s['key'][4:]}"} if s["stage"] == "evaluate" else s for s in own["steps"]]
        own["name"] = f"{made.name}-{i:04d}"
        if change is not None:
            change(i, own)
        target = workspace / "runs" / own["name"]
        target.mkdir()
        (target / "run.json").write_text(json.dumps(sealed(own, runs.SEAL)))


def _arm(i: int, record: dict[str, Any]) -> None:
    """Nine betas, six seeds."""
    beta, seed = BETAS[i % 9], 1 + i // 9
    record["config"]["seed"], record["config"]["objective"]["beta"] = seed, beta
    record["overrides"] = ["recipe=pco", f"objective.beta={beta}", f"seed={seed}"]


def crowd(place: Path) -> None:
    """53 alike, one that is hostile in every text, one whose numbers are NaN, one failed, one unfinished, one fresh,
    one of a very long name, one whose record is torn.
    """
    sound = world.whole_run(place, "arm", number=4, beta=0.1)
    copies(place, sound, 52, _arm)
    hostile = world.whole_run(place, "hostile", number=10, objective="ce")
    (hostile.folder / "about.json").write_text(json.dumps({
        "tags": world.HOSTILE[:3], "note": " ".join(world.HOSTILE), "archived": False}))
    odd = world.whole_run(place, "nan", number=3, objective="ipo")
    for at in range(210, 2000, 10):
        loss = math.nan if at % 500 < 200 else math.inf if at % 700 == 0 else 1 / at
        odd.report("train[2]", at, loss=loss, chosen_logps=math.nan, lr=1e-4, tokens_per_second=900.0)
    broken = world.Maker(place, "broken")
    broken.step("data", "import_data", {}, {"sft": 3, "odd": math.nan})
    broken.waiting("sft", "sft", state=runs.FAILED, inputs=("data",))
    broken.save(outcome=runs.FAILED)
    failed = {"step": "sft", "event": "failed", "time": 1.0, "code": 137}
    (broken.folder / "events.jsonl").write_text(json.dumps(failed))
    log = runs.log_path(place, "broken", "sft")
    log.parent.mkdir()
    log.write_text("\n".join([*world.HOSTILE, "x" * 5000]))
    cut = world.Maker(place, "unfinished")
    cut.step("data", "import_data", {}, {"sft": 3})
    cut.waiting("sft", "sft", state=runs.RUNNING, inputs=("data",))
    cut.waiting("train[1]", "train_preference", inputs=("sft",))
    cut.save(outcome=runs.RUNNING)
    cut.report("sft", 10, loss=1.0)
    (cut.folder / "events.jsonl").write_text(json.dumps({"step": "sft", "event": "started", "time": 1.0}))
    fresh = world.Maker(place, "fresh")
    fresh.waiting("data", "import_data")
    fresh.save(outcome=runs.INTERRUPTED)
    world.Maker(place, LONG).save()
    world.Maker(place, "torn").save()
    (place / "runs" / "torn" / "run.json").write_text('{"name": ')
