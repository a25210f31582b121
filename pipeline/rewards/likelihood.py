"""Score by the log-prob of the completion under a language model, summed over its tokens, nats.

Half of a density ratio (pipeline.selection.cdr): the strong and the weak model may have different tokenizers, since
each sums over its own tokens, and special tokens, which differ between templates, can be left out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.config import setting
from pipeline.lm.settings import THIS_MACHINE, ModelRuntime
from pipeline.rewards.contract import ScoreGroups, Scorer
from pipeline.rewards.shown import folder_files, folder_of, folder_problems, open_causal, scored

if TYPE_CHECKING:
    from pipeline.lm.examples import Example


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


def scorer(settings: Settings, *, model: Path | None = None, runtime: ModelRuntime = THIS_MACHINE,
           policy: Path | None = None, reference: Path | None = None) -> ScoreGroups:
    """See Scorer. A completion without tokens, or too long for the model, scores NaN."""
    from pipeline.lm import folders, logps

    given = policy if settings.model == "policy" else reference
    encoder, net = open_causal(folder_of(settings.path, given, settings.model), runtime, settings.precision)
    skipped = frozenset(encoder.tokenizer.all_special_ids) if settings.special_tokens == "drop" else frozenset[int]()

    def sums(examples: list[Example]) -> list[list[float]]:
        found = logps.token_logps(net, examples, runtime, settings.precision)
        return [[math.fsum(value for token, value in zip(ids.tolist(), values, strict=True) if token not in skipped)
                 for ids, values in zip(e.completions, of_group, strict=True)]
                for e, of_group in zip(examples, found, strict=True)]

    return lambda groups: scored(encoder, groups, folders.context_length(net), sums, float("nan"), fewest=1)


SCORER = Scorer(Settings, scorer, needs=needs, holds_model=True, files=lambda s: folder_files(s.path))
