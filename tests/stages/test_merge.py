"""The merge stage: several tables become one, with provenance and weights, and no id twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline import tables
from pipeline.config import build, problems_of
from pipeline.errors import UserError
from pipeline.records import Completion, Group, Message
from pipeline.stage import Context, Reporter
from pipeline.stages import merge


def group_of(name: str, dataset: str, iteration: int, weight: float = 1.0, ids: tuple[int, ...] = (5,)) -> Group:
    pair = (Completion("good", (6, 2), scores={"reward": 1.0}), Completion("bad", (7, 2)))
    return Group(name, (Message("user", name),), pair, ids, weight=weight, dataset=dataset, iteration=iteration)


def merged(tmp_path: Path, *inputs: list[Group], weights: tuple[float, ...] = ()) -> Context:
    for i, groups in enumerate(inputs):
        tables.write(tmp_path / str(i), groups)
    folders = tuple(tmp_path / str(i) for i in range(len(inputs)))
    context = Context(build(merge.Settings, {"weights": weights}), merge.STAGE.runtime(), {"groups": folders}, {},
                      tmp_path / "work", 0, Reporter())
    merge.run(context)
    return context


PREF = [group_of("a", "pref", 0), group_of("b", "pref", 0, weight=0.5)]
SAMPLED = [group_of("c", "unlabeled", 2, weight=2.0)]


def test_everything_in_order_and_unchanged(tmp_path: Path) -> None:
    context = merged(tmp_path, PREF, SAMPLED)
    assert list(tables.read(context.out / "groups")) == [*PREF, *SAMPLED]
    assert context.report.counts == {"groups": 3, "from_input_0": 2, "from_input_1": 1}
    assert context.report.dropped == {}


def test_one_table_is_itself(tmp_path: Path) -> None:
    assert list(tables.read(merged(tmp_path, PREF).out / "groups")) == PREF


def test_factors_multiply_the_weights_of_their_input(tmp_path: Path) -> None:
    groups = list(tables.read(merged(tmp_path, PREF, SAMPLED, weights=(1.0, 0.25)).out / "groups"))
    assert [(g.id, g.weight, g.dataset, g.iteration) for g in groups] == [
        ("a", 1.0, "pref", 0), ("b", 0.5, "pref", 0), ("c", 0.5, "unlabeled", 2)
    ]


def test_one_factor_per_input(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train.merge_weights: 1 numbers for 2 inputs, expected one for each"):
        merged(tmp_path, PREF, SAMPLED, weights=(1.0,))
    (problem,) = problems_of(merge.Settings, {"weights": [1.0, -1.0]}, "s")
    assert problem == "s.weights: -1.0 is out of range, expected 0.0 <= x"


@pytest.mark.parametrize("second", [[group_of("b", "unlabeled", 2)], PREF])
def test_an_id_that_occurs_twice_is_an_error(tmp_path: Path, second: list[Group]) -> None:
    with pytest.raises(UserError, match=r"merge: id '[ab]' occurs in input 0 and in input 1"):
        merged(tmp_path, PREF, second)


def test_tokenised_and_plain_tables_do_not_mix(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'c' of input 1 is tokenised and others are not, or the reverse"):
        merged(tmp_path, PREF, [group_of("c", "unlabeled", 2, ids=())])
