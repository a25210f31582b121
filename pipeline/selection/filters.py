"""Which samples may be compared at all, whatever the selection rule: filters before it and after it.

Before: samples are left out (empty, without a finite score, cut, too short or long, repeated, nearly repeated), and
scores corrected (for length, for being cut). After: groups whose preferred completion is not better than the others by
enough. Pure functions; who counts the drops is the stage.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from pipeline.config import setting
from pipeline.records import LENGTH, Completion, Group
from pipeline.selection.candidates import LOW, TIED, scores_of

RAW = "_raw"  # a score that is corrected is kept under its name with this behind it

Length = Callable[[Completion], int]
Test = Callable[[Completion], bool]


@dataclass(frozen=True)
class Filters:
    """What is left out or corrected. Lengths are in tokens (in words where a completion has no ids yet)."""

    truncated: str = setting("keep", choices=("keep", "drop", "penalise"))
    """Samples cut at the token limit: used as they are, left out, or with `penalty` taken off their score."""

    penalty: float = setting(0.0, low=0.0)
    """In units of the score, for truncated=penalise."""

    min_length: int | None = setting(None, low=1)
    """Shorter samples are left out."""

    max_length: int | None = setting(None, low=1)
    """Longer samples are left out."""

    duplicates: str = setting("drop", choices=("drop", "keep"))
    """Repetitions of an earlier sample of the prompt, token for token: between them a margin loss has no gradient, and
    as negatives they count twice."""

    near_duplicates: float | None = setting(None, above=0.0, high=1.0)
    """Samples whose n-grams overlap an earlier one's by this Jaccard similarity or more are left out; null: off."""

    ngram: int = setting(3, low=1)
    """Words of an n-gram, for near_duplicates."""

    length_debias: str = setting("none", choices=("none", "pooled", "within"))
    """Take out of the scores what their regression on length over the table explains: over all samples (pooled), or
    over the differences between samples of one prompt (within)."""

    ties: str = setting("drop", choices=("drop", "keep"))
    """Completions whose score is the preferred one's, in a group the rule made."""

    min_margin: float | None = setting(None, above=0.0)
    """In units of the score: completions that are not worse than the preferred one by this much leave the group."""

    def check(self) -> list[tuple[str, str]]:
        problems = []
        if self.truncated == "penalise" and self.penalty == 0.0:
            problems.append(("penalty", "0 takes nothing off, expected 0 < x with truncated=penalise"))
        if self.min_length is not None and self.max_length is not None and self.min_length > self.max_length:
            problems.append(("max_length", f"{self.max_length} is below min_length {self.min_length}"))
        return problems


def length_of(completion: Completion) -> int:
    """Tokens of a completion; words where it has no ids."""
    return len(completion.token_ids) or len(completion.text.split())


def clean(group: Group, filters: Filters, scores: Sequence[str]) -> tuple[Group, dict[str, int], str]:
    """The group with the samples that may be compared, how many went for which reason, and "" - or, where fewer than
    two are left, the reason after which they were too few ("" too where there never were two).

    `scores`: names of the scores the rule reads. Raises UserError where a sample lacks one.
    """
    for name in scores:
        scores_of(group, name)
    left = list(group.completions)
    gone: dict[str, int] = {}
    reason = ""
    for name, keep in _tests(filters, scores).items():
        kept = [c for c in left if keep(c)]
        if len(kept) < len(left):
            gone[name] = len(left) - len(kept)
        if len(kept) < 2 <= len(left):
            reason = name
        left = kept
    return replace(group, completions=tuple(left)), gone, reason


def _tests(filters: Filters, scores: Sequence[str]) -> dict[str, Test]:
    """Reason -> whether a sample stays, in the order they are asked; those that remember are made new every time."""
    low, high = filters.min_length or 0, filters.max_length or math.inf
    tests: dict[str, Test] = {"empty": lambda c: bool(c.token_ids or c.text),
                              "score_not_finite": lambda c: all(math.isfinite(c.scores[name]) for name in scores),
                              "truncated": lambda c: filters.truncated != "drop" or c.finish_reason != LENGTH,
                              "too_short": lambda c: length_of(c) >= low, "too_long": lambda c: length_of(c) <= high}
    if filters.duplicates == "drop":
        tests["duplicates"] = _new()
    if filters.near_duplicates is not None:
        tests["near_duplicates"] = _unlike(filters.near_duplicates, filters.ngram)
    return tests


def _new() -> Test:
    seen: set[tuple[int, ...] | str] = set()

    def test(completion: Completion) -> bool:
        content = completion.token_ids or completion.text
        is_new = content not in seen
        seen.add(content)
        return is_new

    return test


def _unlike(limit: float, n: int) -> Test:
    kept: list[frozenset[tuple[str, ...]]] = []

    def test(completion: Completion) -> bool:
        grams = ngrams(completion.text, n)
        is_unlike = all(jaccard(grams, other) < limit for other in kept)
        if is_unlike:
            kept.append(grams)
        return is_unlike

    return test


def ngrams(text: str, n: int) -> frozenset[tuple[str, ...]]:
    """The distinct word n-grams of a text, case ignored; a shorter text is one gram."""
    words = text.lower().split()
    return frozenset(tuple(words[i : i + n]) for i in range(max(1, len(words) - n + 1)))


def jaccard(one: frozenset, other: frozenset) -> float:
    """Shared over all, in [0, 1]; 1 for two empty sets."""
    union = len(one | other)
    return len(one & other) / union if union else 1.0


@dataclass
class Line:
    """Running sums of a least-squares line score = a + slope * length; `within`: of deviations from the prompt's mean.

    Sums are about the running mean (Welford 1962), so long tables lose no digits.
    """

    within: bool
    number: int = 0
    mean_length: float = 0.0
    mean_score: float = 0.0
    squares: float = 0.0
    products: float = 0.0

    def add(self, lengths: Sequence[int], scores: Sequence[float]) -> None:
        """One prompt's samples."""
        middle_length, middle_score = sum(lengths) / len(lengths), sum(scores) / len(scores)
        for length, score in zip(lengths, scores, strict=True):
            self.number += 1
            off = length - self.mean_length
            self.mean_length += off / self.number
            self.mean_score += (score - self.mean_score) / self.number
            if self.within:
                self.squares += (length - middle_length) ** 2
                self.products += (length - middle_length) * (score - middle_score)
            else:
                self.squares += off * (length - self.mean_length)
                self.products += off * (score - self.mean_score)

    @property
    def slope(self) -> float:
        """Score per token; 0 where all lengths are equal."""
        return self.products / self.squares if self.squares > 0.0 else 0.0


def lines(groups: Iterable[Group], filters: Filters, scores: Sequence[str]) -> dict[str, Line]:
    """The regression on length of each score over cleaned groups; empty with length_debias none."""
    if filters.length_debias == "none":
        return {}
    found = {name: Line(filters.length_debias == "within") for name in scores}
    for group in groups:
        if group.completions:
            lengths = [length_of(c) for c in group.completions]
            for name, line in found.items():
                line.add(lengths, scores_of(group, name))
    return found


@dataclass(frozen=True)
class Correction:
    """What is done to the scores the rule reads."""

    filters: Filters
    scores: tuple[str, ...]
    lines: dict[str, Line] = field(default_factory=dict)

    def apply(self, group: Group) -> Group:
        """score - slope * (length - mean length), then the penalty of a cut sample; the score as it was is <name>_raw.

        Nothing is written where nothing is corrected.
        """
        if not self.lines and self.filters.truncated != "penalise":
            return group
        return replace(group, completions=tuple(map(self._completion, group.completions)))

    def _completion(self, completion: Completion) -> Completion:
        scores = dict(completion.scores)
        off = self.filters.penalty if completion.finish_reason == LENGTH else 0.0
        for name in self.scores:
            line = self.lines.get(name)
            explained = line.slope * (length_of(completion) - line.mean_length) if line else 0.0
            scores |= {name: scores[name] - explained - off, name + RAW: scores[name]}
        return replace(completion, scores=scores)


def compared(group: Group, filters: Filters, score: str) -> tuple[Group | None, dict[str, int], str]:
    """A group the rule made without the completions that are not worse than its first by enough, how many went for
    which reason, and "" - or None and the reason, where only the first is left.
    """
    best, *others = scores_of(group, score)
    kept, gone = [group.completions[0]], dict[str, int]()
    for completion, value in zip(group.completions[1:], others, strict=True):
        if filters.ties == "drop" and value == best:
            gone[TIED] = gone.get(TIED, 0) + 1
        elif filters.min_margin is not None and best - value < filters.min_margin:
            gone[LOW] = gone.get(LOW, 0) + 1
        else:
            kept.append(completion)
    if len(kept) < 2:
        return None, gone, LOW if LOW in gone else TIED
    return replace(group, completions=tuple(kept)), gone, ""
