"""Two policies on the same prompts: who wins, how often, how surely, in which category.

A comparison's outcome is in [0, 1]: 1 a win of the policy, 0.5 a tie, 0 a loss, anything between a judge's probability.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from pipeline import statistics
from pipeline.errors import UserError, nearest
from pipeline.records import LENGTH, Completion, Group, Message


@dataclass(frozen=True)
class Pair:
    """The policy's and the baseline's answer to one prompt."""

    id: str
    category: str  # the data set's name for this kind of prompt
    sample: int  # of the policy
    ours: Completion
    theirs: Completion

    @property
    def longer_by(self) -> int:
        """Characters of the policy's answer less those of the baseline's."""
        return len(self.ours.text) - len(self.theirs.text)


@dataclass(frozen=True)
class Verdict:
    """What comparisons say. Rates and bounds in [0, 1], all over prompts: each counts once, whatever its samples."""

    prompts: int
    wins: int  # comparisons, as are ties and losses
    ties: int
    losses: int
    win_rate: float  # mean over prompts of a prompt's mean outcome; (W + T/2) / (W + T + L) at equal numbers of samples
    low: float  # Wilson
    high: float
    bootstrap_low: float
    bootstrap_high: float
    standard_error: float  # of the mean over prompts


@dataclass(frozen=True)
class Side:
    """What one side's answers look like."""

    tokens: float  # mean completion length, stop token included
    words: float  # mean number of white-space separated words
    characters: float
    truncated: float  # share cut at the token limit


def match(groups: dict[str, Group], baseline: dict[str, Group]) -> tuple[list[Pair], dict[str, int]]:
    """Pair the completions by (prompt id, sample index), in order of the ids.

    Where one side has a single answer to a prompt (greedy, or given outputs) it meets every answer of the other side.
    Returns the pairs and how many completions were left over, by reason. Raises UserError where one id stands for two
    different prompts: the tables then come from different data.
    """
    pairs: list[Pair] = []
    left = sum(len(groups[name].completions) for name in groups.keys() - baseline.keys())
    right = sum(len(baseline[name].completions) for name in baseline.keys() - groups.keys())
    for name in sorted(groups.keys() & baseline.keys()):
        ours, theirs = groups[name], baseline[name]
        if _asked(ours) != _asked(theirs):
            raise UserError(f"evaluate: prompt {name!r} is {_show(ours)} in the groups and {_show(theirs)} in the "
                            "baseline; both must be sampled from the same evaluation prompts.")
        found = _paired(ours, theirs)
        pairs += found
        left += len(ours.completions) - len({id(p.ours) for p in found})
        right += len(theirs.completions) - len({id(p.theirs) for p in found})
    return pairs, {"no answer of the baseline": left, "no answer of the policy": right}


def _asked(group: Group) -> list[Message]:
    """What was asked. In a second turn each side has its own first answer in between."""
    return [message for message in group.messages if message.role != "assistant"]


def _paired(ours: Group, theirs: Group) -> list[Pair]:
    a = sorted(ours.completions, key=lambda c: c.sample)
    b = sorted(theirs.completions, key=lambda c: c.sample)
    if len(a) == 1 or len(b) == 1:
        met = [(x, y) for x in a for y in b]
    else:
        other = {c.sample: c for c in b}
        met = [(c, other[c.sample]) for c in a if c.sample in other]
    return [Pair(ours.id, ours.dataset, x.sample, x, y) for x, y in met]


def score_names(pairs: Sequence[Pair], deciding: str | None) -> list[str]:
    """The scores that every completion carries, the deciding one first. Raises UserError where that one is missing."""
    completions = [c for pair in pairs for c in (pair.ours, pair.theirs)]
    common = set.intersection(*(set(c.scores) for c in completions))
    if deciding is None:
        return sorted(common)
    if deciding not in common:
        seen = {name for c in completions for name in c.scores}
        reason = "is missing from some completions" if deciding in seen else "is on no completion"
        raise UserError(f"evaluate.score: the score {deciding!r} {reason}{nearest(deciding, common)}")
    return [deciding, *sorted(common - {deciding})]


def scored(pair: Pair, name: str) -> bool:
    """Whether the score is a finite number on both sides. A scorer may give none, an unreadable judgement say."""
    return math.isfinite(pair.ours.scores[name]) and math.isfinite(pair.theirs.scores[name])


def judge(ids: Sequence[str], outcomes: Sequence[float], seed: int, resamples: int, confidence: float) -> Verdict:
    """Sum up comparisons: the prompt's id and the outcome of each. Raises ValueError where there are none."""
    prompts = list(by_prompt(ids, outcomes).values())
    rate = statistics.mean(prompts)
    low, high = statistics.wilson(rate, len(prompts), confidence)
    drawn_low, drawn_high = statistics.bootstrap(prompts, seed, resamples, confidence)
    return Verdict(prompts=len(prompts), wins=sum(o > 0.5 for o in outcomes), ties=sum(o == 0.5 for o in outcomes),
                   losses=sum(o < 0.5 for o in outcomes), win_rate=rate, low=low, high=high, bootstrap_low=drawn_low,
                   bootstrap_high=drawn_high, standard_error=statistics.standard_error(prompts))


def by_prompt(ids: Sequence[str], values: Sequence[float]) -> dict[str, float]:
    """{prompt id: mean of its samples' values}, in the order of the first sample of each."""
    found: dict[str, list[float]] = {}
    for name, value in zip(ids, values, strict=True):
        found.setdefault(name, []).append(value)
    return {name: statistics.mean(one) for name, one in found.items()}


def by_category(pairs: Sequence[Pair], outcomes: Sequence[float],
                judged: Callable[[list[str], list[float]], Verdict]) -> dict[str, Verdict]:
    """The verdict of each category, by name; nothing where there are fewer than two."""
    found: dict[str, tuple[list[str], list[float]]] = {}
    for pair, result in zip(pairs, outcomes, strict=True):
        ids, values = found.setdefault(pair.category, ([], []))
        ids.append(pair.id)
        values.append(result)
    return {name: judged(*found[name]) for name in sorted(found)} if len(found) > 1 else {}


def side(completions: Iterable[Completion]) -> Side:
    """Mean lengths and the truncated share. Raises ValueError for no completions."""
    every = list(completions)
    return Side(tokens=statistics.mean([len(c.token_ids) for c in every]),
                words=statistics.mean([len(c.text.split()) for c in every]),
                characters=statistics.mean([len(c.text) for c in every]),
                truncated=statistics.mean([c.finish_reason == LENGTH for c in every]))


def _show(group: Group) -> str:
    text = group.messages[-1].content if group.messages else ""
    return repr(text if len(text) <= 60 else text[:57] + "...")
