"""recipe=mcpo: the data set's ranked lists as they are, without rank 2; told at once where there are none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flows.prepare import prepare
from pipeline import tables
from pipeline.errors import UserError
from pipeline.records import Group
from tests.flows.loops import run

WORDS = ["recipe=mcpo", "data=files", "model=tiny", "engine=transformers", "precision=float32"]
TINY = ["model.arch.hidden_size=16", "model.arch.intermediate_size=32", "model.arch.heads=1", "model.arch.kv_heads=1",
        "model.arch.layers=1", "trainer.sft.max_steps=1", "trainer.preference.max_steps=2",
        "trainer.preference.batch_size=4", "model.max_prompt_tokens=64", "model.max_completion_tokens=64"]


def written(path: Path, *kinds: int) -> str:
    """Forty prompts with as many ranked answers each as `kinds` say in turn, the best one last."""
    rows = [{"prompt": f"Name a thing with number {i}.", "answers": [
        {"answer": f"Thing {i} of rank {rank}", "rank": rank} for rank in range(kinds[i % len(kinds)], 0, -1)]}
        for i in range(40)]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return f"data.root={path}"


def test_given_lists_are_trained_on_twice_without_their_second_answer(tmp_path: Path):
    """Of five answers the first, then ranks 3 to 5, by which the candidates are told: a score of their place."""
    done = run([*WORDS, *TINY, written(tmp_path / "a.jsonl", 5), "negatives.m=2"], tmp_path, "lists", "train[1]")
    made: list[Group] = list(tables.read(done["lists"].path / "groups"))
    assert made and {tuple(c.text.split()[-1] for c in group.completions) for group in made} == {("1", "3", "4", "5")}
    assert {tuple(c.scores["place"] for c in group.completions) for group in made} == {(0.0, -1.0, -2.0, -3.0)}
    assert done["train[1]"].manifest["counts"]["groups"] == len(made)
    prepared = prepare([*WORDS, written(tmp_path / "a.jsonl", 5), f"workspace={tmp_path}"])
    steps = {step.name: step for step in prepared.steps}
    assert steps["train[1]"].settings.trainer.epochs == 2 and "generate[1]" not in steps and "train[2]" not in steps


def test_pairs_alone_are_refused_with_the_way_out(tmp_path: Path):
    said = (r"holds \d+ pairs and no list .* takes lists of 3 or more; give ranked lists, or a recipe that samples its "
            r"own \(recipe=mcpo_instruct\)")
    with pytest.raises(UserError, match=said):
        prepare([*WORDS, written(tmp_path / "a.jsonl", 2), f"workspace={tmp_path}"])
