"""Several runs side by side: arms (runs that differ in nothing but their seeds), rates over seeds, paired tests.

Prompts are the units: an interval says what other prompts would show of these very models. An arm's seeds are pooled
within each prompt, so a prompt counts once however many seeds judged it; the deviation over seeds, beside it, says what
another training would. docs/sweeps.md has the reason.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline import statistics
from pipeline.stage import derive_seed

_RESAMPLES = 2000  # as evaluation.resamples is by default
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Judged:
    """One evaluation of one run."""

    run: str
    seed: str
    iteration: int
    key: str  # of its artifact, which the outcomes are from
    numbers: dict[str, float]  # by the names of the table's columns
    origins: dict[str, str]  # of each of them, "stage/key"
    outcomes: dict[str, float]  # prompt id -> mean outcome against the baseline, in [0, 1]
    judge: tuple[str, str]  # the score that decided, and the digest of the baseline's answers


@dataclass(frozen=True)
class Rate:
    """A mean in [0, 1] or a difference of two in [-1, 1]. Bootstrap over prompts, seeds pooled."""

    mean: float
    low: float
    high: float
    prompts: int
    sd: float  # over seeds, n - 1; 0 of one seed
    seeds: tuple[str, ...]
    by_seed: tuple[float, ...]
    p_value: float | None = None  # of a difference: two-sided sign-flip test over prompts
    adjusted: float | None = None  # the same, Holm's, for all differences of one table

    @property
    def clear(self) -> int:
        """1 or -1 where the whole interval is above or below 0, else 0."""
        return (self.low > 0) - (self.high < 0)


def pooled(evaluations: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Prompt id -> the mean of its outcome over the seeds that judged it."""
    every = sorted({name for one in evaluations for name in one})
    return {name: statistics.mean([one[name] for one in evaluations if name in one]) for name in every}


def rate(judged: Sequence[Judged]) -> Rate:
    """The win rate of one arm in one iteration. Raises ValueError where nothing was judged."""
    return _rate([one.outcomes for one in judged], tuple(one.seed for one in judged))


def difference(ours: Sequence[Judged], theirs: Sequence[Judged]) -> Rate | str:
    """Our win rate less theirs on the same prompts, over the seeds that both have; why there is none as a text."""
    mine, other = ({one.seed: one for one in side} for side in (ours, theirs))
    seeds = [seed for seed in mine if seed in other]
    if not seeds:
        return "no seed in common"
    if any(mine[seed].judge != other[seed].judge for seed in seeds):
        return "judged by another score or against other answers"
    shared = [sorted(mine[seed].outcomes.keys() & other[seed].outcomes.keys()) for seed in seeds]
    if not all(shared):
        return "no prompt in common"
    moved = [{name: mine[seed].outcomes[name] - other[seed].outcomes[name] for name in names}
             for seed, names in zip(seeds, shared, strict=True)]
    found = _rate(moved, tuple(seeds))
    p_value = statistics.sign_flip(list(pooled(moved).values()), derive_seed(0, "compare", "flips"), _RESAMPLES)
    return Rate(**{**vars(found), "p_value": p_value})


def holm(found: Sequence[Rate]) -> list[Rate]:
    """The differences with p-values adjusted for their number (Holm 1979), in the same order."""
    order = sorted(range(len(found)), key=lambda i: found[i].p_value or 0.0)
    adjusted, largest = dict[int, float](), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(found) - rank) * (found[i].p_value or 0.0)))
        adjusted[i] = largest
    return [Rate(**{**vars(one), "adjusted": adjusted[i]}) for i, one in enumerate(found)]


def _rate(by_seed: Sequence[Mapping[str, float]], seeds: tuple[str, ...]) -> Rate:
    values = list(pooled(by_seed).values())
    low, high = statistics.bootstrap(values, derive_seed(0, "compare", "bootstrap"), _RESAMPLES, CONFIDENCE)
    means = tuple(statistics.mean(list(one.values())) for one in by_seed)
    return Rate(statistics.mean(values), low, high, len(values), statistics.spread(means)[1], seeds, means)
