"""A judge that is a vLLM server of ours, with a kill in the middle."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from pipeline.rewards import judge
from pipeline.rewards.contract import Desk
from tests.rewards.judges.test_asking import ROOT, pairs

CODE = """
import json, sys
from pathlib import Path
from pipeline.rewards import judge
from pipeline.rewards.contract import Desk, Limits
from tests.rewards.judges.test_asking import pairs
settings, folder = json.loads(sys.argv[1]), Path(sys.argv[2])
judge.scorer(judge.Settings(**settings), desk=Desk(Limits(concurrency=2), folder))(pairs(40))
"""


@pytest.mark.slow
def test_a_vllm_server_judges_and_a_kill_costs_nothing(use_vllm, tiny_model: Path, tmp_path: Path) -> None:
    """40 comparisons of a tiny model, held to a verdict by vLLM's own `allowed_token_ids`, killed after ten answers:
    the next process keeps them as they are and asks the rest. A third one asks nothing, of nobody.
    """
    template = tmp_path / "short.txt"
    template.write_text("asks: pairwise\nverdict: ([ABC])\n[user]\n{conversation}? A {answer_a} B {answer_b}")
    letters = AutoTokenizer.from_pretrained(tiny_model).convert_tokens_to_ids(["A", "B", "C"])
    sampling = {"temperature": 0.0, "max_tokens": 1, "allowed_token_ids": letters}
    settings = {"model": "policy", "base_url": f"{use_vllm.url}/v1", "key": "ALIGNLOOP_ENGINE_KEY",
                "template": str(template), "sampling": sampling, "scheme": "baseline"}
    folder = tmp_path / "kept"
    process = subprocess.Popen([sys.executable, "-c", CODE, json.dumps(settings), str(folder)], cwd=ROOT,
                               env={**os.environ, "PYTHONPATH": str(ROOT)})
    while len(list(folder.rglob("answers/*/*.json"))) < 10:
        assert process.poll() is None, "it ended before the kill"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = {path: path.read_bytes() for path in folder.rglob("answers/*/*.json")}
    assert 10 <= len(before) < 80
    desk = Desk(answers=folder)
    found = judge.scorer(judge.Settings(**settings), desk=desk)(pairs(40))
    assert all(path.read_bytes() == text for path, text in before.items())
    assert len(list(folder.rglob("answers/*/*.json"))) == 80
    assert {of_pair[0] for of_pair in found} == {0.5}
    assert {of_pair[1] for of_pair in found} <= {0.0, 0.5, 1.0}
    assert [row["why"] for row in desk.rows] == [""] * 40, "every reply has a verdict"
    again = judge.scorer(judge.Settings(**{**settings, "base_url": "http://127.0.0.1:9/v1"}), desk=desk)(pairs(40))
    assert again == found, "all of it comes from the answers that were kept"
