"""Tables become examples, or say why not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pipeline import tables
from pipeline.records import Completion, Group, Message, UserError
from pipeline.training import data

PAIR = Group("a", (Message("user", "?"),), (Completion("x", (5, 2)), Completion("y", (6, 7, 2))), prompt_ids=(1, 4))


def scored(group, *values):
    return replace(group, completions=tuple(
        replace(c, ref_logp=v) for c, v in zip(group.completions, values, strict=True)))


def test_loads_ids_and_reference_by_tokens(tmp_path):
    """The reference is spread over two tables and found by token ids, whatever the order and the group's id."""
    other = replace(PAIR, id="b", prompt_ids=(1, 9))
    tables.write(tmp_path / "groups", [PAIR, other])
    tables.write(tmp_path / "one", [scored(replace(other, id="renamed"), -3.0, -4.0)])
    tables.write(tmp_path / "two", [scored(PAIR, -1.0, -2.0)])
    beside = data.Beside(reference=[tmp_path / "one", tmp_path / "two"])
    first, second = data.load(tmp_path / "groups", tmp_path / "a", beside)
    assert (first.id, first.prompt.tolist(), first.completions[1].tolist()) == ("a", [1, 4], [6, 7, 2])
    assert first.ref_logps == (-1.0, -2.0) and second.ref_logps == (-3.0, -4.0)
    assert data.load(tmp_path / "groups", tmp_path / "b")[0].ref_logps is None
    assert (first.longest, first.completion_tokens) == (5, 5)


def test_reference_of_other_tokens_is_refused(tmp_path):
    tables.write(tmp_path / "groups", [PAIR])
    tables.write(tmp_path / "other", [scored(replace(PAIR, prompt_ids=(1, 9)), -1.0, -2.0)])
    with pytest.raises(UserError, match=r"no reference log-probs for 1 groups of .*first 'a'"):
        data.load(tmp_path / "groups", tmp_path / "a", data.Beside(reference=[tmp_path / "other"]))


def test_bad_rows_are_named_all_at_once(tmp_path):
    tables.write(tmp_path / "groups", [
        replace(PAIR, id="no ids", prompt_ids=()),
        replace(PAIR, id="none", completions=()),
        replace(PAIR, id="empty", completions=(PAIR.completions[0], Completion("z"))),
    ])
    with pytest.raises(UserError) as caught:
        data.load(tmp_path / "groups", tmp_path / "b")
    assert [p.split(":")[0] for p in caught.value.problems] == ["group 'no ids'", "group 'none'", "group 'empty'"]


def test_empty_table(tmp_path):
    tables.write(tmp_path / "groups", [])
    with pytest.raises(UserError, match="no groups to train on"):
        data.load(tmp_path / "groups", tmp_path / "b")


def test_stop_that_is_missing(tmp_path):
    tables.write(tmp_path / "groups", [PAIR, replace(PAIR, id="b", completions=(Completion("x", (5,)),)),
                                       replace(PAIR, id="c", completions=(Completion("x", (5,), "length"),))])
    with pytest.raises(UserError) as caught:
        data.load(tmp_path / "groups", tmp_path / "a", stop_ids=[2])
    assert caught.value.problems == [
        "group 'b': completion 0 has finish_reason stop but ends with id 5, expected one of the stop ids [2]"]
    again = data.load(tmp_path / "groups", tmp_path / "a", stop_ids=[2, 5])
    assert len(again) == 3, "nothing is left of the failed try"


def test_scores_come_from_the_group_or_a_table_beside_it(tmp_path):
    """What a group carries itself wins; a completion without the score leaves the group without scores."""
    def with_scores(group, *values):
        return replace(group, completions=tuple(
            replace(c, scores={"reward": v}) for c, v in zip(group.completions, values, strict=True)))

    other, third = replace(PAIR, id="b", prompt_ids=(1, 9)), replace(PAIR, id="c", prompt_ids=(1, 8))
    tables.write(tmp_path / "groups", [with_scores(PAIR, 1.0, 0.5), other, third])
    tables.write(tmp_path / "scored", [with_scores(PAIR, 7.0, 7.0), with_scores(other, 3.0, 4.0)])
    loaded = data.load(tmp_path / "groups", tmp_path / "a", data.Beside(scored=[tmp_path / "scored"]))
    assert [e.scores for e in loaded] == [(1.0, 0.5), (3.0, 4.0), None]
    assert data.load(tmp_path / "groups", tmp_path / "b", data.Beside(score="gold"))[0].scores is None


def test_previous_policy_is_its_own_table(tmp_path):
    tables.write(tmp_path / "groups", [PAIR])
    tables.write(tmp_path / "ref", [scored(PAIR, -1.0, -2.0)])
    tables.write(tmp_path / "prev", [scored(PAIR, -3.0, -4.0)])
    beside = data.Beside(reference=[tmp_path / "ref"], previous=[tmp_path / "prev"])
    (one,) = data.load(tmp_path / "groups", tmp_path / "a", beside)
    assert (one.ref_logps, one.previous_logps) == ((-1.0, -2.0), (-3.0, -4.0))


def test_completions_with_prompts_of_their_own(tmp_path):
    """A completion without one answers the group's prompt; rows are as long as their own prompt makes them."""
    second = replace(PAIR.completions[1], prompt_ids=(1, 5, 6, 4))
    group = replace(PAIR, completions=(PAIR.completions[0], second))
    tables.write(tmp_path / "groups", [group])
    (one,) = data.load(tmp_path / "groups", tmp_path / "b")
    assert [one.prompt_of(k).tolist() for k in (0, 1)] == [[1, 4], [1, 5, 6, 4]]
    assert one.longest == 7 and data.columns(one, [1]).prompt_of(0).tolist() == [1, 5, 6, 4]
