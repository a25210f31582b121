"""What an objective declares and what it sees of a batch: the contract between the training step and every loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pipeline.config import Part
from pipeline.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor
else:  # a name for annotations: planning reads this module and loads no torch
    Tensor = Any


@dataclass(frozen=True)
class Needs:
    """What an objective wants beside the policy's log-probs. Needs of several parts are joined with `|`."""

    pairs: bool = False
    """Groups of two completions, the preferred one first."""
    lists: bool = False
    """Groups of 1 + M completions, M >= 1, the preferred one first."""
    singles: bool = False
    """Beside pairs or lists also groups of one (a label, or a demonstration)."""
    layout: str | None = None
    """Groups of a make-up of its own, told in the module's text; a selection that builds them says gives=LAYOUT."""
    takes: tuple[str, ...] = ()
    """Such groups too, beside pairs or lists."""
    labels: bool = False
    """Binary feedback: batch.labels for groups of one; of larger groups completion 0 is wanted, the others are not."""
    reference: bool = False
    """batch.ref_logps"""
    previous: bool = False
    """batch.previous_logps: the policy this iteration began with (pi_t)."""
    scores: bool = False
    """batch.scores: the reward of every completion."""
    score: str | None = None
    """Beside scores: that they are this score and no other."""
    token_logps: bool = False
    """batch.tokens.logps, per token."""
    uniforms: bool = False
    """batch.tokens.uniforms, one per token and step."""
    top: int = 0
    """batch.tokens.target_logits, .top_logits and .top_ids: how many; 0: none of the three."""
    sum_squares: bool = False
    """batch.tokens.log_sum_squares"""
    divergences: bool = False
    """batch.tokens.divergences, from the reference; holds the reference model."""
    reference_tokens: bool = False
    """batch.tokens.ref_logps; holds the reference model."""
    reference_hidden: bool = False
    """batch.tokens.ref_hidden; holds the reference model."""
    mismatched: bool = False
    """batch.mismatched_logps and .mismatched_ref_logps; holds the reference model."""
    batch: bool = False
    """The loss of a group depends on the other groups: the trainer gives the *global* batch, however it is cut."""
    rationale: bool = False
    """batch.rationale_logps, of the groups that have a rationale: why the preferred completion is better."""

    @property
    def compares(self) -> bool:
        return self.pairs or self.lists

    @property
    def tokens(self) -> bool:
        """Whether it looks at single tokens: batch.tokens."""
        return (self.token_logps or self.uniforms or self.top > 0 or self.sum_squares or self.divergences
                or self.reference_tokens or self.reference_hidden)

    @property
    def live_reference(self) -> bool:
        """Whether it asks for the reference model itself instead of a table of its log-probs."""
        return self.divergences or self.reference_tokens or self.reference_hidden or self.mismatched

    def __or__(self, other: Needs) -> Needs:
        """Both. Raises UserError where they want different scores or groups of different make-ups."""
        ours, theirs = vars(self), vars(other)
        for name, what in (("score", "reads the score"), ("layout", "takes groups of the make-up")):
            if ours[name] and theirs[name] and ours[name] != theirs[name]:
                raise UserError(f"objective: one part {what} {ours[name]!r} and another {theirs[name]!r}; train with "
                                "one of the two")
        takes = tuple(dict.fromkeys(self.takes + other.takes))
        return Needs(**{**{k: max(v, theirs[k]) if isinstance(v, int) else v or theirs[k] for k, v in ours.items()},
                        "takes": takes})


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
    tokens: TokenInputs | None = None  # needs.tokens
    previous_logps: Tensor | None = None  # "previous": (G, K) float32, under the policy this iteration began with
    scores: Tensor | None = None  # "scores": (G, K) float32, the reward of each completion; 0 where absent
    mismatched_logps: Tensor | None = None  # "mismatched": (G,) float32, mean over another group's answers, no gradient
    mismatched_ref_logps: Tensor | None = None  # "mismatched": (G,) float32
    rationale_logps: Tensor | None = None  # "rationale": (G,) float32, sum over its tokens; 0 where a group has none
    explained: Tensor | None = None  # (G,) bool, whether a group has a rationale
    mean_chosen_length: float | None = None  # tokens of completion 0, mean over the groups of the *global* batch
    mean_wanted_length: float | None = None  # the same, where a completion 0 labelled unwanted counts as 0 tokens
    mean_length: float | None = None  # tokens of all completions, mean over the groups of the *global* batch
    tokens_per_group: float | None = None  # the same mean, weighted as the groups are
    state: dict[str, Tensor] = field(default_factory=dict)  # what the objective carries from step to step, scalars
    parameters: dict[str, Tensor] = field(default_factory=dict)  # trained with the policy, with gradient


Losses = tuple[Tensor, dict[str, Tensor]]  # (G,) and metrics, name -> (G,)


@dataclass(frozen=True)
class Objective:
    """What a module in pipeline/objectives declares as OBJECTIVE."""

    Settings: type
    """Frozen dataclass of its hyper-parameters (config.setting gives the ranges, `check()` what spans several)."""

    loss: Callable[[LossInputs, Any], Losses]
    """(batch, settings) -> losses, unreduced, one per group, with gradient; and metrics without gradient.

    A completion that is not present contributes nothing; a group that lacks a completion the objective compares has
    loss 0 and metrics 0. Every comparison reports rewards_chosen, rewards_rejected, margin, accuracy.
    """

    needs: Needs | Callable[[Any], Needs] = Needs()
    """What it wants beside the policy's log-probs; a function of the settings where it depends on them."""

    normalise: str | Callable[[Any], str] = "groups"
    """What the loss sum of a *global* batch is divided by: its number of "groups", or the number of completion "tokens"
    of all present completions.
    """

    state: Callable[[Any], dict[str, float]] = lambda settings: {}
    """settings -> what is carried from step to step, as it starts. Checkpointed."""

    update: Callable[[LossInputs, Any], dict[str, Tensor]] | None = None
    """(batch, settings) -> the state after this batch, () tensors without gradient. The trainer calls it with the
    global batch, before `loss`, which then sees the new state (needs batch).
    """

    parameters: Callable[[int, int, Any], dict[str, Tensor]] | None = None
    """(hidden, layers, settings) -> what is trained beside the policy, as it starts (zeros or constants; random values
    are drawn from a generator seeded with a constant).
    """


@dataclass(frozen=True)
class Auxiliary:
    """What a module of terms beside any objective declares as AUXILIARY."""

    Settings: type

    before: Callable[[LossInputs, Any], LossInputs]
    """(batch, settings) -> what the objective sees."""

    terms: Callable[[LossInputs, Any], Losses]
    """(batch, settings) -> what is added to its losses; sees the batch as it was. Averaged over groups beside every
    objective, whatever that one is divided by.
    """

    needs: Needs | Callable[[Any], Needs] = Needs()


def needs_of(objective: Part[Objective], auxiliary: Part[Auxiliary] | None = None) -> Needs:
    """What the objective and the terms beside it need together."""
    own = objective.of(objective.plugin.needs)
    return own if auxiliary is None else own | auxiliary.of(auxiliary.plugin.needs)
