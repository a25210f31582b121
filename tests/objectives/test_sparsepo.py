"""SparsePO and MaPO, worked by hand.

MaPO, two layers of one feature, a completion of three tokens with activations (0, 1, 4) and (3, 1, 2): rescaled within
the completion (0, 1/4, 1) and (1, 0, 1/2), mean (1/2, 1/8, 3/4). Averaged first: (1.5, 1, 3) -> (1/4, 0, 1).

Learned, one layer of H = 2 with LayerNorm of (1, -1) = (1, -1): weight (2, 0), bias 1 -> relu(3) = 3, mixer 1/2 -> 1.5.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from pipeline.objectives import sparsepo, tdpo
from pipeline.objectives.contract import LossInputs
from pipeline.objectives.shared.sparse_masks import activation_masks, learned_masks, new_head, spread
from tests.objectives.batches import batch_of, token_batch

ACTIVATIONS = torch.tensor([[0.0, 3], [1, 1], [4, 2], [7, 7]], dtype=torch.float64)[:, :, None]
HEAD = {"norm_weight": torch.ones(2), "norm_bias": torch.zeros(2), "weight": torch.tensor([[2.0, 0.0]]),
        "bias": torch.ones(1), "mixer": torch.tensor([0.5])}


def both_logits() -> torch.Tensor:
    """(2, 4, 5): the policy's and the reference's."""
    return torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def batch(**more: Any) -> LossInputs:
    """A pair: three tokens, then one."""
    logits, ref_logits = both_logits()
    return token_batch(logits, more.pop("ref_logits", ref_logits), [0, 1, 2, 3], [0] * 4, [0, 0, 0, 1],
                       ref_hidden=ACTIVATIONS, uniforms=torch.tensor([0.1, 0.5, 0.7, 0.9]), **more)


def test_activation_masks() -> None:
    completion = torch.tensor([0, 0, 0, 1])
    assert activation_masks(ACTIVATIONS, completion, 2).tolist() == pytest.approx([0.5, 0.125, 0.75, 1.0])
    assert activation_masks(ACTIVATIONS, completion, 2, "mean").tolist() == pytest.approx([0.25, 0, 1, 1])
    normalised = 3 * ACTIVATIONS - 11  # a z-normalisation is affine: it changes nothing
    assert activation_masks(normalised, completion, 2).tolist() == pytest.approx([0.5, 0.125, 0.75, 1.0])


def test_learned_masks() -> None:
    hidden = torch.tensor([[[1.0, -1.0]], [[-4.0, 4.0]], [[9.0, 7.0]]])
    assert learned_masks(hidden, HEAD).tolist() == pytest.approx([1.5, 0, 1.5], abs=1e-4)


def test_dropout_draws_depend_on_the_token_alone() -> None:
    uniforms = torch.rand(4000, generator=torch.Generator().manual_seed(0))
    draws = spread(uniforms, 3)
    assert torch.equal(draws[1000:1010], spread(uniforms[1000:1010], 3))
    assert draws.mean(dim=0).tolist() == pytest.approx([0.5] * 3, abs=0.02)
    assert torch.corrcoef(torch.cat([uniforms[:, None], draws], dim=1).T).triu(1).abs().max() < 0.06
    hidden = torch.tensor([[[1.0, -1.0]]]).expand(4000, 1, 2)
    values = learned_masks(hidden, HEAD, uniforms, 0.1)
    assert sorted({round(v, 2) for v in values.tolist()}) == [0.0, 1.85]  # 1.5 / 0.9^2
    assert values.mean().item() == pytest.approx(1.5, abs=0.05)


def test_with_masks_of_one_it_is_tdpo_1() -> None:
    """A head with weight 0, bias 1 and mixer 1/2 each says 1 everywhere; the L1 terms then count tokens, 3 and 1."""
    head = {"norm_weight": torch.ones(1), "norm_bias": torch.zeros(1), "weight": torch.zeros(2, 1),
            "bias": torch.ones(2), "mixer": torch.tensor([0.5, 0.5])}
    given = batch(parameters={f"{n}.{k}": v for n in ("reward", "divergence") for k, v in head.items()})
    losses, metrics = sparsepo.loss(given, sparsepo.Settings(0.2, dropout=0.0, l1_reward=0.01, l1_divergence=0.1))
    plain = tdpo.loss(given, tdpo.Settings(0.2))
    assert losses.item() == pytest.approx(plain[0].item() + 0.11 * 4, abs=1e-9)
    assert metrics["margin"].item() == pytest.approx(plain[1]["margin"].item(), abs=1e-9)
    assert metrics["mask"].item() == 1 and metrics["kept"].item() == 1


def test_mapo_weighs_every_token() -> None:
    given = batch()
    tokens = given.tokens
    assert tokens is not None and tokens.ref_logps is not None
    losses, _ = sparsepo.loss(given, sparsepo.Settings(0.2, mask="mapo"))
    mask = [0.5, 0.125, 0.75, 1.0]
    logits, ref_logits = both_logits()
    p, q = ref_logits.softmax(1), logits.log_softmax(1)
    kl = (p * (p.log() - q)).sum(1)
    terms = [m * (x + d) for m, x, d in zip(mask, (tokens.logps - tokens.ref_logps).tolist(), kl.tolist(), strict=True)]
    assert losses.item() == pytest.approx(math.log1p(math.exp(-0.2 * (sum(terms[:3]) - terms[3]))), abs=1e-12)


EVERY_MASK = [sparsepo.Settings(), sparsepo.Settings(common=True), sparsepo.Settings(mask="mapo")]


@pytest.mark.parametrize("settings", EVERY_MASK)
def test_policy_equal_to_reference_and_gradient_into_the_heads(settings: sparsepo.Settings) -> None:
    """ln 2, plus the L1 terms of the learned masks."""
    heads = {k: v.requires_grad_() for k, v in sparsepo.parameters(1, 2, settings).items()}
    assert len(heads) == {True: 0, False: 5 if settings.common else 10}[settings.mask == "mapo"]
    given = batch(parameters=heads)
    same = batch(parameters=heads, ref_logits=both_logits()[0])
    losses, metrics = sparsepo.loss(same, settings)
    assert losses.item() >= math.log(2) - 1e-12
    if heads:
        sparsepo.loss(given, settings)[0].sum().backward()
        assert all(v.grad is not None and v.grad.isfinite().all() for v in heads.values())
    else:
        assert losses.item() == pytest.approx(math.log(2), abs=1e-12)
    assert 0 <= metrics["kept"].item() <= 1


def test_heads_start_the_same_every_time() -> None:
    one, two = new_head(8, 3, 0), new_head(8, 3, 0)
    assert all(torch.equal(one[k], two[k]) for k in one)
    assert not torch.equal(one["weight"], new_head(8, 3, 1)["weight"])
    assert one["weight"].abs().max() <= 8**-0.5 and one["mixer"].tolist() == pytest.approx([1 / 3] * 3)


def test_needs_the_hidden_states() -> None:
    with pytest.raises(ValueError, match="tokens"):
        sparsepo.loss(batch_of([[-1.0, -2.0]]), sparsepo.Settings())
