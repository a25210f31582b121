"""The best and the worst sample as first answers and as drafts to be improved: the six conditionals of SRPO.

    y_w|x, y_l|x, y_w|draft y_l, y_l|draft y_l, y_l|draft y_w, y_w|draft y_w          (Choi et al. 2024)

A draft is shown as the assistant's turn after x, and `text` asks for a better answer. Nobody writes a revision: the
loss compares how likely the two answers are as revisions of each other. At test time the same text asks for revisions.
"""

from dataclasses import dataclass, replace

from pipeline.records import Completion, Group, Message
from pipeline.selection.candidates import ends, paired, scores_of
from pipeline.selection.contract import Rule, Selected


@dataclass(frozen=True)
class Settings:
    """Which score ranks the samples, and how a revision is asked for."""

    score: str = "reward"
    """Name of the score in Completion.scores."""

    text: str = "Improve your answer."
    """The user's turn after the draft. The paper's words are not known here: a choice."""

    def check(self) -> list[tuple[str, str]]:
        return [] if self.text.strip() else [("text", "is empty, expected what asks for a better answer")]


def select(group: Group, settings: Settings, seed: int = 0) -> Selected:
    """See Rule."""
    best, worst = paired(group, *ends(scores_of(group, settings.score))).completions
    return [replace(group, completions=(best, worst, best, worst, worst, best))], ""


def prompts(group: Group, settings: Settings) -> tuple[tuple[Message, ...] | None, ...]:
    """The prompt of each completion of a group `select` made; None: the group's own."""
    best, worst = group.completions[:2]

    def after(draft: Completion) -> tuple[Message, ...]:
        return (*group.messages, Message("assistant", draft.text), Message("user", settings.text))

    return None, None, after(worst), after(worst), after(best), after(best)


RULE = Rule(Settings, select, gives="drafts", prompts=prompts)
