"""The records every part speaks: the preference group and what a loss may see of it.

One prompt with K completions covers every case (K = 0 prompts, 1 demonstrations, 2 pairs with the preferred
first, 1 + M ranked candidates with the preferred first), so there is one table schema, one tokeniser path, one
trainer. Nothing here imports more than the standard library.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

STOP = "stop"  # the completion ended by a stop token, which is its last token id
LENGTH = "length"  # the completion was cut at the token limit: no stop token
ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True)
class Completion:
    """One answer to a prompt.

    `token_ids` is empty until the text has been tokenised with the policy's template; from then on it is the truth
    and `text` its rendering. It ends with a stop id if and only if `finish_reason` is "stop".
    """

    text: str
    token_ids: tuple[int, ...] = ()
    finish_reason: str = STOP
    scores: dict[str, float] = field(default_factory=dict)  # by scorer name
    ref_logp: float | None = None  # sum over completion tokens under the reference, nats
    sample: int = 0  # index among the samples of this prompt
    temperature: float | None = None
    seed: int | None = None
    policy: str = ""  # output digest of the weights that wrote it; "" = the data set
    logprobs: tuple[float, ...] | None = None  # of each token under the policy that sampled it, nats; kept on request
    prompt_ids: tuple[int, ...] = ()  # its own prompt where it is not the group's: a rationale, an answer to a draft


@dataclass(frozen=True)
class Group:
    """A prompt and its K completions: one row of every table."""

    id: str
    messages: tuple[Message, ...]
    completions: tuple[Completion, ...] = ()
    prompt_ids: tuple[int, ...] = ()
    label: bool | None = None  # binary feedback on completion 0
    weight: float = 1.0
    dataset: str = ""
    iteration: int = 0  # 0 = from the data set, k = sampled in iteration k


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


class UserError(Exception):
    """Something the user can put right. Carries one message per problem; printed without a traceback, exit code 2."""

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = list(problems)
