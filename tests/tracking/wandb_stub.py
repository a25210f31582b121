"""As much of W&B's API as its client needs to send a run: GraphQL and the file stream, on this machine.

What is kept is what W&B would show: a run by its id, its history by step. No other part of W&B is imitated.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Service:
    """What has arrived."""

    url: str = ""
    runs: dict[str, dict[str, Any]] = field(default_factory=dict)  # id -> {group, jobType, sessions, history, summary}
    alerts: list[tuple[str, str]] = field(default_factory=list)  # title, level
    asked: list[str] = field(default_factory=list)  # the names of the queries
    unknown: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self, name: str) -> dict[str, Any]:
        return self.runs.setdefault(name, {"sessions": 0, "history": [], "summary": {}, "complete": None, "about": {}})

    def query(self, text: str, variables: dict[str, Any]) -> dict[str, Any]:
        words = text.replace("(", " ").replace("{", " ").split()
        name = words[1] if len(words) > 1 else ""
        self.asked.append(name)
        if name == "UpsertBucket":
            return {"upsertBucket": self._upsert(variables)}
        if name == "RunResumeStatus":
            return {"model": self._resume(variables)}
        if name == "NotifyScriptableRunAlert":
            self.alerts.append((variables["title"], variables["severity"]))
            return {"notifyScriptableRunAlert": {"success": True}}
        if name == "Viewer":
            return {"viewer": {"id": "1", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}}
        if name in ("ServerInfo", "ServerFeaturesQuery"):
            return {"serverInfo": {"features": []}}
        if name == "CreateRunFiles":
            files = [{"name": one, "uploadUrl": f"{self.url}/upload/{one}"} for one in variables["files"]]
            return {"createRunFiles": {"runID": variables["run"], "uploadHeaders": [], "files": files}}
        self.unknown.append(f"{name}: {text[:2000]} {json.dumps(variables)[:300]}")
        return {}

    def _upsert(self, v: dict[str, Any]) -> dict[str, Any]:
        name = v.get("name") or v.get("id")
        run = self.run(name)
        new = run["sessions"] == 0
        run["sessions"] += 1
        run["about"] |= {k: x for k, x in v.items() if x is not None}
        project = {"id": "p", "name": v.get("project") or "alignloop", "entity": {"id": "e", "name": "me"}}
        return {"inserted": new, "bucket": {
            "id": f"id-{name}", "name": name, "displayName": v.get("displayName") or name, "description": None,
            "config": v.get("config"), "sweepName": None, "historyLineCount": len(run["history"]), "project": project}}

    def _resume(self, v: dict[str, Any]) -> dict[str, Any] | None:
        run = self.runs.get(v["name"])
        if run is None:
            return {"id": "p", "name": v["project"], "entity": {"id": "e", "name": "me"}, "bucket": None}
        tail = [json.dumps(line) for line in run["history"][-1:]]
        return {"id": "p", "name": v["project"], "entity": {"id": "e", "name": "me"}, "bucket": {
            "id": f"id-{v['name']}", "name": v["name"], "summaryMetrics": json.dumps(run["summary"]),
            "displayName": run["about"].get("displayName"), "logLineCount": 0, "historyLineCount": len(run["history"]),
            "eventsLineCount": 0, "historyTail": json.dumps(tail), "eventsTail": "[]", "tags": [], "t": 1,
            "config": run["about"].get("config") or "{}", "wandbConfig": run["about"].get("config") or "{}"}}

    def stream(self, run: str, content: dict[str, Any]) -> None:
        found = self.run(run)
        chunk = (content.get("files") or {}).get("wandb-history.jsonl")
        if chunk:
            lines = [json.loads(line) for line in chunk["content"]]
            found["history"][chunk["offset"]:] = lines  # what lies behind the offset is replaced
        summary = (content.get("files") or {}).get("wandb-summary.json")
        if summary:
            found["summary"] = json.loads(summary["content"][-1])
        if content.get("complete"):
            found["complete"] = content.get("exitcode")


@contextlib.contextmanager
def serving() -> Iterator[Service]:
    service = Service()

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            with service.lock:
                said = self.said(body)
            text = json.dumps(said).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def said(self, body: bytes) -> dict[str, Any]:
            if self.path.startswith("/graphql"):
                asked = json.loads(body)
                return {"data": service.query(asked["query"], asked.get("variables") or {})}
            if self.path.endswith("/file_stream"):
                service.stream(self.path.split("/")[-2], json.loads(body))
                return {"limits": {}}
            if not self.path.startswith("/upload/"):
                service.unknown.append(f"{self.command} {self.path}")
            return {}

        do_GET = do_POST = do_PUT = answer

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        service.url = f"http://127.0.0.1:{running.server_address[1]}"
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield service
        running.shutdown()
