"""The Cringe family: the token loss against a literal loop, the three objectives against hand-worked values."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.objectives import binary_cringe, hard_cringe, pairwise_cringe
from pipeline.objectives.contract import LossInputs, TokenInputs
from pipeline.objectives.shared import cringe

# ---------------------------------------------------------------------------------------------------- the token loss


def largest(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """All logits and whose they are, in falling order."""
    return logits.sort(dim=1, descending=True)


def candidates_of(logits: torch.Tensor, targets: torch.Tensor, k: int) -> torch.Tensor:
    ids = largest(logits)[1]
    return ids.gather(1, cringe.top_candidates(ids, targets, k))


def drawn_of(logits: torch.Tensor, targets: torch.Tensor, uniforms: torch.Tensor, k: int) -> torch.Tensor:
    top, ids = largest(logits)
    return ids.gather(1, cringe.draw_positives(top, ids, targets, uniforms, k)[:, None])[:, 0]


def losses_of(logits: torch.Tensor, targets: torch.Tensor, uniforms: torch.Tensor, k: int) -> torch.Tensor:
    return cringe.contrastive_losses(
        logits.gather(1, targets[:, None])[:, 0], *largest(logits), targets, uniforms, k)


def literal_contrastive_loss(logits: list[float], target: int, uniform: float, k: int) -> float:
    """One token by the words of the paper: drop the label, keep the k best, draw one, contrast it with the label."""
    others = sorted((i for i in range(len(logits)) if i != target), key=lambda i: -logits[i])[:k]
    weights = [math.exp(logits[i]) for i in others]
    passed, drawn = 0.0, others[-1]
    for i, weight in zip(others, weights, strict=True):
        passed += weight / sum(weights)
        if uniform < passed:
            drawn = i
            break
    positive, negative = math.exp(logits[drawn]), math.exp(logits[target])
    return -math.log(positive / (positive + negative))


def test_hand_worked_token() -> None:
    """Logits (1, 3, 2, 0), label 1, k = 2: candidates 2 and 0 with probabilities e^2/(e^2 + e) = 0.731059 and 0.268941.

    u = 0.5 draws id 2: log(1 + e^(3-2)) = 1.313261687518223; u = 0.8 draws id 0: log(1 + e^(3-1)) = 2.126928011042972.
    """
    logits = torch.tensor([[1.0, 3.0, 2.0, 0.0]] * 2, dtype=torch.float64)
    targets, uniforms = torch.tensor([1, 1]), torch.tensor([0.5, 0.8])
    assert candidates_of(logits, targets, 2).tolist() == [[2, 0], [2, 0]]
    assert drawn_of(logits, targets, uniforms, 2).tolist() == [2, 0]
    losses = losses_of(logits, targets, uniforms, 2)
    assert losses.tolist() == pytest.approx([1.313261687518223, 2.126928011042972], abs=1e-12)


@pytest.mark.parametrize("k", [1, 2, 5, 10])
def test_against_the_literal_loop(k: int) -> None:
    generator = torch.Generator().manual_seed(k)
    logits = torch.randn(300, 11, generator=generator, dtype=torch.float64) * 3
    targets = torch.randint(11, (300,), generator=generator)
    targets[:100] = logits[:100].argmax(dim=1)  # the label on top, where it must be skipped
    uniforms = torch.rand(300, generator=generator)
    expected = [
        literal_contrastive_loss(row, target, uniform, k)
        for row, target, uniform in zip(logits.tolist(), targets.tolist(), uniforms.tolist(), strict=True)
    ]
    assert losses_of(logits, targets, uniforms, k).tolist() == pytest.approx(expected, abs=1e-12)


def test_draws_follow_the_softmax_of_the_candidates() -> None:
    """20,000 draws of the worked token: 73.1 % for id 2 within four standard errors (0.0125), the label never."""
    number = 20_000
    logits = torch.tensor([[1.0, 3.0, 2.0, 0.0]]).expand(number, 4)
    uniforms = torch.rand(number, generator=torch.Generator().manual_seed(0))
    drawn = drawn_of(logits, torch.ones(number, dtype=torch.int64), uniforms, 2)
    assert set(drawn.tolist()) == {0, 2}
    assert (drawn == 2).double().mean().item() == pytest.approx(0.731059, abs=0.0125)


def test_ends_of_the_uniform_stay_among_the_candidates() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1000, 50, generator=generator) * 5
    targets = logits.argmax(dim=1)
    largest = math.nextafter(1.0, 0.0)  # rounds to 1.0 in float32
    for uniform in (0.0, 1 - 2**-24, largest):
        drawn = drawn_of(logits, targets, torch.full((1000,), uniform), 5)
        assert (drawn[:, None] == candidates_of(logits, targets, 5)).any(dim=1).all()
        assert (drawn != targets).all()


def test_gradient_raises_the_drawn_and_lowers_the_label() -> None:
    """dl/ds[n] = s(s[n] - s*) = -dl/ds*, every other logit untouched, nothing through the draw's softmax."""
    logits = torch.tensor([[1.0, 3.0, 2.0, 0.0]], dtype=torch.float64, requires_grad=True)
    losses_of(logits, torch.tensor([1]), torch.tensor([0.5]), 3).sum().backward()
    pull = 1 / (1 + math.exp(-1.0))
    assert logits.grad is not None
    assert logits.grad[0].tolist() == pytest.approx([0.0, pull, -pull, 0.0], abs=1e-12)


@pytest.mark.parametrize("k", [0, 4, 9])
def test_a_k_the_vocabulary_cannot_give_is_refused(k: int) -> None:
    with pytest.raises(UserError, match=rf"objective.k: {k} is out of range for a vocabulary of 4 tokens"):
        losses_of(torch.zeros(1, 4), torch.tensor([0]), torch.tensor([0.5]), k)


def test_every_other_token_as_candidate() -> None:
    candidates = candidates_of(torch.tensor([[1.0, 3.0, 2.0, 0.0]]), torch.tensor([3]), 3)
    assert candidates.tolist() == [[1, 2, 0]]


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_computed_in_float32(half: torch.dtype) -> None:
    """Values that both types hold exactly; 200 is beyond where e^x overflows in float16."""
    logits = torch.tensor([[1.0, 3.0, 2.0, 0.0], [-200.0, 200.0, 199.0, 0.0]], dtype=half)
    losses = losses_of(logits, torch.tensor([1, 1]), torch.tensor([0.5, 0.5]), 2)
    assert losses.dtype == torch.float32
    assert losses.tolist() == pytest.approx([1.313261687518223, 1.313261687518223], abs=1e-6)


def test_softplus_is_exact_in_float64_beyond_20() -> None:
    """torch's softplus returns 21 for 21; log(1 + e^21) is 7.58e-10 more."""
    logits = torch.tensor([[0.0, 21.0]], dtype=torch.float64)
    losses = losses_of(logits, torch.tensor([1]), torch.tensor([0.5]), 1)
    assert losses.item() - 21.0 == pytest.approx(math.log1p(math.exp(-21)), rel=1e-5)


# --------------------------------------------------------------------------------------------------- the objectives

ROWS = torch.tensor([1.0, 3.0, 2.0, 0.0], dtype=torch.float64)
TOKEN = 1.313261687518223  # the worked token with u = 0.5


def tokens_of(logits: torch.Tensor, targets: torch.Tensor, group: torch.Tensor, column: torch.Tensor,
              uniforms: torch.Tensor) -> TokenInputs:
    """The token view; the Cringe losses use neither position nor log-prob of a token."""
    top, ids = largest(logits)
    return TokenInputs(targets, group, column, torch.zeros_like(targets), logits[:, 0].detach(), uniforms,
                       logits.gather(1, targets[:, None])[:, 0], top, ids)


def batch_of(logps: list[list[float]], **changes: object) -> LossInputs:
    """Groups of two completions with two tokens each; every token is the worked one."""
    groups = len(logps)
    number = groups * 4
    tokens = tokens_of(
        logits=ROWS.repeat(number, 1),
        targets=torch.ones(number, dtype=torch.int64),
        group=torch.arange(groups).repeat_interleave(4),
        column=torch.tensor([0, 0, 1, 1]).repeat(groups),
        uniforms=torch.full((number,), 0.5),
    )
    fields: dict[str, object] = {
        "logps": torch.tensor(logps, dtype=torch.float64),
        "lengths": torch.full((groups, 2), 2),
        "present": torch.ones(groups, 2, dtype=torch.bool),
        "tokens": tokens,
    }
    return LossInputs(**{**fields, **changes})  # type: ignore[arg-type]


def test_binary_value() -> None:
    """-(-6) + 0.01 * 2 * 1.3132616875 = 6.026265233750364."""
    losses, metrics = binary_cringe.loss(batch_of([[-6.0, -9.0]]), binary_cringe.Settings(alpha=0.01, k=2))
    assert losses.item() == pytest.approx(6.026265233750364, abs=1e-12)
    assert metrics["ce_per_token"].item() == pytest.approx(3.0)
    assert metrics["cringe_per_token"].item() == pytest.approx(TOKEN)


def test_binary_labels_choose_the_term() -> None:
    """Single completions of two tokens: a good one costs -log p = 4, a bad one alpha * 2 * 1.3132616875."""
    group = torch.tensor([0, 0, 1, 1])
    tokens = tokens_of(ROWS.repeat(4, 1), torch.ones(4, dtype=torch.int64), group, torch.zeros_like(group),
                         torch.full((4,), 0.5))
    batch = LossInputs(
        logps=torch.tensor([[-4.0], [-5.0]], dtype=torch.float64), lengths=torch.full((2, 1), 2),
        present=torch.ones(2, 1, dtype=torch.bool), labels=torch.tensor([True, False]), tokens=tokens,
    )
    for module, chosen in ((binary_cringe, binary_cringe.Settings(alpha=0.5, k=2)),
                           (pairwise_cringe, pairwise_cringe.Settings(alpha=0.5, k=2)),
                           (hard_cringe, hard_cringe.Settings(alpha=0.5, k=2))):
        losses, _ = module.loss(batch, chosen)  # a group of one has no margin: its gate is open
        assert losses.tolist() == pytest.approx([4.0, TOKEN], abs=1e-12), module.__name__


def test_a_pair_is_a_pair_whatever_its_label_says() -> None:
    settings_ = binary_cringe.Settings(alpha=0.01, k=2)
    labelled = batch_of([[-6.0, -9.0]], labels=torch.tensor([False]))
    assert binary_cringe.loss(labelled, settings_)[0].item() == pytest.approx(6.026265233750364, abs=1e-12)


@pytest.mark.parametrize(
    ("b", "tau", "gate"),
    [(0.0, 10.0, 0.425557483188341), (-10.0, 1.0, 2.260324297e-06), (10.0, 1.0, 0.999088948805599)],
)
def test_pairwise_value(b: float, tau: float, gate: float) -> None:
    """M = -6 + 9 = 3; g = s((b - 3) / tau): s(-0.3), s(-13), s(7); times the 6.0262652 of the binary loss."""
    chosen = pairwise_cringe.Settings(alpha=0.01, b=b, tau=tau, k=2)
    losses, metrics = pairwise_cringe.loss(batch_of([[-6.0, -9.0]]), chosen)
    assert metrics["gate"].item() == pytest.approx(gate, rel=1e-9)
    assert metrics["gate_closed"].item() == float(gate < 0.01)
    assert losses.item() == pytest.approx(gate * 6.026265233750364, rel=1e-9)
    assert metrics["margin"].item() == pytest.approx(3.0)


def test_averaged_margin() -> None:
    """Two tokens each: M = -3 + 4.5 = 1.5; b = 0, tau = 1: g = s(-1.5) = 0.182425523806356."""
    chosen = pairwise_cringe.Settings(alpha=0.01, b=0.0, tau=1.0, k=2, margin="avg")
    losses, _ = pairwise_cringe.loss(batch_of([[-6.0, -9.0]]), chosen)
    assert losses.item() == pytest.approx(0.182425523806356 * 6.026265233750364, rel=1e-12)


@pytest.mark.parametrize(("reduction", "expected"), [("tokens", 6.026265233750364), ("sum", 6.026265233750364),
                                                      ("mean", 3.013132616875182)])
def test_reductions(reduction: str, expected: float) -> None:
    """Two tokens each: the completions' own token means are half the sums; `normalise` tells the trainer the rest."""
    soft = pairwise_cringe.Settings(alpha=0.01, b=3.0, tau=1.0, k=2, reduction=reduction)
    hard = hard_cringe.Settings(alpha=0.01, b=3.0, k=2, reduction=reduction)
    batch = batch_of([[-6.0, -9.0]])
    assert pairwise_cringe.loss(batch, soft)[0].item() == pytest.approx(expected / 2, rel=1e-12)  # g = s(0)
    assert hard_cringe.loss(batch, hard)[0].item() == pytest.approx(expected, rel=1e-12)
    assert pairwise_cringe.normalise(soft) == hard_cringe.normalise(hard) == (
        "tokens" if reduction == "tokens" else "groups")


def test_gradient_flows_through_the_soft_gate() -> None:
    """With T = -log p_w + alpha C and dg/dM = -g (1 - g) / tau:

    dL/dlogp_w = -g - T g (1 - g) / tau,   dL/dlogp_l = +T g (1 - g) / tau.
    """
    batch = batch_of([[-6.0, -9.0]])
    logps = batch.logps.requires_grad_()
    pairwise_cringe.loss(batch, pairwise_cringe.Settings(alpha=0.01, b=0.0, tau=10.0, k=2))[0].sum().backward()
    gate, term = 0.425557483188341, 6.026265233750364
    through = term * gate * (1 - gate) / 10
    assert logps.grad is not None
    assert logps.grad[0].tolist() == pytest.approx([-gate - through, through], rel=1e-9)


@pytest.mark.parametrize(("b", "open_"), [(3.0, True), (2.999, False), (10.0, True), (-10.0, False)])
def test_hard_gate_is_inclusive(b: float, open_: bool) -> None:
    losses, metrics = hard_cringe.loss(batch_of([[-6.0, -9.0]]), hard_cringe.Settings(alpha=0.01, b=b, k=2))
    assert metrics["gate"].item() == float(open_)
    assert losses.item() == pytest.approx(6.026265233750364 if open_ else 0.0, abs=1e-12)


def test_no_gradient_through_the_hard_gate() -> None:
    batch = batch_of([[-6.0, -9.0]])
    logps = batch.logps.requires_grad_()
    hard_cringe.loss(batch, hard_cringe.Settings(alpha=0.01, b=10.0, k=2))[0].sum().backward()
    assert logps.grad is not None
    assert logps.grad[0].tolist() == [-1.0, 0.0]


def test_a_cold_soft_gate_is_the_hard_one() -> None:
    pairs = [[-6.0, -9.0], [-9.0, -6.0], [-40.0, -2.0], [-2.0, -40.0]]
    soft = pairwise_cringe.loss(batch_of(pairs), pairwise_cringe.Settings(alpha=0.01, b=-2.0, tau=1e-3, k=2))[0]
    hard = hard_cringe.loss(batch_of(pairs), hard_cringe.Settings(alpha=0.01, b=-2.0, k=2))[0]
    assert torch.allclose(soft, hard, atol=1e-12)


def test_pairs_do_not_mix_and_tokens_may_come_in_any_order() -> None:
    """The listing printed in the paper multiplies every gate with every pair; here a batch is its pairs, one by one."""
    generator = torch.Generator().manual_seed(3)
    pairs = [[-6.0, -9.0], [-9.0, -6.0], [-1.0, -30.0]]
    batch = batch_of(pairs)
    assert batch.tokens is not None
    logits = torch.randn(12, 8, generator=generator, dtype=torch.float64)
    targets, uniforms = torch.randint(8, (12,), generator=generator), torch.rand(12, generator=generator)
    shuffle = torch.randperm(12, generator=generator)
    tokens = tokens_of(logits[shuffle], targets[shuffle], batch.tokens.group[shuffle], batch.tokens.column[shuffle],
                         uniforms[shuffle])
    chosen = pairwise_cringe.Settings(k=3)
    together = pairwise_cringe.loss(batch_of(pairs, tokens=tokens), chosen)[0]
    for g, pair in enumerate(pairs):
        own = slice(4 * g, 4 * g + 4)
        alone = tokens_of(logits[own], targets[own], torch.zeros(4, dtype=torch.int64), torch.tensor([0, 0, 1, 1]),
                            uniforms[own])
        assert together[g].item() == pytest.approx(
            pairwise_cringe.loss(batch_of([pair], tokens=alone), chosen)[0].item(), abs=1e-12
        )


def test_absent_completions_contribute_nothing() -> None:
    batch = batch_of([[-6.0, float("nan")], [float("nan"), float("nan")]])
    keep = torch.tensor([0, 1])  # only completion 0 of group 0 has tokens
    assert batch.tokens is not None
    tokens = dataclasses.replace(batch.tokens, **{
        spec.name: getattr(batch.tokens, spec.name)[keep] for spec in dataclasses.fields(TokenInputs)
        if getattr(batch.tokens, spec.name) is not None})
    present = torch.tensor([[True, False], [False, False]])
    for module in (binary_cringe, pairwise_cringe, hard_cringe):
        missing = LossInputs(batch.logps.detach().requires_grad_(), batch.lengths * present, present, tokens=tokens)
        losses, metrics = module.loss(missing, module.Settings(k=2))
        losses.sum().backward()
        assert losses.tolist() == [6.0, 0.0]  # a completion alone is a demonstration
        assert missing.logps.grad is not None
        assert missing.logps.grad.tolist() == [[-1.0, 0.0], [0.0, 0.0]]
        assert all(values.isfinite().all() for values in metrics.values())


def test_missing_tokens_are_an_error() -> None:
    with pytest.raises(ValueError, match="token-level"):
        pairwise_cringe.loss(batch_of([[-6.0, -9.0]], tokens=None), pairwise_cringe.Settings())


def test_lists_are_refused_where_pairs_are_compared() -> None:
    batch = LossInputs(torch.zeros(1, 3), torch.ones(1, 3), torch.ones(1, 3, dtype=torch.bool), tokens=None)
    for module in (pairwise_cringe, hard_cringe):
        with pytest.raises(UserError, match="compares pairs"):
            module.loss(batch, module.Settings())


logp = st.floats(-2000, 0, width=32)


@settings(max_examples=60, deadline=None)
@given(logp, logp, st.floats(-50, 50), st.floats(0.01, 50), st.lists(st.floats(-200, 200, width=32), min_size=6,
                                                                      max_size=6))
def test_finite_for_any_log_probs(chosen: float, rejected: float, b: float, tau: float, row: list[float]) -> None:
    logits = torch.tensor([row] * 4, requires_grad=True)
    tokens = tokens_of(logits, torch.tensor([0, 1, 2, 3]),
                         torch.zeros(4, dtype=torch.int64), torch.tensor([0, 0, 1, 1]),
                         torch.tensor([0.0, 0.3, 0.6, 0.999]))
    logps = torch.tensor([[chosen, rejected]], requires_grad=True)
    batch = LossInputs(logps, torch.full((1, 2), 2), torch.ones(1, 2, dtype=torch.bool), tokens=tokens)
    losses = pairwise_cringe.loss(batch, pairwise_cringe.Settings(b=b, tau=tau))[0]
    losses.sum().backward()
    assert losses.isfinite().all()
    for leaf in (logps, logits):
        assert leaf.grad is not None
        assert leaf.grad.isfinite().all()
