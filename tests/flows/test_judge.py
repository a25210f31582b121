"""A judge in a run as a user starts it: a budget that stops and is raised, a kill, and nothing asked twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

from pipeline import runs, store
from tests.rewards.judges.server import asked, serving

pytestmark = [pytest.mark.slow, pytest.mark.long]
ROWS = 20


def test_budget_kill_and_resume(command, prefect: dict[str, str], tiny_model: Path, tmp_path: Path) -> None:
    """20 answers against the file's own, in both orders: 40 questions, 2 at a time. A budget of 10 calls ends the run
    with exit code 2 and a line that says how to go on; raised, it goes on until its judge's process is killed; the same
    command ends it. In all each question was answered once, but for those in flight at the kill.
    """
    data, log, workspace = tmp_path / "data", tmp_path / "log", tmp_path / "w"
    data.mkdir()
    rows = [{"instruction": f"question {i}", "output": "one " * (i + 1), "generator": "theirs"} for i in range(ROWS)]
    (data / "model_outputs.json").write_text(json.dumps(rows))
    with serving(log, 0.15) as url:
        judge = f"evaluation.judge={{module: pipeline.rewards.judge, model: judge, base_url: '{url}'}}"
        words = ["run", "recipe=benchmark", f"workspace={workspace}", "run=judged", "data=alpaca_eval",
                 f"data.root={data}", "data.compare=true", "model=path", f"model.path={tiny_model}",
                 "engine=transformers", "model.max_prompt_tokens=150", "model.max_completion_tokens=100",
                 "sampling.max_tokens=12", "reward=repetition", judge, "hardware.judge.concurrency=2"]

        def run(*more: str) -> subprocess.Popen[str]:
            return subprocess.Popen(command(*words, *more), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                    env={**os.environ, **prefect})

        stopped = run("hardware.judge.budget.calls=10")
        said, _ = stopped.communicate(timeout=600)
        assert stopped.returncode == 2, said
        assert "the budget of 10 calls is used up (10 spent by this run" in " ".join(said.split()), said
        assert len(asked(log)) == 10
        killed = run("hardware.judge.budget.calls=100")
        while len(asked(log)) < 24:
            assert killed.poll() is None
            time.sleep(0.02)
        (worker,) = [one for one in psutil.Process(killed.pid).children(recursive=True)
                     if "pipeline.worker" in (line := " ".join(one.cmdline())) and "pipeline.supervisor" not in line]
        worker.send_signal(signal.SIGKILL)
        killed.communicate(timeout=600)
        assert killed.returncode != 0
        before = len(asked(log))
        ended = run("hardware.judge.budget.calls=100")
        said, _ = ended.communicate(timeout=600)
        assert ended.returncode == 0, said
    times = Counter(asked(log))
    assert len(times) == 2 * ROWS
    assert sum(times.values()) <= 2 * ROWS + 2
    assert before < 2 * ROWS
    record = runs.load(workspace, "judged")
    assert record is not None
    (step,) = [one for one in record.steps if one["name"] == "evaluate"]
    found = store.find(workspace, "evaluate", step["key"])
    assert found is not None
    result = json.loads((found.path / "evaluation.json").read_text())
    assert (result["score"], result["comparisons"]) == ("judge", ROWS)
    assert not any("sk-" in file.read_text() for file in workspace.rglob("*.json"))
