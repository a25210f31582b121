"""Why a step is made again: what its key is made of, against what is there."""

from flows.inspection import key_differences


def test_a_list_and_a_tuple_are_one_setting():
    """As a manifest has it, and as a plan has it."""
    mine = {"version": 1, "settings": {"require": ("sft",), "n": 1}, "inputs": {}, "seed": None}
    there = {"version": 1, "settings": {"require": ["sft"], "n": 2}, "inputs": {}, "seed": None}
    assert key_differences(mine, there) == [("settings.n", 2, 1)]
