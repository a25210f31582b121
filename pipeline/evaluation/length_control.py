"""Length-controlled win rates: the regression of AlpacaEval 2 (Dubois et al. 2024, "Length-Controlled AlpacaEval").

    logit P(policy preferred on prompt x) = model + length * tanh(d_x / sd(d)) + difficulty * gamma_x

d_x: characters by which the policy's answer is longer; gamma_x: how hard prompt x is for any policy, known beforehand
or estimated from several policies. The controlled rate is the mean prediction at d = 0: what the win rate would be if
both sides wrote as much. AlpacaEval also adds rows of its baseline prompted to be brief and to be verbose, with weight
0.2, and chooses an L1 penalty by cross-validation; those rows exist for its baseline only. Here a weak ridge keeps the
coefficients finite where the outcomes are separable.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline import logistic, statistics

RIDGE = 0.01  # times half the squared coefficients, against a log-likelihood of about 0.7 a comparison
_ROUNDS, _STEPS = 15, 200  # of the alternating estimate of difficulties; of Newton within each


@dataclass(frozen=True)
class Controlled:
    """A length-controlled win rate with its interval, in [0, 1], and the regression's coefficients, in logits."""

    win_rate: float
    low: float  # bootstrap over prompts
    high: float
    model: float
    length: float  # of tanh(d / sd): above 0, the judge likes longer answers
    difficulty: float | None  # of gamma; None: no difficulties were given
    length_scale: float  # sd(d), characters; 0 where all differences are equal and nothing can be controlled for


@dataclass(frozen=True)
class Comparisons:
    """Comparisons as columns, all of length n; `gamma` is None where no difficulties are known."""

    prompt: np.ndarray  # number of the prompt, 0 to P - 1
    outcome: np.ndarray
    longer_by: np.ndarray
    gamma: np.ndarray | None


def control(ids: Sequence[str], outcomes: Sequence[float], longer_by: Sequence[float], seed: int, resamples: int = 2000,
            confidence: float = 0.95, difficulties: dict[str, float] | None = None) -> Controlled:
    """The length-controlled win rate of comparisons: prompt id, outcome in [0, 1], characters the policy's is longer.

    Every prompt weighs the same, whatever its number of samples. The interval is the percentile bootstrap over prompts:
    the whole regression, the scale of the lengths included, is made again for every draw. Raises ValueError for no
    comparisons, KeyError for a prompt without its difficulty.
    """
    if not outcomes:
        raise ValueError("a win rate of no comparisons is undefined")
    index = {name: i for i, name in enumerate(dict.fromkeys(ids))}
    rows = Comparisons(
        np.array([index[name] for name in ids]), np.asarray(outcomes, float), np.asarray(longer_by, float),
        None if difficulties is None else np.array([difficulties[name] for name in ids]))
    weights = len(ids) / (len(index) * np.bincount(rows.prompt)[rows.prompt])
    rate, found, scale = _regression(rows, weights, None)
    generator = np.random.default_rng(seed)
    rates = []
    for _ in range(resamples):
        drawn = generator.multinomial(len(index), np.full(len(index), 1 / len(index)))[rows.prompt]
        rates.append(_regression(rows, weights * drawn, found)[0])
    low, high = statistics.percentiles(rates, confidence)
    return Controlled(win_rate=rate, low=low, high=high, model=float(found[0]), length=float(found[1]),
                      difficulty=None if difficulties is None else float(found[2]), length_scale=scale)


def _regression(rows: Comparisons, weights: np.ndarray, start: np.ndarray | None) -> tuple[float, np.ndarray, float]:
    """The controlled rate, the coefficients (model, length[, difficulty]) and the scale of the lengths.

    Where all lengths differ alike the second column is 0, and so, by the ridge, is its coefficient.
    """
    used = weights > 0
    weights, d = weights[used], rows.longer_by[used]
    middle = np.average(d, weights=weights)
    scale = float(np.sqrt((weights * (d - middle) ** 2).sum() / max(1.0, weights.sum() - 1)))
    columns = [np.ones_like(d), np.tanh(d / scale) if scale > 0 else np.zeros_like(d)]
    if rows.gamma is not None:
        columns.append(rows.gamma[used])
    design = np.stack(columns, 1)
    found = logistic.fit(design, rows.outcome[used], RIDGE, weights, start)
    design[:, 1] = 0.0
    return float(np.average(logistic.probability(design @ found), weights=weights)), found, scale


def predict(model: float, difficulty: float, difficulties: Sequence[float]) -> float:
    """The controlled win rate a fitted model has on prompts of the given difficulties: mean logistic(m + c gamma)."""
    return float(logistic.probability(model + difficulty * np.asarray(difficulties, float)).mean())


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
        both = np.array([logistic.fit(design, column, RIDGE) for column in table.T])  # (policies, 2)
        for _ in range(_STEPS):
            p = logistic.probability(both[:, 0] + gamma[:, None] * both[:, 1])
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
