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
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config import setting
from pipeline.errors import UserError
from pipeline.lm.settings import THIS_MACHINE, ModelRuntime
from pipeline.records import Completion
from pipeline.rewards.contract import Score, ScoreGroups, Scorer
from pipeline.rewards.shown import folder_files, folder_of, folder_problems, open_causal, scored

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.lm.examples import Example
    from pipeline.lm.forward import Rows

Logps = list[list[list[float]]]  # by group, completion, token


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


def scorer(settings: Settings, *, model: Path | None = None, runtime: ModelRuntime = THIS_MACHINE,
           policy: Path | None = None, reference: Path | None = None, logps: Path | None = None) -> ScoreGroups:
    """See Scorer. A completion without tokens, or too long for the model, scores NaN.

    Raises UserError for two models with different tokenizers, and with source=table for completions without log-probs.
    """
    if settings.source == "table":
        return lambda groups: [[carried(c, settings.beta, g.id) for c in g.completions] for g in groups]
    from pipeline.lm import folders

    encoder, net = open_causal(folder_of(settings.policy, policy, "policy"), runtime, settings.precision)
    other, anchor = open_causal(folder_of(settings.reference, reference, "reference"), runtime, settings.precision)
    if encoder.tokenizer.get_vocab() != other.tokenizer.get_vocab():
        raise UserError("reward: policy and reference have different tokenizers, so their log-probs are not of the "
                        "same tokens; score with reward=density_ratio and select with selection=cdr")
    nan = float("nan")
    nothing: Score = nan if settings.decouple == 0.0 else {"": nan, "_decoupled": nan}

    def rewards(examples: list[Example]) -> list[list[Score]]:
        return _rewards(net, anchor, examples, settings, runtime)

    return lambda groups: scored(encoder, groups, folders.context_length(net), rewards, nothing, fewest=1)


def carried(completion: Completion, beta: float, name: str) -> float:
    """beta (sum of logprobs - ref_logp) of one completion, without a model."""
    if completion.logprobs is None or completion.ref_logp is None:
        missing = ("logprobs (stage generate)" if completion.logprobs is None else
                   "ref_logp (the step's input logps, made by stage reference_logprobs)")
        raise UserError(f"reward: sample {completion.sample} of {name!r} carries no {missing}; set source=models")
    return beta * (math.fsum(completion.logprobs) - completion.ref_logp)


def _rewards(net: Any, anchor: Any, examples: list[Example], settings: Settings,
             runtime: ModelRuntime) -> list[list[Score]]:
    from pipeline.lm import logps

    ours, base = (logps.token_logps(m, examples, runtime, settings.precision) for m in (net, anchor))
    plain = _log_ratios(settings.beta, ours, base)
    if settings.decouple == 0.0:
        return [list(values) for values in plain]
    mixed = logps.token_logps(
        net, examples, runtime, settings.precision,
        lambda rows: _extrapolated(net, anchor, rows, settings.decouple, runtime.logits_per_chunk))
    return [[{"": a, "_decoupled": b} for a, b in zip(*of_group, strict=True)]
            for of_group in zip(plain, _log_ratios(settings.beta, mixed, base), strict=True)]


def _log_ratios(beta: float, ours: Logps, base: Logps) -> list[list[float]]:
    return [[beta * (math.fsum(a) - math.fsum(b)) for a, b in zip(*of_group, strict=True)]
            for of_group in zip(ours, base, strict=True)]


def _extrapolated(net: Any, anchor: Any, rows: Rows, decouple: float, logits_per_chunk: int) -> Tensor:
    """(N,) log-probs of the completion tokens under (1 + lambda) logits_pi - lambda logits_ref."""
    import torch

    from pipeline.lm.forward import hidden_at_predictions
    from pipeline.lm.head import head_logits

    states = [hidden_at_predictions(m, rows) for m in (net, anchor)]
    size = max(1, logits_per_chunk // (2 * net.get_output_embeddings().weight.shape[0]))
    found = []
    for ours, base, targets in zip(*(x.split(size) for x in (*states, rows.targets)), strict=True):
        logits = (1.0 + decouple) * head_logits(net, ours).float() - decouple * head_logits(anchor, base).float()
        found.append(logits.log_softmax(dim=1).gather(1, targets[:, None])[:, 0])
    return torch.cat(found)


SCORER = Scorer(Settings, scorer, needs=needs, holds_model=True, files=files, suffixes=suffixes)
