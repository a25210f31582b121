"""Score by repetition: minus the number of an answer's n-grams of tokens that its prompt holds, or itself earlier.

Minus the Repeat@n-gram of Xu et al. 2023 (section 3.1, n = 3), not divided by the length; an n-gram that is both counts
once. With samples of greedy decoding and of beam search without repetition, it labels the paper's pairs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.config import setting
from pipeline.lm.settings import ModelRuntime
from pipeline.rewards.contract import ScoreGroups, Scorer


@dataclass(frozen=True)
class Settings:
    n: int = setting(3, low=1)  # tokens of an n-gram


def repeats(prompt: Sequence[int], answer: Sequence[int], n: int) -> int:
    """How many n-grams of `answer` occur in `prompt` or earlier in `answer`."""
    given, asked = ([tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)] for ids in (prompt, answer))
    return len(asked) - len(set(asked) - set(given))


def scorer(settings: Settings, *, model: Path | None = None, runtime: ModelRuntime | None = None) -> ScoreGroups:
    """See Scorer."""
    return lambda groups: [[-float(repeats(g.prompt_ids, c.token_ids, settings.n)) for c in g.completions]
                           for g in groups]


SCORER = Scorer(Settings, scorer)
