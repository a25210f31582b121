"""Several scores as one, by hand."""

from __future__ import annotations

import math

import pytest

from pipeline.config import problems_of
from pipeline.rewards.ensemble import Ensemble, combined, scales

ROWS = [{"a": 1.0, "b": 30.0}, {"a": 3.0, "b": 10.0}, {"a": float("nan"), "b": 20.0}]


def test_scales_are_of_the_finite_scores() -> None:
    """a: 1, 3: mean 2, sd 1. b: 30, 10, 20: mean 20, sd sqrt(200 / 3). A scorer that says one thing keeps its scale."""
    found = scales(ROWS, Ensemble(("a", "b")))
    assert found["a"] == (2.0, 1.0)
    assert found["b"] == pytest.approx((20.0, math.sqrt(200 / 3)))
    assert scales([{"a": 5.0}, {"a": 5.0}], Ensemble(("a",)))["a"] == (5.0, 1.0)
    assert scales(ROWS, Ensemble(("a", "b"), zscore=False)) == {"a": (0.0, 1.0), "b": (0.0, 1.0)}


@pytest.mark.parametrize(("combine", "score"), [("mean", 3.0), ("minimum", 1.0), ("penalised", 3.0 - 0.5 * 4.0)])
def test_the_three_ways(combine: str, score: float) -> None:
    """Of 1 and 5: mean 3, minimum 1, variance 4."""
    settings = Ensemble(("a", "b"), combine=combine, zscore=False, penalty=0.5)
    assert combined({"a": 1.0, "b": 5.0}, settings, scales([], settings)) == score
    assert math.isnan(combined({"a": 1.0, "b": float("nan")}, settings, scales([], settings)))


def test_z_scores_bring_scorers_to_one_scale() -> None:
    """Of the first row: (1 - 2) / 1 = -1 and (30 - 20) / sqrt(200 / 3) = 1.2247."""
    settings = Ensemble(("a", "b"))
    assert combined(ROWS[0], settings, scales(ROWS, settings)) == pytest.approx((-1 + 10 / math.sqrt(200 / 3)) / 2)


def test_what_is_no_ensemble() -> None:
    assert problems_of(Ensemble, {"of": ["a"]}, "e") == ["e.of: one score is no ensemble, expected two or more"]
    assert problems_of(Ensemble, {"of": ["a", "ensemble"]}, "e")[0].startswith("e.name: 'ensemble' is one of its own")
