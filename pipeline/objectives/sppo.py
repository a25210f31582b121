"""Self-Play Preference Optimization (Wu et al. 2024, Eq. 4.7): log-ratios regressed onto scaled win rates.

    hard      L = ( a - 1 / (2 beta) )^2 + ( b + 1 / (2 beta) )^2                               labels 1 / 0, as in TRL
    soft      L = 1/2 [ ( a - (P_w - 1/2) / beta )^2 + ( b - (P_l - 1/2) / beta )^2 ]           the official loss
    single    L = 1/2 [ ( a - (p - 1/2) / beta )^2 + ( b + (p - 1/2) / beta )^2 ]               p = P(y_w over y_l)

P_w, P_l: estimated win rates against the samples of the policy pi_t that wrote them; pi_t is what the log-ratios are
taken against. Only the hard form has no 1/2. beta = 0.001 makes targets of +-500 nats. Sums over tokens.
"""

from dataclasses import dataclass

from pipeline.config import setting
from pipeline.objectives.contract import Losses, LossInputs, Needs, Objective, Tensor
from pipeline.objectives.shared.pairs import Pairs, at_least_float32, compared, log_ratios, rewards_of, with_anchor
from pipeline.objectives.shared.scores import refuse_unless_probabilities, scores_of, win_probabilities


@dataclass(frozen=True)
class Settings:
    """Hyper-parameters of SPPO."""

    beta: float = setting(0.001, above=0.0)
    """1 / eta, 1/nats. Paper: 0.001."""

    labels: str = setting("hard", choices=("hard", "soft", "single"))
    """"hard": 1 and 0. "soft": the scores are the win rates P_w and P_l, in [0, 1]. "single": the scores are rewards R
    with p = s(R_w - R_l)."""

    against: str = setting("previous", choices=("previous", "reference"))
    """The frozen model of the log-ratios. Paper: the policy the iteration began with; TRL: the reference."""


def needs(settings: Settings) -> Needs:
    """Soft labels need scores."""
    previous, stored = settings.against == "previous", "win_rate" if settings.labels == "soft" else None
    return Needs(pairs=True, previous=previous, reference=not previous, scores=settings.labels != "hard", score=stored)


def sppo_losses(chosen_logps: Tensor, rejected_logps: Tensor, previous_chosen_logps: Tensor,
                previous_rejected_logps: Tensor, chosen_win_rates: Tensor | float, rejected_win_rates: Tensor | float,
                beta: float, scale: float = 0.5) -> Tensor:
    """SPPO loss of each pair.

    Args:
        chosen_logps, rejected_logps: (G,) log pi of the two completions, sums over tokens, nats.
        previous_chosen_logps, previous_rejected_logps: (G,) the same under the policy of the previous iteration.
        chosen_win_rates, rejected_win_rates: (G,) or a number, P_w and P_l in [0, 1].
        beta: > 0. scale: the factor in front; 1/2 in the official loss, 1 in TRL's hard one.

    Returns: (G,), each >= 0. Hard labels with scale 1 cost 1 / (2 beta^2) where the two policies agree.
    """
    chosen, rejected = log_ratios(chosen_logps, rejected_logps, previous_chosen_logps, previous_rejected_logps)
    win, lose = (p if isinstance(p, float) else at_least_float32(p) for p in (chosen_win_rates, rejected_win_rates))
    of_chosen = (chosen - (win - 0.5) / beta).square()
    of_rejected = (rejected - (lose - 0.5) / beta).square()
    return scale * (of_chosen + of_rejected)


def _win_rates(batch: LossInputs, pairs: Pairs, labels: str) -> tuple[Tensor | float, Tensor | float]:
    if labels == "hard":
        return 1.0, 0.0
    chosen, rejected = (score.detach() for score in pairs.sides(scores_of(batch, "sppo")))
    if labels == "single":
        p = win_probabilities(chosen, rejected, "rewards")
        return p, 1.0 - p
    for one in (chosen, rejected):
        refuse_unless_probabilities(one, "labels=soft")
    return chosen, rejected


def loss(batch: LossInputs, settings: Settings) -> Losses:
    """Losses (G,) and the metrics of a comparison.

    Raises UserError for more than two completions, and for soft labels outside [0, 1].
    """
    pairs, four = with_anchor(batch, "sppo", settings.against)
    scale = 1.0 if settings.labels == "hard" else 0.5
    losses = sppo_losses(*four, *_win_rates(batch, pairs, settings.labels), settings.beta, scale)
    return compared(pairs.usable, losses, *rewards_of(four, settings.beta))


OBJECTIVE = Objective(Settings, loss, needs=needs)
