"""The worked pair of the tests on pairs, and batches of a few lines: the fixture `worked` is this module.

log pi(y_w) = -10, log ref(y_w) = -12, so a = 2, |y_w| = 4; log pi(y_l) = -20, log ref(y_l) = -19, so b = -1, |y_l| = 8;
h = 3. As averages: a / |y_w| = 0.5, b / |y_l| = -0.125.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.objectives.contract import LossInputs


@pytest.fixture(scope="session")
def worked() -> ModuleType:
    return sys.modules[__name__]


LENGTHS = torch.tensor([[4, 8]])


def doubles(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


POLICY, REFERENCE = doubles([-10.0, -20.0]), doubles([-12.0, -19.0])
FOUR = (POLICY[:, 0], POLICY[:, 1], REFERENCE[:, 0], REFERENCE[:, 1])


def pairs(logps: Tensor = POLICY, ref_logps: Tensor = REFERENCE, **more: Any) -> LossInputs:
    """(G, K) log-probs as a batch; the same frozen log-probs as reference and as previous policy."""
    given = {
        "lengths": LENGTHS.expand(logps.shape) if logps.shape[1] == 2 else torch.full(logps.shape, 4),
        "present": torch.ones(logps.shape, dtype=torch.bool),
        "ref_logps": ref_logps,
        "previous_logps": ref_logps,
        "mean_chosen_length": 4.0,
    }
    return LossInputs(logps=logps, **(given | more))


def value(module: Any, settings: Any, batch: LossInputs | None = None) -> float:
    """The loss of a batch of one group."""
    return float(module.loss(pairs() if batch is None else batch, settings)[0].item())


def at_reference(module: Any, settings: Any, **more: Any) -> float:
    """The loss where the policy is the reference."""
    return value(module, settings, pairs(REFERENCE.clone(), REFERENCE, **more))


def gradient(module: Any, settings: Any, logps: Tensor = POLICY, **more: Any) -> list[list[float]]:
    """dL / d log pi of every completion, of the sum of the losses."""
    leaf = logps.clone().requires_grad_()
    module.loss(pairs(leaf, **more), settings)[0].sum().backward()
    assert leaf.grad is not None
    found: list[list[float]] = leaf.grad.tolist()
    return found


def slope(function: Any, *places: float, step: float = 1e-5) -> list[float]:
    """Central differences of a function of several numbers."""
    found = []
    for i in range(len(places)):
        up, down = ([p + sign * step * (j == i) for j, p in enumerate(places)] for sign in (1, -1))
        found.append((function(*up) - function(*down)) / (2 * step))
    return found
