"""Config problems: all at once, each with its dotted key, what was found and what was expected."""

from __future__ import annotations

import dataclasses
import sys

import pytest

from pipeline.config import build, load_part, problems_of, setting
from pipeline.errors import UserError, nearest
from pipeline.objectives.contract import Objective


@dataclasses.dataclass(frozen=True)
class Inner:
    steps: int = setting(10, low=1)


@dataclasses.dataclass(frozen=True)
class Outer:
    beta: float = setting(0.1, above=0.0, below=1.0)
    kind: str = setting("soft", choices=("soft", "hard"))
    temperatures: tuple[float, ...] = (0.7,)
    limit: int | None = None
    inner: Inner = dataclasses.field(default_factory=Inner)

    def check(self) -> list[tuple[str, str]]:
        return [("limit", "must be even")] if self.limit is not None and self.limit % 2 else []


def test_plain_data_becomes_typed():
    made = build(Outer, {"beta": 0.5, "temperatures": [1, 0.5], "limit": 4, "inner": {"steps": 3}})
    assert made == Outer(0.5, "soft", (1.0, 0.5), 4, Inner(3))


def test_one_and_one_point_zero_are_the_same_setting():
    one, other = build(Outer, {"temperatures": [1]}), build(Outer, {"temperatures": [1.0]})
    assert one == other and isinstance(one.temperatures[0], float)


def test_every_problem_is_reported_at_once():
    data = {"betta": 1, "beta": 2, "kind": "sof", "temperatures": "hot", "limit": "many", "inner": {"steps": 0, "x": 1}}
    assert problems_of(Outer, data, "objective") == [
        "objective.betta: unknown key (did you mean beta?)",
        "objective.beta: 2.0 is out of range, expected 0.0 < x < 1.0",
        "objective.kind: 'sof' is not allowed, expected one of soft, hard",
        "objective.temperatures: expected a list of a number, got 'hot'",
        "objective.limit: expected a whole number, got 'many'",
        "objective.inner.x: unknown key (known: steps)",
        "objective.inner.steps: 0 is out of range, expected 1 <= x",
    ]


def test_a_check_method_adds_its_own_problems():
    assert problems_of(Outer, {"limit": 3}, "x") == ["x.limit: must be even"]


@pytest.mark.parametrize("value", [True, "1", None, float("nan"), float("inf")])
def test_a_number_is_a_finite_number(value):
    assert problems_of(Outer, {"beta": value}) != []


def test_nearest_names():
    assert nearest("iterativ_dpo", ["pco", "iterative_dpo"]) == " (did you mean iterative_dpo?)"
    assert nearest("zzz", ["pco", "sft"]) == " (known: pco, sft)"


def test_a_part_is_a_module_and_its_settings():
    part = load_part({"module": "pipeline.objectives.dpo", "beta": 0.3}, "objective", Objective)
    assert part.name == "pipeline.objectives.dpo" and part.settings.beta == 0.3


@pytest.mark.parametrize(("declares", "problem"), [
    ("OBJECTIVE = Objective(Settings, loss, need=Needs(pairs=True))",
     "objective.module: own: Objective(...): no hook 'need' (did you mean needs?); what it may declare is in "
     "pipeline.objectives.contract"),
    ("OBJECTIVE = Objective(Settings, loss, Needs(pair=True))",
     "objective.module: own: Needs(...): no hook 'pair' (did you mean pairs?); what it may declare is in "
     "pipeline.objectives.contract"),
    ("OBJECTIVE = Objective(Settings)",
     "objective.module: own: Objective(...): missing 1 required positional argument: 'loss'; what it may declare is in "
     "pipeline.objectives.contract"),
    ("OBJECTIV = Objective(Settings, loss)",
     "objective.module: own has no OBJECTIVE = Objective(...) (did you mean OBJECTIV?), so it is not of use here; what "
     "it may declare is in pipeline.objectives.contract"),
    ("OBJECTIVE = Settings()",
     "objective.module: own: OBJECTIVE is a Settings, expected an Objective(...); what it may declare is in "
     "pipeline.objectives.contract"),
])  # fmt: skip
def test_a_misspelt_hook_fails_by_name(tmp_path, monkeypatch, declares, problem):
    head = ("from pipeline.objectives.contract import Needs, Objective\nfrom pipeline.objectives.dpo import Settings, "
            "loss\n")
    (tmp_path / "own.py").write_text(head + declares)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own", raising=False)
    with pytest.raises(UserError) as caught:
        load_part({"module": "own"}, "objective", Objective)
    assert caught.value.problems == [problem]


def test_another_type_error_of_a_module_is_not_hidden(tmp_path, monkeypatch):
    (tmp_path / "broken.py").write_text("len(1)")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(TypeError, match="has no len"):
        load_part({"module": "broken"}, "objective", Objective)


def test_an_unknown_part_names_the_nearest():
    with pytest.raises(UserError) as caught:
        load_part({"module": "pipeline.objectives.dpoo"}, "objective", Objective)
    assert caught.value.problems == [
        "objective.module: no module 'pipeline.objectives.dpoo' (did you mean dpo or tdpo or rdpo?)"]


def test_a_parts_bad_settings_carry_the_dotted_key():
    with pytest.raises(UserError) as caught:
        load_part({"module": "pipeline.objectives.dpo", "betta": 1, "beta": -1}, "objective", Objective)
    assert [p.partition(":")[0] for p in caught.value.problems] == ["objective.betta", "objective.beta"]


def test_a_misspelt_check_of_settings_is_told_by_name():
    """It would never be called, and the settings it forbids would pass."""
    @dataclasses.dataclass(frozen=True)
    class Chekd:
        n: int = 1

        def chek(self) -> list[tuple[str, str]]:
            return [("n", "is 1")]

    with pytest.raises(UserError, match=r"Chekd: no hook 'chek' \(did you mean check\?\)"):
        build(Chekd, {})
