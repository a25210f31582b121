"""Length-controlled win rates: the regression of AlpacaEval 2 (Dubois et al. 2024, "Length-Controlled AlpacaEval").

    logit P(policy preferred on prompt x) = model + length * tanh(d_x / sd(d)) + difficulty * gamma_x

d_x: characters by which the policy's answer is longer; gamma_x: how hard prompt x is for any policy, known beforehand
or estimated from several policies. The controlled rate is the mean prediction at d = 0: what the win rate would be if
both sides wrote as much. AlpacaEval also adds rows of its baseline told to be brief and to be verbose, with weight 0.2,
and chooses an L1 penalty by cross-validation; those rows exist for its baseline only. Here a weak ridge keeps the
coefficients finite where the outcomes are separable.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

RIDGE = 0.01  # times half the squared coefficients, against a log-likelihood of about 0.7 a comparison
_STEPS, _TOLERANCE = 200, 1e-10
_ROUNDS = 15  # of the alternating estimate of difficulties


@dataclass(frozen=True)
class Controlled:
    """A length-controlled win rate with its interval, in [0, 1], and the regression's coefficients, in logits."""

    win_rate: float
    low: float
    high: float
    model: float
    length: float  # of tanh(d / sd): above 0, the judge likes longer answers
    difficulty: float | None  # of gamma; None: no difficulties were given
    length_scale: float  # sd(d), characters; 0 where all differences are equal and nothing can be controlled for


def fit(design: np.ndarray, outcomes: np.ndarray, ridge: float = RIDGE) -> np.ndarray:
    """Logistic regression with outcomes in [0, 1]: (n, k), (n,) -> (k,) coefficients, by damped Newton steps."""
    found = np.zeros(design.shape[1])
    value = _objective(design, outcomes, found, ridge)
    for _ in range(_STEPS):
        p = _logistic(design @ found)
        gradient = design.T @ (outcomes - p) - ridge * found
        step = np.linalg.solve(_curvature(design, p, ridge), gradient)
        while (after := _objective(design, outcomes, found + step, ridge)) < value - 1e-12:
            step = step / 2
        found, value = found + step, after
        if np.abs(step).max() < _TOLERANCE:
            break
    return found


def control(
    ids: Sequence[str], outcomes: Sequence[float], longer_by: Sequence[float], confidence: float = 0.95,
    difficulties: dict[str, float] | None = None,
) -> Controlled:
    """The length-controlled win rate of comparisons: prompt id, outcome in [0, 1], characters the policy's is longer.

    The interval is normal with the sandwich variance, clustered by prompt: several samples of one prompt tell less
    than as many prompts. Raises ValueError for no comparisons, KeyError for a prompt without its difficulty.
    """
    if not outcomes:
        raise ValueError("a win rate of no comparisons is undefined")
    y, d = np.asarray(outcomes, float), np.asarray(longer_by, float)
    scale = float(d.std(ddof=1)) if len(d) > 1 else 0.0
    columns = [np.ones_like(y)]
    if scale > 0:
        columns.append(np.tanh(d / scale))
    if difficulties is not None:
        columns.append(np.array([difficulties[name] for name in ids]))
    design = np.stack(columns, 1)
    found = fit(design, y)
    level = design.copy()
    if scale > 0:
        level[:, 1] = 0.0
    predicted = _logistic(level @ found)
    rate = float(predicted.mean())
    half = NormalDist().inv_cdf((1 + confidence) / 2) * math.sqrt(_variance(ids, design, level, y, found))
    return Controlled(
        win_rate=rate, low=max(0.0, rate - half), high=min(1.0, rate + half), model=float(found[0]),
        length=float(found[1]) if scale > 0 else 0.0,
        difficulty=float(found[-1]) if difficulties is not None else None, length_scale=scale,
    )


def predict(model: float, difficulty: float, difficulties: Sequence[float]) -> float:
    """The controlled win rate a fitted model has on prompts of the given difficulties: mean logistic(m + c gamma)."""
    return float(_logistic(model + difficulty * np.asarray(difficulties, float)).mean())


def difficulties(outcomes: dict[str, dict[str, float]]) -> dict[str, float]:
    """gamma of every prompt that all policies answered: {policy: {prompt id: outcome}} -> {prompt id: gamma}.

    Fits logit P = a_policy + c_policy * gamma_x with a standard normal prior on gamma by alternating between the two
    sides; standardised to mean 0 and variance 1, positive where policies tend to win. With few policies it is mostly
    their own noise: AlpacaEval's table comes from more than a hundred. Raises ValueError for fewer than two policies.
    """
    if len(outcomes) < 2:
        raise ValueError("difficulties need the outcomes of at least two policies")
    names = sorted(set.intersection(*(set(one) for one in outcomes.values())))
    table = np.array([[one[name] for one in outcomes.values()] for name in names])  # (prompts, policies)
    gamma = _standardised(table.mean(1))
    for _ in range(_ROUNDS):
        design = np.stack([np.ones(len(names)), gamma], 1)
        both = np.array([fit(design, column) for column in table.T])  # (policies, 2)
        for _ in range(_STEPS):
            p = _logistic(both[:, 0] + gamma[:, None] * both[:, 1])
            slope = ((table - p) * both[:, 1]).sum(1) - gamma
            step = np.clip(slope / ((p * (1 - p) * both[:, 1] ** 2).sum(1) + 1), -1, 1)
            gamma = gamma + step
            if np.abs(step).max() < 1e-8:
                break
        gamma = _standardised(gamma)
    return dict(zip(names, gamma.tolist(), strict=True))


def _standardised(values: np.ndarray) -> np.ndarray:
    spread = values.std()
    return (values - values.mean()) / spread if spread > 0 else np.zeros_like(values)


def _variance(ids: Sequence[str], design: np.ndarray, level: np.ndarray, y: np.ndarray, found: np.ndarray) -> float:
    """Delta method: of the coefficients (clustered sandwich) and of which prompts were asked."""
    p = _logistic(design @ found)
    inverse = np.linalg.inv(_curvature(design, p, RIDGE))
    index = {name: i for i, name in enumerate(dict.fromkeys(ids))}
    cluster = np.array([index[name] for name in ids])
    scores = np.zeros((len(index), design.shape[1]))
    np.add.at(scores, cluster, design * (y - p)[:, None])
    at_level = _logistic(level @ found)
    slope = (level * (at_level * (1 - at_level))[:, None]).mean(0)
    spread = float(at_level.var() / len(index))
    return float(slope @ inverse @ scores.T @ scores @ inverse @ slope) + spread


def _objective(design: np.ndarray, y: np.ndarray, found: np.ndarray, ridge: float) -> float:
    z = design @ found
    return float((y * z - np.logaddexp(0, z)).sum() - ridge / 2 * found @ found)


def _curvature(design: np.ndarray, p: np.ndarray, ridge: float) -> np.ndarray:
    return (design * (p * (1 - p))[:, None]).T @ design + ridge * np.eye(design.shape[1])


def _logistic(z: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0, -z))
