"""What the page writes: only by a POST of its own, only into the run's folder, and only what can be kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from flows.dashboard.app import make_app
from flows.dashboard.guard import LARGEST, PAGE
from tests.flows.dashboard import world

HOST = "http://localhost:4280"


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("written")
    world.whole_run(place, "good", number=6)
    return place


@pytest.fixture
def app(workspace: Path) -> TestClient:
    return TestClient(make_app(workspace), base_url=HOST)


def mine(app: TestClient) -> dict[str, str]:
    """The headers that the page sends."""
    return {"Origin": HOST, PAGE: app.get("/api/page").json()["token"]}


def test_tags_note_and_archive_are_kept_in_the_runs_folder(app: TestClient, workspace: Path):
    before = {path: path.read_bytes() for path in (workspace / "artifacts").rglob("*") if path.is_file()}
    path = "/api/runs/good/about"
    app.post(path, json={"tags": ["best", " best ", ""], "note": "the <b>one</b>"}, headers=mine(app))
    answer = app.post(path, json={"archived": True}, headers=mine(app))
    kept = {"tags": ["best"], "note": "the <b>one</b>", "archived": True}
    assert answer.json() == json.loads((workspace / "runs" / "good" / "about.json").read_text()) == kept
    [run] = app.get("/api/runs").json()["runs"]
    assert {key: run[key] for key in kept} == kept
    assert {path: path.read_bytes() for path in (workspace / "artifacts").rglob("*") if path.is_file()} == before


def test_labels_of_a_sample_come_with_it_and_can_be_taken_back(app: TestClient):
    path, body = "/api/runs/good/sample-note", {"step": "score[2]", "id": "p000002", "labels": ["wrong"], "note": "see"}
    assert app.post(path, json=body, headers=mine(app)).status_code == 200

    def noted(step: str) -> list:
        groups = app.get("/api/runs/good/samples", params={"step": step}).json()["groups"]
        return [(g["id"], g["noted"]) for g in groups if g["noted"]]

    assert noted("score[2]") == [("p000002", {"labels": ["wrong"], "note": "see"})] and noted("score[1]") == []
    app.post(path, json={**body, "labels": [], "note": ""}, headers=mine(app))
    assert noted("score[2]") == []


@pytest.mark.parametrize(("change", "code"), [
    ({"Origin": "http://evil.example"}, 403), ({"Origin": "null"}, 403), ({"Origin": ""}, 403),
    ({"Origin": "http://localhost:9999"}, 403), ({PAGE: "guessed"}, 403), ({PAGE: ""}, 403),
    ({"Host": "evil.example", "Origin": "http://evil.example"}, 421),
])
def test_a_post_of_another_page_writes_nothing(app: TestClient, workspace: Path, change: dict[str, str], code: int):
    before = (workspace / "runs" / "good" / "about.json")
    known = before.read_bytes() if before.exists() else None
    answer = app.post("/api/runs/good/about", json={"note": "taken over"}, headers={**mine(app), **change})
    assert answer.status_code == code
    assert (before.read_bytes() if before.exists() else None) == known


def test_with_a_token_of_the_address_a_post_needs_both(workspace: Path):
    app = TestClient(make_app(workspace, "right"), base_url="http://gpu-box:4280", follow_redirects=False)
    own = {"Origin": "http://gpu-box:4280", PAGE: "x"}
    assert app.post("/api/runs/good/about", json={"note": "n"}, headers=own).status_code == 403
    app.get("/?token=right")
    own[PAGE] = app.get("/api/page").json()["token"]
    assert app.post("/api/runs/good/about", json={"note": "n"}, headers=own).status_code == 200
    app.cookies.clear()
    assert app.post("/api/runs/good/about", json={"note": "n"}, headers=own).status_code == 401


@pytest.mark.parametrize("body", [
    {"tags": "best"}, {"tags": [1]}, {"tags": ["x" * 41]}, {"tags": [str(i) for i in range(21)]}, {"note": 3},
    {"note": "x" * 4001}])
def test_what_cannot_be_kept_is_refused_with_the_reason(app: TestClient, body: dict):
    answer = app.post("/api/runs/good/about", json=body, headers=mine(app))
    assert answer.status_code == 400 and "expected" in answer.json()["error"]


@pytest.mark.parametrize("path", ["runs/nobody/about", "runs/..%2fgood/about", "runs/%2e%2e/about"])
def test_only_runs_that_are_there(app: TestClient, path: str):
    assert app.post(f"/api/{path}", json={"note": "n"}, headers=mine(app)).status_code in (404, 405)


def test_a_large_post_is_not_read(app: TestClient):
    assert app.post("/api/runs/good/about", content=b"x" * (LARGEST + 1), headers=mine(app)).status_code == 403
