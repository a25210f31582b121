"""Score by the log-prob of the completion under a language model, summed over its tokens, nats.

Half of a density ratio (pipeline.selection.cdr): the strong and the weak model may have different tokenizers, since
each sums over its own tokens, and special tokens, which differ between templates, can be left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.config import setting
from pipeline.records import Group
from pipeline.rewards import causal
from pipeline.rewards.contract import Scorer
from pipeline.rewards.model import folder_files, folder_problems


@dataclass(frozen=True)
class Settings:
    """Which model, and what is summed."""

    path: str | None = None
    """A folder with a language model and its chat template; null: a model of an earlier step."""

    model: str = setting("policy", choices=("policy", "reference"))
    """Without a path: which of the step's inputs."""

    special_tokens: str = setting("drop", choices=("drop", "keep"))
    """Whether special tokens of the completion, such as the stop token, count."""

    precision: str = setting("float32", choices=("float32", "bfloat16"))
    """Of the matrix products; in bfloat16 the sum over a long completion is off by nats."""

    def check(self) -> list[tuple[str, str]]:
        return folder_problems("path", self.path, "a language model")


def needs(settings: Settings) -> frozenset[str]:
    return frozenset({settings.model}) if settings.path is None else frozenset()


def files(settings: Settings) -> list[Path]:
    return folder_files(settings.path)


def scorer(
    settings: Settings, *, model: Path | None = None, batch_tokens: int = 16384, threads: int | None = None,
    policy: Path | None = None, reference: Path | None = None,
) -> Callable[[Sequence[Group]], list[list[float]]]:
    """See Scorer. A completion without tokens, or too long for the model, scores NaN."""
    given = policy if settings.model == "policy" else reference
    tokenizer, net = causal.open_causal(causal.folder_of(settings.path, given, settings.model), threads)
    skipped = frozenset(tokenizer.all_special_ids) if settings.special_tokens == "drop" else frozenset[int]()

    def score(groups: Sequence[Group]) -> list[list[float]]:
        rows = [row for group in groups for row in causal.rows_of(tokenizer, group)]
        scores = [float("nan")] * len(rows)
        for batch in causal.scorable(rows, net, batch_tokens):
            some = [rows[i] for i in batch]
            sums = causal.summed(causal.logits_of(net, some, settings.precision), some, skipped)
            for i, value in zip(batch, sums, strict=True):
                scores[i] = value
        return causal.per_group(scores, groups)

    return score


SCORER = Scorer(Settings, scorer, needs=needs, files=files)
