"""`align export`: the model of a step as a plain folder with a model card, and on the hub where asked for."""

import importlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from flows import screen
from flows.card import card
from flows.inspection import folder_of
from flows.run_models import Model, choose, find
from pipeline import runs, store, upload
from pipeline.errors import UserError, command

_PUBLISH = "pipeline.lm.publish"  # imported by name: it brings torch


def export(
    workspace: str, name: str, step: str | None, to: str | None, adapter: bool, dtype: str | None, hub: str | None
) -> int:
    """Write the folder, say what is in it, and send it to the hub. Raises UserError before anything is written."""
    target = _free(to)
    model = choose(find(workspace, name, rewards=step is not None), step, None)
    if step is None and model.step is not None and model.step["stage"] == "init_model":
        raise UserError(f"{name}: nothing of it is trained yet; go on with:"
                        f"{command(workspace, 'run', f'run={name}')}\nor export the start model as it is:"
                        f"{command(workspace, 'export', name, 'start', '--to', str(to))}")
    if model.run is None or model.step is None or model.artifact is None:
        raise UserError(f"{name}: a folder, expected a run, whose steps the model card names")
    part = "adapter" if adapter else "model"
    if adapter and not (model.artifact.path / part).is_dir():
        raise UserError(f"--adapter: {model.label} of {name} trained no adapter (trainer.*.adapter.kind=none); leave "
                        "--adapter out for its model")
    if damaged := store.damaged_files(model.artifact, part):
        raise UserError(*damaged)
    if hub is not None:
        upload.check(hub)
    partial = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    publish = importlib.import_module(_PUBLISH)
    try:
        if adapter:
            task = "SEQ_CLS" if model.step["stage"] == "train_reward" else "CAUSAL_LM"
            publish.write_adapter(model.artifact.path / part, partial, _base(workspace, model), task, dtype)
        else:
            publish.write(model.artifact.path / part, partial, dtype)
        lineage = _ancestors(folder_of(workspace), model)
        (partial / "README.md").write_text(card(model, lineage, _numbers(workspace, model), adapter, dtype))
        if target.is_dir():
            target.rmdir()  # empty
        os.replace(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    size = sum(path.stat().st_size for path in target.iterdir())
    screen.say(f"{model.label} of {name}: {part} in {target}, {screen.size(size)}")
    if hub is not None:
        screen.say(f"sent to {upload.send(hub, target)}")
    return 0


def _free(to: str | None) -> Path:
    if to is None:
        raise UserError("--to: missing, expected the folder to write")
    target = Path(to).expanduser().resolve()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"--to: {target} is there and not an empty folder, expected a new one")
    if not target.parent.is_dir():
        raise UserError(f"--to: no folder {target.parent} to write it in")
    return target


def _ancestors(place: Path, model: Model) -> list[tuple[dict[str, Any], store.Artifact]]:
    """Every step whose result went into the model, in running order, the model's own last."""
    assert model.run is not None and model.step is not None
    by_name, wanted, open_ = {step["name"]: step for step in model.run.steps}, set[str](), [model.step["name"]]
    while open_:
        name = open_.pop()
        if name not in wanted and name in by_name:
            wanted.add(name)
            open_ += [ref.partition("/")[0] for ref in by_name[name].get("inputs", ())]
    found = [(step, store.find(place, step["stage"], step["key"])) for step in model.run.steps
             if step["name"] in wanted and step.get("key")]
    return [(step, artifact) for step, artifact in found if artifact is not None]


def _numbers(workspace: str, model: Model) -> dict[str, Any]:
    """The report's row of the model's iteration; nothing where the run has no report yet."""
    assert model.run is not None and model.step is not None
    path = runs.folder(folder_of(workspace), model.run.name) / "report.json"
    rows = json.loads(path.read_text())["iterations"] if path.exists() else []
    return next((row for row in rows if row["iteration"] == model.step["iteration"]), {})


def _base(workspace: str, model: Model) -> str:
    """Where the model that the adapter belongs on is: the one that the user named, or that an earlier step made."""
    assert model.run is not None and model.artifact is not None
    (made_by,) = model.artifact.manifest["references"]["model"]
    origin = next(step for step in model.run.steps if step["name"] == made_by.partition("/")[0])
    if origin["stage"] == "init_model" and (given := model.run.config["model"].get("path")):
        return str(given) if Path(str(given)).exists() else str(given).partition("@")[0]  # of org/name@revision
    return str(store.artifact_path(folder_of(workspace), origin["stage"], origin["key"]) / "model")
