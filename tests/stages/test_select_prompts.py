"""The prompts of each iteration: disjoint, fixed by the seed, the same however many iterations there will be."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline import tables
from pipeline.config import problems_of
from pipeline.errors import UserError
from pipeline.records import Group, Message
from pipeline.stage import Context, Reporter, keyed
from pipeline.stages import select_prompts
from pipeline.stages.select_prompts import Settings, slice_of

IDS = [f"p{i}" for i in range(100)]


def taken(ids: list[str], iteration: int, count: int, seed: int, first: int = 1) -> list[str]:
    return slice_of(ids, Settings(iteration, count, first), seed)


def test_iterations_share_no_prompt_and_use_up_the_pool() -> None:
    slices = [taken(IDS, i, 20, seed=3) for i in (1, 2, 3, 4, 5)]
    assert [len(s) for s in slices] == [20] * 5
    assert set().union(*slices) == set(IDS)


def test_a_loop_that_samples_from_its_second_iteration_on_wastes_no_prompt() -> None:
    later = [taken(IDS, i, 20, seed=3, first=2) for i in (2, 3, 4, 5, 6)]
    assert later == [taken(IDS, i, 20, seed=3) for i in (1, 2, 3, 4, 5)]
    with pytest.raises(UserError, match=r"iteration 7 needs 20 .* 0 are left; set .*=16 or less, iterations=6 or less"):
        taken(IDS, 7, 20, seed=3, first=2)
    assert problems_of(Settings, {"iteration": 1, "count": 5, "first": 2}) == [
        "first: 2 is after iteration 1, expected at most that"]


def test_the_pools_order_does_not_matter_but_the_seed_does() -> None:
    assert taken(IDS[::-1], 2, 20, seed=3) == taken(IDS, 2, 20, seed=3)
    assert taken(IDS, 1, 20, seed=3) != taken(IDS, 1, 20, seed=4)
    assert taken(IDS, 1, 20, seed=3) != IDS[:20]


def test_half_of_the_prompts_of_one_half_of_the_pool_are_taken() -> None:
    """A shuffle takes from everywhere: of 50 out of 100, 25 +- 2.5 come from the first half."""
    first_half = set(IDS[:50])
    from_it = [len(first_half & set(taken(IDS, 1, 50, seed=s))) for s in range(40)]
    assert all(15 <= n <= 35 for n in from_it)
    assert 24 < sum(from_it) / 40 < 26


def test_a_pool_used_up_is_told_with_the_ways_out() -> None:
    assert len(taken(IDS, 3, 33, seed=0)) == 33
    with pytest.raises(UserError) as caught:
        taken(IDS, 3, 40, seed=0)
    assert caught.value.problems == [
        "sampling.prompts_per_iteration: iteration 3 needs 40 new prompts, but of 100 unlabeled prompts 20 are left; "
        "set sampling.prompts_per_iteration=33 or less, iterations=2 or less, or give more unlabeled prompts "
        "(data.root, data.format.limits.unlabeled)"]
    with pytest.raises(UserError, match=r"of 100 unlabeled prompts 0 are left; set .*=25 or"):
        taken(IDS, 4, 50, seed=0)
    with pytest.raises(UserError, match=r"of 0 unlabeled prompts 0 are left; or give more"):
        taken([], 1, 50, seed=0)


def test_the_table_has_the_prompts_with_their_ids_and_iteration(tmp_path: Path) -> None:
    pool = [Group(id=id, messages=(Message("user", f"say {id}"),), prompt_ids=(1, i)) for i, id in enumerate(IDS)]
    tables.write(tmp_path / "pool", pool)
    inputs: dict[str, tuple[Path, ...]] = {"prompts": (tmp_path / "pool",)}
    context = Context(Settings(iteration=2, count=30), None, inputs, {}, tmp_path / "work", 7, Reporter())
    select_prompts.run(context)
    groups = list(tables.read(context.out / "groups"))
    assert [g.id for g in groups] == taken(IDS, 2, 30, seed=7)
    assert {g.iteration for g in groups} == {2}
    assert [g.prompt_ids for g in groups] == [(1, IDS.index(g.id)) for g in groups]
    assert [g.messages[0].content for g in groups] == [f"say {g.id}" for g in groups]
    assert context.report.counts == {"prompts": 30, "pool": 100, "left": 40}


def test_settings_have_limits() -> None:
    assert problems_of(Settings, {"iteration": 0, "count": 0}) == [
        "iteration: 0 is out of range, expected 1 <= x", "count: 0 is out of range, expected 1 <= x"]


def test_without_a_number_the_iterations_that_sample_share_all_prompts() -> None:
    """100 prompts, iterations 2 to 4: 33 each, all different; five iterations cannot share four prompts."""
    slices = [slice_of(IDS, Settings(i, None, first=2, last=4), 3) for i in (2, 3, 4)]
    assert [len(s) for s in slices] == [33] * 3 and len(set().union(*slices)) == 99
    assert slice_of(IDS, Settings(2, None, first=2, last=2), 3) == taken(IDS, 2, 100, seed=3, first=2)
    with pytest.raises(UserError, match=r"^iterations: 5 share 4 unlabeled prompts"):
        slice_of(IDS[:4], Settings(1, None, last=5), 3)
    assert problems_of(Settings, {"iteration": 2, "count": None})[0].startswith("last: None with count null")


def test_a_number_leaves_the_key_as_it_was() -> None:
    assert keyed(Settings(1, 20)) == {"iteration": 1, "count": 20, "first": 1}
    assert keyed(Settings(1, None, last=2)) == {"iteration": 1, "count": None, "first": 1, "last": 2}
