"""The token masks of SparsePO (Christopoulou et al. 2024), both made from the reference's hidden states.

    learned   per layer: LayerNorm -> Linear(H, 1) -> ReLU -> dropout; then a bias-free Linear over the layers -> ReLU
              -> dropout. One head for the rewards, one for the divergences, or one for both.
    mapo      the activations themselves, averaged over features, rescaled to [0, 1] within each completion and averaged
              over layers. Nothing is trained. (A z-normalisation before the rescaling, as the paper has it, changes
              nothing: both are affine.)
"""

import math

from pipeline.objectives.contract import Tensor
from pipeline.objectives.shared.pairs import at_least_float32

_EPSILON = 1e-5  # of the LayerNorm
_BITS = 32


def new_head(hidden: int, layers: int, seed: int) -> dict[str, Tensor]:
    """The parameters of one head as it starts: norm_weight, norm_bias (H,), weight (layers, H), bias, mixer (layers,).

    The linear layers start as torch's do, uniform in +-1/sqrt(H); the mixer as the mean over layers, where torch's
    start could be negative throughout and leave a mask that is 0 for ever.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    bound = 1.0 / math.sqrt(hidden)

    def uniform(*shape: int) -> Tensor:
        return (torch.rand(*shape, generator=generator) * 2.0 - 1.0) * bound

    return {"norm_weight": torch.ones(hidden), "norm_bias": torch.zeros(hidden), "weight": uniform(layers, hidden),
            "bias": uniform(layers), "mixer": torch.full((layers,), 1.0 / layers)}


def learned_masks(hidden: Tensor, head: dict[str, Tensor], uniforms: Tensor | None = None,
                  dropout: float = 0.0) -> Tensor:
    """The mask value of each token.

    Args:
        hidden: (N, layers, H) hidden states of the reference that predict the tokens.
        head: as `new_head` makes it, with gradient.
        uniforms: (N,) in [0, 1), one per token; the dropout draws are derived from them, so that they do not depend on
            how a batch is cut. Used where dropout > 0.
        dropout: in [0, 1).

    Returns: (N,), >= 0, with gradient into `head`.
    """
    import torch

    hidden = at_least_float32(hidden.detach())
    weight, bias = head["norm_weight"], head["norm_bias"]
    normed = torch.nn.functional.layer_norm(hidden, (hidden.shape[2],), weight.to(hidden), bias.to(hidden), _EPSILON)
    per_layer = (torch.einsum("nlh,lh->nl", normed, head["weight"].to(hidden)) + head["bias"]).relu()
    kept = torch.ones(hidden.shape[0], hidden.shape[1] + 1, device=hidden.device, dtype=hidden.dtype)
    if dropout > 0.0 and uniforms is not None:
        kept = (spread(uniforms, kept.shape[1]) >= dropout).to(hidden) / (1.0 - dropout)
    mixed = (per_layer * kept[:, :-1] * head["mixer"]).sum(dim=1).relu()
    return mixed * kept[:, -1]


def spread(uniforms: Tensor, number: int) -> Tensor:
    """(N,) uniforms in [0, 1) -> (N, number), hashed apart (the murmur3 finaliser on 32 bits), float32 in [0, 1)."""
    import torch

    low = (1 << _BITS) - 1
    places = torch.arange(1, number + 1, device=uniforms.device) * 0x9E3779B9
    bits = ((uniforms.double() * 2.0**_BITS).long()[:, None] + places) & low
    for factor, shift in ((0x85EBCA6B, 13), (0xC2B2AE35, 16)):
        bits = ((bits ^ (bits >> 16)) * factor) & low
        bits = bits ^ (bits >> shift)
    return ((bits >> 8).double() / 2.0 ** (_BITS - 8)).float()


def activation_masks(hidden: Tensor, completion: Tensor, number: int, rescale: str = "layer") -> Tensor:
    """The MaPO mask value of each token.

    Args:
        hidden: (N, layers, H) hidden states of the reference that predict the tokens.
        completion: (N,) int64 in [0, number), which completion a token belongs to.
        rescale: "layer": each layer's activations are rescaled to [0, 1] within a completion, then averaged (the
            authors' code); "mean": averaged over layers first.

    Returns: (N,) in [0, 1], without gradient. A completion whose activations are all alike, such as one of a single
        token, has mask 1 (the authors' code divides 0 by 0 there).
    """
    means = at_least_float32(hidden.detach()).mean(dim=2)
    if rescale == "mean":
        means = means.mean(dim=1, keepdim=True)
    index = completion[:, None].expand_as(means)
    empty = means.new_zeros(number, means.shape[1])
    low, high = (empty.scatter_reduce(0, index, means, how, include_self=False) for how in ("amin", "amax"))
    span = (high - low)[completion]
    return ((means - low[completion]) / span).where(span > 0, 1.0).mean(dim=1)
