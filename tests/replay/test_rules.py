"""The rules of replay: what each keeps of five groups of the data set and three iterations, worked out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pipeline.config import load_part, part_problems
from pipeline.replay.contract import Past, Replay

# The newest iteration is 4; 3 made nothing.
PAST = Past(np.array([0, 0, 1, 2, 4]), np.array([0.9, 0.2, 0.1, 0.5, 0.0]))


def factors(name: str, past: Past = PAST, **settings: Any) -> list[float]:
    part = load_part({"module": f"pipeline.replay.{name}", **settings}, "replay", Replay)
    found: list[float] = part.plugin.factors(past, part.settings).tolist()
    return found


def test_all_counts_alike() -> None:
    assert factors("all") == [1, 1, 1, 1, 1]


@pytest.mark.parametrize(("settings", "kept"), [
    ({}, [0, 0, 0, 1, 1]), ({"k": 1}, [0, 0, 0, 0, 1]), ({"k": 1, "data_set": True}, [1, 1, 0, 0, 1]),
    ({"k": 3}, [0, 0, 1, 1, 1]), ({"k": 9}, [1, 1, 1, 1, 1])])
def test_the_last_iterations_that_made_groups(settings: dict[str, Any], kept: list[float]) -> None:
    assert factors("last_k", **settings) == kept


def test_older_iterations_weigh_less() -> None:
    """Four rounds: 0.5 ** 3, 2, 1, 0 of them."""
    assert factors("weighted") == [0.125, 0.125, 0.25, 0.5, 1]
    assert factors("weighted", decay=1.0) == [1, 1, 1, 1, 1]


@pytest.mark.parametrize(("share", "kept"), [
    (1.0, [0, 0, 0, 0, 1]), (0.5, [0, 0, 1, 0, 1]), (1 / 3, [0, 1, 1, 0, 1]), (0.1, [1, 1, 1, 1, 1])])
def test_so_many_older_ones_that_the_newest_are_the_share(share: float, kept: list[float]) -> None:
    """One new group: at a half one older beside it, the one with the smallest point; a smaller share only adds."""
    assert factors("on_policy_share", share=share) == kept


def test_of_one_iteration_everything_is_kept() -> None:
    only = Past(np.zeros(3, np.int64), np.array([0.1, 0.2, 0.3]))
    for name in ("all", "last_k", "weighted", "on_policy_share"):
        assert factors(name, only) == [1, 1, 1]


def test_settings_out_of_range_are_told() -> None:
    assert part_problems({"module": "pipeline.replay.last_k", "k": 0}, "replay", Replay)[0][0] == "replay.k"
    assert part_problems({"module": "pipeline.replay.on_policy_share", "share": 0}, "replay", Replay)
