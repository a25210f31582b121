"""A model answers a benchmark as a user runs it, from the question file to the file the benchmark's own tools read."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from pipeline import runs, store

pytestmark = pytest.mark.slow


@pytest.fixture
def benchmark(command, warm: dict[str, str], prefect: dict[str, str], tiny_model: Path, tmp_path: Path):
    """benchmark("data=mt_bench", ...): `align run recipe=benchmark ...` with the tiny model -> each step's artifact."""

    def run(*words: str) -> dict[str, store.Artifact]:
        workspace = tmp_path / "w"
        small = [f"workspace={workspace}", "run=asked", "model=path", f"model.path={tiny_model}",
                 "engine=transformers", "model.max_prompt_tokens=150", "model.max_completion_tokens=100",
                 "sampling.max_tokens=12", f"data.root={tmp_path}"]
        done = subprocess.run(command("run", "recipe=benchmark", *small, *words), capture_output=True, text=True,
                              env={**os.environ, **warm, **prefect}, timeout=600)
        assert done.returncode == 0, done.stdout + done.stderr
        record = runs.load(workspace, "asked")
        assert record is not None
        found = {s["name"]: store.find(workspace, s["stage"], s["key"]) for s in record.steps}
        return {name: artifact for name, artifact in found.items() if artifact is not None}

    return run


def test_mt_bench_asks_both_turns(tmp_path: Path, benchmark):
    rows = [{"question_id": 81 + i, "category": "writing", "turns": [f"question {i}", f"and {i}?"]} for i in range(3)]
    (tmp_path / "question.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = benchmark("data=mt_bench", "data.model=tiny")
    lines = (made["export"].path / "model_answer" / "tiny.jsonl").read_text().splitlines()
    answers = [json.loads(line) for line in lines]
    assert [a["question_id"] for a in answers] == [81, 82, 83]
    assert all(len(a["choices"][0]["turns"]) == 2 for a in answers)
    assert made["export"].manifest["counts"] == {"answers": 3, "second_answers": 3}


def test_mt_bench_compares_turn_by_turn_with_given_answers(tmp_path: Path, benchmark):
    """Two questions; the given answers have both turns, and each side's second answer follows its own first."""
    rows = [{"question_id": n, "category": "writing", "turns": [f"question {n}", "and?"]} for n in (81, 82)]
    (tmp_path / "question.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = [{"question_id": n, "choices": [{"index": 0, "turns": ["one two three four", "five six seven"]}]}
             for n in (81, 82)]
    (tmp_path / "given.jsonl").write_text("".join(json.dumps(row) + "\n" for row in given))
    made = benchmark("data=mt_bench", "reward=rule",
                 "data.compare=true", "data.format.answers=given.jsonl")
    first, second = (json.loads((made[name].path / "evaluation.json").read_text())
                     for name in ("evaluate", "evaluate_second"))
    assert (first["prompts"], second["prompts"]) == (2, 2)
    assert (first["baseline"]["words"], second["baseline"]["words"]) == (4.0, 3.0)


def test_alpaca_eval_with_the_outputs_of_the_file_as_the_baseline(tmp_path: Path, benchmark):
    """Two instructions of two kinds, scored by a rule: the export is in order, the comparison in the store."""
    rows = [{"instruction": f"question {i}", "output": "one two three " * 4, "generator": "theirs", "dataset": d}
            for i, d in enumerate(("koala", "vicuna"))]
    (tmp_path / "model_outputs.json").write_text(json.dumps(rows))
    made = benchmark("data=alpaca_eval", "reward=rule",
                 "data.compare=true")
    exported = json.loads((made["export"].path / "model_outputs.json").read_text())
    assert [(r["instruction"], r["generator"], r["dataset"]) for r in exported] == [
        ("question 0", "policy", "koala"), ("question 1", "policy", "vicuna")]
    result = json.loads((made["evaluate"].path / "evaluation.json").read_text())
    assert (result["prompts"], sorted(result["categories"])) == (2, ["koala", "vicuna"])
    assert result["baseline"]["words"] == 12.0
