"""Tables become examples, or say why not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pipeline import columns, tables
from pipeline.errors import UserError
from pipeline.lm import arrays
from pipeline.lm import examples as data
from pipeline.lm.side_tables import SideTables
from pipeline.records import Completion, Group, Message
from tests import given

PAIR = Group("a", (Message("user", "?"),), (Completion("x", (5, 2)), Completion("y", (6, 7, 2))), prompt_ids=(1, 4))


def logps(folder, of, *values):
    return given.side_table(folder, of, columns.LOGP, values)


def test_loads_ids_and_the_reference_of_each_table(tmp_path):
    """Two tables of groups and a side table of each, whatever the order these are given in."""
    one = given.write(tmp_path / "one", [PAIR])
    two = given.write(tmp_path / "two", [replace(PAIR, id="b", prompt_ids=(1, 9))])
    beside = SideTables(reference=[logps(tmp_path / "r2", two, (-3.0, -4.0)),
                                   logps(tmp_path / "r1", one, (-1.0, -2.0))])
    first, second = data.load([one, two], tmp_path / "a", beside)
    assert (first.id, first.prompt.tolist(), first.completions[1].tolist()) == ("a", [1, 4], [6, 7, 2])
    assert first.ref_logps == (-1.0, -2.0) and second.ref_logps == (-3.0, -4.0)
    assert data.load([one], tmp_path / "b")[0].ref_logps is None
    assert (first.longest, first.completion_tokens) == (5, 5)


def test_one_side_table_of_several_tables(tmp_path):
    """What reference_logprobs makes of many: rows of both in one part, each found by its table's digest."""
    one, two = given.write(tmp_path / "one", [PAIR]), given.write(tmp_path / "two", [replace(PAIR, id="b")])
    columns.write_part(tmp_path / "r", 0, [(one.digest, "a", [{"logp": -1.0}, {"logp": -2.0}]),
                                           (two.digest, "b", [{"logp": -3.0}, {"logp": -4.0}])])
    found = data.load([two, one], tmp_path / "a", SideTables(previous=[tmp_path / "r"]))
    assert [e.previous_logps for e in found] == [(-3.0, -4.0), (-1.0, -2.0)]


def test_numbers_of_another_table_are_refused(tmp_path):
    """The same ids with other tokens are another table: another digest. Rows of other groups are found out, too."""
    groups = given.write(tmp_path / "groups", [PAIR])
    other = given.write(tmp_path / "other", [replace(PAIR, prompt_ids=(1, 9))])
    for name, said in (("reference", "reference log-probs"), ("previous", "log-probs of the policy before"),
                       ("weights", "weights")):
        beside = SideTables(**{name: [logps(tmp_path / name, other, (-1.0, -2.0))]})
        with pytest.raises(UserError, match=rf"{name}: no {said} for the 1 groups of .*groups; run .* on exactly"):
            data.load([groups], tmp_path / "a", beside)
    columns.write_part(tmp_path / "damaged", 0, [(groups.digest, "b", [{"logp": -1.0}, {"logp": -2.0}])])
    with pytest.raises(UserError, match="the side table's rows from 0 on are not of the groups from 'a' on"):
        data.load([groups], tmp_path / "a", SideTables(reference=[tmp_path / "damaged"]))


def test_factors_and_weights_multiply(tmp_path):
    """0.5 x 3 x 2 = 3 where a side table weighs, 4 x 0.25 = 1 where none does."""
    one = given.write(tmp_path / "one", [replace(PAIR, weight=0.5)])
    two = given.write(tmp_path / "two", [replace(PAIR, id="b", weight=4.0)])
    beside = SideTables(weights=[given.side_table(tmp_path / "w", one, columns.WEIGHT, [(3.0, 3.0)])])
    assert [e.weight for e in data.load([one], tmp_path / "a", beside, weights=(2.0,))] == [3.0]
    assert [e.weight for e in data.load([one, two], tmp_path / "b", weights=(1.0, 0.25))] == [0.5, 1.0]
    with pytest.raises(UserError, match=r"train\.weights: 1 numbers for 2 tables of groups"):
        data.load([one, two], tmp_path / "c", weights=(1.0,))


def test_an_id_that_occurs_twice_is_an_error(tmp_path):
    one = given.write(tmp_path / "one", [PAIR, replace(PAIR, id="b")])
    two = given.write(tmp_path / "two", [replace(PAIR, id="c"), replace(PAIR, id="b")])
    with pytest.raises(UserError, match=r"groups: id 'b' occurs in input 0 and in input 1 .*must be disjoint"):
        data.load([one, two], tmp_path / "a")
    with pytest.raises(UserError, match="groups: id 'a' occurs in input 0 and in input 1"):
        data.load([one, replace(one, digest="again")], tmp_path / "a")


def test_bad_rows_are_named_all_at_once(tmp_path):
    tables.write(tmp_path / "groups", [
        replace(PAIR, id="no ids", prompt_ids=()),
        replace(PAIR, id="none", completions=()),
        replace(PAIR, id="empty", completions=(PAIR.completions[0], Completion("z"))),
    ])
    with pytest.raises(UserError) as caught:
        data.load([given.source(tmp_path / "groups")], tmp_path / "b")
    assert [p.split(":")[0] for p in caught.value.problems] == ["group 'no ids'", "group 'none'", "group 'empty'"]


def test_empty_table(tmp_path):
    tables.write(tmp_path / "groups", [])
    with pytest.raises(UserError, match="no groups to train on"):
        data.load([given.source(tmp_path / "groups")], tmp_path / "b")


def test_stop_that_is_missing(tmp_path):
    tables.write(tmp_path / "groups", [PAIR, replace(PAIR, id="b", completions=(Completion("x", (5,)),)),
                                       replace(PAIR, id="c", completions=(Completion("x", (5,), "length"),))])
    with pytest.raises(UserError) as caught:
        data.load([given.source(tmp_path / "groups")], tmp_path / "a", stop_ids=[2])
    assert caught.value.problems == [
        "group 'b': completion 0 has finish_reason stop but ends with id 5, expected one of the stop ids [2]"]
    again = data.load([given.source(tmp_path / "groups")], tmp_path / "a", stop_ids=[2, 5])
    assert len(again) == 3, "nothing is left of the failed try"


def test_scores_come_from_the_group_or_a_side_table(tmp_path):
    """What a group carries itself wins; a completion without the score leaves the group without scores."""
    other, third = replace(PAIR, id="b", prompt_ids=(1, 9)), replace(PAIR, id="c", prompt_ids=(1, 8))
    own = replace(PAIR, completions=tuple(
        replace(c, scores={"reward": v}) for c, v in zip(PAIR.completions, (1.0, 0.5), strict=True)))
    groups = given.write(tmp_path / "groups", [own, other, third])
    scores = given.side_table(tmp_path / "s", groups, "reward", [(7.0, 7.0), (3.0, 4.0), (5.0, None)])
    loaded = data.load([groups], tmp_path / "a", SideTables(scores=[scores]))
    assert [e.scores for e in loaded] == [(1.0, 0.5), (3.0, 4.0), None]
    assert data.load([groups], tmp_path / "b", SideTables(scores=[scores], score="gold"))[0].scores is None


def test_previous_policy_is_its_own_table(tmp_path):
    groups = given.write(tmp_path / "groups", [PAIR])
    beside = SideTables(reference=[logps(tmp_path / "ref", groups, (-1.0, -2.0))],
                        previous=[logps(tmp_path / "prev", groups, (-3.0, -4.0))])
    (one,) = data.load([groups], tmp_path / "a", beside)
    assert (one.ref_logps, one.previous_logps) == ((-1.0, -2.0), (-3.0, -4.0))


def test_completions_with_prompts_of_their_own(tmp_path):
    """A completion without one answers the group's prompt; rows are as long as their own prompt makes them."""
    second = replace(PAIR.completions[1], prompt_ids=(1, 5, 6, 4))
    group = replace(PAIR, completions=(PAIR.completions[0], second))
    tables.write(tmp_path / "groups", [group])
    (one,) = data.load([given.source(tmp_path / "groups")], tmp_path / "b")
    assert [one.prompt_of(k).tolist() for k in (0, 1)] == [[1, 4], [1, 5, 6, 4]]
    assert one.longest == 7 and data.columns(one, [1]).prompt_of(0).tolist() == [1, 5, 6, 4]


def test_a_rationale_is_read_where_it_is_asked_for(tmp_path):
    """It counts in the longest row and the largest id then, and in nothing else."""
    group = replace(PAIR, rationale=Completion("x", (48, 2), prompt_ids=(1, 5, 6, 7, 8, 4)))
    tables.write(tmp_path / "groups", [group, replace(PAIR, id="bare")], part_size=1)
    tables.write(tmp_path / "mixed", [replace(PAIR, id="m"), replace(group, id="n")])
    sources = [given.source(tmp_path / name) for name in ("groups", "mixed")]
    one, bare, *mixed = data.load(sources, tmp_path / "b", rationales=True)
    assert one.rationale.prompt.tolist() == [1, 5, 6, 7, 8, 4] and one.longest == 8
    assert [c.tolist() for c in one.rationale.completions] == [[48, 2]]
    assert bare.rationale is None and bare.longest < 8
    assert [e.rationale is None for e in mixed] == [True, False]
    assert len(one.completions) == 2 and one.completion_tokens == bare.completion_tokens
    with pytest.raises(UserError, match="token id 48, but the model has a vocabulary of 40"):
        data.check_fits(data.load(sources, tmp_path / "b"), 40, None)
    without = data.load(sources, tmp_path / "c")
    assert all(e.rationale is None for e in without)
    data.check_fits(without, 40, 7)


def random_groups(number):
    """Groups of 1 to 4 completions of 1 to 6 tokens, some with labels, scores, prompts of their own."""
    rng = np.random.default_rng(0)

    def ids(low=1):
        return tuple(rng.integers(1, 50, rng.integers(low, 7)).tolist())

    groups = []
    for i in range(number):
        scored, own = rng.random(2) < 0.5
        completions = tuple(Completion(
            "x", ids(), "length", {"reward": float(k), "gold": 1.0} if scored else {},
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
    """Across parts and batches of a few rows: every example as made from its group in memory, with its numbers."""
    monkeypatch.setattr(arrays, "_BATCH", 7)
    groups = random_groups(60)
    tables.write(tmp_path / "groups", groups, part_size=23)
    table = given.source(tmp_path / "groups")
    values = [tuple(100.0 * i + k for k in range(len(g.completions))) for i, g in enumerate(groups)]
    found = data.load([table], tmp_path / "a", SideTables(reference=[logps(tmp_path / "ref", table, *values)]))
    expected = [replace(e, ref_logps=v, scores=tuple(c.scores["reward"] for c in g.completions)
                        if g.completions[0].scores else None)
                for g, e, v in zip(groups, data.of_chunk(arrays.of_groups(groups)), values, strict=True)]
    assert expected[3].prompt.tolist() == list(groups[3].prompt_ids)
    assert [c.tolist() for c in expected[3].completions] == [list(c.token_ids) for c in groups[3].completions]
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


def test_what_is_there_is_not_made_again(tmp_path):
    tables.write(tmp_path / "groups", [PAIR])
    first = data.load([given.source(tmp_path / "groups")], tmp_path / "a")
    for part in tables.parts(tmp_path / "groups"):
        part.unlink()
    assert same(data.load([given.source(tmp_path / "groups")], tmp_path / "a")[0], first[0])
