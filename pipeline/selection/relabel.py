"""Reward-augmented relabelling (Zhang et al. 2024): each scored pair becomes two, each asking for one answer's score.

    goal(score_w) + x:  chosen y_w, rejected y_l          goal(score_l) + x:  chosen y_l, rejected y_w

so that the policy learns what every level of quality looks like, not only to prefer the best; at test time it is asked
for the highest score. How well an answer meets the goal is stored as the score "goal": minus its distance to the score
asked for. The prompts are new texts, so ids are gone: stage build_groups makes them anew.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from pipeline.config import setting
from pipeline.records import Group, Message
from pipeline.selection.candidates import best_against_random, ends, numbered, paired, scored, scores_of
from pipeline.selection.contract import Rule, Selected

GOAL = "goal"
FINE = "fine_score_disagrees"
TEXT = (
    "You are an assistant that generates responses for the instruction while implicitly achieving the following target "
    "scores (on a scale of 1-10, where 1 is lowest and 10 is highest):\nOverall score: {goal}.")


@dataclass(frozen=True)
class Settings:
    """Which score, which pair, and how the goal is said."""

    score: str = "reward"
    """Name of the score in Completion.scores."""

    rejected: str = setting("random", choices=("random", "worst"))
    """The best sample against a random other one (the paper's UltraFeedback preparation) or the worst."""

    fine: str | None = None
    """Name of a second score by which the chosen answer must not be worse (the mean of the fine-grained scores)."""

    scale: str = setting("as_is", choices=("as_is", "one_to_ten"))
    """as_is: the scores are on the scale the text speaks of; one_to_ten: the table's range is mapped onto 1 to 10."""

    decimals: int = setting(1, low=0, high=6)
    """Decimals of the score in the text; whole numbers are printed without."""

    role: str = setting("system", choices=("system", "user"))
    """The text is a system turn (in front of one that is there), or stands in front of the first user turn."""

    text: str = TEXT
    """The text; {goal} becomes the score."""

    def check(self) -> list[tuple[str, str]]:
        return [] if "{goal}" in self.text else [("text", "has no {goal}, expected it where the score is to stand")]


def survey(groups: Iterable[Group], settings: Settings, seed: int = 0) -> tuple[float, float] | None:
    """The table's lowest and highest score where they are mapped onto 1 to 10."""
    if settings.scale == "as_is":
        return None
    low, high = float("inf"), float("-inf")
    for group in groups:
        for value in scores_of(group, settings.score):
            low, high = min(low, value), max(high, value)
    return (low, high) if low < high else None


def select(group: Group, settings: Settings, seed: int = 0, found: tuple[float, float] | None = None) -> Selected:
    """See Rule. found: what `survey` returned. Reasons: fine_score_disagrees."""
    values = scores_of(group, settings.score)
    random = settings.rejected == "random"
    best, other = best_against_random(values, seed, "relabel", group) if random else ends(values)
    if settings.fine is not None:
        fine = scores_of(group, settings.fine)
        if fine[best] < fine[other]:
            return [], FINE
    if found is not None:
        low, high = found
        values = [1.0 + 9.0 * (value - low) / (high - low) for value in values]
    made = [_asking(group, chosen, rejected, values, settings) for chosen, rejected in ((best, other), (other, best))]
    return numbered(made), ""


def _asking(group: Group, chosen: int, rejected: int, values: list[float], settings: Settings) -> Group:
    """The pair whose prompt asks for the chosen completion's score."""
    pair = scored(paired(group, chosen, rejected), GOAL, (0.0, -abs(values[chosen] - values[rejected])))
    text = settings.text.replace("{goal}", printed(values[chosen], settings.decimals))
    completions = tuple(replace(c, token_ids=(), prompt_ids=(), ref_logp=None, logprobs=None) for c in pair.completions)
    messages = _with_goal(pair.messages, text, settings.role)
    return replace(pair, messages=messages, prompt_ids=(), completions=completions)


def printed(value: float, decimals: int) -> str:
    """8.0 -> "8", 7.25 with one decimal -> "7.2"."""
    rounded = round(value, decimals)
    return str(int(rounded)) if rounded == int(rounded) else str(rounded)


def _with_goal(messages: tuple[Message, ...], text: str, role: str) -> tuple[Message, ...]:
    first = next((i for i, message in enumerate(messages) if message.role == role), None)
    if first is None:
        return (Message(role, text), *messages)
    joined = Message(role, f"{text}\n\n{messages[first].content}")
    return (*messages[:first], joined, *messages[first + 1 :])


RULE = Rule(Settings, select, seeded=lambda s: s.rejected == "random", stores=(GOAL,), ranks=GOAL, rewrites=True,
            reads=lambda s: (s.score,) if s.fine is None else (s.score, s.fine), survey=survey)
