"""A reward model behind a pooling server: what is asked, what is read, what is refused; a real vLLM server (long)."""

from __future__ import annotations

import http.server
import json
import math
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from pipeline import web
from pipeline.errors import UserError
from pipeline.records import Completion, Group, Message
from pipeline.rewards import heads, model, served
from pipeline.rewards.contract import Desk

GROUPS = [Group("p", (Message("user", "hi"),), (Completion("a"), Completion("abc"))),
          Group("q", (Message("user", "why"),), (Completion("x" * 50), Completion("")))]


class Pooling(http.server.BaseHTTPRequestHandler):
    """Two outputs: the answer's length, and 1. Refuses what is longer than 40."""

    bodies: ClassVar[list[dict]] = []

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.bodies.append({**body, "path": self.path})
        length = len(body["messages"][-1]["content"])
        status = 400 if length > 40 else 200
        answer = {"data": [{"index": 0, "data": [float(length), 1.0]}], "usage": {"prompt_tokens": 5}}
        text = json.dumps({"error": {"message": "too long"}} if status == 400 else answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Pooling)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_what_is_asked_and_read(url: str, tmp_path: Path) -> None:
    """10 x length + 0.5; the long answer has no score and a row that says why; asked again, nothing is sent."""
    settings, desk = served.Settings("rm", url, weights=(10.0, 0.5)), Desk(answers=tmp_path)
    (first, (long, empty)) = served.scorer(settings, desk=desk)(GROUPS)
    assert (list(first), empty) == ([10.5, 30.5], 0.5)
    assert math.isnan(long)
    assert desk.rows == [{"id": "q", "k": 0, "why": "the judge refuses the request (400: too long)"}]
    body = next(body for body in Pooling.bodies if body["messages"][-1]["content"] == "abc")
    said = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "abc"}]
    assert body == {"model": "rm", "messages": said,
                    "path": "/pooling", "task": "classify", "use_activation": False, "add_generation_prompt": False,
                    "add_special_tokens": False}
    before = len(Pooling.bodies)
    served.scorer(settings, desk=desk)(GROUPS[:1])
    assert len(Pooling.bodies) == before


def test_another_number_of_outputs_is_told(url: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gives 2 outputs, expected 1; set reward.scorer.weights, one for each"):
        served.scorer(served.Settings("rm", url), desk=Desk(answers=tmp_path))(GROUPS[:1])


@pytest.mark.long
@pytest.mark.parametrize("weights", [(1.0,), (0.7, -0.3, 0.0)])
def test_two_paths_one_answer(weights: tuple[float, ...], tmp_path: Path, make_model) -> None:
    """A reward model in a vLLM pooling server and the scorer of the same folder agree: of one output, and of three with
    a weight each.
    """
    import torch
    import transformers

    folder = make_model(tmp_path / "base")
    torch.manual_seed(1)
    net = transformers.AutoModelForSequenceClassification.from_pretrained(folder, num_labels=len(weights),
                                                                          dtype=torch.float32)
    transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "rm")
    net.save_pretrained(tmp_path / "rm")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(tmp_path / "rm"), "--runner",
               "pooling", "--convert", "classify", "--served-model-name", "rm", "--port", str(port), "--dtype",
               "float32", "--max-model-len", "256", "--enforce-eager"]
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True,
                                  env={**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1"})
    try:
        address, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 300
        while not answers(f"{address}/health"):
            assert server.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()[-3000:]
            time.sleep(1)
        asked = served.Settings("rm", address, weights=weights)
        there = served.scorer(asked, desk=Desk(answers=tmp_path / "kept"))(GROUPS[:1])
        of = {str(i): weight for i, weight in enumerate(weights)}
        here = (model.scorer(model.Settings(str(tmp_path / "rm"), "float32")) if len(weights) == 1 else
                heads.scorer(heads.Settings(str(tmp_path / "rm"), of, "float32")))(GROUPS[:1])
        assert list(there[0]) == pytest.approx(list(here[0]), abs=1e-3)
        assert here[0][0] != pytest.approx(here[0][1], abs=1e-2), "else agreeing says nothing"
    finally:
        server.terminate()
        server.wait(60)


def answers(url: str) -> bool:
    try:
        return web.fetch(url, 5)[0] == 200
    except OSError:
        return False
