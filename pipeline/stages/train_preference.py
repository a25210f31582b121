"""Preference training with any objective, and negatives drawn at every step where the recipe has them.

Inputs: `model` to start from, `groups` to train on, `reference` (the groups with reference log-probs, where the
objective needs them), `optimizer` (state of an earlier train_preference to go on from). Output: `model/`, and
`optimizer/` with keep_optimizer.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pipeline.build import load_part, part_problems
from pipeline.stage import Context
from pipeline.training.settings import TrainerSettings, TrainRuntime

VERSION = 1
INPUTS = {"model": "one", "groups": "one", "reference": "optional", "optimizer": "optional"}
SEEDED = True
Runtime = TrainRuntime


@dataclass(frozen=True)
class Settings:
    objective: dict[str, Any]
    negatives: dict[str, Any] | None = None  # module null (or no block) = train on the groups as they are
    trainer: TrainerSettings = field(default_factory=TrainerSettings)
    keep_optimizer: bool = False

    @property
    def drawn(self) -> dict[str, Any] | None:
        """The negatives part, None where nothing is drawn."""
        return self.negatives if self.negatives and self.negatives.get("module") is not None else None

    def check(self) -> list[tuple[str, str]]:
        negatives = part_problems(self.drawn, "negatives") if self.drawn is not None else []
        return [*part_problems(self.objective, "objective"), *negatives]


def wanted(settings: Settings) -> set[str]:
    """The optional inputs these settings have a use for."""
    needs = load_part(settings.objective, "objective").module.NEEDS
    return {"optimizer"} | ({"reference"} if "reference" in needs else set())


def run(context: Context) -> None:
    from pipeline.training import run_policy

    settings = context.settings
    run_policy.train(context, settings.objective, settings.drawn, settings.keep_optimizer)
