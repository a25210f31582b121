"""Logistic regression, by Newton's method."""

import numpy as np

_STEPS, _TOLERANCE = 200, 1e-7  # Newton: what is left after such a step is its square
_DAMPING = 1e-10  # added to the curvature: a direction in which nothing curves must not stop the step in the others


def fit(design: np.ndarray, outcomes: np.ndarray, ridge: float | np.ndarray, weights: np.ndarray | None = None,
        start: np.ndarray | None = None) -> np.ndarray:
    """Maximise sum of weights * log-likelihood - sum of ridge / 2 * coefficients^2: (k,) coefficients.

    design (n, k); outcomes (n,) in [0, 1]; ridge >= 0, one for all coefficients or (k,); weights (n,), 1 where None;
    start (k,): coefficients to begin with. Where outcomes are separable and nothing is penalised there is no optimum:
    what comes back is finite and separates them.
    """
    weights = np.ones(len(outcomes)) if weights is None else weights
    found = np.zeros(design.shape[1]) if start is None else start
    penalty = np.broadcast_to(np.asarray(ridge, float), found.shape)

    def value_of(coefficients: np.ndarray) -> float:
        z = design @ coefficients
        return float((weights * (outcomes * z - np.logaddexp(0, z))).sum() - penalty @ coefficients**2 / 2)

    value = value_of(found)
    for _ in range(_STEPS):
        p = probability(design @ found)
        gradient = design.T @ (weights * (outcomes - p)) - penalty * found
        curvature = (design * (weights * p * (1 - p))[:, None]).T @ design + np.diag(penalty + _DAMPING)
        step = np.linalg.solve(curvature, gradient)
        while (after := value_of(found + step)) < value - 1e-12:
            step = step / 2
        found, value = found + step, after
        if np.abs(step).max() < _TOLERANCE:
            break
    return found


def probability(logits: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-logits)), without overflow."""
    return np.exp(-np.logaddexp(0, -logits))
