"""What happened in a run, in three sentences for somebody who sees one for the first time: the terminal, report.md and
the page say the same.
"""

from collections.abc import Iterable, Mapping

from flows import verdicts
from flows.verdicts import BAD, WATCH

_TOLD = (BAD, WATCH)  # what is said first
_LATER = ("divergence", "reward-model")  # rules that say nothing against what was reached


def told(steps: Iterable[tuple[int, str, Mapping[str, float]]], learned: str) -> list[str]:
    """(iteration, stage, counts) of a run's finished steps -> what was done, what it came to, what to make of it.

    [] where nothing was judged. learned: the count that is the win rate by the score which the loop optimises.
    """
    listed = list(steps)
    judged = [(i, counts) for i, stage, counts in listed if stage == "evaluate" and i > 0 and "win_rate_low" in counts]
    if not judged:
        return []
    last, now = judged[-1]
    iterations, said = verdicts.of_steps(listed, learned), []
    for level in _TOLD:
        of_level = [one for i, found in iterations if i == last for one in found if one.level == level]
        said += sorted(of_level, key=lambda one: one.rule in _LATER)
    return [_done(listed), _came_to(last, now), _meant(said[0] if said else None)]


def _done(steps: list[tuple[int, str, Mapping[str, float]]]) -> str:
    def groups(stage: str) -> list[int]:
        return [round(counts["groups"]) for _, kind, counts in steps if kind == stage and "groups" in counts]

    given, trained = sum(groups("sft")), groups("train_preference")
    drawn = sum(round(counts.get("completions", 0)) for i, stage, counts in steps if stage == "generate" and i > 0)
    first = f"learned from {given:,} given answers" if given else "was the one given"
    if not trained:
        return f"The model {first}; {drawn:,} answers were drawn and no preference was trained on."
    times = "once" if len(trained) == 1 else "twice" if len(trained) == 2 else f"{len(trained)} times"
    return (f"The model {first} and was then trained {times} on preferences ({', '.join(f'{n:,}' for n in trained)}), "
            f"for which, and to be judged, it wrote {drawn:,} answers.")


def _came_to(iteration: int, now: Mapping[str, float]) -> str:
    rate, low, high = (100 * now[name] for name in ("win_rate", "win_rate_low", "win_rate_high"))
    prompts = f"{now['prompts']:.0f} prompts" if "prompts" in now else "the prompts"
    how = "better than" if low > 50 else "worse than" if high < 50 else "not told apart from"
    return (f"After iteration {iteration} its answers are {how} those of the model it is compared with: they win "
            f"{rate:.1f} % of {prompts} ({low:.1f} to {high:.1f} %).")


def _meant(worst: verdicts.Verdict | None) -> str:
    if worst is None:
        return "No rule finds anything odd in how it got there; other seeds would show how far that is chance."
    if worst.rule in _LATER:
        what = "Before another iteration"
    else:
        what = "Do not trust that yet" if worst.level == BAD else "Look at one thing first"
    return f"{what}: {worst.text} (docs/reading-a-run.md, {worst.rule})."
