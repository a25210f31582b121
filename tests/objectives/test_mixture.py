"""A weighted sum of objectives is the sum of what they give alone."""

from __future__ import annotations

import pytest
import torch

from pipeline.config import build
from pipeline.errors import UserError
from pipeline.objectives import ce, dpo, mixture
from pipeline.objectives.contract import LossInputs, Needs

DPO, CE = {"module": "pipeline.objectives.dpo", "beta": 0.2}, {"module": "pipeline.objectives.ce"}


def batch() -> LossInputs:
    return LossInputs(torch.tensor([[-3.0, -10.0], [-8.0, -4.0]], dtype=torch.float64), torch.tensor([[2, 4], [4, 3]]),
                      torch.ones(2, 2, dtype=torch.bool),
                      ref_logps=torch.tensor([[-4.0, -9.0], [-7.0, -5.0]], dtype=torch.float64))


def test_sum_of_the_parts_each_normalised_as_alone():
    """2 x DPO (over groups) + 0.5 x CE (over the chosen tokens: 11 nats over 6 tokens)."""
    settings = mixture.Settings(({**DPO, "weight": 2.0}, {**CE, "weight": 0.5}))
    losses, metrics = mixture.loss(batch(), settings)
    alone = dpo.loss(batch(), dpo.Settings(beta=0.2))[0].mean()
    nll = ce.loss(batch(), ce.Settings())[0].sum() / 6
    assert losses.mean().item() == pytest.approx((2 * alone + 0.5 * nll).item(), abs=1e-12)
    assert metrics["loss_0"].mean().item() == pytest.approx(alone.item())
    assert mixture.needs(settings) == Needs(reference=True, pairs=True)


def test_bad_parts_are_named_by_their_place():
    with pytest.raises(UserError) as caught:
        parts = [{**DPO, "beta": -1.0, "weight": -2}, {"module": "pipeline.objectives.dp"}]
        build(mixture.Settings, {"objectives": parts}, "objective")
    words = "\n".join(caught.value.problems)
    assert "objective.objectives[0].weight: -2 is out of range" in words
    assert "objectives[0].beta: -1.0 is out of range" in words
    assert "did you mean dpo" in words


def test_empty_mixture_is_refused():
    with pytest.raises(UserError, match="expected at least one objective"):
        build(mixture.Settings, {"objectives": []}, "objective")
