"""Samples as they were drawn: the first two, whatever their rank, and the others as their opponents.

    y, y', y''_1 .. y''_k

for updates whose theory wants samples of a policy and not the best and the worst of many (online IPO, EGPO, Nash-MD,
INPO). The better of the two stands first, which those losses do not mind; the opponents keep the order they were drawn
in. They may come from another model than the two, such as EGPO's half step: then without its samples of the pair's
numbers, which were drawn with the pair's random numbers.
"""

from dataclasses import dataclass, replace

from pipeline.config import setting
from pipeline.records import Group
from pipeline.selection.candidates import TOO_FEW, ends, paired, scores_of
from pipeline.selection.contract import PAIRS, Rule, Selected


@dataclass(frozen=True)
class Settings:
    """Which score compares, and who the opponents are."""

    score: str = "reward"
    """Name of the score in Completion.scores."""

    opponents: int | None = setting(None, low=0)
    """How many; null: all there are, from the table beside at least one. 0: a pair."""

    opponents_from: str = setting("same", choices=("same", "beside"))
    """The prompt's further samples, or the samples of the table beside."""

    def check(self) -> list[tuple[str, str]]:
        if self.opponents == 0 and self.opponents_from == "beside":
            return [("opponents", "0 leaves the second table unread, expected more or opponents_from=same")]
        return []


def select(group: Group, settings: Settings, seed: int = 0, other: Group | None = None) -> Selected:
    """See Rule. other: the prompt's samples of the table beside. Reasons: too_few_samples."""
    scores_of(group, settings.score)  # a score nobody has is said, even where there are too few samples
    drawn = sorted(group.completions, key=lambda completion: completion.sample)
    own = {completion.sample for completion in drawn[:2]}
    others = drawn if other is None else sorted(other.completions, key=lambda completion: completion.sample)
    rivals = [completion for completion in others if completion.sample not in own]
    if len(drawn) < 2 or len(rivals) < _fewest(settings):
        return [], TOO_FEW
    pair = replace(group, completions=tuple(drawn[:2]))
    pair = paired(pair, *ends(scores_of(pair, settings.score)))
    return [replace(pair, completions=pair.completions + tuple(rivals[: settings.opponents]))], ""


def _fewest(settings: Settings) -> int:
    return int(settings.opponents_from == "beside") if settings.opponents is None else settings.opponents


RULE = Rule(Settings, select, gives=lambda s: PAIRS if s.opponents == 0 else "drawn", samples=lambda s: 2 + _fewest(s),
            draws=True, beside=lambda s: s.opponents_from == "beside")
