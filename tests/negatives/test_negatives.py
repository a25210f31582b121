"""Negatives drawn while training: frequencies against the softmax, order, absent candidates, determinism."""

from __future__ import annotations

import itertools
import math
from types import ModuleType

import pytest
import torch

from pipeline.config import problems_of
from pipeline.errors import UserError
from pipeline.negatives import draws, easiest, hardest, mc, uniform

ALL = (mc, uniform, hardest, easiest)


def present_of(*counts: int) -> torch.Tensor:
    """(G, max) bool: the first `count` completions of each group are there."""
    return torch.arange(max(counts))[None, :] < torch.tensor(counts)[:, None]


def repeated(row: list[float], number: int) -> torch.Tensor:
    return torch.tensor([row]).expand(number, len(row))


def uniforms_of(groups: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(groups, columns, generator=torch.Generator().manual_seed(seed))


NUMBER = 40_000
LOGPS = [-1.0, -30.0, -20.0, -25.0]  # column 0, the preferred one, is by far the likeliest and must never come
REFERENCE = [-50.0, -40.0, -20.0, -25.0]


@pytest.mark.parametrize(("weights", "logs"), [("reward", [1.0, 0.0, 0.0]), ("logp", [-3.0, -2.0, -2.5])])
def test_kernel_frequencies_are_the_softmax_of_the_candidates(weights: str, logs: list[float]) -> None:
    """beta = 0.1: softmax(1, 0, 0) = (0.576, 0.212, 0.212) or softmax(-3, -2, -2.5) = (0.186, 0.506, 0.307).

    Four standard errors of 40,000 draws are at most 0.01.
    """
    chosen = mc.Settings(m=1, weights=weights, beta=0.1)
    present = torch.ones(NUMBER, 4, dtype=torch.bool)
    indices, valid, metrics = mc.draw(
        repeated(LOGPS, NUMBER), repeated(REFERENCE, NUMBER), present, uniforms_of(NUMBER, 4), chosen
    )
    total = sum(math.exp(x) for x in logs)
    expected = [math.exp(x) / total for x in logs]
    found = torch.bincount(indices[:, 0], minlength=4) / NUMBER
    assert valid.all()
    assert found[0].item() == 0.0
    assert found[1:].tolist() == pytest.approx(expected, abs=0.01)
    assert metrics["kernel_entropy"][0].item() == pytest.approx(-sum(p * math.log(p) for p in expected), abs=1e-6)


def test_two_draws_are_successive_draws_without_replacement() -> None:
    """P(i then j) = w_i w_j / (1 - w_i) for w = softmax(1, 0, 0)."""
    chosen = mc.Settings(m=2, weights="reward", beta=0.1)
    indices, _, _ = mc.draw(
        repeated(LOGPS, NUMBER), repeated(REFERENCE, NUMBER), torch.ones(NUMBER, 4, dtype=torch.bool),
        uniforms_of(NUMBER, 4, seed=1), chosen,
    )
    total = math.e + 2
    w = {1: math.e / total, 2: 1 / total, 3: 1 / total}
    pairs = [tuple(row) for row in indices.tolist()]
    for i, j in itertools.permutations((1, 2, 3), 2):
        assert pairs.count((i, j)) / NUMBER == pytest.approx(w[i] * w[j] / (1 - w[i]), abs=0.01)


def test_uniform_is_uniform_and_needs_no_log_probs() -> None:
    present = torch.ones(NUMBER, 4, dtype=torch.bool)
    indices, _, metrics = uniform.draw(None, None, present, uniforms_of(NUMBER, 4, seed=2), uniform.Settings(m=1))
    found = torch.bincount(indices[:, 0], minlength=4) / NUMBER
    assert found.tolist() == pytest.approx([0.0, 1 / 3, 1 / 3, 1 / 3], abs=0.01)
    assert metrics["kernel_entropy"][0].item() == pytest.approx(math.log(3), abs=1e-6)
    assert not uniform.DRAW.needs_logps
    assert mc.DRAW.needs_logps


def test_at_the_start_of_training_the_reward_kernel_is_uniform() -> None:
    logps = repeated(LOGPS, 1)
    present, chosen = torch.ones(1, 4, dtype=torch.bool), mc.Settings(weights="reward", beta=5.0)
    _, _, metrics = mc.draw(logps, logps, present, uniforms_of(1, 4), chosen)
    assert metrics["kernel_entropy"].item() == pytest.approx(math.log(3), abs=1e-6)


@pytest.mark.parametrize(
    ("module", "weights", "expected"),
    [(hardest, "reward", [1, 2]), (hardest, "logp", [2, 3]), (easiest, "reward", [2, 3]), (easiest, "logp", [1, 3])],
)
def test_hardest_and_easiest_take_the_ends_the_earlier_of_equals(
    module: ModuleType, weights: str, expected: list[int]
) -> None:
    """Log-ratios of the candidates are 10, 0, 0; log-probs -30, -20, -25."""
    indices, valid, metrics = module.draw(
        repeated(LOGPS, 1), repeated(REFERENCE, 1), torch.ones(1, 4, dtype=torch.bool), uniforms_of(1, 4),
        module.Settings(m=2, weights=weights),
    )
    assert indices.tolist() == [expected]
    assert valid.all()
    assert metrics["kernel_entropy"].item() == 0.0


@pytest.mark.parametrize(("module", "expected"), [(hardest, 2), (easiest, 1)])
def test_ends_and_kernel_weigh_by_log_prob_unless_told(module: ModuleType, expected: int) -> None:
    """Log-ratios alone would put them the other way round: 10 for candidate 1, 0 for 2."""
    drawn = module.draw(repeated(LOGPS, 1), repeated(REFERENCE, 1), present_of(4), uniforms_of(1, 4), module.Settings())
    assert drawn[0].tolist() == [[expected]]
    assert {module.Settings().weights, mc.Settings().weights} == {"logp"}
    assert not module.DRAW.needs_reference(module.Settings())


@pytest.mark.parametrize("module", ALL)
@pytest.mark.parametrize("m", [1, 3, 6])
def test_absent_candidates_are_never_valid(module: ModuleType, m: int) -> None:
    """Groups with 3, 1 and 0 candidates in 4 columns: valid are min(m, 3), min(m, 1) and 0."""
    present = present_of(4, 2, 1)
    logps = torch.where(present, torch.randn(3, 4, generator=torch.Generator().manual_seed(0)) * 100, 0.0)
    for seed in range(20):
        indices, valid, metrics = module.draw(
            logps, torch.zeros(3, 4), present, uniforms_of(3, 4, seed), module.Settings(m=m)
        )
        assert indices.shape == valid.shape == (3, m)
        assert indices.dtype == torch.int64
        assert valid.dtype == torch.bool
        assert ((indices >= 1) & (indices < 4)).all()  # also the meaningless ones can be gathered
        assert valid.sum(dim=1).tolist() == [min(m, 3), min(m, 1), 0]
        assert present.gather(1, indices)[valid].all()
        drawn = indices[0][valid[0]].tolist()
        assert len(set(drawn)) == len(drawn)
        assert metrics["kernel_entropy"].isfinite().all()


@pytest.mark.parametrize("module", ALL)
def test_the_draw_depends_on_nothing_but_its_inputs_and_each_group_on_its_own(module: ModuleType) -> None:
    present = torch.ones(8, 6, dtype=torch.bool)
    logps = torch.randn(8, 6, generator=torch.Generator().manual_seed(5)) * 20
    uniforms, chosen = uniforms_of(8, 6, 3), module.Settings(m=3)
    indices, _, _ = module.draw(logps, torch.zeros(8, 6), present, uniforms, chosen)
    order = torch.tensor([4, 0, 7, 1, 2, 6, 3, 5])
    again, _, _ = module.draw(logps[order], torch.zeros(8, 6), present, uniforms[order], chosen)
    assert torch.equal(again, indices[order])


@pytest.mark.parametrize("edge", [0.0, 1 - 2**-24])
def test_uniforms_at_the_ends_are_finite(edge: float) -> None:
    uniforms = torch.full((1, 4), edge)
    indices, valid, _ = mc.draw(
        repeated(LOGPS, 1), repeated(REFERENCE, 1), present_of(4), uniforms, mc.Settings(m=3, weights="logp")
    )
    assert valid.all()
    assert indices.tolist() == [[2, 3, 1]]  # equal noise: the order of the weights


@pytest.mark.parametrize("module", [mc, hardest, easiest])
def test_no_gradient_and_half_precision(module: ModuleType) -> None:
    logps = torch.randn(2, 4, dtype=torch.bfloat16).requires_grad_()
    _, _, metrics = module.draw(logps, torch.zeros(2, 4), present_of(4, 4), uniforms_of(2, 4), module.Settings())
    assert not metrics["kernel_entropy"].requires_grad
    assert metrics["kernel_entropy"].dtype == torch.float32


def test_what_is_missing_is_said() -> None:
    with pytest.raises(UserError, match="weights: 'reward' needs reference"):
        mc.draw(torch.zeros(1, 3), None, present_of(3), uniforms_of(1, 3), mc.Settings(weights="reward"))
    with pytest.raises(ValueError, match="log-probs of the candidates"):
        hardest.draw(None, None, present_of(3), uniforms_of(1, 3), hardest.Settings())
    with pytest.raises(ValueError, match="no candidates"):
        uniform.draw(None, None, present_of(1), uniforms_of(1, 1), uniform.Settings())
    assert problems_of(mc.Settings, {"m": 0, "weights": "x"}, "negatives") == [
        "negatives.m: 0 is out of range, expected 1 <= x",
        "negatives.weights: 'x' is not allowed, expected one of reward, logp",
    ]


def test_a_chain_of_two_steps_over_disjoint_pools() -> None:
    """Weights e^1, 1, e^0.5, e^-1 (beta 0.1 times log-probs 10, 0, 5, -10); pools {1, 3} and {2, 4}. z_1 is 1 with
    probability e / (e + e^0.5) = 0.62246, else 3; z_2 is drawn from {z_1, 2, 4}: 1 in 0.4141, 2 in 0.2775, 3 in 0.2063,
    4 in 0.1021. One draw over all four would give 1 in 0.4742.
    """
    logps = repeated([0.0, 10.0, 0.0, 5.0, -10.0], NUMBER)
    chosen = mc.Settings(beta=0.1, weights="logp", steps=2)
    indices, valid, _ = mc.draw(logps, None, torch.ones(NUMBER, 5, dtype=torch.bool), uniforms_of(NUMBER, 5, 3), chosen)
    assert valid.all()
    found = torch.bincount(indices[:, 0], minlength=5) / NUMBER
    assert found.tolist() == pytest.approx([0.0, 0.4141, 0.2775, 0.2063, 0.1021], abs=0.01)


def test_a_chain_keeps_m_states_and_needs_no_full_pools() -> None:
    """Three candidates in four pools: one is empty, the others hold one each; with m = 2 the third step draws two of
    three, and what is drawn is distinct.
    """
    present = present_of(4, 2)
    logps = torch.zeros(2, 4)
    for seed in range(20):
        indices, valid, _ = mc.draw(logps, logps, present, uniforms_of(2, 4, seed), mc.Settings(m=2, steps=4))
        assert valid.tolist() == [[True, True], [True, False]]
        assert indices[0, 0] != indices[0, 1]
        assert indices[1, 0] == 1


def test_further_uniforms_are_uniform_and_new() -> None:
    """Mean 1/2, variance 1/12, no correlation with the first ones or between steps (4 sigma at 40,000: 0.02)."""
    uniforms = uniforms_of(NUMBER, 3, 9)
    sets = [draws.fresh(uniforms, step) for step in range(3)]
    assert torch.equal(sets[0], uniforms)
    for numbers in sets:
        assert ((numbers >= 0) & (numbers < 1)).all()
        assert numbers.mean().item() == pytest.approx(0.5, abs=0.005)
        assert numbers.var().item() == pytest.approx(1 / 12, abs=0.002)
    table = torch.cat(sets, dim=1).T
    assert (torch.corrcoef(table) - torch.eye(9)).abs().max() < 0.02


@pytest.mark.parametrize(("module", "expected"), [(hardest, 2), (easiest, 1)])
def test_weights_per_token(module: ModuleType, expected: int) -> None:
    """Log-probs -10 of 2 tokens, -12 of 6: the sums prefer 1 to 2, nats per token, -5 and -2, prefer 2."""
    logps, lengths = torch.tensor([[0.0, -10.0, -12.0]]), torch.tensor([[1, 2, 6]])
    summed = module.Settings(weights="logp")
    per_token = module.Settings(weights="logp", length_normalize=True)
    assert module.draw(logps, None, present_of(3), uniforms_of(1, 3), summed, lengths)[0].tolist() == [[3 - expected]]
    assert module.draw(logps, None, present_of(3), uniforms_of(1, 3), per_token, lengths)[0].tolist() == [[expected]]
    with pytest.raises(ValueError, match="needs the lengths"):
        module.draw(logps, None, present_of(3), uniforms_of(1, 3), per_token)


def test_the_kernel_per_token() -> None:
    """-5 and -2 nats per token at beta 1: softmax (0.0474, 0.9526)."""
    logps, lengths = repeated([0.0, -10.0, -12.0], NUMBER), repeated([1, 2, 6], NUMBER)
    chosen = mc.Settings(beta=1.0, weights="logp", length_normalize=True)
    present = torch.ones(NUMBER, 3, dtype=torch.bool)
    indices, _, _ = mc.draw(logps, None, present, uniforms_of(NUMBER, 3), chosen, lengths)
    assert (indices == 2).double().mean().item() == pytest.approx(0.9526, abs=0.005)
