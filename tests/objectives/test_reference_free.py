"""SimPO, AlphaPO, CPO, SLiC, ORPO, ASFT: pairs without a reference.

The worked pair: log pi(y_w) = -10 over 4 tokens, avg -2.5; log pi(y_l) = -20 over 5 tokens, avg -4.
"""

from __future__ import annotations

import math

import pytest
import torch

from pipeline.objectives import alphapo, asft, cpo, orpo, simpo, slic
from pipeline.objectives.contract import Needs
from pipeline.objectives.shared.odds import log1mexp, log_odds

LENGTHS = torch.tensor([[4, 5]])
ALL = (simpo, alphapo, cpo, slic, orpo, asft)


@pytest.fixture
def batch(worked):
    return worked.pairs(ref_logps=None, lengths=LENGTHS)


@pytest.mark.parametrize(("module", "settings", "expected"), [
    # 2 (-2.5 + 4) - 1 = 2: log(1 + e^-2)
    (simpo, simpo.Settings(beta=2.0, gamma_beta_ratio=0.5), 0.1269280110429725),
    # r = (1 - e^0.625) / 0.25 = -3.472983829728890 and (1 - e^1) / 0.25 = -6.873127313836181; 2 * 3.400143... - 1
    (alphapo, alphapo.Settings(beta=2.0, gamma_beta_ratio=0.5), 0.003022114865185562),
    # log(1 + e^-1) + 10 | + 10 / 4 | + 10 / 4 (the batch's mean length)
    (cpo, cpo.Settings(), 10.31326168751822),
    (cpo, cpo.Settings(sft_normalise="mean"), 2.81326168751822),
    (cpo, cpo.Settings(sft_normalise="batch"), 2.81326168751822),
    (cpo, cpo.Settings(alpha=0.0), 0.31326168751822),
    # 1 - 0.05 * 10 = 0.5; + 2 * 10
    (slic, slic.Settings(), 0.5),
    (slic, slic.Settings(sft_weight=2.0), 20.5),
    # log odds -2.414349516257962 and -3.981514553174113: 2.5 + 0.1 log(1 + e^-1.567165036916151)
    (orpo, orpo.Settings(), 2.51894923017646),
    (orpo, orpo.Settings(sft_normalise="sum"), 10.01894923017646),
    # 2 * 2.5 - log(1 - e^-4)
    (asft, asft.Settings(), 5.018485446825887),
    (asft, asft.Settings(odds_weight=0.0), 2.5),
])  # fmt: skip
def test_hand_worked(worked, batch, module, settings, expected):
    assert worked.value(module, settings, batch) == pytest.approx(expected, abs=1e-12)


def test_equally_likely_answers(worked):
    """Averages -2: SimPO and AlphaPO log(1 + e^gamma), CPO without its likelihood ln 2, SLiC 1, ORPO 2 + 0.1 ln 2."""
    same = worked.pairs(worked.doubles([-8.0, -8.0]), ref_logps=None, lengths=torch.tensor([[4, 4]]))
    for module in (simpo, alphapo):
        got = worked.value(module, module.Settings(beta=2.0, gamma_beta_ratio=0.5), same)
        assert got == pytest.approx(1.313261687518223, abs=1e-12)
    assert worked.value(cpo, cpo.Settings(alpha=0.0), same) == pytest.approx(math.log(2), abs=1e-12)
    assert worked.value(slic, slic.Settings(), same) == 1.0
    assert worked.value(orpo, orpo.Settings(), same) == pytest.approx(2 + 0.1 * math.log(2), abs=1e-12)


@pytest.mark.parametrize("module", ALL)
def test_gradient_against_differences(worked, module):
    def loss(chosen: float, rejected: float) -> float:
        batch = worked.pairs(worked.doubles([chosen, rejected]), lengths=LENGTHS)
        return worked.value(module, module.Settings(), batch)

    got = worked.gradient(module, module.Settings(), lengths=LENGTHS)[0]
    assert got == pytest.approx(worked.slope(loss, -10.0, -20.0), abs=1e-8)


def test_simpo_gradient_is_the_closed_form(worked):
    """beta s(-z) / |y| with z = 2."""
    pull = 2 / (1 + math.exp(2))
    got = worked.gradient(simpo, simpo.Settings(beta=2.0, gamma_beta_ratio=0.5), lengths=LENGTHS)[0]
    assert got == pytest.approx([-pull / 4, pull / 5], abs=1e-12)


@pytest.mark.parametrize("module", ALL)
def test_no_reference_is_looked_at(worked, module):
    assert module.OBJECTIVE.needs == Needs(pairs=True)
    with_one = worked.value(module, module.Settings(), worked.pairs(lengths=LENGTHS))
    assert with_one == worked.value(module, module.Settings(), worked.pairs(ref_logps=None, lengths=LENGTHS))


def test_alphapo_tends_to_simpo(worked, batch):
    simple = worked.value(simpo, simpo.Settings(), batch)
    assert worked.value(alphapo, alphapo.Settings(alpha=0.0), batch) == simple
    for alpha in (1e-7, -1e-7):
        assert worked.value(alphapo, alphapo.Settings(alpha=alpha), batch) == pytest.approx(simple, abs=1e-5)


def test_alphapo_clamps_and_counts(worked):
    """One token of -2000 nats: exp(500) is inf in float32, and is taken as exp(80)."""
    batch = worked.pairs(torch.tensor([[-2000.0, -8.0]]), ref_logps=None, lengths=torch.tensor([[1, 4]]))
    losses, metrics = alphapo.loss(batch, alphapo.Settings())
    assert losses.isfinite().all()
    assert losses.item() == pytest.approx(10 * math.exp(80), rel=1e-5)  # beta / alpha = 10
    assert metrics["clamped"].item() == 1.0


def test_slic_costs_nothing_beyond_its_margin(worked):
    """gamma = 0.05: from 20 nats on 0, without a gradient at the kink; far below it is linear."""
    for rejected, cost in ((-30.0, 0.0), (-2000.0, 0.0)):
        at = worked.doubles([-10.0, rejected])
        assert worked.value(slic, slic.Settings(), worked.pairs(at)) == cost
        assert worked.gradient(slic, slic.Settings(), at) == [[0.0, 0.0]]
    assert worked.value(slic, slic.Settings(), worked.pairs(worked.doubles([-2000.0, 0.0]))) == pytest.approx(101.0)


# ------------------------------------------------------------------------------------------------------------- odds


def test_log1mexp_at_both_ends():
    """log(1 - e^-1e-6) = -13.815511057964226; at -ln 2 it is -ln 2; far below -e^v, which is 0 in floats."""
    values = torch.tensor([-1e-6, -math.log(2), -40.0, -2000.0], dtype=torch.float64, requires_grad=True)
    got = log1mexp(values)
    expected = [-13.81551105796423, -math.log(2), -math.exp(-40.0), 0.0]
    assert got.tolist() == pytest.approx(expected, rel=1e-10, abs=1e-17)
    got.sum().backward()
    assert values.grad is not None
    assert values.grad.tolist()[1:] == pytest.approx([-1.0, -math.exp(-40.0), 0.0], rel=1e-9, abs=1e-17)


def test_a_certain_completion_has_finite_odds_and_no_gradient():
    values = torch.tensor([0.0, -1e-9], requires_grad=True)
    odds = log_odds(values)
    odds.sum().backward()
    assert odds.tolist() == pytest.approx([13.8155, 13.8155], abs=2e-2)
    assert values.grad is not None
    assert values.grad.tolist() == [0.0, 0.0]


def test_log_sigmoid_of_the_log_odds_is_the_average():
    """The identity behind ASFT, and log odds(p = 1/3) = -ln 2."""
    values = torch.linspace(-20, -1e-3, 100, dtype=torch.float64)
    assert torch.nn.functional.logsigmoid(log_odds(values)).tolist() == pytest.approx(values.tolist(), abs=1e-10)
    third = torch.tensor([math.log(1 / 3)], dtype=torch.float64)
    assert log_odds(third).item() == pytest.approx(-math.log(2), abs=1e-12)


def test_asft_is_the_long_form(worked, batch):
    """-avg(y_w) - lambda [log s(log odds(y_w)) + log s(-log odds(y_l))]."""
    log_sigmoid = torch.nn.functional.logsigmoid
    odds = log_odds(worked.doubles([-2.5, -4.0]))[0]
    expected = 2.5 - 0.3 * (log_sigmoid(odds[0]) + log_sigmoid(-odds[1]))
    assert worked.value(asft, asft.Settings(odds_weight=0.3), batch) == pytest.approx(expected.item(), abs=1e-12)
