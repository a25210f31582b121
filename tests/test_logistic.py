"""Logistic regression, against numbers worked by hand."""

import math

import numpy as np
import pytest

from pipeline.logistic import fit, probability


def test_fit_meets_the_log_odds_of_each_cell():
    """Two cells of 100: 20 of 100 and 60 of 100. logit 0.2 = -1.3863, logit 0.6 = 0.4055: slope 1.7918."""
    x = np.repeat([0.0, 1.0], 100)
    y = np.concatenate([np.repeat([1.0, 0.0], [20, 80]), np.repeat([1.0, 0.0], [60, 40])])
    found = fit(np.stack([np.ones(200), x], 1), y, ridge=0.0)
    assert found == pytest.approx([math.log(0.25), math.log(1.5) - math.log(0.25)], abs=1e-8)


def test_separable_outcomes_stay_finite():
    found = fit(np.array([[1.0, -1.0], [1.0, 1.0]] * 10), np.array([0.0, 1.0] * 10), ridge=0.01)
    assert np.isfinite(found).all()
    assert found[1] > 3


def test_each_coefficient_has_its_own_penalty():
    """At the optimum the score equals ridge * coefficient: 0 for the first column, 3 times it for the second."""
    rng = np.random.default_rng(0)
    x = np.column_stack([np.ones(60), rng.normal(size=60)])
    y, weights = (rng.random(60) < 0.7).astype(float), rng.random(60) + 0.5
    found = fit(x, y, np.array([0.0, 3.0]), weights)
    assert x.T @ (weights * (y - probability(x @ found))) == pytest.approx([0.0, 3.0 * found[1]], abs=1e-6)
    assert fit(x, y, np.array([0.0, 3.0]), weights, start=found + 1.0) == pytest.approx(found, abs=1e-7)


def test_without_a_penalty_what_nothing_can_tell_is_finite():
    """A column of zeros and two equal columns have no single best coefficient; separable outcomes have none at all."""
    x = np.repeat([0.0, 1.0], 100)
    y = np.concatenate([np.repeat([1.0, 0.0], [20, 80]), np.repeat([1.0, 0.0], [60, 40])])
    found = fit(np.column_stack([np.ones(200), x, x, np.zeros(200)]), y, ridge=0.0)
    assert (found[0], found[1] + found[2], found[3]) == pytest.approx((math.log(0.25), math.log(6), 0.0), abs=1e-6)
    apart = fit(np.column_stack([np.ones(200), x]), x, ridge=0.0)
    assert np.isfinite(apart).all() and (probability(apart[0] + apart[1] * x).round(6) == x).all()


def test_probability_does_not_overflow():
    assert probability(np.array([-1000.0, 0.0, 1000.0])).tolist() == [0.0, 0.5, 1.0]
