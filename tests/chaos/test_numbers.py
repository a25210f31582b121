"""Numbers that mean nothing stop a run where they are, by name, before the next step is paid for."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from pipeline.errors import UserError
from tests.chaos import small
from tests.flows.loops import run

pytestmark = pytest.mark.slow
COUNTER = itertools.count()


def constant(messages, text: str) -> float:
    return 1.0


def not_a_number(messages, text: str) -> float:
    return float("nan")


def differing(messages, text: str) -> float:
    return float(next(COUNTER))


@pytest.fixture(scope="module")
def loop(reference, tmp_path_factory):
    """loop(last, words ...) -> the artifacts of a small run up to step `last`; one store, so that the SFT is shared."""
    rows, workspace = reference[0], tmp_path_factory.mktemp("numbers")

    def call(last: str, *more: str, root: Path = rows):
        words = ["recipe=pco", f"data.root={root}", "engine=transformers", *small.SMALL, *more]
        return run(words, workspace, "numbers", last)

    return call


def rule(function: str) -> list[str]:
    return ["reward=rule", f"reward.scorer.function=tests.chaos.test_numbers.{function}"]


@pytest.mark.parametrize(("last", "words", "said"), [
    ("train[2]", rule("constant"), r"pairs\[2\]: .*none of the 12 prompts gives a group \(.*12 "),
    ("train[2]", rule("not_a_number"), r"score\[2\]: .*the score 'reward' of all 48 completions is not finite"),
    ("train[2]", [*rule("differing"), "sampling.max_tokens=1", "sampling.temperatures=[0.001]"],
     r"generate\[2\]: .*max_collapsed_share: 12 of 12 prompts have samples that are all the same"),
    ("sft", ["trainer.sft.lr=1e30"], r"sft: training stopped at step \d: loss .*, gradient norm (nan|inf)"),
    ("train[1]", ["objective=dpo", "objective.beta=1e30"],
     r"train\[1\]: training stopped at step 1: loss 0\.69\d*, gradient norm inf"),
], ids=["constant rewards", "NaN rewards", "identical samples", "exploding weights", "exploding norm"])
def test_it_is_named_and_the_next_step_does_not_run(last, words, said, loop):
    with pytest.raises(UserError, match=said):
        loop(last, *words)


def test_one_evaluation_prompt(loop, reference, tmp_path):
    """Enough for a win rate, whose interval says how little it is."""
    root = tmp_path / "rows"
    root.mkdir()
    for file in reference[0].iterdir():
        text = file.read_text()
        (root / file.name).write_text(text.splitlines()[0] + "\n" if file.stem == "eval" else text)
    counts = loop("evaluate[1]", root=root)["evaluate[1]"].manifest["counts"]
    assert 0 <= counts["win_rate_low"] <= counts["win_rate"] <= counts["win_rate_high"] <= 1
    assert counts["win_rate_high"] - counts["win_rate_low"] > 0.5

