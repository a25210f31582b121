"""A judge over HTTP for tests: `python server.py LOG SECONDS ERRORS HANGS` prints its address and serves until killed.

It prefers the longer answer and grades by length; "refuse" in an answer makes it refuse, "mumble" say nothing of use.
Every request is a line of LOG as it is answered: {"asked": hash of the messages, "status"}. ERRORS and
HANGS are shares of first requests, told by a hash: a 503, and no answer at all.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

LOCK = threading.Lock()


@contextlib.contextmanager
def serving(log: Path, seconds: float = 0.0, errors: float = 0.0, hangs: float = 0.0) -> Iterator[str]:
    """The address of such a server in a process of its own."""
    command = [sys.executable, __file__, str(log), str(seconds), str(errors), str(hangs)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.kill()
        process.wait()


def asked(log: Path, status: int | None = None) -> list[str]:
    """The questions a server has had, in order; with `status`, those it answered so."""
    lines = map(json.loads, log.read_text().splitlines()) if log.exists() else []
    return [line["asked"] for line in lines if status in (None, line["status"])]


def verdict(text: str) -> str:
    """What the longer answer, the grade or the ranking by length is, in the words of a judge."""
    if "mumble" in text:
        return "Both have their merits."
    if "refuse" in text:
        return "I am sorry, but I cannot help with that."
    if numbered := re.findall(r"\[Answer (\d+)\]\n(.*?)\n\[End of answer", text, re.DOTALL):
        return "[[" + " > ".join(n for n, _ in sorted(numbered, key=lambda pair: -len(pair[1]))) + "]]"
    if pair := re.findall(r"\[Answer [AB]\]\n(.*?)\n\[End of answer", text, re.DOTALL):
        one, other = map(len, pair)
        return "Well. [[A]]" if one > other else "Well. [[B]]" if other > one else "[[C]]"
    (answer,) = re.findall(r"\[The assistant's answer\]\n(.*?)\n\[End", text, re.DOTALL)
    return f"So: [[{len(answer)}]]"


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    log, seconds, errors, hangs = Path(), 0.0, 0.0, 0.0
    seen: ClassVar[set[str]] = set()

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        asked = hashlib.sha256(json.dumps(body["messages"]).encode()).hexdigest()[:16]
        with LOCK:
            first = asked not in self.seen
            self.seen.add(asked)
        luck = int(asked[:8], 16) / 2**32 if first else 1.0
        if luck < self.hangs:
            return self.answer(asked, 0, "")
        if luck < self.hangs + self.errors:
            return self.answer(asked, 503, "busy")
        time.sleep(self.seconds)
        key = self.headers.get("Authorization", "")
        if body["model"] == "html":
            return self.answer(asked, 200, "<!DOCTYPE html><p>Sign in</p>")
        if key == "Bearer wrong":
            return self.answer(asked, 401, json.dumps({"error": {"message": "Incorrect API key provided: wrong."}}))
        if body["model"] != "judge":
            said = {"object": "error", "message": f"The model `{body['model']}` does not exist.", "code": 404}
            return self.answer(asked, 404, json.dumps(said))
        if "much too long" in str(body["messages"]):
            return self.answer(asked, 400, json.dumps({"error": {"message": "context length exceeded"}}))
        said = verdict(body["messages"][-1]["content"])
        choice = {"message": {"role": "assistant", "content": said}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 100, "completion_tokens": 10}
        return self.answer(asked, 200, json.dumps({"choices": [choice], "usage": usage}))

    def answer(self, asked: str, status: int, text: str) -> None:
        with LOCK, self.log.open("a") as file:
            file.write(json.dumps({"asked": asked, "status": status}) + "\n")
        if status == 0:
            time.sleep(3600)
        self.send_response(status)
        self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None:
        pass


class Server(http.server.ThreadingHTTPServer):
    daemon_threads, request_queue_size = True, 128


if __name__ == "__main__":
    Handler.log = Path(sys.argv[1])
    Handler.seconds, Handler.errors, Handler.hangs = map(float, sys.argv[2:5])
    server = Server(("127.0.0.1", 0), Handler)
    print(f"http://127.0.0.1:{server.server_port}/v1", flush=True)
    server.serve_forever()
