"""A weighted sum of objectives: L = sum_j w_j L_j, each normalised as it would be on its own.

`objective.objectives` lists the parts: {module: pipeline.objectives.dpo, beta: 0.1, weight: 1.0}. Every part sees the
same batch. A part that is divided by tokens on its own is divided by the mean number of tokens of a group here, which
over a global batch is the same.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.config import Part, declared, load_part, part_problems
from pipeline.objectives.contract import TOKEN_NEEDS, LossInputs

if TYPE_CHECKING:
    from torch import Tensor

NORMALISE = "groups"


@dataclass(frozen=True)
class Settings:
    """The parts of the sum."""

    objectives: tuple[dict[str, Any], ...]
    """Each {module: ..., weight: 1.0, settings of the module}; at least one."""

    def check(self) -> list[tuple[str, str]]:
        problems = [] if self.objectives else [("objectives", "empty, expected at least one objective")]
        for i, spec in enumerate(self.objectives):
            weight = spec.get("weight", 1.0)
            number = isinstance(weight, (int, float)) and not isinstance(weight, bool) and math.isfinite(weight)
            if not number or weight < 0:
                problems.append((f"objectives[{i}].weight", f"{weight!r} is out of range, expected 0 <= x"))
            problems += part_problems(_spec(spec), f"objectives[{i}]")
        if not problems:
            found = needs(self)
            if "batch" in found and found & TOKEN_NEEDS:
                problems.append(("objectives", "one compares the groups of a batch and another needs token-level "
                                 "log-probs, which are not held for a whole batch; train with one of the two"))
            if any(hasattr(part.module, "parameters") for part, _ in _parts(self)):
                problems.append(("objectives", "one trains parameters of its own, which a mixture cannot hold"))
        return problems


def _spec(spec: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in spec.items() if key != "weight"}


def _parts(settings: Settings) -> list[tuple[Part, float]]:
    return [(load_part(_spec(s), f"objective.objectives[{i}]"), float(s.get("weight", 1.0)))
            for i, s in enumerate(settings.objectives)]


def needs(settings: Settings) -> frozenset[str]:
    """What its parts need together. Groups of one are taken only if every part that compares takes them."""
    each = [frozenset(declared(part, "needs")) for part, _ in _parts(settings)]
    found = frozenset().union(*each)
    compare = [n for n in each if n & {"pairs", "lists"}]
    alone = all("singles" in n for n in compare)
    lists = all("lists" in n for n in compare)
    return found - (frozenset() if alone else {"singles"}) - (frozenset() if lists else {"lists"})


def state(settings: Settings) -> dict[str, float]:
    """The parts' states, each under its place in the list."""
    return {f"{i}.{name}": value for i, (part, _) in enumerate(_parts(settings))
            if hasattr(part.module, "state") for name, value in part.module.state(part.settings).items()}


def _own_state(batch: LossInputs, index: int) -> dict[str, Tensor]:
    start = f"{index}."
    return {name[len(start):]: value for name, value in batch.state.items() if name.startswith(start)}


def update(batch: LossInputs, settings: Settings) -> dict[str, Tensor]:
    """The parts' states after this batch."""
    found: dict[str, Tensor] = {}
    for i, (part, _) in enumerate(_parts(settings)):
        if hasattr(part.module, "update"):
            own = part.module.update(dataclasses.replace(batch, state=_own_state(batch, i)), part.settings)
            found |= {f"{i}.{name}": value for name, value in own.items()}
    return found


def _tokens_per_group(batch: LossInputs, part: Part) -> Tensor | float:
    """What a token-normalised part is divided by: on its own, one that compares nothing sees completion 0 only."""
    if declared(part, "needs") & {"pairs", "lists", "labels"}:
        return batch.lengths.sum() / len(batch.lengths) if batch.mean_length is None else batch.mean_length
    chosen = batch.lengths[:, 0]
    return chosen.sum() / len(chosen) if batch.mean_chosen_length is None else batch.mean_chosen_length


def loss(batch: LossInputs, settings: Settings) -> tuple[Tensor, dict[str, Tensor]]:
    """Losses (G,) and the parts' metrics; a name that two parts report gets the part's place in front."""
    import torch

    total = torch.zeros_like(batch.logps[:, 0])
    metrics: dict[str, Tensor] = {}
    for i, (part, weight) in enumerate(_parts(settings)):
        losses, own = part.module.loss(dataclasses.replace(batch, state=_own_state(batch, i)), part.settings)
        if declared(part, "normalise") == "tokens":
            losses = losses / _tokens_per_group(batch, part)
        total = total + weight * losses
        metrics[f"loss_{i}"] = losses.detach()
        metrics |= {f"{i}_{name}" if name in metrics else name: value for name, value in own.items()}
    return total, metrics
