"""The mathematics of the Cringe family (Adolphs et al. 2022; Xu et al. 2023, Eqs. 2-8), used by its three plug-ins.

At every token n of a rejected completion, with s the logits there:

    C_t = the k largest logits without n;   s* ~ Categorical(softmax(s[C_t])), no gradient through the draw
    l_t = -log( e^{s*} / (e^{s*} + e^{s[n]}) ) = softplus(s[n] - s*)

The gradient flows into s* (pushed up) and s[n] (pushed down). The listings printed in the paper do not run, and mix
the pairs of a batch; this follows the equations and ParlAI's implementation.
"""

from typing import Any

from pipeline.errors import UserError
from pipeline.objectives.contract import LossInputs, Needs, Tensor, TokenInputs
from pipeline.objectives.shared.labelled import signs
from pipeline.objectives.shared.pairs import at_least_float32, averages, column, masked, required, softplus

REDUCTIONS = ("tokens", "sum", "mean")  # of the pairwise forms, see `reduced`


def needs(settings: Any) -> Needs:
    """Pairs or single completions, and the k + 1 largest logits: the label may be among the k."""
    return Needs(pairs=True, singles=True, uniforms=True, top=settings.k + 1)


def top_candidates(top_ids: Tensor, targets: Tensor, k: int) -> Tensor:
    """C_t: the places, among the largest logits, of the k largest other than the target's, largest first.

    Args:
        top_ids: (N, J) int64 whose the largest logits are, in falling order; J > k, or the vocabulary where that is
            less. targets: (N,) int64. k: >= 1.

    Returns: (N, k) int64 in [0, J). Raises UserError for a k the vocabulary cannot give.
    """
    import torch

    if not 1 <= k <= top_ids.shape[1] - 1:
        vocabulary = top_ids.shape[1]  # fewer than k + 1 stand there only where there are no more
        raise UserError(f"objective.k: {k} is out of range for a vocabulary of {vocabulary} tokens, expected 1 <= k <= "
                        f"{vocabulary - 1} (the label itself is never a candidate)")
    is_label = top_ids[:, : k + 1] == targets[:, None]
    # Leave out the label where it is among the k + 1, the last of them where it is not.
    out = torch.where(is_label.any(dim=1), is_label.int().argmax(dim=1), k)
    places = torch.arange(k, device=top_ids.device)
    return places + (places >= out[:, None])


def draw_positives(top_logits: Tensor, top_ids: Tensor, targets: Tensor, uniforms: Tensor, k: int) -> Tensor:
    """One draw from softmax(s[C_t]) per row by inverse CDF, largest logit first; temperature 1.

    Args: top_logits: (N, J), any float type. uniforms: (N,) in [0, 1), the only randomness. Others: `top_candidates`.

    Returns: (N,) int64 places among the J, never the target's.
    """
    import torch

    with torch.no_grad():
        candidates = top_candidates(top_ids, targets, k)
        cumulative = at_least_float32(top_logits.gather(1, candidates)).softmax(dim=1).cumsum(dim=1)
        # The sum of k rounded probabilities is not exactly 1: scale the uniform to it and keep the last place in reach.
        place = (cumulative <= uniforms[:, None] * cumulative[:, -1:]).sum(dim=1, keepdim=True).clamp(max=k - 1)
        return candidates.gather(1, place)[:, 0]


def contrastive_losses(target_logits: Tensor, top_logits: Tensor, top_ids: Tensor, targets: Tensor, uniforms: Tensor,
                       k: int) -> Tensor:
    """The contrastive loss of each token (the term of Xu et al. 2023, Eq. 4).

    Args:
        target_logits: (N,) s[n], with gradient. top_logits: (N, J) the largest logits in falling order, with gradient.
        top_ids: (N, J) int64, whose they are; J > k. targets: (N,) int64 labels to push down.
        uniforms: (N,) in [0, 1), one fresh number per token and step. k: 1 <= k <= V - 1; paper 5, ParlAI's default 1.

    Returns: (N,), each > 0. Raises UserError for a k the vocabulary cannot give.
    """
    place = draw_positives(top_logits, top_ids, targets, uniforms, k)
    drawn = at_least_float32(top_logits).gather(1, place[:, None])[:, 0]
    return softplus(at_least_float32(target_logits) - drawn)


def contrastive_sums(tokens: TokenInputs, negative: Tensor, k: int) -> Tensor:
    """Contrastive losses summed per group over the tokens of the negative completions.

    Args: tokens: the batch's N tokens. negative: (G, K) bool. k: see `contrastive_losses`.

    Returns: (G,), 0 for groups without a negative.
    """
    rows = negative[tokens.group, tokens.column].nonzero()[:, 0]
    target, top, ids, uniforms = (required(getattr(tokens, name), f"tokens.{name}", "cringe")[rows]
                                  for name in ("target_logits", "top_logits", "top_ids", "uniforms"))
    losses = contrastive_losses(target, top, ids, tokens.targets[rows], uniforms, k)
    return losses.new_zeros(negative.shape[0]).index_add(0, tokens.group[rows], losses)


def token_terms(batch: LossInputs, k: int) -> tuple[Tensor, Tensor]:
    """(cross-entropy of the raised completions, contrastive loss of the lowered ones), each (G,) sums over tokens."""
    if batch.tokens is None:
        raise ValueError("the Cringe losses are token-level: LossInputs.tokens is missing")
    positive, negative = signs(batch)
    return -masked(batch.logps, positive).sum(dim=1), contrastive_sums(batch.tokens, negative, k)


def reduced(batch: LossInputs, cross_entropy: Tensor, contrastive: Tensor, reduction: str) -> tuple[Tensor, Tensor]:
    """The two token terms (G,) as they stand in the loss: sums over tokens, or with "mean" over their own tokens."""
    if reduction != "mean":
        return cross_entropy, contrastive
    terms = per_token(batch, cross_entropy, contrastive)
    return terms["ce_per_token"], terms["cringe_per_token"]


def normalise(settings: Any) -> str:
    """What the trainer divides the batch's sum by: its "tokens", or its "groups" for the two means over pairs."""
    return "tokens" if settings.reduction == "tokens" else "groups"


def margins(batch: LossInputs, usable: Tensor, how: str) -> Tensor:
    """M = log pi(y_w) - log pi(y_l) (Xu et al. 2023, Eq. 6), (G,), with gradient; 0 where not `usable` (G,).

    how: "sum" over tokens, in nats; "avg" divides each by its number of tokens, as the paper's listing does.
    """
    values = averages(batch.logps, batch.lengths) if how == "avg" else batch.logps
    return column(values, 0, usable) - column(values, 1, usable)


def per_token(batch: LossInputs, cross_entropy: Tensor, contrastive: Tensor) -> dict[str, Tensor]:
    """The two token terms as means over their own tokens, (G,): what to watch whatever the lengths are."""
    positive, negative = signs(batch)
    return {"ce_per_token": cross_entropy / (batch.lengths * positive).sum(dim=1).clamp(min=1),
            "cringe_per_token": contrastive / (batch.lengths * negative).sum(dim=1).clamp(min=1)}
