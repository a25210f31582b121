"""Tables become examples, or say why not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pipeline import tables
from pipeline.errors import UserError
from pipeline.lm import arrays
from pipeline.lm import examples as data
from pipeline.records import Completion, Group, Message

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


def random_groups(number):
    """Groups of 1 to 4 completions of 1 to 6 tokens, some with labels, log-probs, scores, prompts of their own."""
    rng = np.random.default_rng(0)

    def ids(low=1):
        return tuple(rng.integers(1, 50, rng.integers(low, 7)).tolist())

    groups = []
    for i in range(number):
        known, scored, own = rng.random(3) < 0.5
        completions = tuple(Completion(
            "x", ids(), "length", {"reward": float(k), "gold": 1.0} if scored else {}, -float(k) if known else None,
            prompt_ids=ids() if own and k else ()) for k in range(rng.integers(1, 5)))
        groups.append(Group(f"g{i}", (), completions, ids(), rng.choice([None, True, False]), float(rng.random())))
    return groups


def same(one, other):
    """Examples field by field, arrays by value."""
    def plain(e):
        return {k: [a.tolist() for a in v] if k in ("completions", "prompts") and v is not None else
                v.tolist() if k == "prompt" else v for k, v in vars(e).items()}

    return plain(one) == plain(other)


def test_arrays_give_what_the_rows_hold(tmp_path, monkeypatch):
    """Across parts and batches of a few rows: every example as made from its group alone."""
    monkeypatch.setattr(arrays, "_BATCH", 7)
    groups = random_groups(60)
    tables.write(tmp_path / "groups", groups, part_size=23)
    found = data.load(tmp_path / "groups", tmp_path / "a")
    expected = [replace(data.example(g), scores=tuple(c.scores["reward"] for c in g.completions)
                        if g.completions[0].scores else None) for g in groups]
    assert len(found) == 60 and all(same(a, b) for a, b in zip(found, expected, strict=True))
    assert data.ids_of(found) == [g.id for g in groups]
    some = data.shaped(data.subset(data.subset(found, range(10, 60)), [3, 1]), lambda e: data.columns(e, [0]))
    assert data.ids_of(some) == ["g13", "g11"] and [len(e.completions) for e in some] == [1, 1]
    for vocabulary, context in ((30, None), (99, 6)):
        problems = []
        for examples in (found, expected):
            with pytest.raises(UserError) as caught:
                data.check_fits(examples, vocabulary, context)
            problems.append(caught.value.problems)
        assert problems[0] == problems[1]


def test_numbers_are_found_by_all_tokens(tmp_path, monkeypatch):
    """A table beside in another order gives each group its own; one boundary moved, and it is another group."""
    monkeypatch.setattr(arrays, "_BATCH", 7)
    groups = random_groups(40)
    beside = [replace(g, id="?", completions=tuple(replace(c, ref_logp=100.0 * i + k)
                                                   for k, c in enumerate(g.completions))) for i, g in enumerate(groups)]
    tables.write(tmp_path / "groups", groups)
    tables.write(tmp_path / "ref", beside[::-1], part_size=11)
    found = data.load(tmp_path / "groups", tmp_path / "a", data.Beside(reference=[tmp_path / "ref"]))
    assert [e.ref_logps for e in found] == [tuple(c.ref_logp for c in g.completions) for g in beside]
    moved = replace(PAIR, prompt_ids=(1, 4, 5), completions=(Completion("x", (2,)), PAIR.completions[1]))
    tables.write(tmp_path / "pair", [PAIR])
    tables.write(tmp_path / "moved", [scored(moved, -1.0, -2.0), scored(
        replace(PAIR, completions=PAIR.completions[::-1]), -1.0, -2.0)])
    with pytest.raises(UserError, match="no reference log-probs for 1 groups"):
        data.load(tmp_path / "pair", tmp_path / "b", data.Beside(reference=[tmp_path / "moved"]))


def test_what_is_there_is_not_made_again(tmp_path):
    tables.write(tmp_path / "groups", [PAIR])
    first = data.load(tmp_path / "groups", tmp_path / "a")
    for part in tables.parts(tmp_path / "groups"):
        part.unlink()
    assert same(data.load(tmp_path / "groups", tmp_path / "a")[0], first[0])
