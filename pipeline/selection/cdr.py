"""One pair per prompt by density ratio (CDR): how much likelier a strong model finds an answer than a weak one.

    r(y) = log p_strong(y | x) - log p_weak(y | x)

of two log-probs stored as scores (see pipeline.rewards.likelihood); the pair is the largest against the smallest r,
which is stored as the score "density_ratio". An aligned model over its own SFT base is the usual choice.
"""

from dataclasses import dataclass

from pipeline.records import Group
from pipeline.selection.candidates import ends, paired, scored, scores_of
from pipeline.selection.contract import Rule, Selected

RATIO = "density_ratio"


@dataclass(frozen=True)
class Settings:
    """The two log-probs."""

    strong: str = "reward"
    """Name of the score: summed log-prob under the strong model, nats."""

    weak: str = "logp_weak"
    """Name of the score: summed log-prob under the weak model, nats."""

    per_token: bool = False
    """Divide by the number of tokens of the completion. Paper: sums; its library returns both."""

    def check(self) -> list[tuple[str, str]]:
        same = self.strong == self.weak
        return [("weak", f"{self.weak!r} is the strong model's score too, expected another one")] if same else []


def select(group: Group, settings: Settings, seed: int = 0) -> Selected:
    """See Rule."""
    strong, weak = scores_of(group, settings.strong), scores_of(group, settings.weak)
    tokens = [max(1, len(c.token_ids)) if settings.per_token else 1 for c in group.completions]
    ratios = [(a - b) / n for a, b, n in zip(strong, weak, tokens, strict=True)]
    return [paired(scored(group, RATIO, ratios), *ends(ratios))], ""


RULE = Rule(Settings, select, reads=lambda s: (s.strong, s.weak), stores=(RATIO,), ranks=RATIO)
