"""What a user gets wrong: exit code 2, one clear message per problem, all at once, nothing half-written."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

GOOD = {"prompt": "Name a fruit.", "chosen": "A ripe pear.", "rejected": "No."}


@pytest.fixture
def refused(tmp_path):
    """refused("run", ...) -> the problems `align` printed; checks the exit code and that nothing was written."""

    def call(*words: str) -> list[str]:
        workspace = tmp_path / "workspace"
        done = subprocess.run([sys.executable, "-m", "flows.cli", *words, f"workspace={workspace}"],
                              capture_output=True, text=True)  # fmt: skip
        assert done.returncode == 2, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        assert not list(workspace.rglob("run.json")) and not list(workspace.rglob("artifacts/*/*"))
        return [line.removeprefix("error: ") for line in done.stderr.splitlines()]

    return call


@pytest.fixture
def data(tmp_path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    rows = [{**GOOD, "prompt": f"Name fruit number {i}."} for i in range(40)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_everything_wrong_at_once(refused):
    problems = refused("run", "recipe=pco", "model=tinny", "objectiv.alpha=1", "data=jsonl")
    assert problems[:2] == [
        "model: no model named 'tinny' (did you mean tiny?)",
        "objectiv.alpha: unknown key, there is no 'objectiv' (did you mean objective?)",
    ]
    assert len(problems) == 3 and problems[2].startswith("data.root: not set")
    problems = refused("run", "recipe=pco", "objective.alpha=much", "trainer.sft.batch_size=0.5", "sampling.top_p=2")
    assert {p.partition(":")[0] for p in problems} == {"objective.alpha", "trainer.sft.batch_size", "sampling.top_p"}


@pytest.mark.parametrize("command", ["run", "plan"])
def test_missing_path(refused, command, tmp_path):
    (problem,) = refused(command, "recipe=pco", "data=jsonl", f"data.root={tmp_path / 'nowhere'}")
    assert problem.startswith("data.root:") and str(tmp_path / "nowhere") in problem


def test_no_path_given(refused):
    (problem,) = refused("run", "recipe=pco", "data=hh")
    assert problem.startswith("data.root: not set")


def test_rows_are_named_by_file_and_line(refused, data):
    file = data / "pairs.jsonl"
    lines = file.read_text().splitlines()
    lines[3] = '{"prompt": "half a row'
    lines[7] = json.dumps({**GOOD, "rejected": GOOD["chosen"]})
    lines[9] = json.dumps({"chosen": "a", "rejected": "b"})
    file.write_text("\n".join(lines) + "\n")
    problems = refused("run", "recipe=pco", "data=jsonl", f"data.root={data}")
    assert [p.split(":")[1] for p in problems if file.name in p.split(":")[0]] == ["4", "8", "10"]
    assert "data.format.identical=drop" in "\n".join(problems)


@pytest.mark.parametrize("content", [b"", b'{"prompt": "caf\xe9", "chosen": "a", "rejected": "b"}\n'])
def test_empty_and_not_utf8(refused, data, content):
    (data / "pairs.jsonl").write_bytes(content)
    problems = refused("run", "recipe=pco", "data=jsonl", f"data.root={data}")
    assert len(problems) == 1 and "pairs.jsonl" in problems[0]


def test_unreadable(refused, data):
    (data / "pairs.jsonl").unlink()
    (data / "pairs.jsonl").mkdir()  # root may read any file, so a folder in a file's place stands for it
    assert len(refused("run", "recipe=pco", "data=jsonl", f"data.root={data}")) == 1


def test_model_folder_without_tokenizer_or_template(refused, tiny_model, tmp_path):
    broken = tmp_path / "model"
    shutil.copytree(tiny_model, broken)
    (broken / "chat_template.jinja").unlink()
    short = ("model.max_prompt_tokens=64", "model.max_completion_tokens=64")
    problems = refused("run", "recipe=pco", "model=path", f"model.path={broken}", *short)
    assert len(problems) == 1 and problems[0].startswith("model.path:") and "chat template" in problems[0]
    for file in broken.glob("tokenizer*"):
        file.unlink()
    assert any("tokenizer" in p for p in refused("run", "recipe=pco", "model=path", f"model.path={broken}"))
    assert refused("run", "recipe=pco", "model=path")[0].startswith("model.path:")


def test_a_plan_larger_than_the_disk(refused):
    arch = [
        "model.arch.hidden_size=65536",
        "model.arch.intermediate_size=262144",
        "model.arch.layers=96",
        "model.arch.heads=512",
        "model.arch.kv_heads=512",
    ]
    (problem,) = (one for one in refused("run", "recipe=pco", *arch) if one.startswith("workspace: "))
    assert problem.startswith("workspace: the plan needs about") and problem.endswith("or free some:")


def test_words_that_are_no_command_or_run(refused):
    assert refused("status", "nosuchrun")[0].startswith("workspace: no folder")
    assert refused("run", "run=nosuchrun")[0].startswith("run: no run named 'nosuchrun'")
    assert refused("stage", "train[2]", "recipe=pco")[0].startswith("run: missing")


def test_words_may_follow_an_option(refused):
    assert refused("stage", "train[2]", "--force", "run=nosuchrun")[0].startswith("run: no run named")


@pytest.mark.parametrize("words", [("--help",), ("plan", "recipe=pco"), ("status",)])
def test_looking_is_quick(words, tmp_path):
    """Processor time of the best of three: other tests run beside this one."""
    extra, times = [] if words == ("--help",) else [f"workspace={tmp_path}"], []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([sys.executable, "-m", "flows.cli", *words, *extra], capture_output=True, text=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        assert done.returncode == 0, done.stderr
    assert min(times) < 2


@pytest.mark.parametrize("words, way", [
    (["recipe=iterative_dpo"], "reward.path=FOLDER"),
    (["recipe=pco", "objective=kto", "negatives=none", "selection=best_worst"], "trains a reward model on pairs"),
    (["recipe=pco", "reward=rule", "reward.scorer.function=pipeline.rewards.rule.fresh_trigrams", "objective=dpo"],
     "objective dpo learns from pairs"),
])
def test_labels_where_pairs_are_trained_on(refused, data, words, way):
    rows = [{"prompt": f"Name fruit number {i}.", "completion": f"A ripe pear {i}.", "label": i % 2 == 0}
            for i in range(60)]
    (data / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    problems = refused("plan", *words, "data=jsonl", f"data.root={data}", "data.format.shares.eval=5")
    assert any(f"data.root: {data} holds single answers with a label" in p and way in p for p in problems), problems


def test_a_rationale_that_no_data_set_brings(refused):
    (problem,) = refused("plan", "recipe=pco", "objective=dpo", "iterations=1", "auxiliary.rationale_gamma=0.1")
    assert "holds no preference with a rationale" in problem and "auxiliary.rationale_gamma=0" in problem


def test_rationales_are_looked_for_in_the_preferences(refused, data, tmp_path):
    """A demonstration has no use for one; one pair with a rationale is enough to plan."""
    words = ["recipe=pco", "objective=dpo", "data=jsonl", f"data.root={data}", "auxiliary.rationale_gamma=0.1",
             "data.format.shares.eval=5", "sampling.prompts_per_iteration=10", f"workspace={tmp_path / 'planned'}"]
    rows = [{**GOOD, "prompt": f"Name fruit number {i}.", "rationale": " "} for i in range(40)]
    rows += [{"prompt": f"Say {i}.", "completion": "Yes.", "rationale": "It agrees."} for i in range(100)]
    (data / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (problem,) = refused("plan", *words)
    assert f"data.root: {data} holds no preference with a rationale" in problem
    (data / "pairs.jsonl").write_text("".join(json.dumps({**r, "rationale": "It names one."}) + "\n" for r in rows))
    subprocess.run([sys.executable, "-m", "flows.cli", "plan", *words], check=True, capture_output=True)
