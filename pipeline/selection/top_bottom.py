"""k x k pairs per prompt: each of the k best samples against each of the k worst."""

from dataclasses import dataclass

from pipeline.config import setting
from pipeline.records import Group
from pipeline.selection.candidates import TOO_FEW, best_first, numbered, paired, scores_of
from pipeline.selection.contract import Rule, Selected


@dataclass(frozen=True)
class Settings:
    """Which score ranks the samples, and how many count as good and as bad."""

    score: str = "reward"
    """Name of the score in Completion.scores."""

    k: int = setting(2, low=1)
    """Samples on each side; a prompt needs 2 k of them. 1: best against worst."""


def samples(settings: Settings) -> int:
    return 2 * settings.k


def select(group: Group, settings: Settings, seed: int = 0) -> Selected:
    """See Rule. Pairs from the best chosen on, the worst rejected first. Reasons: too_few_samples."""
    values = scores_of(group, settings.score)
    if len(values) < samples(settings):
        return [], TOO_FEW
    order = best_first(values)
    good, bad = order[: settings.k], order[: -settings.k - 1 : -1]
    return numbered([paired(group, chosen, rejected) for chosen in good for rejected in bad]), ""


RULE = Rule(Settings, select, samples=samples)
