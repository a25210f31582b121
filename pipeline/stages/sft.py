"""Supervised fine-tuning on demonstrations: cross-entropy of the completion, the prompt is not scored.

Output: `model/`.
"""

from dataclasses import dataclass, field
from typing import Any

from pipeline.config import part_problems
from pipeline.objectives.contract import Objective
from pipeline.stage import Context, Cost, Stage, told
from pipeline.training.settings import TrainerSettings, TrainRuntime, processes


@dataclass(frozen=True)
class Settings:
    objective: dict[str, Any] = field(default_factory=lambda: {"module": "pipeline.objectives.ce"})
    """The loss: a part for single answers."""

    trainer: TrainerSettings = field(default_factory=TrainerSettings)  # one training run

    def check(self) -> list[tuple[str, str]]:
        return part_problems(self.objective, "objective", Objective)


def run(context: Context) -> None:
    from pipeline.training import run

    run.train(context, run.Parts.load(context.settings.objective))


STAGE = Stage(Settings, run, version=2, inputs={"model": "one", "groups": "one"}, seeded=True, seed="sft",
              runtime=TrainRuntime, distributed=True, devices=processes,
              cost=lambda settings: Cost(weights=1, checkpoints=True),
              says=told("{steps:,.0f} steps", "{groups:,.0f} answers"))
