"""Which model is meant: a step of a run, or any model folder."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.inspection import folder_of, load_run
from pipeline import runs, store
from pipeline.errors import UserError, command, nearest

_MAKE_POLICIES = ("init_model", "sft", "train_preference")
DTYPE = "float32"  # of a folder that belongs to no run


@dataclass(frozen=True)
class Model:
    """A language model on disk. `run`, `step`, `artifact`: where it comes from, None for a folder of the user's."""

    label: str
    folder: Path
    dtype: str  # it is sampled in
    run: runs.Run | None = None
    step: dict[str, Any] | None = None
    artifact: store.Artifact | None = None


def find(workspace: str, name: str, rewards: bool = False) -> list[Model]:
    """The models of a run in running order, the one it started from first; or the one of a folder. `rewards`: those
    that score, too.

    Raises UserError where there is none yet.
    """
    folder = Path(name).expanduser().resolve()
    if os.sep in name or (folder / "config.json").is_file():
        return [Model(folder.name, folder, DTYPE)]
    place = folder_of(workspace)
    run = load_run(place, name)
    dtype = str((run.config.get("engine") or {}).get("dtype", DTYPE))
    found, kinds = [], {*_MAKE_POLICIES, *(("train_reward",) if rewards else ())}
    for step in run.steps:
        artifact = store.find(place, step["stage"], step["key"]) if step.get("key") else None
        if step["stage"] in kinds and artifact is not None:
            label = "start" if step["name"] == "init" else step["name"]
            found.append(Model(label, artifact.path / "model", dtype, run, step, artifact))
    if not found:
        raise UserError(f"{name}: no model yet, the run is {runs.outcome(place, run)}; go on with:"
                        f"{command(place, 'run', f'run={name}')}")
    return found


def choose(models: list[Model], step: str | None, iteration: int | None) -> Model:
    """The one of that step (its name, or start), the last of that iteration, or the last of all."""
    if step is not None and iteration is not None:
        raise UserError(f"--iteration {iteration}: given together with the step {step}, expected one of the two")
    names = [name for model in models for name in _names(model)]
    if step is not None:
        chosen = [model for model in models if step in _names(model)]
        if not chosen:
            raise UserError(f"{step}: no model of that step{nearest(step, names)}; there are: {', '.join(names)}")
        return chosen[0]
    if iteration is None:
        return models[-1]
    chosen = [model for model in models if model.step is not None and model.step["iteration"] == iteration]
    if not chosen:
        raise UserError(f"--iteration {iteration}: no model of it; there are: {', '.join(names)}")
    return chosen[-1]


def _names(model: Model) -> list[str]:
    """By which a model may be asked for."""
    return list(dict.fromkeys([model.label, *([model.step["name"]] if model.step else [])]))
