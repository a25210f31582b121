"""A weighted sum of objectives: L = sum_j w_j L_j, each normalised as it would be on its own.

`objective.objectives` lists the parts: {module: pipeline.objectives.dpo, beta: 0.1, weight: 1.0}. Every part sees the
same batch. A part that is divided by tokens on its own is divided by the mean number of tokens of a group here, which
over a global batch is the same.
"""

import dataclasses
import math
from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import Any

from pipeline.config import Part, load_part, part_problems
from pipeline.objectives.contract import Losses, LossInputs, Needs, Objective, Tensor, needs_of
from pipeline.objectives.shared.labelled import signs


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
            problems += part_problems(_spec(spec), f"objectives[{i}]", Objective)
        if not problems:
            found = needs(self)
            if found.batch and found.tokens:
                problems.append(("objectives", "one compares the groups of a batch and another needs token-level "
                                 "log-probs, which are not held for a whole batch; train with one of the two"))
            if any(part.plugin.parameters is not None for part, _ in _parts(self)):
                problems.append(("objectives", "one trains parameters of its own, which a mixture cannot hold"))
        return problems


def _spec(spec: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in spec.items() if key != "weight"}


def _parts(settings: Settings) -> list[tuple[Part[Objective], float]]:
    return [(load_part(_spec(s), f"objective.objectives[{i}]", Objective), float(s.get("weight", 1.0)))
            for i, s in enumerate(settings.objectives)]


def needs(settings: Settings) -> Needs:
    """What its parts need together. Groups of one are taken only if every part that compares takes them."""
    each = [needs_of(part) for part, _ in _parts(settings)]
    found, compare = reduce(or_, each), [n for n in each if n.compares]
    return dataclasses.replace(found, singles=found.singles and all(n.singles for n in compare),
                               lists=found.lists and all(n.lists for n in compare))


def state(settings: Settings) -> dict[str, float]:
    """The parts' states, each under its place in the list."""
    return {f"{i}.{name}": value for i, (part, _) in enumerate(_parts(settings))
            for name, value in part.plugin.state(part.settings).items()}


def _own_state(batch: LossInputs, index: int) -> dict[str, Tensor]:
    start = f"{index}."
    return {name[len(start):]: value for name, value in batch.state.items() if name.startswith(start)}


def update(batch: LossInputs, settings: Settings) -> dict[str, Tensor]:
    """The parts' states after this batch."""
    found: dict[str, Tensor] = {}
    for i, (part, _) in enumerate(_parts(settings)):
        if part.plugin.update is not None:
            own = part.plugin.update(dataclasses.replace(batch, state=_own_state(batch, i)), part.settings)
            found |= {f"{i}.{name}": value for name, value in own.items()}
    return found


def _tokens_per_group(batch: LossInputs, part: Part[Objective]) -> Tensor | float:
    """What a token-normalised part is divided by: on its own, one that compares nothing sees wanted completions 0."""
    needs = needs_of(part)
    if needs.compares or needs.labels:
        return batch.lengths.sum() / len(batch.lengths) if batch.mean_length is None else batch.mean_length
    chosen = batch.lengths[:, 0] * signs(batch)[0][:, 0]
    mean = chosen.sum() / len(chosen) if batch.mean_wanted_length is None else batch.mean_wanted_length
    return max(mean, 1e-9)  # a batch of nothing wanted has nothing to divide


def loss(batch: LossInputs, settings: Settings) -> Losses:
    """Losses (G,) and the parts' metrics; a name that two parts report gets the part's place in front."""
    total = batch.logps.new_zeros(len(batch.logps))
    metrics: dict[str, Tensor] = {}
    for i, (part, weight) in enumerate(_parts(settings)):
        losses, own = part.plugin.loss(dataclasses.replace(batch, state=_own_state(batch, i)), part.settings)
        if part.of(part.plugin.normalise) == "tokens":
            losses = losses / _tokens_per_group(batch, part)
        total = total + weight * losses
        metrics[f"loss_{i}"] = losses.detach()
        metrics |= {f"{i}_{name}" if name in metrics else name: value for name, value in own.items()}
    return total, metrics


OBJECTIVE = Objective(Settings, loss, needs, state=state, update=update)
