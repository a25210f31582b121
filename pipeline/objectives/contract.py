"""What an objective may see of a batch: the contract between the training step and every loss."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


# Among what an objective may need (pipeline.objectives): what gives it the token view below, and what asks for the
# reference model itself instead of a table of its log-probs.
TOKEN_NEEDS = frozenset({"token_logps", "uniforms", "top", "sum_squares", "divergences", "reference_tokens",
                         "reference_hidden"})


LIVE_NEEDS = frozenset({"divergences", "reference_tokens", "reference_hidden", "mismatched"})


@dataclass(frozen=True)
class TokenInputs:
    """Per-token view of a batch for token-level objectives: N = every completion token of every group, flat.

    The first five are always there; the others only where the objective's needs name them. V is the vocabulary, whose
    logits are read chunk by chunk and never stand here.
    """

    targets: Tensor  # (N,) int64, the token itself
    group: Tensor  # (N,) int64 in [0, G)
    column: Tensor  # (N,) int64 in [0, K)
    position: Tensor  # (N,) int64, index of the token in its completion, from 0
    logps: Tensor  # (N,) float32, log-prob of the token under the policy, with gradient
    uniforms: Tensor | None = None  # "uniforms": (N,) in [0, 1), of any draw; fixed by (seed, step, group, position)
    target_logits: Tensor | None = None  # "top": (N,) float32, the policy's logit of the token, with gradient
    top_logits: Tensor | None = None  # "top": (N, min(K, V)) float32, the policy's largest, falling, with gradient
    top_ids: Tensor | None = None  # "top": (N, min(K, V)) int64, whose they are
    log_sum_squares: Tensor | None = None  # "sum_squares": (N,) float32, log sum_v pi(v)^2, no gradient
    divergences: Tensor | None = None  # "divergences": (N,) float32, KL(ref || pi) over V, nats, with gradient
    ref_logps: Tensor | None = None  # "reference_tokens": (N,) float32
    ref_hidden: Tensor | None = None  # "reference_hidden": (N, layers, H) float32, the states that predict each token


@dataclass(frozen=True)
class LossInputs:
    """What an objective sees of G groups with up to K completions each. Completion 0 is the preferred one.

    The first three are always there; the others only where the objective's needs name them.
    """

    logps: Tensor  # (G, K) float32, sum over completion tokens; 0 where absent
    lengths: Tensor  # (G, K) int64, number of completion tokens; 0 where absent
    present: Tensor  # (G, K) bool
    ref_logps: Tensor | None = None  # "reference": (G, K) float32
    labels: Tensor | None = None  # (G,) bool; binary feedback, None where no group has one
    tokens: TokenInputs | None = None  # any of TOKEN_NEEDS
    previous_logps: Tensor | None = None  # "previous": (G, K) float32, under the policy this iteration began with
    scores: Tensor | None = None  # "scores": (G, K) float32, the reward of each completion; 0 where absent
    mismatched_logps: Tensor | None = None  # "mismatched": (G,) float32, mean over another group's answers, no gradient
    mismatched_ref_logps: Tensor | None = None  # "mismatched": (G,) float32
    mean_chosen_length: float | None = None  # tokens of completion 0, mean over the groups of the *global* batch
    mean_length: float | None = None  # tokens of all completions, mean over the groups of the *global* batch
    state: dict[str, Tensor] = field(default_factory=dict)  # what the objective carries from step to step, scalars
    parameters: dict[str, Tensor] = field(default_factory=dict)  # trained with the policy, with gradient
