"""`replay=RULE` in a recipe: a step before every training that says which groups of all iterations so far it sees.

With replay=recipe, the default, the steps stay as the recipe has them.
"""

import re
from typing import Any

STEP = "replay"


def apply(config: dict[str, Any]) -> list[str]:
    """Write the step into the recipe, in place. Returns what is wrong."""
    recipe = config.get("recipe") or {}
    each = recipe.get("each") or {}
    if (config.get("replay") or {}).get("module") is None:
        return []
    if "train" not in each or "half" in each:
        return ["replay: the steps of this run train on no groups of several iterations, expected replay=recipe"]
    train, groups = each["train"], _so_far(each["train"]["inputs"]["groups"])
    inputs = {**train["inputs"], "groups": groups, STEP: f"{STEP}[i]/kept"}
    if "reference" in inputs:
        inputs["reference"] = _so_far(inputs["reference"])
    changed = {"train": {**train, "inputs": inputs}}
    for name, more in (("previous", {"groups": groups}), ("diagnose", {"trained": groups, STEP: f"{STEP}[i]/kept"})):
        if name in each:
            changed[name] = {**each[name], "inputs": {**each[name]["inputs"], **more}}
    step = {"stage": STEP, "inputs": {"groups": groups}}
    if "from" in train:
        step["from"] = train["from"]
    made = dict[str, Any]()
    for name, node in each.items():
        made |= {STEP: step} if name == "train" else {}
        made[name] = changed.get(name, node)
    recipe["each"] = made
    return []


def _so_far(refs: str | list[str]) -> list[str]:
    """References to this iteration as references to every iteration so far."""
    return [re.sub(r"\[i\]", "[*]", ref) for ref in ([refs] if isinstance(refs, str) else refs)]
