"""Judge the policy against a baseline on the same prompts: win rate with intervals, scores, lengths, truncation.

Reads two scored tables of samples on the evaluation prompts and pairs them by prompt id and sample index. The score
named `score` decides who wins; every other score both sides carry is compared beside it, so that the score that was
optimised and the one that judges can be seen to part. Writes

    evaluation.json    the numbers: for each score, and for each side
    outcomes.jsonl     one line per comparison: prompt id, sample, both values of the deciding score, outcome
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline import statistics
from pipeline.build import nearest, setting
from pipeline.records import LENGTH, Completion, Group, UserError
from pipeline.stage import Context, NoRuntime, derive_seed

VERSION = 1
INPUTS = {"groups": "one", "baseline": "one"}
SEEDED = True  # the bootstrap draws
Runtime = NoRuntime


@dataclass(frozen=True)
class Settings:
    """Which score decides, and how its win rate's uncertainty is stated."""

    score: str  # name of the deciding score in Completion.scores
    tie_margin: float = setting(0.0, low=0.0)  # in units of the score: a smaller difference is a tie
    confidence: float = setting(0.95, above=0.5, below=1.0)
    resamples: int = setting(2000, low=100, high=100_000)  # of the bootstrap


@dataclass(frozen=True)
class Pair:
    """The policy's and the baseline's answer to one prompt, same sample index."""

    id: str
    sample: int
    ours: Completion
    theirs: Completion


@dataclass(frozen=True)
class Verdict:
    """The comparison by one score. Rates and bounds in [0, 1]; means and gain in units of the score."""

    wins: int
    ties: int
    losses: int
    win_rate: float
    low: float  # Wilson interval over prompts
    high: float
    bootstrap_low: float  # bootstrap over prompts
    bootstrap_high: float
    mean: float
    baseline_mean: float
    gain: float  # mean - baseline_mean


@dataclass(frozen=True)
class Side:
    """What one side's answers look like."""

    tokens: float  # mean completion length, stop token included
    words: float  # mean number of white-space separated words
    truncated: float  # share cut at the token limit


def run(context: Context) -> None:
    from pipeline import tables

    settings: Settings = context.settings
    groups = {group.id: group for group in tables.read(context.one("groups"))}
    baseline = {group.id: group for group in tables.read(context.one("baseline"))}
    matched, unmatched = match(groups, baseline)
    if not matched:
        raise UserError(
            f"evaluate: no prompt id and sample index of the {len(groups)} groups occurs among the {len(baseline)} of "
            "the baseline. Both must be sampled from the same evaluation prompts."
        )
    names = score_names(matched, settings.score)
    pairs = [pair for pair in matched if scored(pair, settings.score)]
    if not pairs:
        raise UserError(f"evaluate: the score {settings.score!r} is a finite number for neither of any two answers")
    for reason, number in {**unmatched, "without a finite score": len(matched) - len(pairs)}.items():
        context.report.drop(reason, number)
    seed = derive_seed(context.seed, "evaluate", "bootstrap")
    complete = [name for name in names if all(scored(pair, name) for pair in pairs)]
    verdicts = {name: judge(pairs, name, settings, seed) for name in complete}
    ours, theirs = side([p.ours for p in pairs]), side([p.theirs for p in pairs])
    write(context.out, settings, pairs, verdicts, ours, theirs)
    numbers = flat(pairs, settings.score, verdicts, ours, theirs)
    context.report.count(**numbers)
    context.report.metric(0, **numbers)


def match(groups: dict[str, Group], baseline: dict[str, Group]) -> tuple[list[Pair], dict[str, int]]:
    """Pair the completions by (prompt id, sample index), in order of the ids.

    Returns the pairs and how many completions were left over, by reason. Raises UserError where one id stands for two
    different prompts: the tables then come from different data.
    """
    pairs: list[Pair] = []
    common = 0
    for name in sorted(groups.keys() & baseline.keys()):
        ours, theirs = groups[name], baseline[name]
        if ours.messages != theirs.messages:
            raise UserError(
                f"evaluate: prompt {name!r} is {_show(ours)} in the groups and {_show(theirs)} in the baseline; both "
                "must be sampled from the same evaluation prompts."
            )
        other = {c.sample: c for c in theirs.completions}
        found = [Pair(name, c.sample, c, other[c.sample]) for c in ours.completions if c.sample in other]
        pairs += sorted(found, key=lambda pair: pair.sample)
        common += len(found)
    left = sum(len(g.completions) for g in groups.values()) - common
    right = sum(len(g.completions) for g in baseline.values()) - common
    return pairs, {"no answer of the baseline": left, "no answer of the policy": right}


def score_names(pairs: Sequence[Pair], deciding: str) -> list[str]:
    """The scores that every completion carries, the deciding one first. Raises UserError where that one is missing."""
    completions = [c for pair in pairs for c in (pair.ours, pair.theirs)]
    common = set.intersection(*(set(c.scores) for c in completions))
    if deciding not in common:
        seen = {name for c in completions for name in c.scores}
        reason = "is missing from some completions" if deciding in seen else "is on no completion"
        raise UserError(f"evaluate.score: the score {deciding!r} {reason}{nearest(deciding, common)}")
    return [deciding, *sorted(common - {deciding})]


def scored(pair: Pair, name: str) -> bool:
    """Whether the score is a finite number on both sides. A scorer may give none, an unreadable judgement say."""
    return math.isfinite(pair.ours.scores[name]) and math.isfinite(pair.theirs.scores[name])


def judge(pairs: Sequence[Pair], name: str, settings: Settings, seed: int) -> Verdict:
    """Compare by the score `name`, which must be finite everywhere."""
    by_prompt: dict[str, list[float]] = {}
    for pair in pairs:
        by_prompt.setdefault(pair.id, []).append(outcome_of(pair, name, settings))
    prompts = [statistics.mean(one) for one in by_prompt.values()]
    results = [result for one in by_prompt.values() for result in one]
    wins, ties, losses = results.count(1.0), results.count(0.5), results.count(0.0)
    rate = statistics.win_rate(wins, ties, losses)
    low, high = statistics.wilson(rate, len(prompts), settings.confidence)
    drawn_low, drawn_high = statistics.bootstrap(prompts, seed, settings.resamples, settings.confidence)
    ours = statistics.mean([p.ours.scores[name] for p in pairs])
    theirs = statistics.mean([p.theirs.scores[name] for p in pairs])
    return Verdict(
        wins=wins, ties=ties, losses=losses, win_rate=rate, low=low, high=high,
        bootstrap_low=drawn_low, bootstrap_high=drawn_high, mean=ours, baseline_mean=theirs, gain=ours - theirs,
    )


def outcome_of(pair: Pair, name: str, settings: Settings) -> float:
    """The tie margin is in units of the deciding score; by any other score only equal values tie."""
    margin = settings.tie_margin if name == settings.score else 0.0
    return statistics.outcome(pair.ours.scores[name], pair.theirs.scores[name], margin)


def side(completions: Sequence[Completion]) -> Side:
    return Side(
        tokens=statistics.mean([len(c.token_ids) for c in completions]),
        words=statistics.mean([len(c.text.split()) for c in completions]),
        truncated=statistics.mean([c.finish_reason == LENGTH for c in completions]),
    )


def write(
    out: Path, settings: Settings, pairs: Sequence[Pair], verdicts: dict[str, Verdict], ours: Side, theirs: Side
) -> None:
    """evaluation.json and outcomes.jsonl: no times, no paths, so equal results are equal bytes."""
    result: dict[str, Any] = {
        "score": settings.score,
        "confidence": settings.confidence,
        "prompts": len({p.id for p in pairs}),
        "comparisons": len(pairs),
        "scores": {name: asdict(verdict) for name, verdict in verdicts.items()},
        "policy": asdict(ours),
        "baseline": asdict(theirs),
    }
    (out / "evaluation.json").write_text(json.dumps(result, indent=2, allow_nan=False) + "\n")
    with (out / "outcomes.jsonl").open("w") as file:
        for pair in pairs:
            line = {
                "id": pair.id, "sample": pair.sample, "score": pair.ours.scores[settings.score],
                "baseline_score": pair.theirs.scores[settings.score],
                "outcome": outcome_of(pair, settings.score, settings),
            }
            file.write(json.dumps(line) + "\n")


def flat(
    pairs: Sequence[Pair], deciding: str, verdicts: dict[str, Verdict], ours: Side, theirs: Side
) -> dict[str, float]:
    """The numbers for the manifest and the curves."""
    decided = verdicts[deciding]
    further = {f"win_rate_{name}": v.win_rate for name, v in verdicts.items() if name != deciding}
    return {
        "win_rate": decided.win_rate, "win_rate_low": decided.low, "win_rate_high": decided.high,
        "bootstrap_low": decided.bootstrap_low, "bootstrap_high": decided.bootstrap_high,
        "wins": decided.wins, "ties": decided.ties, "losses": decided.losses, **further,
        "score_mean": decided.mean, "baseline_score_mean": decided.baseline_mean,
        "prompts": len({p.id for p in pairs}), "length_mean": ours.tokens, "words_mean": ours.words,
        "truncated_share": ours.truncated, "baseline_length_mean": theirs.tokens,
    }


def _show(group: Group) -> str:
    text = group.messages[-1].content if group.messages else ""
    return repr(text if len(text) <= 60 else text[:57] + "...")
