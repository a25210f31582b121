"""What an iteration's numbers mean, by rules that are written down: docs/reading-a-run.md has a heading for each.

A rule speaks only where the numbers it needs are there. The thresholds are customs, not tests, but where an interval is
named.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

GOOD, WATCH, BAD = "good", "watch", "bad"
# Name -> the stage whose count it is, and the count. Shares in [0, 1], lengths in tokens, KL in nats an answer.
_OF = {
    "gold": ("evaluate", "win_rate"), "gold_low": ("evaluate", "win_rate_low"),
    "gold_high": ("evaluate", "win_rate_high"),
    "same_length": ("evaluate", "length_controlled_win_rate"), "length": ("evaluate", "length_mean"),
    "start_length": ("evaluate", "baseline_length_mean"), "truncated": ("evaluate", "truncated_share"),
    "gain": ("report", "gain"), "gain_low": ("report", "gain_low"), "gain_high": ("report", "gain_high"),
    "kl": ("diagnose", "kl"), "reward_model": ("diagnose", "reward_model_accuracy"),
    "repeated": ("diagnose", "repeat_3gram")}

Numbers = Mapping[str, float]


@dataclass(frozen=True)
class Verdict:
    """What one rule says: `rule` is its heading in the docs; the numbers it was decided by, by the names above."""

    rule: str
    level: str
    text: str
    numbers: dict[str, float] = field(default_factory=dict)


def numbers(counts: Mapping[str, Mapping[str, float]], learned: str) -> dict[str, float]:
    """What the rules read, of the counts of an iteration's stages."""
    of = {**_OF, "learned": ("evaluate", learned)}
    return {name: counts[stage][count] for name, (stage, count) in of.items() if count in counts.get(stage, {})}


def of_steps(steps: Iterable[tuple[int, str, Mapping[str, float]]],
             learned: str = "win_rate_reward") -> list[tuple[int, list[Verdict]]]:
    """(iteration, stage, counts) of a run's steps -> what is said of the loop's iterations, where something is.

    learned: the count of `evaluate` that is the win rate by the score which the loop optimises.
    """
    found, before, by_iteration = [], None, dict[int, dict[str, Mapping[str, float]]]()
    for iteration, stage, counts in steps:
        if iteration > 0:
            by_iteration.setdefault(iteration, {})[stage] = counts
    for iteration, counted in sorted(by_iteration.items()):
        now = numbers(counted, learned)
        if said := verdicts(now, before):
            found.append((iteration, said))
        before = now or before
    return found


def verdicts(now: Numbers, before: Numbers | None) -> list[Verdict]:
    """What every rule says of an iteration; before: the numbers of the one before it, None for the first."""
    found = [one for rule in (_gold, _gamed, _length, _divergence, _reward_model, _repetition, _truncated)
             for one in rule(now, before or {})]
    if "gold" in now and all(one.rule == "gold" for one in found):
        found.append(Verdict("quiet", GOOD, "nothing else stands out: learned reward, length, KL and repetition fit"))
    return found


def _gold(now: Numbers, before: Numbers) -> Iterator[Verdict]:
    if {"gain", "gain_low", "gain_high"} <= now.keys():
        used = {name: now[name] for name in ("gain", "gain_low", "gain_high")}
        mean, low, high = used.values()
        around = f"{_points(mean)} on the iteration before ({_points(low, '')} to {_points(high)})"
    elif {"gold", "gold_low", "gold_high"} <= now.keys():
        used = {name: now[name] for name in ("gold", "gold_low", "gold_high")}
        mean, low, high = (value - 0.5 for value in used.values())
        around = f"{now['gold']:.1%} against what it began with ({now['gold_low']:.1%} to {now['gold_high']:.1%})"
    else:
        return
    what, level = ("gold rose", GOOD) if low > 0 else ("gold fell", BAD) if high < 0 else ("gold cannot tell", WATCH)
    yield Verdict("gold", level, f"{what}: {around}", used)


def _gamed(now: Numbers, before: Numbers) -> Iterator[Verdict]:
    if {"gold", "learned"} <= now.keys():
        used = {name: now[name] for name in ("gold", "learned")}
        rose = now["learned"] - before.get("learned", now["learned"])
        fell = now["gold"] - before.get("gold", now["gold"])
        if rose >= 0.01 and fell < 0:
            yield Verdict("gamed", BAD, f"learned up, gold down: {_points(rose)} by the learned reward, "
                          f"{_points(fell)} by gold: the policy learns what the reward model likes", used)
        elif now["learned"] - now["gold"] >= 0.15:
            yield Verdict("gamed", WATCH, f"the learned reward's win rate is {now['learned']:.1%}, "
                          f"gold's {now['gold']:.1%}: they part", used)


def _length(now: Numbers, before: Numbers) -> Iterator[Verdict]:
    if {"length", "start_length"} <= now.keys() and now["start_length"] > 0:
        grown = now["length"] / now["start_length"] - 1
        used = {name: now[name] for name in ("length", "start_length", "gold", "same_length") if name in now}
        lost = now.get("gold", 0.0) - now.get("same_length", now.get("gold", 0.0))
        if grown >= 0.25 and lost >= 0.05:
            yield Verdict("length", BAD, f"answers are {grown:.0%} longer, and at equal length the win rate is "
                          f"{now['same_length']:.1%}, not {now['gold']:.1%}: part of it is length", used)
        elif grown >= 0.5:
            yield Verdict("length", WATCH, f"answers are {grown:.0%} longer than what it began with", used)


def _divergence(now: Numbers, before: Numbers) -> Iterator[Verdict]:
    if "kl" in now and (now["kl"] >= 10 or (before.get("kl", 0.0) > 0 and now["kl"] >= max(3.0, 3 * before["kl"]))):
        past = f", {before['kl']:.1f} before" if "kl" in before else ""
        yield Verdict("divergence", WATCH, f"KL is {now['kl']:.1f} nats an answer{past}: the policy is far from its "
                      "reference", {"kl": now["kl"]})


def _reward_model(now: Numbers, before: Numbers) -> Iterator[Verdict]:
    if "reward_model" in now and now["reward_model"] < 0.6:
        level, how = (BAD, "it guesses") if now["reward_model"] < 0.55 else (WATCH, "it hardly tells them apart")
        yield Verdict("reward-model", level, f"the reward model orders {now['reward_model']:.1%} of the new samples as "
                      f"gold does: {how}", {"reward_model": now["reward_model"]})


def _repetition(now: Numbers, before: Numbers) -> Iterator[Verdict]:
    past = before.get("repeated")
    if "repeated" in now and past is not None and now["repeated"] >= max(2 * past, past + 1):
        yield Verdict("repetition", WATCH, f"{now['repeated']:.1f} repeated 3-grams an answer, {past:.1f} before",
                      {"repeated": now["repeated"]})


def _truncated(now: Numbers, before: Numbers) -> Iterator[Verdict]:
    if now.get("truncated", 0.0) >= 0.05:
        level = BAD if now["truncated"] >= 0.2 else WATCH
        yield Verdict("truncated", level, f"{now['truncated']:.1%} of the answers are cut at the token limit: "
                      "their scores and lengths are of halves", {"truncated": now["truncated"]})


def _points(share: float, unit: str = " points") -> str:
    return f"{100 * share:+.1f}{unit}"
