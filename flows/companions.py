"""What an option brings along: `objective=hypo` alone also means a selection that builds the groups it learns from.

An option's file may hold

    companions:
      selection: pair_and_samples                            # another group's option
      stage.train_preference.settings.score: win_rate        # a value
      steps: {restart: sampled}                              # in a recipe with these steps, those instead

They count for options named on the command line, and for what those bring in turn. The command line's own words win
over them; they win over the recipe and the defaults. Nothing of it reaches the settings of the option itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

KEY = "companions"
STEPS = "steps"


@dataclass(frozen=True)
class Brought:
    """Options and values that come along, the recipe's changed steps (None: as they are), and a remark for each."""

    options: dict[str, str] = field(default_factory=dict)
    values: list[tuple[str, Any]] = field(default_factory=list)
    steps: list[str] | None = None
    notes: list[str] = field(default_factory=list)


def brought(choices: dict[str, str], given: set[str], conf: Path) -> Brought:
    """Companions of the chosen options.

    choices: group -> option, of the command line. given: the dotted keys it sets. conf: the folder of the groups.
    """
    found = Brought()
    recipe = _recipe(conf, choices.get("recipe"))
    before = steps = recipe.get(STEPS, [])
    waiting = list(choices.items())
    while waiting:
        group, option = waiting.pop(0)
        said = []
        for key, value in _companions(conf, group, option).items():
            if key == STEPS:
                changed = [value.get(name, name) for name in steps]
                said += [f"the steps {new} for {old}" for old, new in zip(steps, changed, strict=True) if new != old]
                steps = changed
            elif not (conf / key).is_dir():
                said += [] if key in given else [f"{key}={value}"]
                found.values.extend([] if key in given else [(key, value)])
            elif key not in choices and key not in found.options:
                said += [] if recipe.get(key) == value else [f"{key}={value}"]
                found.options[key] = value
                waiting.append((key, value))
        found.notes.extend([f"{group}={option} brings {', '.join(said)}"] if said else [])
    return found if steps == before else replace(found, steps=steps)


def _companions(conf: Path, group: str, option: str) -> dict[str, Any]:
    path = conf / group / f"{option}.yaml"
    return (yaml.safe_load(path.read_text()) or {}).get(KEY, {}) if path.is_file() else {}


def _recipe(conf: Path, name: str | None) -> dict[str, Any]:
    """What a recipe's file chooses: group -> option, and its files of conf/steps in order."""
    path = conf / "recipe" / f"{name}.yaml"
    defaults = yaml.safe_load(path.read_text())["defaults"] if name and path.is_file() else []
    plain = {"/steps@recipe": STEPS}
    return {plain.get(key, key.removeprefix("override /")): value for node in defaults for key, value in node.items()}
