"""`align reproduce`: the files of conf/reproduce are whole, claims go by the interval, sections stay in their place."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from flows import reproduce, sweep
from flows.compose import CONF
from flows.reproduce import Claim, difference, into, load, run_name, verdict
from flows.sweep_plan import sweep_plan
from flows.sweep_record import Arm, Sweep
from pipeline.arms import Judged
from pipeline.errors import UserError
from pipeline.pair_builders import BUILDERS

NAMES = sorted(path.stem for path in (CONF / "reproduce").glob("*.yaml"))


def judged(seed: str, *outcomes: float) -> Judged:
    named = {f"p{i}": value for i, value in enumerate(outcomes)}
    return Judged(f"r-{seed}", seed, 1, "0" * 20, {}, {}, named, ("gold", "b"))


# What is built for a table: row number i in the shape of the real files.
SOURCES = {
    "metamath": lambda i: {"question": f"Twice {i} and {i}?", "answer": f"It is {i} + {i} = 1{i}, so 1{i} * 2 = 3{i}"},
    "arc": lambda i: {"query": f"Question: Which is {i}?", "choices": [str(i), "none", "all", "two"], "gold": 0},
    "repetition": lambda i: {"text": "".join(f"Hen {i} ran {k} times. " for k in range(60))}}


@pytest.fixture
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with pairs/NAME.jsonl for every table that needs some, from 1,500 rows each; the working directory."""
    (tmp_path / "pairs").mkdir()
    for name, row in SOURCES.items():
        rows = [one for i in range(1500) for one in BUILDERS[name](row(i), random.Random(i))[0]]
        (tmp_path / "pairs" / f"{name}.jsonl").write_text("".join(f"{json.dumps(one)}\n" for one in rows))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", NAMES)
def test_every_table_plans_and_shares_what_comes_before_the_loop(name: str, built: Path):
    """One seed: one SFT model for all of its runs (on one data set), one reward model and one baseline, if any."""
    paper = load(name)
    made = Sweep(name, [], [Arm(run_name(paper, arm, 0), [*paper.words, *own, "engine=transformers", "seed=0"])
                                  for arm, own in paper.arms.items()])
    assert {Path(path).exists() for path in paper.files} <= {True}
    lines = {line.step: line for line in sweep_plan(sweep.checked(made, built)).lines}
    data = len({word for own in paper.arms.values() for word in own if word.startswith("data.root=")}) or 1
    shared = {step: lines[step].different for step in ("data", "sft", "reward", "baseline") if step in lines}
    assert shared == dict.fromkeys(shared, data) and {"data", "sft"} <= set(shared)
    assert lines["sft"].runs == len(paper.arms)
    assert {row.arm for row in paper.rows} - {"sft"} == set(paper.arms)
    assert {row.measure for row in paper.rows} - {""} == set(paper.measures)


def test_what_must_be_built_first_is_said_with_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        reproduce.reproduce(["smaug"], False, True, None)
    assert caught.value.problems[0].startswith(
        "pairs/metamath.jsonl: not there, make it first: align data build metamath gsm8k.train.jsonl")


def test_a_claim_is_decided_by_its_interval():
    low, high, mixed = [0.0] * 8, [1.0] * 8, [0.0, 1.0] * 4
    arms = {name: {1: [judged("0", *values)]} for name, values in (("a", low), ("b", high), ("c", mixed))}

    def said(ours: str, theirs: str) -> list[str]:
        return verdict(Claim("x", (ours, 1), (theirs, 1)), arms)

    assert said("b", "a") == ["+100.0", "+100.0 to +100.0", "reproduced", "1"]
    assert said("a", "b")[2] == "not reproduced"
    assert said("a", "a")[2:] == ["undecided at this size", "?"]
    assert said("b", "sft") == ["+50.0", "+50.0 to +50.0", "reproduced", "1"]
    assert said("sft", "a") == ["+50.0", "+50.0 to +50.0", "reproduced", "1"]
    assert said("sft", "b")[0] == "-50.0" and said("sft", "b")[2] == "not reproduced"
    assert said("c", "sft")[0] == "+0.0" and said("c", "sft")[2] == "undecided at this size"
    assert difference(Claim("x", ("a", 2), ("b", 1)), arms) == "not run"


def test_how_many_seeds_would_tell_by_hand():
    """Differences 1, 0, 0, 0 of four prompts: +25 points, interval 0 to 75. Half its width is 1.5 times the mean: 2.25
    times the seeds, were each as good as new prompts."""
    arms = {"a": {1: [judged("0", 1, 0, 0, 0)]}, "b": {1: [judged("0", 0, 0, 0, 0)]}}
    assert verdict(Claim("x", ("a", 1), ("b", 1)), arms) == [
        "+25.0", "+0.0 to +75.0", "undecided at this size", "1, takes 3"]


def test_a_section_takes_the_place_of_the_one_before(tmp_path: Path):
    page = tmp_path / "page.md"
    for name, text in (("pco", "old\n"), ("baselines", "kept\n"), ("pco", "new\n")):
        into(page, name, text)
    written = page.read_text()
    assert "old" not in written and written.index("new") < written.index("kept")
    assert written.startswith("# Reproduction\n")


def test_a_table_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(UserError, match=r"no table named 'pc' \(did you mean pco\?\)"):
        load("pc")
    with pytest.raises(UserError, match="NAME: missing"):
        reproduce.reproduce([], False, True, None)
    (tmp_path / "reproduce").mkdir()
    text = (CONF / "reproduce" / "baselines.yaml").read_text().replace("[DPO, dpo, 1", "[DPO, dop, 1")
    (tmp_path / "reproduce" / "x.yaml").write_text(text)
    with pytest.raises(UserError, match=r"conf/reproduce/x.yaml: no arm named 'dop' \(did you mean dpo\?\)"):
        load("x", tmp_path)
