"""SparsePO and MaPO (Christopoulou et al. 2024): TDPO with a weight on every token, made by the reference model.

    u     = sum_t m_t log[pi/ref](y_w,t) - sum_t m_t log[pi/ref](y_l,t)
    D(y)  = sum_t k_t KL( ref(.|x,y_<t) || pi(.|x,y_<t) )
    L     = -log s(beta (u - (D(y_l) - D(y_w)))) + lambda_u (|m_w|_1 + |m_l|_1) + lambda_d (|k_w|_1 + |k_l|_1)

m = k = 1 and no L1 terms is TDPO-1. The masks are heads trained with the policy (the L1 terms make them sparse), or
with mask=mapo the reference's own activations (see sparse_masks).
"""

from dataclasses import dataclass

from pipeline.config import setting
from pipeline.objectives.contract import Losses, LossInputs, Needs, Objective, Tensor, TokenInputs
from pipeline.objectives.shared.pairs import compared, pairs_of, required
from pipeline.objectives.shared.sparse_masks import activation_masks, learned_masks, new_head
from pipeline.objectives.shared.tokenwise import completion_sums, tokens_of
from pipeline.objectives.tdpo import tdpo_losses


@dataclass(frozen=True)
class Settings:
    """Hyper-parameters of SparsePO."""

    beta: float = setting(0.1, above=0.0)
    """Strength of the pull to the reference, 1/nats. Authors: 0.1 on dialogue, 0.8 on sentiment and summaries."""

    mask: str = setting("learned", choices=("learned", "mapo"))
    """learned: heads trained with the policy; mapo: the reference's activations."""

    common: bool = False
    """Learned masks: one head for rewards and divergences (m = k) instead of one each."""

    l1_reward: float = setting(0.001, low=0.0)
    """lambda_u, per unit of mask. Authors: 0.001 on dialogue, 0 elsewhere. No use in mapo, where nothing is learned."""

    l1_divergence: float = setting(0.001, low=0.0)
    """lambda_d, likewise."""

    dropout: float = setting(0.1, low=0.0, below=1.0)
    """Of the heads. 0.1 in the authors' layers (0.01 in their run configuration)."""

    rescale: str = setting("layer", choices=("layer", "mean"))
    """mapo: rescale each layer and average (the authors' code), or average over layers and rescale."""


def parameters(hidden: int, layers: int, settings: Settings) -> dict[str, Tensor]:
    """The heads as they start: reward.* and, unless they are common, divergence.*; none for mapo."""
    if settings.mask == "mapo":
        return {}
    names = ("reward",) if settings.common else ("reward", "divergence")
    return {f"{name}.{part}": value
            for seed, name in enumerate(names) for part, value in new_head(hidden, layers, seed).items()}


def sparsepo_losses(log_ratios: tuple[Tensor, Tensor], divergences: tuple[Tensor, Tensor],
                    reward_norms: tuple[Tensor, Tensor], divergence_norms: tuple[Tensor, Tensor], beta: float,
                    l1_reward: float = 0.0, l1_divergence: float = 0.0) -> Tensor:
    """SparsePO loss of each pair. Every tuple is (chosen, rejected), each (G,).

    Args:
        log_ratios: sums over tokens of m_t (log pi - log ref), nats.
        divergences: sums over positions of k_t KL(ref || pi), nats.
        reward_norms, divergence_norms: sums of m_t and of k_t (the masks are >= 0).
        beta: > 0, 1/nats. l1_reward, l1_divergence: >= 0.

    Returns: (G,), each > 0; ln 2 plus the L1 terms where policy and reference agree.
    """
    sparsity = l1_reward * sum(reward_norms) + l1_divergence * sum(divergence_norms)
    return tdpo_losses(*log_ratios, *divergences, beta) + sparsity


def masks(tokens: TokenInputs, shape: tuple[int, int], heads: dict[str, Tensor],
          settings: Settings) -> tuple[Tensor, Tensor]:
    """(m, k), each (N,), of the batch's tokens. Raises ValueError without the reference's hidden states."""
    hidden = required(tokens.ref_hidden, "tokens.ref_hidden", "sparsepo")
    if settings.mask == "mapo":
        completion = tokens.group * shape[1] + tokens.column
        mask = activation_masks(hidden, completion, shape[0] * shape[1], settings.rescale)
        return mask, mask
    made = []
    for name in ("reward",) if settings.common else ("reward", "divergence"):
        head = {k.partition(".")[2]: v for k, v in heads.items() if k.startswith(f"{name}.")}
        # the two heads must not drop the same tokens: the second one counts the uniforms from the other end
        uniforms = required(tokens.uniforms, "tokens.uniforms", "sparsepo")
        draws = uniforms if name == "reward" else 1.0 - uniforms
        made.append(learned_masks(hidden, head, draws, settings.dropout))
    return made[0], made[-1]


def loss(batch: LossInputs, settings: Settings) -> Losses:
    """Losses (G,), the metrics of a comparison (rewards are beta times masked log-ratio plus masked divergence), the
    divergences, and mask and kept: mean of m and share of tokens with m > 0. Raises UserError for more than two
    completions, ValueError without the token inputs.
    """
    pairs, tokens = pairs_of(batch, "sparsepo"), tokens_of(batch, "sparsepo")
    ref_logps = required(tokens.ref_logps, "tokens.ref_logps", "sparsepo")
    m, k = masks(tokens, (batch.present.shape[0], batch.present.shape[1]), batch.parameters, settings)
    divergence = required(tokens.divergences, "tokens.divergences", "sparsepo")

    def sums(values: Tensor) -> tuple[Tensor, Tensor]:
        return pairs.sides(completion_sums(values, tokens, batch.present))

    ratios, divergences = sums(m * (tokens.logps - ref_logps)), sums(k * divergence)
    norms, kept = sums(m), sums((m > 0).to(m))
    learned = settings.mask == "learned"
    losses = sparsepo_losses(ratios, divergences, norms, sums(k), settings.beta,
                             settings.l1_reward * learned, settings.l1_divergence * learned)
    number = (pairs.chosen_lengths + pairs.rejected_lengths).clamp(min=1)
    rewards = [settings.beta * (u + d) for u, d in zip(ratios, divergences, strict=True)]
    return compared(pairs.usable, losses, *rewards, divergence_chosen=divergences[0],
                    divergence_rejected=divergences[1], mask=sum(norms) / number, kept=sum(kept) / number)


OBJECTIVE = Objective(
    Settings, loss,
    needs=Needs(pairs=True, uniforms=True, divergences=True, reference_tokens=True, reference_hidden=True),
    parameters=parameters)
