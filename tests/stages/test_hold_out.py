"""Pairs set aside by the hash of their prompt: all of a prompt on one side, the same ones wherever the rows stand."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline import tables
from pipeline.errors import UserError
from pipeline.records import Completion, Group, Message
from pipeline.stage import Context, NoRuntime, Reporter
from pipeline.stages import hold_out
from tests import given

GROUPS = [Group(f"g{i}", (Message("user", "q"),), (Completion("a", (7, 2)), Completion("b", (8, 2))), (1, i // 2))
          for i in range(24)]  # 12 prompts with two pairs each


def made(folder: Path, groups: list[Group], prompts: int) -> dict[str, list[str]]:
    inputs = {"groups": (given.write(folder / "in", groups).path,)}
    context = Context(hold_out.Settings(prompts), NoRuntime(), inputs, given.digests(inputs), folder / "work", 0,
                      Reporter())
    hold_out.run(context)
    found = {name: [g.id for g in tables.read(context.out / name)] for name in ("trained", "seen", "held_out")}
    assert context.report.counts == {name: len(ids) for name, ids in found.items()}
    return found


def test_prompts_are_on_one_side_with_all_of_their_pairs(tmp_path: Path):
    found = made(tmp_path / "a", GROUPS, 3)
    assert {name: len(ids) for name, ids in found.items()} == {"trained": 18, "seen": 6, "held_out": 6}
    assert sorted(found["trained"] + found["held_out"]) == sorted(g.id for g in GROUPS)
    assert set(found["seen"]) < set(found["trained"])
    prompts = {name: {int(one[1:]) // 2 for one in ids} for name, ids in found.items()}
    assert prompts["held_out"] & prompts["trained"] == set() and len(prompts["held_out"]) == len(prompts["seen"]) == 3
    turned = made(tmp_path / "b", GROUPS[::-1], 3)
    assert {name: set(ids) for name, ids in turned.items()} == {name: set(ids) for name, ids in found.items()}


def test_too_few_prompts_are_told_with_a_number_that_fits(tmp_path: Path):
    with pytest.raises(UserError, match=r"hold_out.prompts: 5 of 12 prompts .* set stage.hold_out.settings.prompts=4"):
        made(tmp_path, GROUPS, 5)
