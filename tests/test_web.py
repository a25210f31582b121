"""Asking a server over HTTP, with a small real one."""

from __future__ import annotations

import http.server
import socket
import threading
from collections.abc import Iterator

import pytest

from pipeline.web import fetch


class Echo(http.server.BaseHTTPRequestHandler):
    """Answers with what it was asked; 409 to /no, nonsense to /nonsense, never to /silent."""

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path == "/nonsense":
            self.wfile.write(b"SSH-2.0\r\n")
            return
        if self.path == "/silent":
            self.server.over.wait(20)
            return
        self.send_response(409 if self.path == "/no" else 200)
        self.end_headers()
        self.wfile.write(f"{self.command} {self.path} {self.headers.get('Authorization')} ".encode() + body)

    do_GET = do_POST = answer

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    server.over = threading.Event()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.over.set()
    server.shutdown()
    server.server_close()


def test_the_status_is_told_whatever_it_is(url):
    assert fetch(f"{url}/models", 5) == (200, b"GET /models None ")
    assert fetch(f"{url}/load", 5, "secret", b"{}") == (200, b"POST /load Bearer secret {}")
    assert fetch(f"{url}/no", 5, "secret", b"") == (409, b"POST /no Bearer secret ")


def test_a_server_on_this_machine_is_asked_directly_whatever_proxy_is_set(url, monkeypatch):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{probe.getsockname()[1]}"
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, nobody)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    assert fetch(url, 5)[0] == 200
    assert fetch(url.replace("127.0.0.1", "localhost"), 5)[0] == 200
    with pytest.raises(OSError, match="refused"):  # of the proxy
        fetch("http://vllm.example:8000", 5)


def test_whoever_does_not_answer_in_time_or_in_http_is_an_os_error(url):
    with pytest.raises(OSError, match="timed out"):
        fetch(f"{url}/silent", 0.3)
    with pytest.raises(OSError, match="BadStatusLine"):
        fetch(f"{url}/nonsense", 5)
    with pytest.raises(OSError, match="unknown url type"):
        fetch("127.0.0.1", 5)
