"""best_rest with other candidates: without the next best ones, with a copy of the best that two swapped tokens spoil.

The ablations of MC-PO (Chen et al. 2025): candidates of less quality (figure 2), and the noise test (Table 2), in which
"two tokens of the preferred completion" are switched at random. DPO on the copy alone is swapped=alone.
"""

from dataclasses import dataclass, replace

from pipeline.config import setting
from pipeline.records import STOP, Completion, Group
from pipeline.selection.candidates import TOO_FEW, best_first, generator, scored, scores_of
from pipeline.selection.contract import LISTS, Rule, Selected

NO_SWAP = "no_two_different_tokens"
PLACE = "place"  # the score of lists without one: 0 of the preferred answer, then -1, -2 ...


@dataclass(frozen=True)
class Settings:
    """Which candidates."""

    score: str | None = "reward"
    """Name of the score in Completion.scores; null: the group is a list of the data set, the preferred one first."""

    min_candidates: int = setting(1, low=1)
    """A prompt with fewer candidates is dropped, the spoilt copy not counted."""

    leave_out: int = setting(0, low=0)
    """Candidates left out, the best ones. Nectar's rank 2 in the paper: 1."""

    swapped: str = setting("none", choices=("none", "added", "alone"))
    """The spoilt copy: not made, one candidate more, or the only one. It has the scores of the worst candidate."""


def samples(settings: Settings) -> int:
    return 1 + settings.leave_out + settings.min_candidates


def select(group: Group, settings: Settings, seed: int = 0) -> Selected:
    """See Rule. Reasons: too_few_samples, no_two_different_tokens."""
    found = range(len(group.completions)) if settings.score is None else best_first(scores_of(group, settings.score))
    if len(found) < samples(settings):
        return [], TOO_FEW
    best, *rest = (group.completions[i] for i in found)
    made = [best, *rest[settings.leave_out :]]
    if settings.swapped != "none":
        spoilt = swapped(best, made[-1], seed, group.id)
        if spoilt is None:
            return [], NO_SWAP
        made = [*(made if settings.swapped == "added" else made[:1]), spoilt]
    placed = replace(group, completions=tuple(made))
    return [placed if settings.score else scored(placed, PLACE, map(float, range(0, -len(made), -1)))], ""


def swapped(best: Completion, worst: Completion, seed: int, group_id: str) -> Completion | None:
    """`best` with two different tokens in each other's place, the stop token where it is; None where all are one."""
    ids, rng = list(best.token_ids), generator(seed, "swapped", group_id)
    places = range(len(ids) - (best.finish_reason == STOP))
    if len({ids[i] for i in places}) < 2:
        return None
    i = rng.choice(places)
    j = rng.choice([j for j in places if ids[j] != ids[i]])
    ids[i], ids[j] = ids[j], ids[i]
    return replace(best, text="", token_ids=tuple(ids), scores=worst.scores, ref_logp=None, logprobs=None)


RULE = Rule(Settings, select, gives=LISTS, samples=samples, seeded=lambda settings: settings.swapped != "none",
            decodes=lambda settings: settings.swapped != "none",
            reads=lambda settings: (settings.score,) if settings.score else (),
            ranks=lambda settings: settings.score or PLACE)
