"""Binary Classifier Optimization (Jung et al. 2024): a classifier whose logit is the implicit reward minus a shift.

    r = beta (log pi - log ref)
    wanted:    L = -log s(r - delta)
    unwanted:  L = -log s(-(r - delta))
    delta = 1/2 (mean reward of the wanted + mean reward of the unwanted), a constant

The loss of a group is the sum over its completions, so that of a pair is the paper's
-log s(beta a - delta) - log s(-(beta b - delta)). delta runs over the training and is updated with a batch before the
batch's loss. What the density ratio of prompts asks for (UDM) is a weight per group: stage weigh_prompts.
"""

from dataclasses import dataclass

from pipeline.config import setting
from pipeline.objectives.contract import Losses, LossInputs, Needs, Objective, Tensor
from pipeline.objectives.shared.labelled import labelled, labelled_metrics, mean_over
from pipeline.objectives.shared.pairs import at_least_float32, log_sigmoid, masked, required


@dataclass(frozen=True)
class Settings:
    """Hyper-parameters of BCO."""

    beta: float = setting(0.1, above=0.0)
    """Scale of the implicit reward, 1/nats. TRL: 0.1; the paper's appendix: 0.01."""

    shift: str = setting("ema", choices=("ema", "cumulative", "pooled", "batches", "zero"))
    """How delta runs. "ema" and "cumulative": a running mean of the wanted and one of the unwanted, delta their average
    (the paper's half and half). "pooled": one cumulative mean of all rewards, each counting 1 (TRL's BCOTrainer).
    "batches": the mean of the batches' mean rewards, each batch counting 1 (TRL's bco_pair until 2025). "zero": no
    shift (TRL's bco_pair now)."""

    decay: float = setting(0.9, low=0.0, below=1.0)
    """Of "ema": what stays of the old mean. The first batch sets it; 0: delta is the batch's own."""


def needs(settings: Settings) -> Needs:
    """What the loss reads. With a shift it depends on the other groups of the batch; with `shift: zero` it does not."""
    return Needs(labels=True, reference=True, batch=settings.shift != "zero")


def bco_losses(log_ratios: Tensor, wanted: Tensor, delta: Tensor | float, beta: float) -> Tensor:
    """BCO loss of each completion.

    Args:
        log_ratios: any shape, log pi - log ref, sums over tokens, nats.
        wanted: bool, same shape: thumbs up or down.
        delta: the shift, a scalar without gradient. beta: > 0.

    Returns: the same shape, each > 0; ln 2 where policy and reference agree and delta is 0.
    """
    logits = beta * at_least_float32(log_ratios) - delta
    return -log_sigmoid(logits.where(wanted, -logits))


def state(settings: Settings) -> dict[str, float]:
    """The means as they start, and how many examples (batches) made them."""
    if settings.shift == "zero":
        return {}
    sides = ("wanted", "unwanted") if settings.shift in ("ema", "cumulative") else ("all",)
    return {f"{kind}_{side}": 0.0 for side in sides for kind in ("mean", "count")}


def update(batch: LossInputs, settings: Settings) -> dict[str, Tensor]:
    """The running means after this batch; a side without an example stays as it was."""
    import torch

    with torch.no_grad():
        examples = labelled(batch, "bco")
        rewards = settings.beta * examples.ratios
        sides = {"wanted": examples.wanted, "unwanted": examples.unwanted, "all": examples.present}
        found: dict[str, Tensor] = {}
        for side, keep in sides.items():
            if f"mean_{side}" not in batch.state:
                continue
            mean, count = batch.state[f"mean_{side}"], batch.state[f"count_{side}"]
            number = keep.sum().to(count.dtype)
            added = number.clamp(max=1) if settings.shift == "batches" else number
            share = added / (count + added).clamp(min=1)
            if settings.shift == "ema":
                # 1 for the first examples, 1 - decay from then on, 0 without any.
                share = torch.where(count > 0, count.new_tensor(1.0 - settings.decay), 1.0) * (number > 0)
            new = mean + share * (mean_over(rewards.to(mean.dtype), keep) - mean)
            found |= {f"mean_{side}": new.to(mean.dtype), f"count_{side}": count + added}
        return found


def delta_of(state: dict[str, Tensor]) -> Tensor | float:
    """The shift that a state stands for: the average of its means, of the sides seen so far; 0 without any."""
    sides = [name.removeprefix("mean_") for name in state if name.startswith("mean_")]
    if not sides:
        return 0.0
    seen = [(state[f"count_{side}"] > 0).to(state[f"mean_{side}"].dtype) for side in sides]
    total = sum(state[f"mean_{side}"].detach() * there for side, there in zip(sides, seen, strict=True))
    return total / sum(seen).clamp(min=1)  # type: ignore[union-attr]


def loss(batch: LossInputs, settings: Settings) -> Losses:
    """Losses (G,), the metrics of a comparison and delta. Raises ValueError without the state."""
    for name in state(settings):
        required(batch.state.get(name), f"state[{name!r}]", "bco")
    examples = labelled(batch, "bco")
    delta = delta_of({name: batch.state[name] for name in state(settings)})
    losses = masked(bco_losses(examples.ratios, examples.wanted, delta, settings.beta), examples.present).sum(dim=1)
    shown = losses.detach() * 0 + delta
    return losses, labelled_metrics(examples, settings.beta, delta=shown)


OBJECTIVE = Objective(Settings, loss, needs=needs, state=state, update=update)
