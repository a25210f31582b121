"""What a run did and what it cost, iteration by iteration: from the manifests of its steps to a table.

Pure functions: the flow hands over one `StepRecord` per step and writes `report.md` and `report.json`, and prints
`cells(...)` as its closing table. A number that no step was there to report stays empty, a mean over nothing is "none";
nothing is guessed.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from pipeline import markdown
from pipeline.markdown import LEFT, RIGHT

SCHEMA = 1  # of report.json
NONE = "none"  # of numbers: there was nothing to take them of
_SAMPLING = ("generate", "score")  # the stages between a policy and the groups made from its samples


@dataclass(frozen=True)
class StepRecord:
    """One step of a run and what its artifact's manifest says."""

    step: str  # its name in the run: "train[2]"
    kind: str  # its stage: "train_preference"
    iteration: int  # 0 = before the loop
    inputs: tuple[str, ...] = ()  # names of the steps it reads from
    settings: dict[str, Any] = field(default_factory=dict)
    counts: dict[str, float] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)  # rows by reason
    seconds: float = 0.0  # when it was computed; a cached step took none now
    peak_memory_mb: float = 0.0
    cached: bool = False
    key: str = ""


@dataclass(frozen=True)
class IterationRow:
    """One line of the report. None: no step of this iteration has such a number."""

    iteration: int
    prompts: int | None  # sampled from
    samples: int | None
    kept: int | None  # groups made of them
    dropped: dict[str, int]  # rows left out by reason, evaluation not counted
    reward_mean: float | None  # of the samples
    reward_best: float | None  # mean over prompts of the best sample: best-of-N
    margin: float | None  # mean reward of chosen less that of rejected
    win_rate: float | None  # against the baseline, ties half, in [0, 1]
    win_rate_low: float | None
    win_rate_high: float | None
    length_controlled: float | None  # win rate at equal length, in [0, 1]
    length: float | None  # mean tokens of an evaluated answer
    truncated: float | None  # share of evaluated answers cut at the limit
    tokens_per_s: float | None  # while sampling
    seconds: float  # sum over its steps, of the time they were computed
    peak_memory_mb: float  # the largest step's
    steps: int
    cached: int  # of them taken from the store


def rows(steps: Sequence[StepRecord]) -> list[IterationRow]:
    """One row per iteration, 0 first."""
    reads = {step.step: (step.kind, step.inputs) for step in steps}
    to_judge, to_train = sampled_for("evaluate", reads), sampled_for("build_groups", reads)
    found = sorted({step.iteration for step in steps})
    return [_row(i, [s for s in steps if s.iteration == i], to_judge, to_train) for i in found]


def _row(iteration: int, steps: Sequence[StepRecord], to_judge: set[str], to_train: set[str]) -> IterationRow:
    generated = [s for s in steps if s.kind == "generate" and s.step in to_train]
    scored = [s for s in steps if s.kind == "score" and s.step in to_train]
    grouped = [s for s in steps if s.kind == "build_groups"]
    judged = [s for s in steps if s.kind == "evaluate"]
    dropped: Counter[str] = Counter()
    for step in steps:
        if step.kind != "evaluate" and step.step not in to_judge:
            dropped.update(step.dropped)
    return IterationRow(
        iteration=iteration, prompts=_total(generated, "prompts"), samples=_total(generated, "completions"),
        kept=_total(grouped, "kept"), dropped=dict(sorted(dropped.items())), reward_mean=_last(scored, "score_mean"),
        reward_best=_last(scored, "best_of_n_mean"), margin=_last(grouped, "margin_mean"),
        win_rate=_last(judged, "win_rate"), win_rate_low=_last(judged, "win_rate_low"),
        win_rate_high=_last(judged, "win_rate_high"), length_controlled=_last(judged, "length_controlled_win_rate"),
        length=_last(judged, "length_mean"), truncated=_last(judged, "truncated_share"), tokens_per_s=_speed(generated),
        seconds=round(sum(s.seconds for s in steps), 3),
        peak_memory_mb=max((s.peak_memory_mb for s in steps), default=0.0), steps=len(steps),
        cached=sum(s.cached for s in steps))


def sampled_for(kind: str, steps: Mapping[str, tuple[str, Sequence[str]]]) -> set[str]:
    """Names of the sampling and scoring steps that steps of `kind` read from, directly or one by the other.

    steps: name -> its stage, and the names of the steps it reads from.
    """
    found: set[str] = set()
    waiting = [name for stage, inputs in steps.values() if stage == kind for name in inputs]
    while waiting:
        name = waiting.pop()
        if name in steps and steps[name][0] in _SAMPLING and name not in found:
            found.add(name)
            waiting += steps[name][1]
    return found


def _total(steps: Iterable[StepRecord], name: str) -> int | None:
    values = [step.counts[name] for step in steps if name in step.counts]
    return round(sum(values)) if values else None


def _last(steps: Iterable[StepRecord], name: str) -> float | None:
    values = [step.counts[name] for step in steps if name in step.counts]
    return values[-1] if values else None


def _speed(steps: Iterable[StepRecord]) -> float | None:
    """Tokens per second over all of them: total tokens by total time."""
    known = [(s.counts["tokens"], s.counts["tokens_per_second"]) for s in steps if s.counts.get("tokens_per_second")]
    seconds = sum(tokens / speed for tokens, speed in known)
    return sum(tokens for tokens, _ in known) / seconds if seconds else None


# ---- the same as text ------------------------------------------------------------------------------------------------

HEADERS = ("iteration", "prompts", "samples", "kept", "dropped", "reward mean", "best of N", "margin",
           "win rate (interval)", "length", "truncated", "tokens/s", "seconds", "peak memory", "steps (cached)")


def cells(found: Sequence[IterationRow]) -> list[tuple[str, ...]]:
    """The rows as texts under HEADERS, for a terminal or a page; empty where no step makes such a number."""
    return [
        (str(r.iteration), _number(r.prompts), _number(r.samples), _number(r.kept), _number(sum(r.dropped.values())),
         _mean(r.reward_mean, r.samples), _mean(r.reward_best, r.samples), _mean(r.margin, r.kept), _rate(r),
         _number(r.length, ".1f"), _number(r.truncated, ".1%"), _number(r.tokens_per_s, ",.0f"),
         _number(r.seconds, ",.1f"), f"{r.peak_memory_mb / 1024:.1f} GB", f"{r.steps} ({r.cached})")
        for r in found]


def to_markdown(title: str, found: Sequence[IterationRow], steps: Sequence[StepRecord],
                sections: dict[str, str] | None = None) -> str:
    """The run's report. `sections`, by heading, come after the first table; empty ones are left out."""
    left_out = markdown.table({"iteration": RIGHT, "reason": LEFT, "rows": RIGHT}, [
        (r.iteration, reason, f"{number:,}") for r in found for reason, number in r.dropped.items()])
    of_steps = markdown.table({
        "step": LEFT, "stage": LEFT, "seconds": RIGHT, "peak memory": RIGHT, "now": LEFT, "artifact": LEFT,
    }, [(s.step, s.kind, f"{s.seconds:,.1f}", f"{s.peak_memory_mb / 1024:.1f} GB",
         "cached" if s.cached else "computed", f"`{s.key}`") for s in steps])
    parts = [f"# {title}", markdown.table(dict.fromkeys(HEADERS, RIGHT), cells(found)), _LEGEND]
    for heading, text in {**(sections or {}), "Rows left out": left_out, "Steps": of_steps}.items():
        parts += [f"## {heading}", text.strip()] if text else []
    return "\n\n".join(parts) + "\n"


_LEGEND = ("Iteration 0 is what comes before the loop. Reward: as the loop sees it, over the samples drawn for "
           "training. Win rate: against the baseline, ties half. Length and truncated: of the evaluated answers, in "
           "tokens. Seconds and peak memory: of the time a step was computed, also where it was cached now.")


def diagnostics_table(found: Sequence[tuple[int, dict[str, Any]]]) -> str:
    """(iteration, diagnostics.json) -> a Markdown table with one row per iteration, "" for none."""
    headers = ("iteration", "learned reward", "judge", "KL", "length drift", "held-out chosen / rejected log-ratio",
               "ranking accuracy", "implicit accuracy", "Repeat@3-gram", "distinct-2", "truncated", "reward model",
               "kernel entropy")
    return markdown.table(dict.fromkeys(headers, RIGHT), [_diagnostics_row(*one) for one in found])


def _diagnostics_row(iteration: int, data: dict[str, Any]) -> list[str]:
    answers, pairs = data["answers"], data["held_out_pairs"] or {}
    learned, judge = (answers["scores"].get(data[name], {}).get("mean") for name in ("learned", "score"))
    ratios = " / ".join(_or_none(pairs.get(f"{side}_log_ratio"), "+.2f") for side in ("chosen", "rejected"))
    return [str(iteration), _or_none(learned, ".3f"), _or_none(judge, ".3f"), _or_none(data["kl"]["per_answer"], ".2f"),
            _or_none(answers["tokens"] / max(1e-9, data["baseline"]["tokens"]) - 1, "+.0%"), ratios if pairs else NONE,
            _or_none(pairs.get("ranking_accuracy"), ".1%"), _or_none(pairs.get("implicit_accuracy"), ".1%"),
            _or_none(answers["repeat_3gram"], ".2f"), _or_none(answers["distinct_2"], ".3f"),
            _or_none(answers["truncated"], ".1%"), _or_none((data["reward_model"] or {}).get("accuracy"), ".1%"),
            _or_none((data["negatives"] or {}).get("kernel_entropy"), ".3f")]


def to_json(title: str, found: Sequence[IterationRow], steps: Sequence[StepRecord]) -> dict[str, Any]:
    """The same as plain data."""
    return {"schema": SCHEMA, "title": title, "iterations": [asdict(r) for r in found],
            "steps": [asdict(s) for s in steps]}


def _number(value: float | None, form: str = ",d") -> str:
    return "" if value is None else format(value, form)


def _or_none(value: float | None, form: str) -> str:
    return NONE if value is None else format(value, form)


def _mean(value: float | None, over: int | None) -> str:
    """Of so many, None where no step had any to count."""
    return "" if over is None else _or_none(value, ".3f")


def _rate(row: IterationRow) -> str:
    if row.win_rate is None:
        return ""
    between = "" if row.win_rate_low is None else f" ({row.win_rate_low:.1%} to {row.win_rate_high:.1%})"
    return f"{row.win_rate:.1%}{between}"
