"""The scores of a batch, and what they make of a pair: how likely the one completion is the better one."""

from pipeline.errors import UserError
from pipeline.objectives.contract import LossInputs, Tensor
from pipeline.objectives.shared.pairs import at_least_float32, required

LABELS = ("rewards", "win_rates", "probability")  # see `win_probabilities`


def scores_of(batch: LossInputs, objective: str) -> Tensor:
    """batch.scores (G, K). Raises ValueError when the trainer did not provide them."""
    return required(batch.scores, "scores", objective)


def win_probabilities(chosen_scores: Tensor, rejected_scores: Tensor, kind: str) -> Tensor:
    """P(y_w preferred to y_l) from what stands in the scores.

    Args:
        chosen_scores, rejected_scores: (G,).
        kind: "rewards": s(R_w - R_l), Bradley-Terry; "win_rates": p against a common opponent, in [0, 1],
            s(logit p_w - logit p_l); "probability": the chosen completion's score is the probability itself.

    Returns: (G,) in [0, 1], without gradient. Raises UserError for win rates or probabilities outside [0, 1].
    """
    chosen, rejected = at_least_float32(chosen_scores.detach()), at_least_float32(rejected_scores.detach())
    if kind == "rewards":
        return (chosen - rejected).sigmoid()
    refuse_unless_probabilities(chosen, kind)
    if kind == "probability":
        return chosen
    refuse_unless_probabilities(rejected, kind)
    # s(logit p - logit q) = p (1 - q) / (p (1 - q) + q (1 - p)); 0 / 0, certain against certain, is a tie
    wins, losses = chosen * (1.0 - rejected), rejected * (1.0 - chosen)
    tied = (wins + losses) == 0
    return (wins + 0.5 * tied) / (wins + losses + tied)


def refuse_unless_probabilities(values: Tensor, kind: str) -> None:
    """Raises UserError where a score is outside [0, 1]."""
    wrong = values[(values < 0) | (values > 1)]
    if wrong.numel():
        raise UserError(f"objective: with {kind} the scores are probabilities, found {wrong[0].item():g}, expected "
                        "0 <= x <= 1; select with a rule that stores them, or take the labels from rewards")
