"""Nash-MD (Munos et al. 2023): policy gradient against a mixture of the policy and the reference.

    mixture:   log m = log_softmax((1 - c) logits + c ref_logits), token by token;   y ~ pi,  y' ~ m
    sequence:  L = -log pi(y) sg[P(y > y') - 1/2 - beta lr(y)],                   lr = log pi - log ref
    token:     L = beta sum_t sg[lr_t] log pi(y_t) - (P(y > y') - 1/2) sum_t log pi(y_t)

"sequence" is the paper's gradient. "token" is TRL's: the pull to the reference acts token by token without what
follows, a biased gradient of the sequence KL. P(y > y') = s(R(y) - R(y')) from the scores. Values of these losses mean
nothing, only their gradients do. c = 1 learns the best answer to the reference, c = 0 plays against itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.config import setting
from pipeline.objectives.contract import Losses, LossInputs, Needs, Objective, Tensor
from pipeline.objectives.shared.pairs import Pairs, at_least_float32, compared, pairs_of, reference_of, required
from pipeline.objectives.shared.scores import scores_of, win_probabilities
from pipeline.objectives.shared.tokenwise import completion_sums, tokens_of


@dataclass(frozen=True)
class Settings:
    """Hyper-parameters of Nash-MD."""

    beta: float = setting(0.1, above=0.0)
    """Strength of the pull to the reference, 1/nats. TRL: 0.1."""

    form: str = setting("sequence", choices=("sequence", "token"))
    """sequence: the paper's gradient; token: TRL's."""

    players: str = setting("first", choices=("first", "both"))
    """first: completion 0 is y, the policy's sample, and completion 1 is y', the mixture's, whichever won. both: both
    are the policy's samples (c = 0), in any order, and each is learned against the other, with half the weight."""

    control_variate: float = setting(0.5, low=0.0, high=1.0)
    """Subtracted from P. Paper and TRL: 1/2; the EGPO authors' simulation: 0."""


def needs(settings: Settings) -> Needs:
    """The token form sees the reference token by token."""
    if settings.form == "token":
        return Needs(pairs=True, scores=True, token_logps=True, reference_tokens=True)
    return Needs(pairs=True, scores=True, reference=True)


def nash_md_losses(logps: Tensor, ref_logps: Tensor, probabilities: Tensor, beta: float,
                   control_variate: float = 0.5) -> Tensor:
    """The paper's form for each sample y.

    Args:
        logps, ref_logps: (G,) of y, sums over tokens, nats. probabilities: (G,) P(y > y') in [0, 1].
        beta: > 0. control_variate: in [0, 1].

    Returns: (G,) with gradient -(P - 1/2 - beta lr) into `logps`.
    """
    logps = at_least_float32(logps)
    ratio = logps.detach() - at_least_float32(ref_logps)
    return -logps * (probabilities - control_variate - beta * ratio).detach()


def nash_md_token_losses(token_logps: Tensor, ref_token_logps: Tensor, probabilities: Tensor, beta: float,
                         control_variate: float = 0.5) -> Tensor:
    """TRL's form, one term per token, to be summed over the tokens of each y.

    Args:
        token_logps, ref_token_logps: (N,) nats. probabilities: (N,) P(y > y') of the sample the token belongs to.
        beta: > 0. control_variate: in [0, 1].

    Returns: (N,) with gradient beta lr_t - (P - 1/2) into `token_logps`.
    """
    logps = at_least_float32(token_logps)
    ratio = logps.detach() - at_least_float32(ref_token_logps)
    return (beta * ratio - (probabilities - control_variate)).detach() * logps


def loss(batch: LossInputs, settings: Settings) -> Losses:
    """Losses (G,), the metrics of a comparison (rewards are beta lr) and win_probability.

    Raises UserError for more than two completions, ValueError without scores or the reference.
    """
    pairs = pairs_of(batch, "nash_md")
    first = win_probabilities(*pairs.sides(scores_of(batch, "nash_md")), "rewards")
    sides = (first, 1.0 - first)
    if settings.form == "token":
        losses, ratios = _tokens(batch, pairs, sides, settings)
    else:
        anchors, mine = pairs.sides(reference_of(batch, "nash_md")), (pairs.chosen, pairs.rejected)
        losses = [nash_md_losses(logps, anchor, p, settings.beta, settings.control_variate)
                  for logps, anchor, p in zip(mine, anchors, sides, strict=True)]
        ratios = [logps - anchor for logps, anchor in zip(mine, anchors, strict=True)]
    total = losses[0] if settings.players == "first" else 0.5 * (losses[0] + losses[1])
    rewards = [settings.beta * ratio for ratio in ratios]
    return compared(pairs.usable, total, *rewards, win_probability=first)


def _tokens(batch: LossInputs, pairs: Pairs, sides: tuple[Tensor, Tensor],
            settings: Settings) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """(losses, log-ratios) of both completions, each (G,), in TRL's form."""
    import torch

    tokens = tokens_of(batch, "nash_md")
    reference = required(tokens.ref_logps, "tokens.ref_logps", "nash_md")
    probabilities = torch.stack(sides, dim=1)[tokens.group, tokens.column]
    losses = nash_md_token_losses(tokens.logps, reference, probabilities, settings.beta, settings.control_variate)
    sums, ratios = (completion_sums(values, tokens, batch.present) for values in (losses, tokens.logps - reference))
    return pairs.sides(sums), pairs.sides(ratios)


OBJECTIVE = Objective(Settings, loss, needs=needs)
