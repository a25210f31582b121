"""INPO, iterative Nash policy optimisation (Zhang et al. 2024): no-regret self-play against a preference game.

    h = log pi(y_w)/pi(y_l) - (tau/eta) log ref(y_w)/ref(y_l) - (1 - tau/eta) log pi_t(y_w)/pi_t(y_l)
    L = (h - 1/(2 eta))^2

pi_t is the policy this iteration began with; both answers of a pair must be its samples, which is what makes the binary
label as good as the win rate. The minimiser is pi_{t+1} ~ exp(P(y > pi_t)/eta) ref^{tau/eta} pi_t^{1 - tau/eta}. Sums
over tokens; the target is 100 nats at the default, and the gradient linear in what is missing: clip it.
"""

from dataclasses import dataclass

from pipeline.config import setting
from pipeline.objectives.contract import Losses, LossInputs, Needs, Objective, Tensor
from pipeline.objectives.shared.pairs import at_least_float32, compared, required, with_anchor


@dataclass(frozen=True)
class Settings:
    """Hyper-parameters of INPO."""

    eta: float = setting(0.005, above=0.0)
    """Inverse target: 1/(2 eta) nats. Paper: 0.005, from a grid of 0.1 to 0.002."""

    tau: float | None = setting(None, low=0.0)
    """Strength of the pull to the reference, 0 <= tau <= eta. null: eta / 3, the paper's; 0: pure self-play."""

    def check(self) -> list[tuple[str, str]]:
        if self.tau is not None and self.tau > self.eta:
            return [("tau", f"{self.tau!r} is out of range, expected 0.0 <= x <= {self.eta!r} (objective.eta) or null")]
        return []

    @property
    def pull(self) -> float:
        """tau / eta, the reference's share of the anchor, in [0, 1]."""
        return 1.0 / 3.0 if self.tau is None else self.tau / self.eta


def inpo_losses(chosen_logps: Tensor, rejected_logps: Tensor, ref_chosen_logps: Tensor, ref_rejected_logps: Tensor,
                previous_chosen_logps: Tensor, previous_rejected_logps: Tensor, eta: float,
                pull: float = 1.0 / 3.0) -> Tensor:
    """INPO loss of each pair.

    Args: the first six: (G,) sums over completion tokens, nats, under the policy, the reference and pi_t.
        eta: > 0. pull: tau / eta, in [0, 1].

    Returns: (G,), >= 0; 1/(4 eta^2) where the three models agree.
    """
    policy = at_least_float32(chosen_logps) - at_least_float32(rejected_logps)
    reference = at_least_float32(ref_chosen_logps) - at_least_float32(ref_rejected_logps)
    previous = at_least_float32(previous_chosen_logps) - at_least_float32(previous_rejected_logps)
    return (policy - pull * reference - (1.0 - pull) * previous - 0.5 / eta).square()


def loss(batch: LossInputs, settings: Settings) -> Losses:
    """Losses (G,) and the metrics of a comparison; rewards are eta times the log-ratio to the anchor, so that the
    margin is fitted at 1/2. Raises UserError for more than two completions, ValueError without reference or previous
    log-probs.
    """
    pairs, four = with_anchor(batch, "inpo")
    previous = pairs.sides(required(batch.previous_logps, "previous_logps", "inpo"))
    losses = inpo_losses(*four, *previous, settings.eta, settings.pull)
    anchors = [settings.pull * r + (1.0 - settings.pull) * t for r, t in zip(four[2:], previous, strict=True)]
    rewards = [settings.eta * (logps - anchor) for logps, anchor in zip(four[:2], anchors, strict=True)]
    return compared(pairs.usable, losses, *rewards)


OBJECTIVE = Objective(Settings, loss, needs=Needs(pairs=True, reference=True, previous=True))
