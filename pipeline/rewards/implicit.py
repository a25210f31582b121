"""Score by the implicit reward of a preference-trained policy (Rafailov et al. 2023, Sec. 4).

    r(y) = beta (log pi(y | x) - log ref(y | x)),   sums over completion tokens

from two models, or without any from known log-probs: `logprobs` of the sampling policy, kept in the table, and
`ref_logp` of the step's input `logps`, a side table that stage reference_logprobs makes of the samples.
With `decouple` = lambda > 0 also the reward of the extrapolated policy (Kim et al. 2024, SPA), token by token

    log softmax((1 + lambda) logits_pi - lambda logits_ref)

in the place of log pi, as <name>_decoupled: what a policy further along the same way would say, which shows the labels
the present one is about to unlearn (pipeline.selection.spa).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config import setting
from pipeline.errors import UserError
from pipeline.records import Completion, Group
from pipeline.rewards import causal
from pipeline.rewards.contract import Scorer
from pipeline.rewards.model import folder_files, folder_problems

Score = float | Mapping[str, float]


@dataclass(frozen=True)
class Settings:
    """Which two models, and the scale."""

    source: str = setting("models", choices=("models", "table"))
    """Run the models, or take what the table carries (sampling at temperature 1 that kept its log-probs)."""

    policy: str | None = None
    """A folder with the policy; null: the step's input `policy`."""

    reference: str | None = None
    """A folder with the reference; null: the step's input `reference`."""

    beta: float = setting(0.1, above=0.0)
    """1 / nats."""

    decouple: float = setting(0.0, low=0.0)
    """lambda. Paper of SPA: 1/2, 1/4, 1/8 in iterations 1, 2, 3; 0: off."""

    precision: str = setting("float32", choices=("float32", "bfloat16"))
    """Of the matrix products; in bfloat16 the sum over a long completion is off by nats."""

    def check(self) -> list[tuple[str, str]]:
        problems = folder_problems("policy", self.policy, "a language model")
        problems += folder_problems("reference", self.reference, "a language model")
        if self.source == "table" and self.decouple > 0.0:
            problems.append(("decouple", f"{self.decouple} needs the logits of both models, expected source=models"))
        return problems


def needs(settings: Settings) -> frozenset[str]:
    if settings.source == "table":
        return frozenset({"logps"})
    given = {"policy": settings.policy, "reference": settings.reference}
    return frozenset(name for name, path in given.items() if path is None)


def files(settings: Settings) -> list[Path]:
    return folder_files(settings.policy) + folder_files(settings.reference)


def suffixes(settings: Settings) -> tuple[str, ...]:
    return ("", "_decoupled") if settings.decouple > 0.0 else ("",)


def scorer(
    settings: Settings, *, model: Path | None = None, batch_tokens: int = 16384, threads: int | None = None,
    policy: Path | None = None, reference: Path | None = None, logps: Path | None = None,
) -> Callable[[Sequence[Group]], list[list[Score]]]:
    """See Scorer. A completion without tokens, or too long for the model, scores NaN.

    Raises UserError for two models with different tokenizers, and with source=table for completions without log-probs.
    """
    if settings.source == "table":
        return lambda groups: [[carried(c, settings.beta, g.id) for c in g.completions] for g in groups]
    tokenizer, net = causal.open_causal(causal.folder_of(settings.policy, policy, "policy"), threads)
    other, anchor = causal.open_causal(causal.folder_of(settings.reference, reference, "reference"), threads)
    if tokenizer.get_vocab() != other.get_vocab():
        raise UserError("reward: policy and reference have different tokenizers, so their log-probs are not of the "
                        "same tokens; score with reward=density_ratio and select with selection=cdr")

    def score(groups: Sequence[Group]) -> list[list[Score]]:
        rows = [row for group in groups for row in causal.rows_of(tokenizer, group)]
        scores: list[Score] = [_nothing(settings)] * len(rows)
        for batch in causal.scorable(rows, net, batch_tokens):
            for i, value in zip(batch, _batch(net, anchor, [rows[i] for i in batch], settings), strict=True):
                scores[i] = value
        return causal.per_group(scores, groups)

    return score


def carried(completion: Completion, beta: float, name: str) -> float:
    """beta (sum of logprobs - ref_logp) of one completion, without a model."""
    if completion.logprobs is None or completion.ref_logp is None:
        missing = ("logprobs (stage generate)" if completion.logprobs is None else
                   "ref_logp (the step's input logps, made by stage reference_logprobs)")
        raise UserError(f"reward: sample {completion.sample} of {name!r} carries no {missing}; set source=models")
    return beta * (math.fsum(completion.logprobs) - completion.ref_logp)


def _batch(net: Any, anchor: Any, rows: list[causal.Row], settings: Settings) -> list[Score]:
    logits = causal.logits_of(net, rows, settings.precision)
    base = causal.logits_of(anchor, rows, settings.precision).to(logits.device)
    refs = causal.summed(base, rows)
    plain = [settings.beta * (a - b) for a, b in zip(causal.summed(logits, rows), refs, strict=True)]
    if settings.decouple == 0.0:
        return list(plain)
    mixed = causal.summed((1.0 + settings.decouple) * logits - settings.decouple * base, rows)
    further = (settings.beta * (a - b) for a, b in zip(mixed, refs, strict=True))
    return [{"": a, "_decoupled": b} for a, b in zip(plain, further, strict=True)]


def _nothing(settings: Settings) -> Score:
    nan = float("nan")
    return nan if settings.decouple == 0.0 else {"": nan, "_decoupled": nan}


SCORER = Scorer(Settings, scorer, needs=needs, files=files, suffixes=suffixes)
