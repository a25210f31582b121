"""Messages about a run: what is sent where, when, and that an address that hangs delays nothing."""

import json
import os
import socket
import socketserver
import subprocess
import sys
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pytest

from flows import gates, inspection, notify, watcher
from flows.compose import compose
from flows.notify import Email, Message, Notify, Webhook
from pipeline import runs, store
from tests.flows.test_surroundings import DRIVE

FAILED = Message("failed", "night", "night: failed at train[2]", "why: memory ran out <here> & now")


@pytest.fixture
def server():
    """A server on this machine that keeps what it is sent: (method, path, authorization, body)."""
    got: list[tuple[str, str, str | None, bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            got.append((self.command, self.path, self.headers["Authorization"], body))
            self.send_response(200 if "broken" not in self.path else 500)
            self.end_headers()

        do_POST = do_PUT = answer

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_address[1]}", got
        running.shutdown()


def test_where_no_message_can_be_sent_the_run_goes_on(tmp_path, capsys):
    """Its log cannot be opened, as on a disk that is full or fails."""
    (tmp_path / "runs/r/logs/notify.log").mkdir(parents=True)
    told = {"notify": {"command": "true"}}
    watcher.start(tmp_path, runs.Run("r", told, [], {}, [], runs.RUNNING, 1.0), os.getpid())
    assert capsys.readouterr().out.startswith("note: nobody will be told of this run ([Errno 21] Is a directory: ")


def test_slack_and_matrix_get_bodies_of_their_own(server, monkeypatch):
    url, got = server
    monkeypatch.setenv("ALIGNLOOP_WEBHOOK_URL", f"{url}/rooms/R/send/m.room.message")
    monkeypatch.setenv("TOKEN", "secret")
    for webhook in (Webhook(), Webhook(shape="slack"), Webhook(shape="matrix", token_from="TOKEN")):
        notify.ways(Notify(webhook=webhook))["webhook"](FAILED)
    plain, slack, matrix = got
    assert json.loads(plain[3]) == {"event": "failed", "run": "night", "title": FAILED.title, "text": FAILED.text}
    assert json.loads(slack[3]) == {
        "text": "night: failed at train[2]\nwhy: memory ran out &lt;here&gt; &amp; now"}
    assert json.loads(matrix[3]) == {"msgtype": "m.text", "body": f"{FAILED.title}\n{FAILED.text}"}
    assert [request[0] for request in got] == ["POST", "POST", "PUT"]
    assert matrix[2] == "Bearer secret" and matrix[1].startswith("/rooms/R/send/m.room.message/night%3A%20failed")


def test_a_letter_goes_by_smtp():
    """A server that speaks as much of SMTP as one letter takes."""
    said: list[str] = []

    class Mailbox(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(b"220 here\r\n")
            data = False
            for line in map(bytes.decode, self.rfile):
                said.append(line.rstrip())
                begins = line.lower().startswith("data")
                data = (data or begins) and line != ".\r\n"
                if not data or begins:
                    code = 354 if data else 221 if line.lower().startswith("quit") else 250
                    self.wfile.write(f"{code} ok\r\n".encode())

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Mailbox) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        email = Email(to="a@x.org, b@x.org", host="127.0.0.1", port=running.server_address[1], security="none")
        notify.ways(Notify(email=email))["email"](FAILED)
        running.shutdown()
    assert {"rcpt TO:<a@x.org>", "rcpt TO:<b@x.org>", "Subject: night: failed at train[2]", FAILED.text} <= set(said)


def test_a_command_reads_the_text(tmp_path):
    told = tmp_path / "told"
    notify.ways(Notify(command=f"(echo $ALIGNLOOP_EVENT $ALIGNLOOP_RUN; cat) > '{told}'"))["command"](FAILED)
    assert told.read_text() == f"failed night\n{FAILED.title}\n{FAILED.text}\n"
    with pytest.raises(OSError, match="exit code 3"):
        notify.ways(Notify(command="exit 3"))["command"](FAILED)


def test_what_cannot_work_is_said_by_the_plan(monkeypatch):
    for name in ("ALIGNLOOP_WEBHOOK_URL", "ALIGNLOOP_SMTP_PASSWORD"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", "")

    def problems(*words: str) -> list[str]:
        return [problem for problem in compose(["recipe=sft", *words]).problems if problem.startswith("notify")]

    assert problems("notify=none") == []
    assert problems("notify=webhook", "notify.webhook.shape=matrix") == [
        "notify.webhook.url_from: the environment has no ALIGNLOOP_WEBHOOK_URL: export ALIGNLOOP_WEBHOOK_URL=..., or "
        "name another variable", "notify.webhook.token_from: matrix needs a token; name the variable that holds it"]
    assert problems("notify=email", "notify.email.user=me") == [
        "notify.email.to: not set, expected addresses with commas between them",
        "notify.email.password_from: the environment has no ALIGNLOOP_SMTP_PASSWORD: export "
        "ALIGNLOOP_SMTP_PASSWORD=..., or name another variable"]
    assert problems("notify=desktop", "notify.events=done") == [
        "notify.events: no event 'done', expected some of finished,failed,stuck,gate,falling",
        "notify.desktop: notify-send is not installed here"]
    assert problems("notify=command") == [
        "notify.command: not set, expected one for the shell, which reads the text from its standard input"]


def test_who_is_told_changes_no_run():
    assert "notify" in inspection.FREE


def test_a_message_is_sent_up_to_three_times_and_the_log_has_no_address(server, monkeypatch, capsys):
    url, got = server
    monkeypatch.setenv("ALIGNLOOP_WEBHOOK_URL", f"{url}/broken/secret")
    waits: list[float] = []
    watcher.tell(Notify(webhook=Webhook()), FAILED, sleep=waits.append)
    assert len(got) == 3 and waits == [0.0, 5.0, 30.0]
    said = capsys.readouterr().out
    assert said.splitlines() == ["webhook: failed: not sent (it answered 500)"] * 3
    watcher.tell(Notify(webhook=Webhook(), events="finished"), FAILED)
    assert len(got) == 3


# ---- when -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def watched(two_steps):
    """(the watcher of the run "shown", change(steps=..., outcome=...) of its record)."""
    place = two_steps()
    change_of = runs.load(place, "shown")

    def change(**facts: object) -> None:
        runs.save(place, replace(change_of, **facts))

    watching = watcher.Watcher(place, "shown", Notify())
    watching.begin()
    return watching, change


def step(name: str, stage: str, state: str, key: str = "k") -> dict[str, object]:
    return {"name": name, "stage": stage, "iteration": 1, "state": state, "key": key, "inputs": []}


def test_a_run_without_progress_is_told_of_once_until_it_goes_on(watched):
    watching, change = watched
    change(steps=[step("train[1]", "train_preference", "running")])
    begun = runs.sign_of_life(watching.workspace, "shown")
    assert list(watching.news(begun + 3599)) == []
    (message,) = watching.news(begun + 3661)
    assert message.title == "shown: no progress for 1 h" and message.text.startswith("step: train[1]\nlook:\n    align")
    assert list(watching.news(begun + 9999)) == []
    for beside in ("machine.jsonl", "tracking.json", "about.json", "logs/notify.log"):  # written while nothing goes on
        path = runs.folder(watching.workspace, "shown") / beside
        path.parent.mkdir(exist_ok=True)
        path.touch()
        os.utime(path, (begun + 9999, begun + 9999))
    assert list(watching.news(begun + 99999)) == []
    log = runs.log_path(watching.workspace, "shown", "train[1]")
    log.touch()
    os.utime(log, (begun + 9999, begun + 9999))
    assert [m.event for m in watching.news(begun + 99999)] == ["stuck"]


def test_a_closed_gate_and_falling_gold_are_told_of(watched, monkeypatch):
    """A gain of -2.0 points whose interval holds zero: told, and told that it is not clear."""
    watching, change = watched
    counts = {"win_rate": 0.752, "gain": -0.02, "gain_low": -0.065, "gain_high": 0.024}
    found = {"report": store.Artifact("report", "k", Path(), {"counts": counts, "dropped": {}}),
             "gate": store.Artifact("gate", "k", Path(), {"counts": {}, "dropped": {}})}
    monkeypatch.setattr(store, "find", lambda place, kind, key: found[kind])
    decision = {"decision": "stop", "reasons": ["win rate fell"], "undecided": [], "goes_on_from": 1}
    monkeypatch.setattr(gates, "read", lambda artifact: decision if artifact.kind == "gate" else None)
    change(steps=[step("report[2]", "report", "done"), step("gate[2]", "gate", "done")])
    falling, gate = watching.news(0.0)
    assert falling.title == "shown: the judge's win rate falls at report[2]"
    assert falling.text.startswith("win rate 75.2%, gain -2.0%-points (-6.5% to +2.4%), not clear of zero\n")
    assert gate.title == "shown: gate[2] has closed" and "the run stops here" in gate.text
    assert list(watching.news(0.0)) == []


def test_a_failed_run_says_where_why_and_how_to_go_on(watched):
    watching, change = watched
    runs.event(watching.workspace, "shown", "scores", "failed", key="k", code=137)
    change(steps=[step("data", "import_data", "done"), step("scores", "score", "failed")], outcome=runs.FAILED)
    message = watching.end()
    assert message.title == "shown: failed at scores"
    assert "1 of 2 steps are done\nwhy: it was killed, most often because memory ran out" in message.text
    assert f"go on with:\n    align run run=shown workspace={watching.workspace}" in message.text


def test_a_run_whose_process_was_killed_is_told_of_as_interrupted(watched):
    watching, change = watched
    change(steps=[step("scores", "score", "running")], outcome=runs.RUNNING)
    assert (watching.end().event, watching.end().title) == ("failed", "shown: was interrupted at scores")


def test_a_webhook_that_hangs_delays_nothing(two_steps, tmp_path, warm):
    """It takes the connection and never answers. The run is over while its watcher still waits; its log says so."""
    workspace, run_of = two_steps(), "shown"
    run = runs.load(workspace, run_of)
    runs.save(workspace, replace(run, config={**run.config, "notify": {"webhook": {"timeout": 2.0}}}))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        environment = {**os.environ, **warm, "PREFECT_API_URL": "http://127.0.0.1:9/api",
                       "ALIGNLOOP_WEBHOOK_URL": f"http://127.0.0.1:{silent.getsockname()[1]}/x"}
        done = subprocess.run([sys.executable, "-P", "-c", DRIVE, str(workspace)], cwd=tmp_path, text=True,
                              capture_output=True, env=environment)
        assert done.returncode == 0, done.stdout + done.stderr
        (left,) = [p for p in psutil.process_iter(["cmdline"]) if {"flows.watcher", str(workspace)} <= set(
            p.info["cmdline"] or ())]
        log, deadline = runs.log_path(workspace, run_of, "notify"), time.monotonic() + 60
        while "webhook: finished: not sent" not in log.read_text():
            assert time.monotonic() < deadline and left.is_running()
            time.sleep(0.1)
        left.kill()
