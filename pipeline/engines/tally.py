"""What became of the prompts of one part of a table of samples, kept beside it, so that a resumed stage still knows."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from pipeline import files
from pipeline.records import Completion

_FEW = 8  # samples, or prompts, that say nothing yet
_LONG, _SHARE = 8, 0.9  # tokens, and the share of them that one token has in a sample that repeats it
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
    empty: int = 0  # completions without a letter
    repeated: int = 0  # completions of one token over and over
    several: int = 0  # prompts with several samples drawn at random
    alike: int = 0  # of these, those whose samples are all the same

    def look(self, completions: list[Completion]) -> None:
        """Count what samples of one prompt tell of a policy that has collapsed."""
        self.empty += sum(not c.text.strip() for c in completions)
        self.repeated += sum(max(Counter(c.token_ids).values()) >= _SHARE * len(c.token_ids)
                             for c in completions if len(c.token_ids) >= _LONG)
        drawn = [c.text for c in completions if c.temperature]
        self.several += len(drawn) > 1
        self.alike += len(drawn) > 1 and len(set(drawn)) == 1

    def collapsed(self, allowed: float) -> list[str]:
        """The problems, if any, that more than a share `allowed` of the samples say nothing: the next steps cost, and
        nothing can be learned of them."""
        found = ((self.empty, self.completions, "samples are empty"),
                 (self.repeated, self.completions, "samples repeat one token"),
                 (self.alike, self.several, "prompts have samples that are all the same"))
        return [f"stage.generate.runtime.max_collapsed_share: {number} of {total} {what}, allowed is a share of "
                f"{allowed:g}; the model that samples has collapsed: look at what trained it (a lower learning rate, "
                f"another start), at the chat template and at sampling.temperatures; or raise it"
                for number, total, what in found if total >= _FEW and number > allowed * total]

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
                     dict(Counter(self.dropped) + Counter(other.dropped)), self.seconds + other.seconds,
                     self.empty + other.empty, self.repeated + other.repeated, self.several + other.several,
                     self.alike + other.alike)


def write_tally(work: Path, index: int, tally: Tally) -> None:
    """Before its part: a part that exists has its tally; a tally without a part is written again."""
    files.write_sealed(work / "tallies" / f"{index:05d}.json", asdict(tally))


def read_tally(work: Path, index: int) -> Tally | None:
    """None where the disk has changed it: its part is made again."""
    known = files.read_sealed(work / "tallies" / f"{index:05d}.json")
    whole = known is not None and known.keys() <= {one.name for one in fields(Tally)}
    return Tally(**known) if known is not None and whole else None
