"""Judge the policy against a baseline on the same prompts: win rates with intervals, lengths, categories.

Reads two tables of samples of the same prompts and the side tables with their scores, the baseline being any: the SFT
model's answers, the iteration before's, outputs somebody else gave. They are paired by prompt id and sample index. Who
wins is decided by the score named `score`, or by `judgments`: preferences of a judge read from a file, each used for
the very answers it was given on. Every other score both sides carry is compared beside it, so that the score that was
optimised and the one that judges can be seen to part. Rates and means are over prompts, each the mean of its samples.
Writes

    evaluation.json    the numbers: by each score, controlled for length, by category, and of each side's answers
    outcomes.jsonl     one line per comparison: prompt id, category, sample, both values of the score, outcome, lengths
    judged.jsonl       where a judge was asked: one line per question, with its outcome or why there is none
"""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pipeline import statistics
from pipeline.config import load_part, part_problems, setting
from pipeline.errors import UserError
from pipeline.evaluation import comparison
from pipeline.evaluation.comparison import Pair, Verdict
from pipeline.formats.contract import Judgments
from pipeline.records import Group
from pipeline.rewards.contract import Desk, Limits, Scorer
from pipeline.stage import Context, Stage, derive_seed, told

JUDGE, ASKED = "judgments", "judge"  # the name in evaluation.json of what decided where no score did


@dataclass(frozen=True)
class Settings:
    """What decides, and how the win rate's uncertainty is stated."""

    score: str  # name of the deciding score in Completion.scores
    tie_margin: float = setting(0.0, low=0.0)  # in units of the score: a smaller difference is a tie
    confidence: float = setting(0.95, above=0.5, below=1.0)  # of the intervals, Wilson and bootstrap
    resamples: int = setting(2000, low=100, high=100_000)  # of the bootstrap
    judgments: dict[str, Any] | None = None  # a part that reads preferences from a file; they decide, not the score
    difficulties: str | None = None  # JSON file {prompt id: how hard}, for the length-controlled win rate
    # Best-of-N: of the policy's answers to a prompt only the one with the highest such score is judged; null: all are
    best_by: str | None = setting(None, added=True)
    left_out: int = setting(0, low=0, added=True)  # its first answers, not among the N: draws the baseline has, too
    # a scorer that compares the answers of a group (pipeline.rewards.judge); it decides, not the score
    judge: dict[str, Any] | None = setting(None, added=True)  # noqa: RUF009

    def check(self) -> list[tuple[str, str]]:
        problems = part_problems(self.judgments, "judgments", Judgments) if self.judgments else []
        problems += _judge_problems(self.judge) if self.judge else []
        if self.judge and self.judgments:
            problems.append(("judge", "together with judgments: one of the two decides, set the other to null"))
        if self.difficulties is not None and not Path(self.difficulties).is_file():
            problems.append(("difficulties", f"{self.difficulties} is not a file, expected JSON {{prompt id: number}}"))
        return problems


def _judge_problems(spec: dict[str, Any]) -> list[tuple[str, str]]:
    problems = part_problems(spec, "judge", Scorer)
    if not problems:
        part = load_part(spec, "judge", Scorer)
        if part.of(part.plugin.needs_model) or part.of(part.plugin.needs):
            problems.append(("judge.module", f"{part.name} runs a model; score with it: evaluation.scoring.also"))
        if spec.get("scheme") == "champion":
            problems.append(("judge.scheme", "champion keeps one of two that tie, expected all or baseline"))
    return problems


@dataclass(frozen=True)
class Runtime:
    """How a judge is asked."""

    judge: Limits = field(default_factory=Limits)  # how servers are asked
    answers: str = "judge"  # folder in which its answers are kept for all runs


@dataclass(frozen=True)
class Comparison:
    """The pairs that could be decided, and what was decided."""

    pairs: list[Pair]
    outcomes: list[float]
    decided_by: str
    undecided: dict[str, int]  # pairs by why they could not be
    benchmark: dict[str, Any] | None = None  # what a benchmark's own tools make of its judge's verdicts


def check(settings: Settings, runtime: Runtime) -> list[str]:
    if settings.judge is None:
        return []
    part = load_part(settings.judge, "judge", Scorer)
    return [f"evaluation.judge.{key}: {problem}" for key, problem in part.plugin.check(part.settings, runtime.judge)]


def files(settings: Settings, runtime: Runtime) -> list[Path]:
    """The judgments and difficulties it reads, and what its judge does."""
    found = [Path(settings.difficulties)] if settings.difficulties else []
    if settings.judgments:
        part = load_part(settings.judgments, "judgments", Judgments)
        found += part.plugin.files(part.settings)
    if settings.judge:
        scorer = load_part(settings.judge, "judge", Scorer)
        found += scorer.plugin.files(scorer.settings)
    return found


def run(context: Context) -> None:
    from pipeline import columns

    settings: Settings = context.settings
    groups = {group.id: best_of(group, settings) for group in columns.scored(context)}
    baseline = {group.id: group for group in columns.scored(context, "baseline", "baseline_scores")}
    matched, unmatched = comparison.match(groups, baseline)
    if not matched:
        raise UserError(f"evaluate: no prompt id and sample index of the {len(groups)} groups occurs among the "
                        f"{len(baseline)} of the baseline. Both must be sampled from the same evaluation prompts.")
    seed = derive_seed(context.seed, "evaluate", "bootstrap")
    if settings.judge is not None:
        decided = by_judge(matched, groups, context)
    else:
        decided = by_judgments(matched, groups, settings, seed) if settings.judgments else by_score(matched, settings)
    for why, number in {**unmatched, **decided.undecided}.items():
        context.report.drop(why, number)
    result = summary(decided, settings, seed)
    write(context.out, decided, result)
    numbers = flat(result)
    context.report.count(**numbers)
    context.report.metric(0, **numbers)


def best_of(group: Group, settings: Settings) -> Group:
    """The group with the answer that `best_by` ranks highest alone. Raises UserError where it ranks none."""
    if settings.best_by is None:
        return group
    name = settings.best_by
    ranked = [c for c in group.completions
              if c.sample >= settings.left_out and math.isfinite(c.scores.get(name, math.nan))]
    if not ranked:
        raise UserError(f"evaluate.best_by: prompt {group.id!r} has no answer with a finite score {name!r} after the "
                        f"first {settings.left_out}")
    return replace(group, completions=(max(ranked, key=lambda c: c.scores[name]),))


def summary(decided: Comparison, settings: Settings, seed: int) -> dict[str, Any]:
    """The content of evaluation.json."""
    from pipeline.evaluation import length_control

    pairs, ids = decided.pairs, [pair.id for pair in decided.pairs]

    def judged(names: Sequence[str], outcomes: Sequence[float]) -> Verdict:
        return comparison.judge(names, outcomes, seed, settings.resamples, settings.confidence)

    verdicts = {decided.decided_by: judged(ids, decided.outcomes)} | {
        name: judged(ids, [statistics.outcome(p.ours.scores[name], p.theirs.scores[name]) for p in pairs])
        for name in comparison.score_names(pairs, None)
        if name != decided.decided_by and all(comparison.scored(pair, name) for pair in pairs)}
    controlled = length_control.control(ids, decided.outcomes, [pair.longer_by for pair in pairs], seed,
                                        settings.resamples, settings.confidence, _difficulties(settings, ids))
    return {
        "schema": 3, "score": decided.decided_by, "confidence": settings.confidence, "prompts": len(set(ids)),
        "comparisons": len(pairs),
        "scores": {name: {**asdict(verdict), **means(pairs, name)} for name, verdict in verdicts.items()},
        "length_controlled": asdict(controlled), "benchmark": decided.benchmark,
        "categories": {name: asdict(v) for name, v in comparison.by_category(pairs, decided.outcomes, judged).items()},
        "policy": asdict(comparison.side({id(p.ours): p.ours for p in pairs}.values())),
        "baseline": asdict(comparison.side({id(p.theirs): p.theirs for p in pairs}.values()))}


def by_score(matched: Sequence[Pair], settings: Settings) -> Comparison:
    """Decide by the score. Raises UserError where it is missing or nowhere a finite number."""
    comparison.score_names(matched, settings.score)
    pairs = [pair for pair in matched if comparison.scored(pair, settings.score)]
    if not pairs:
        raise UserError(f"evaluate: the score {settings.score!r} is a finite number for neither of any two answers")
    name, margin = settings.score, settings.tie_margin
    return Comparison(pairs, [statistics.outcome(p.ours.scores[name], p.theirs.scores[name], margin) for p in pairs],
                      name, {"without a finite score": len(matched) - len(pairs)})


def by_judgments(matched: Sequence[Pair], groups: dict[str, Group], settings: Settings, seed: int) -> Comparison:
    """Decide by a judge's preferences. Raises UserError where none of them was given on these answers."""
    part = load_part(settings.judgments, "judgments", Judgments)
    asked = [(groups[pair.id], pair.ours, pair.theirs) for pair in matched]
    found, undecided = part.plugin.preferences(asked, part.settings)
    known = [(pair, value) for pair, value in zip(matched, found, strict=True) if value is not None]
    if not known:
        why = ", ".join(f"{number} {reason}" for reason, number in undecided.items() if number)
        raise UserError(f"evaluation.judgments: none of the {len(matched)} comparisons has a verdict ({why}); judge "
                        "the answers that were exported from this run, against this baseline")
    published = part.plugin.published
    benchmark = None if published is None else published(
        asked, part.settings, seed, settings.resamples, settings.confidence)
    return Comparison([pair for pair, _ in known], [value for _, value in known], JUDGE, undecided, benchmark)


def by_judge(matched: Sequence[Pair], groups: dict[str, Group], context: Context) -> Comparison:
    """Decide by asking a judge, who is shown the two answers as a group. Raises UserError where none has a verdict."""
    part, runtime = load_part(context.settings.judge, "judge", Scorer), context.runtime
    desk = Desk(runtime.judge, Path(runtime.answers), context.report.run)
    score = part.plugin.scorer(part.settings, **({"desk": desk} if part.plugin.desk else {}))
    asked = [replace(groups[pair.id], completions=(pair.theirs, pair.ours)) for pair in matched]
    values = [[float(value) for value in of_pair if not isinstance(value, Mapping)] for of_pair in score(asked)]
    if desk.rows:
        (context.out / "judged.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in desk.rows))
    reasons = Counter(row["why"] for row in desk.rows if row["why"])
    context.report.count(orders_disagree=sum(row.get("agree") is False for row in desk.rows),
                         **{f"judge: {why}": number for why, number in reasons.items()})
    known = [(pair, statistics.outcome(ours, theirs, context.settings.tie_margin))
             for pair, (theirs, ours) in zip(matched, values, strict=True)
             if math.isfinite(ours) and math.isfinite(theirs)]
    if not known:
        why = "; ".join(f"{number} times {reason}" for reason, number in reasons.most_common(3))
        raise UserError(f"evaluation.judge: none of the {len(matched)} comparisons has a verdict ({why})")
    return Comparison([pair for pair, _ in known], [value for _, value in known], ASKED,
                      {"without a verdict": len(matched) - len(known)})


def means(pairs: Sequence[Pair], name: str) -> dict[str, float | None]:
    """Mean scores over prompts of both sides and their difference, in the score's units; None where a judge decided."""
    if name not in pairs[0].ours.scores:
        return {"mean": None, "baseline_mean": None, "gain": None}
    ids = [p.id for p in pairs]
    ours, theirs = (statistics.mean(list(comparison.by_prompt(ids, values).values())) for values in (
        [p.ours.scores[name] for p in pairs], [p.theirs.scores[name] for p in pairs]))
    return {"mean": ours, "baseline_mean": theirs, "gain": ours - theirs}


def _difficulties(settings: Settings, ids: Sequence[str]) -> dict[str, float] | None:
    if settings.difficulties is None:
        return None
    try:
        found = {str(name): float(value) for name, value in json.loads(Path(settings.difficulties).read_text()).items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"evaluation.difficulties: {settings.difficulties} is not JSON {{prompt id: number}} ({error})"
                        ) from None
    if missing := sorted(set(ids) - found.keys()):
        raise UserError(f"evaluation.difficulties: {settings.difficulties} has no number for {len(missing)} of the "
                        f"{len(set(ids))} prompts, first {missing[0]!r}")
    return found


def write(out: Path, decided: Comparison, result: dict[str, Any]) -> None:
    """evaluation.json and outcomes.jsonl: no times, no paths, so equal results are equal bytes."""
    (out / "evaluation.json").write_text(json.dumps(result, indent=2, allow_nan=False) + "\n")
    with (out / "outcomes.jsonl").open("w") as file:
        for pair, outcome in zip(decided.pairs, decided.outcomes, strict=True):
            line = {"id": pair.id, "category": pair.category, "sample": pair.sample,
                    "score": pair.ours.scores.get(decided.decided_by),
                    "baseline_score": pair.theirs.scores.get(decided.decided_by), "outcome": outcome,
                    "characters": len(pair.ours.text), "baseline_characters": len(pair.theirs.text)}
            file.write(json.dumps(line) + "\n")


def flat(result: dict[str, Any]) -> dict[str, float]:
    """The numbers for the manifest and the curves."""
    decided, controlled = result["scores"][result["score"]], result["length_controlled"]
    ours, theirs = result["policy"], result["baseline"]
    numbers = {"win_rate": decided["win_rate"], "win_rate_low": decided["low"], "win_rate_high": decided["high"],
               "bootstrap_low": decided["bootstrap_low"], "bootstrap_high": decided["bootstrap_high"],
               "wins": decided["wins"], "ties": decided["ties"], "losses": decided["losses"],
               **{f"win_rate_{name}": v["win_rate"] for name, v in result["scores"].items() if name != result["score"]},
               "length_controlled_win_rate": controlled["win_rate"], "length_controlled_low": controlled["low"],
               "length_controlled_high": controlled["high"], "prompts": result["prompts"],
               "length_mean": ours["tokens"], "words_mean": ours["words"], "truncated_share": ours["truncated"],
               "baseline_length_mean": theirs["tokens"]}
    if result["benchmark"] is not None:
        numbers |= {f"benchmark_{key}": result["benchmark"][key] for key in ("win_rate", "low", "high")}
    if decided["mean"] is not None:
        numbers |= {"score_mean": decided["mean"], "baseline_score_mean": decided["baseline_mean"]}
    return numbers


# seeded: the bootstrap draws
STAGE = Stage(Settings, run, version=6,
              inputs={"groups": "one", "scores": "optional", "baseline": "one", "baseline_scores": "optional"},
              seeded=True, runtime=Runtime, files=files, check=check,
              says=told("win rate {win_rate:.1%} ({win_rate_low:.1%} to {win_rate_high:.1%})",
                        "length-controlled {length_controlled_win_rate:.1%}", "length {length_mean:.1f}"))
