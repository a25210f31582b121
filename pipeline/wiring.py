"""What a recipe writes as an input -> references to the steps before it.

`step/part`: `sft/model`, `pairs[i]/groups`, `tokens/pref`; [i] is this iteration, [i-1] the one before, [*] every one
so far; `train[i-1]/model | sft/model` is the first of them that exists.
"""

import re
from dataclasses import dataclass
from typing import Any

from pipeline.errors import nearest

_REFERENCE = re.compile(r"^(?P<name>[a-z_]+)(\[(?P<index>i|i-1|\*|\d+)\])?(/(?P<part>[A-Za-z0-9_./-]+))?$")


@dataclass(frozen=True)
class Ref:
    """A part of another step's artifact."""

    step: str
    part: str

    def __str__(self) -> str:
        return f"{self.step}/{self.part}" if self.part else self.step


def inputs(
    node: dict[str, Any], declared: dict[str, str], iteration: int, recipe: Any, earlier: set[str], where: str,
    problems: list[str],
) -> dict[str, tuple[Ref, ...]]:
    """A step's `inputs` block as references to steps in `earlier`; what is wrong is added to `problems`.

    declared: input name -> "one", "many" or "optional". where: the block's dotted key, for messages.
    """
    problems += [f"{where}.inputs.{k}: unknown input{nearest(k, declared)}" for k in node if k not in declared]
    found: dict[str, tuple[Ref, ...]] = {}
    for name, arity in declared.items():
        before = len(problems)
        texts = node.get(name)
        if isinstance(texts, dict):  # {1: sft/model, 2: train[i-1]/model}: what holds from each iteration on
            texts = texts[max((key for key in texts if int(key) <= iteration), key=int)]
        texts = [] if texts is None else [texts] if isinstance(texts, str) else texts
        refs: list[Ref] = []
        for text in texts:
            meant = next(filter(None, (_references(t, iteration, earlier) for t in text.split("|"))), [])
            refs += meant
            if not meant and not _may_be_absent(text, arity, recipe):
                problems.append(f"{where}.inputs.{name}: no earlier step {text!r}{nearest(text, earlier)}")
        if (len(refs) != 1 if arity == "one" else arity == "many" and not refs) and len(problems) == before:
            number = "exactly one reference" if arity == "one" else "at least one reference"
            problems.append(f"{where}.inputs.{name}: needs {number} such as sft/model")
        if refs:
            found[name] = tuple(refs)
    return found


def _references(text: str, iteration: int, earlier: set[str]) -> list[Ref]:
    """The earlier steps a reference means: one, or for [*] every iteration's; none if there is no such step."""
    match = _REFERENCE.match(text.strip())
    if match is None:
        return []
    name, index, part = match["name"], match["index"], match["part"] or ""
    if index is None:
        candidates = [name]
    elif index == "*":
        candidates = [f"{name}[{i}]" for i in range(1, iteration + 1)]
    else:
        number = {"i": iteration, "i-1": iteration - 1}.get(index, index)
        candidates = [f"{name}[{number}]"]
    return [Ref(step, part) for step in candidates if step in earlier]


def _may_be_absent(text: str, arity: str, recipe: Any) -> bool:
    """[*] of a step that starts later, or an optional input whose step was switched off or lies before the loop."""
    match = _REFERENCE.match(text.strip())
    known = match is not None and any(match["name"] in (recipe.get(block) or {}) for block in ("once", "each"))
    return known and (arity == "optional" or (match is not None and match["index"] == "*"))
