"""What became of the prompts of one part of a table of samples, kept beside it, so that a resumed stage still knows."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pipeline import files

TOO_LONG, REFUSED = "prompt_too_long", "refused_by_engine"  # why a prompt goes without its samples


@dataclass
class Tally:
    """Sums over prompts; tallies add up."""

    prompts: int = 0
    completions: int = 0  # sampled, dropped ones included
    tokens: int = 0
    truncated: int = 0
    refused: int = 0  # prompts without all their samples
    dropped: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0

    def drop(self, reason: str, number: int) -> None:
        if number:
            self.dropped[reason] = self.dropped.get(reason, 0) + number

    def too_many(self, prompts: int, allowed: float) -> list[str]:
        """The problem, if any, that more of `prompts` prompts than the share `allowed` go without their samples."""
        if self.refused <= allowed * prompts:
            return []
        reasons = ", ".join(f"{name} {self.dropped[name]}" for name in (TOO_LONG, REFUSED) if name in self.dropped)
        return [f"stage.generate.runtime.max_refused_share: {self.refused} of {prompts} prompts go without their "
                f"samples ({reasons}), allowed is a share of {allowed:g}; the step's log says what the engine refused, "
                f"a lower sampling.max_tokens leaves room for longer prompts; or raise it"]

    def __add__(self, other: Tally) -> Tally:
        return Tally(self.prompts + other.prompts, self.completions + other.completions, self.tokens + other.tokens,
                     self.truncated + other.truncated, self.refused + other.refused,
                     dict(Counter(self.dropped) + Counter(other.dropped)), self.seconds + other.seconds)


def write_tally(work: Path, index: int, tally: Tally) -> None:
    """Before its part: a part that exists has its tally; a tally without a part is written again."""
    files.write_atomic(work / "tallies" / f"{index:05d}.json", json.dumps(asdict(tally)))


def read_tally(work: Path, index: int) -> Tally:
    return Tally(**json.loads((work / "tallies" / f"{index:05d}.json").read_text()))
