"""Score with a reward model that has several outputs (helpfulness, correctness ...): the sum with a weight for each.

Of HelpSteer's kind (Wang et al. 2023): a sequence classifier with a linear head. ArmoRM's gate is code that comes with
the model, which is never run here; a folder that has its outputs as a plain head takes weights of your own.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.config import setting
from pipeline.errors import nearest
from pipeline.files import parsed
from pipeline.lm.settings import THIS_MACHINE, ModelRuntime
from pipeline.rewards.contract import ScoreGroups, Scorer
from pipeline.rewards.model import open_model, score_groups
from pipeline.rewards.shown import folder_files, folder_problems, head_problems, small_files


@dataclass(frozen=True)
class Settings:
    """Which model, and what its outputs count."""

    path: str
    """A folder with a trained reward model."""

    weights: dict[str, float] = field(default_factory=dict)
    """Output -> weight, by the names of config.json's id2label or by number: {helpfulness: 0.7, 4: -0.3}; others: 0."""

    precision: str = setting("bfloat16", choices=("bfloat16", "float32"))
    """Of the matrix products."""

    def check(self) -> list[tuple[str, str]]:
        if problems := folder_problems("path", self.path, "a reward model"):
            return problems
        if not any(self.weights.values()):
            return [("weights", f"expected a weight for some of {', '.join(names(self.path))}")]
        known = {*names(self.path), *map(str, range(len(names(self.path))))}
        return [(f"weights.{name}", f"no such output{nearest(name, known)}") for name in self.weights
                if name not in known]


def names(path: str) -> list[str]:
    """The outputs as config.json names them, in order; those it does not name by number."""
    config = parsed((small_files(path) / "config.json").read_bytes())
    told = config.get("id2label") or {}
    number = len(told) or config.get("num_labels") or 2  # transformers' own default
    return [str(told.get(str(i), i)) for i in range(number)]


def mix(path: str, weights: Mapping[str, float]) -> list[float]:
    """A weight for each output."""
    return [weights.get(name, weights.get(str(i), 0.0)) for i, name in enumerate(names(path))]


def scorer(settings: Settings, *, model: Path | None = None, runtime: ModelRuntime = THIS_MACHINE) -> ScoreGroups:
    """See Scorer and pipeline.rewards.model, whose errors these are."""
    encoder, net = open_model(settings.path, None, runtime, settings.precision,
                              mix(settings.path, settings.weights))
    return lambda groups: score_groups(encoder, net, groups, settings.precision, runtime)


SCORER = Scorer(Settings, scorer, files=lambda s: folder_files(s.path), holds_model=True,
                check=lambda s, limits: head_problems("path", s.path, len(names(s.path))))
