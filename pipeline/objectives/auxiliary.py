"""Terms that stand beside any objective: an SFT term, length desensitisation, a rationale term.

SFT term:  + w (-log pi(y_w)), of wanted completions only (an answer labelled unwanted has no term), in one of three
normalisations (equations A0): the sum over tokens (the papers), its mean over the completion's tokens (OpenRLHF's
nll_loss_coef), or the mean over all wanted tokens of the global batch (TRL's "sft" loss and CPO).

Length desensitisation (LD-DPO, Liu et al. 2024): tokens of a pair beyond the length of its shorter side weigh alpha, in
the sums of the policy and of the reference.

Rationale term (Just et al. 2024): + gamma (-log pi(rationale | x, y_w, y_l)), the sum over its tokens behind a question
of its own (pipeline.lm.rationales); 0 for a group that has none, so that beside it the mean is over all groups.
"""

import dataclasses
from dataclasses import dataclass

from pipeline.config import setting
from pipeline.objectives.contract import Auxiliary, Losses, LossInputs, Needs, Tensor, TokenInputs
from pipeline.objectives.shared.labelled import signs
from pipeline.objectives.shared.pairs import at_least_float32, masked, required
from pipeline.objectives.shared.tokenwise import completion_sums, tokens_of

SFT = ("sum", "mean", "batch")  # normalisations, see `sft_losses`


@dataclass(frozen=True)
class Settings:
    """Every term is off by default."""

    sft_weight: float = setting(0.0, low=0.0)
    """w of the SFT term on the preferred completion. RPO's papers: 0.005 x beta (sum), 0.2 (mean)."""

    sft_normalise: str = setting("batch", choices=SFT)
    """sum: over the completion's tokens; mean: of them; batch: mean over all wanted tokens of the global batch."""

    length_alpha: float = setting(1.0, low=0.0, high=1.0)
    """Weight of a pair's tokens beyond its shorter side. 1: off. LD-DPO: 0.5."""

    rationale_gamma: float = setting(0.0, low=0.0)
    """Weight of the rationale's negative log-prob. Released runs: 0.001."""

    rationale_log_sigmoid: bool = False
    """Wrap it as the released RDPO code does: -log s(gamma log pi(rationale)) instead of -gamma log pi."""


def needs(settings: Settings) -> Needs:
    """Token-level log-probs for length desensitisation, rationales for their term; else nothing."""
    by_token = settings.length_alpha < 1.0
    return Needs(token_logps=by_token, reference_tokens=by_token, rationale=settings.rationale_gamma > 0.0)


def sft_losses(chosen_logps: Tensor, chosen_lengths: Tensor, normalise: str = "batch",
               mean_length: float | None = None) -> Tensor:
    """-log pi(y_w) of each group in one of three normalisations.

    Args:
        chosen_logps: (G,) sums over tokens, nats. chosen_lengths: (G,) tokens.
        normalise: "sum", "mean" or "batch".
        mean_length: tokens of y_w, mean over the global batch; None: over this one. Only for "batch": the mean of the
            returned losses over all groups is then the mean over all tokens.

    Returns: (G,), each >= 0.
    """
    nll = -at_least_float32(chosen_logps)
    if normalise == "mean":
        return nll / chosen_lengths.clamp(min=1)
    if normalise == "batch":
        mean = at_least_float32(chosen_lengths.to(nll.dtype)).mean() if mean_length is None else mean_length
        return nll / max(float(mean), 1e-9)
    if normalise != "sum":
        raise ValueError(f"normalise: {normalise!r}, expected sum, mean or batch")
    return nll


def desensitised_sums(token_logps: Tensor, tokens: TokenInputs, lengths: Tensor, alpha: float) -> Tensor:
    """(G, K) sums in which tokens beyond min(|y_w|, |y_l|) of their group weigh alpha.

    Args:
        token_logps: (N,) nats. tokens: where each token stands.
        lengths: (G, K) int64, 0 where absent; a group with one completion keeps weight 1.
        alpha: in [0, 1].
    """
    import torch

    values = at_least_float32(token_logps)
    shortest = lengths.where(lengths > 0, lengths.max()).amin(dim=1)
    weights = torch.where(tokens.position < shortest[tokens.group], 1.0, alpha).to(values.dtype)
    return completion_sums(values * weights, tokens, lengths)


def before(batch: LossInputs, settings: Settings) -> LossInputs:
    """The batch as the objective sees it: with desensitised sums."""
    if settings.length_alpha < 1.0:
        tokens = tokens_of(batch, "length_alpha")
        places = (tokens, batch.lengths, settings.length_alpha)
        ref = required(tokens.ref_logps, "tokens.ref_logps", "length_alpha")
        batch = dataclasses.replace(batch, logps=desensitised_sums(tokens.logps, *places),
                                    ref_logps=None if batch.ref_logps is None else desensitised_sums(ref, *places))
    return batch


def terms(batch: LossInputs, settings: Settings) -> Losses:
    """What is added to the losses, (G,), and how large each term is."""
    import torch

    total = torch.zeros_like(at_least_float32(batch.logps[:, 0]))
    metrics: dict[str, Tensor] = {}
    if settings.sft_weight > 0.0:
        chosen, there = masked(batch.logps, batch.present)[:, 0], signs(batch)[0][:, 0]
        mean = batch.mean_wanted_length
        if mean is None:
            mean = float((batch.lengths[:, 0] * there).sum()) / len(there)
        losses = sft_losses(chosen, batch.lengths[:, 0], settings.sft_normalise, mean)
        metrics["sft_loss"] = torch.where(there, losses, 0.0).detach()
        total = total + settings.sft_weight * torch.where(there, losses, 0.0)
    if settings.rationale_gamma > 0.0:
        logps = at_least_float32(required(batch.rationale_logps, "rationale_logps", "rationale_gamma"))
        there = required(batch.explained, "explained", "rationale_gamma")
        losses = -settings.rationale_gamma * logps
        if settings.rationale_log_sigmoid:
            losses = -torch.nn.functional.logsigmoid(settings.rationale_gamma * logps)
        metrics |= {"rationale_logps": logps.detach(), "rationale_share": there.to(logps.dtype)}
        total = total + torch.where(there, losses, 0.0)
    return total, metrics


AUXILIARY = Auxiliary(Settings, before, terms, needs)
