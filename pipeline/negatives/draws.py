"""Drawing M of the L candidates of each group: what mc, uniform, hardest and easiest have in common."""

from dataclasses import dataclass
from typing import Any

from pipeline.config import setting
from pipeline.errors import UserError
from pipeline.negatives.contract import Drawn, Tensor


@dataclass(frozen=True)
class Ends:
    """How many negatives, and what orders the candidates: the settings of hardest and easiest."""

    m: int = setting(1, low=1)
    """Negatives per group and step."""

    weights: str = setting("logp", choices=("reward", "logp"))
    """Order candidates by log pi, or by the implicit reward log(pi / ref). logp as in mc
    (docs/decisions/009-mc-kernel.md)."""

    length_normalize: bool = False
    """Per token instead of summed over the completion."""


def ends(logps: Tensor | None, ref_logps: Tensor | None, present: Tensor, uniforms: Tensor, settings: Ends,
         lengths: Tensor | None = None, *, sign: int) -> Drawn:
    """See Draw. The m candidates of the largest (sign 1) or smallest (sign -1) weight; ties go to the lower index.

    Metric: kernel_entropy = 0, there is nothing random.
    """
    import torch

    with torch.no_grad():
        logs = log_weights(logps, ref_logps, present, settings, lengths)
        indices, valid = top(sign * logs, present, settings.m)
        return indices, valid, {"kernel_entropy": torch.zeros_like(logs[:, 0])}


def weighs_by_reward(settings: Any) -> bool:
    """Whether candidates are weighed by log(policy / reference)."""
    return bool(settings.weights == "reward")


def log_weights(logps: Tensor | None, ref_logps: Tensor | None, present: Tensor, settings: Any, lengths: Tensor | None,
                beta: float = 1.0) -> Tensor:
    """Unnormalised log-weights of the candidates: (G, K - 1) for columns 1 .. K - 1, -inf where not present.

    settings.weights: "reward", beta * (log pi - log ref), or "logp", beta * log pi; sums over tokens, at least float32;
    divided by the number of tokens, `lengths` (G, K), with settings.length_normalize.
    Raises UserError for "reward" without reference log-probs, ValueError without log-probs or without lengths.
    """
    if settings.length_normalize and lengths is None:
        raise ValueError("drawing negatives by length-normalised weights needs the lengths of the candidates")
    if logps is None:
        raise ValueError("drawing negatives by weight needs the policy's log-probs of the candidates")
    values = _wide(logps.detach())
    if settings.weights == "reward":
        if ref_logps is None:
            raise UserError("negatives.weights: 'reward' needs reference log-probs, which this objective does not use; "
                            "set negatives.weights=logp or use objective=rnce")
        values = values - _wide(ref_logps.detach())
    if settings.length_normalize and lengths is not None:
        values = values / lengths.clamp(min=1)
    return (beta * values[:, 1:]).where(present[:, 1:], float("-inf"))


def gumbel(uniforms: Tensor) -> Tensor:
    """Standard Gumbel noise -log(-log u) of candidates, (G, K) uniforms in [0, 1) -> (G, K - 1); finite for u = 0."""
    import torch

    uniforms = _wide(uniforms[:, 1:])
    return -(-uniforms.clamp(min=torch.finfo(uniforms.dtype).tiny).log()).log()


def fresh(uniforms: Tensor, step: int) -> Tensor:
    """Further (G, K) uniforms in [0, 1), one set per `step`, as a hash of the given ones; step 0 gives those.

    Each is mixed (SplitMix64, Steele et al. 2014) from its own 24 leading bits and those of column 0, so a group's
    numbers depend on nothing outside its row.
    """
    if step == 0:
        return uniforms
    bits = (uniforms.double() * 2**24).long()
    state = ((bits << 24) + bits[:, :1] + 1) * (2 * step + 1) * -7046029254386353131
    for shift, factor in ((30, -4658895280553007687), (27, -7723592293110705685)):
        state = (state ^ _shifted(state, shift)) * factor
    return _shifted(state ^ _shifted(state, 31), 40).to(uniforms.dtype) / 2**24


def _shifted(state: Tensor, by: int) -> Tensor:
    return (state >> by) & ((1 << (64 - by)) - 1)  # >> keeps the sign, the mask takes it off


def top(keys: Tensor, present: Tensor, m: int) -> tuple[Tensor, Tensor]:
    """The m present candidates with the largest keys, largest first, ties to the lower index.

    Args: keys: (G, K - 1) of columns 1 .. K - 1. present: (G, K) bool. m: >= 1.

    Returns: indices (G, m) into the K completions, never 0, and valid (G, m). Raises ValueError for K < 2.
    """
    import torch

    if keys.shape[1] == 0:
        raise ValueError("there are no candidates to draw from: the groups hold one completion each")
    keys = keys.masked_fill(~present[:, 1:], float("-inf"))
    order = keys.argsort(dim=1, descending=True, stable=True)[:, :m]
    valid = present[:, 1:].gather(1, order)
    missing = (0, max(0, m - order.shape[1]))
    return torch.nn.functional.pad(order, missing) + 1, torch.nn.functional.pad(valid, missing)


def entropy(logs: Tensor) -> Tensor:
    """Entropy in nats of softmax(logs), (G, L) -> (G,); entries of -inf have no weight; 0 for a row of only those."""
    import torch

    logs = torch.where(torch.isneginf(logs).all(dim=1, keepdim=True), 0.0, logs) if logs.shape[1] else logs
    probabilities = logs.softmax(dim=1)
    return torch.special.entr(probabilities).sum(dim=1)


def _wide(values: Tensor) -> Tensor:
    import torch

    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
