"""`data.new=PATH` with preferences: they join what the steps read of the data set's own, from the new iteration on.

The reward model that is trained again (reward.retrain=each), the policy's training and its log-probs under the
reference then read one table more. Steps of earlier iterations stay as they are.
"""

from pathlib import Path
from typing import Any

from pipeline import outside, plan
from pipeline.config import build
from pipeline.stage import load

IMPORT = "import_prompts"
OWN = "new_prompts[{}]/pref"  # the texts of a week's preferences
_BESIDE = {"tokens/pref": "new_tokens[{}]/pref", "pref_reference/logps": "new_reference[{}]/logps",
           "pref_scores/scores": "new_scores[{}]/scores"}  # what of the data set's own -> of an iteration's new ones
_STEPS = {"new_reference": "pref_reference", "new_scores": "pref_scores"}  # made as those before the loop are
STEPS = tuple(_STEPS)
_FORMAT = ("lists", "only", "ties", "labels")  # of data.format: how preferences are read


def settings(config: dict[str, Any], first: int) -> dict[str, Any]:
    """Settings of the import whose preferences join iteration `first`."""
    data = config["data"]
    own = data["format"] if data["format"].get("module") == "pipeline.formats.files" else {"lists": "best_worst"}
    given = {name: data[name] for name in ("columns", "on_bad_row") if name in data}
    return {**given, "joins": first, "format": {name: own[name] for name in _FORMAT if name in own}}


def counted(place: Path, config: dict[str, Any], week: Any) -> int | None:
    """How many preferences the rows hold; None where no step of the run trains on given ones, or where rows are wrong,
    which is told later.
    """
    nodes = (config["recipe"].get("each") or {}).values()
    if not any("tokens/pref" in _texts(value) for node in nodes if node.get("when", True)
               for value in (node.get("inputs") or {}).values()):
        return None
    stage = load(IMPORT)
    step = plan.Step("", IMPORT, week.first, {}, build(stage.Settings, settings(config, week.first)),
                     build(stage.runtime, {"root": week.path, "content": list(week.content)}), 0)
    problems, counts = outside.checked(place, step)
    return None if problems else counts.get("pref", 0)


def apply(config: dict[str, Any], weeks: list[Any]) -> None:
    """Write the weeks that have preferences into the steps of `each`, in place."""
    joining, recipe = [week.first for week in weeks if week.pairs], config["recipe"]
    if not joining:
        return
    once, made = recipe.get("once") or {}, dict[str, Any]()
    for name, node in recipe["each"].items():
        made[name] = {**node, "inputs": {key: _joined(value, joining) for key, value in node.get("inputs", {}).items()}}
        if name == "new_tokens":
            made |= {new: {**once[old], "from": joining[0],
                           "inputs": {**once[old]["inputs"], "groups": "new_tokens[i]/pref"}}
                     for new, old in _STEPS.items() if old in once}
    recipe["each"] = made


def without(node: dict[str, Any]) -> dict[str, Any]:
    """A step with the inputs that it has in a run without new preferences."""
    inputs = {key: min(value.items(), key=lambda one: int(one[0]))[1] if _is_joined(value) else value
              for key, value in (node.get("inputs") or {}).items()}
    return {**node, "inputs": inputs} if inputs else node


def _joined(value: Any, joining: list[int]) -> Any:
    refs = _texts(value)
    if isinstance(value, dict) or not any(ref in _BESIDE for ref in refs):
        return value
    found = {1: value}
    for last in joining:
        weeks = [first for first in joining if first <= last]
        found[last] = [text for ref in refs for text in (
            ref, *(_BESIDE[ref].format(first) for first in weeks if ref in _BESIDE))]
    return found


def _is_joined(value: Any) -> bool:
    news = tuple(text.partition("[")[0] for text in _BESIDE.values())
    return isinstance(value, dict) and any(ref.startswith(news) for each in value.values() for ref in _texts(each))


def _texts(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for each in value.values() for text in _texts(each)]
    return [value] if isinstance(value, str) else list(value or [])
