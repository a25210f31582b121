"""Questions with known answers and pairs that only measure, through a whole loop: they select nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flows import prepare
from pipeline import plan, store
from tests.flows.loops import run

WATCHED = [{"question": f"What is {i} + {i}?", "answer": f"It is {2 * i}.\n#### {2 * i}"} for i in range(6)] + [
    {"query": f"Which is {i}?", "choices": [str(i), "none"], "gold": 0} for i in range(3)]
MORE = ["evaluation.watch.count=8", "evaluation.watch.sampling.n=2", "evaluation.watch.sampling.temperatures=[1.0]"]


@pytest.fixture(scope="module")
def words(small_world: Path, tiny_model: Path) -> list[str]:
    return ["recipe=iterative_dpo", "iterations=2", "engine=transformers", f"data.root={small_world}", "model=path",
            f"model.path={tiny_model}", "trainer=scratch", "reward=length", "reward.scorer.high=6",
            "reward.scorer.unit=characters", "model.max_prompt_tokens=120", "model.max_completion_tokens=100",
            "sampling.prompts_per_iteration=6",
            "sampling.n=2", "sampling.temperatures=[1.0]", "sampling.max_tokens=8", "evaluation.sampling.n=1",
            "trainer.sft.epochs=1", "trainer.sft.batch_size=32", "trainer.preference.max_steps=2", "hardware=cpu",
            "hardware.training.threads=1"]


@pytest.fixture(scope="module")
def done(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, store.Artifact], Path, Path]:
    place = tmp_path_factory.mktemp("watched")
    (place / "questions.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in WATCHED))
    pairs = [{"prompt": f"q{i}", "chosen": "a", "rejected": "a b c d e f g h", "subset": "short"} for i in range(3)]
    (place / "bench.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in pairs))
    more = [*MORE, f"evaluation.watch.root={place}/questions.jsonl", f"reward.bench.root={place}/bench.jsonl"]
    made = {}
    for last in ("bench", "report[2]", "diagnose[1]", "diagnose[2]"):
        made |= run([*words, *more], place / "workspace", "watched", last)
    return made, place / "workspace", place


def test_the_start_model_and_every_iteration_are_asked(done: tuple[dict[str, store.Artifact], Path, Path]) -> None:
    """8 of the 9 questions, two answers each; the numbers stand in watch.json and beside the other diagnostics."""
    made, _, _ = done
    for i in (1, 2):
        found = json.loads((made[f"watch[{i}]"].path / "watch.json").read_text())
        assert (found["questions"], len(found["rows"])) == (8, 8)
        assert {row["now"] for row in found["rows"]} <= {0.0, 0.5, 1.0}
        assert found["accuracy"] == pytest.approx(sum(row["now"] for row in found["rows"]) / 8)
        assert found["gain"] == pytest.approx(found["accuracy"] - found["start_accuracy"])
        diagnosed = json.loads((made[f"diagnose[{i}]"].path / "diagnostics.json").read_text())
        assert diagnosed["watch"] == {key: value for key, value in found.items() if key != "rows"}
        assert made[f"diagnose[{i}]"].manifest["counts"]["watch_accuracy"] == found["accuracy"]
    asked = [made[step].manifest["counts"]["completions"] for step in ("watched_start", "watched_answers[1]")]
    assert asked == [16, 16]


def test_what_scores_the_samples_is_measured_on_the_benchs_pairs(
        done: tuple[dict[str, store.Artifact], Path, Path]) -> None:
    counts = done[0]["bench"].manifest["counts"]
    assert (counts["pairs"], counts["accuracy"], counts["length_accuracy"]) == (3, 1.0, 0.0)


def test_neither_selects(words: list[str], done: tuple[dict[str, store.Artifact], Path, Path]) -> None:
    """Without them everything that is trained and judged has the same key, and is there: only `diagnose` read them."""
    made, workspace, _ = done
    steps = prepare.prepare([*words, f"workspace={workspace}", "run=plain"]).steps
    plain = {item.step.name: item.key for item in plan.look_up_all(workspace, steps)}
    assert not plain.keys() & {"watched", "watched_start", "watch[1]", "bench"}
    trained = [name for name in plain if name in made and name.partition("[")[0] in (
        "pairs", "train", "answers", "evaluate", "report")]
    assert len(trained) == 8
    assert {name: plain[name] for name in trained} == {name: made[name].key for name in trained}
