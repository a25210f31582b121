"""What the server answers, and what it must not: values against the workspace's own files, paths, hosts, tokens."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from flows.dashboard import files as files_module
from flows.dashboard.app import make_app
from flows.dashboard.files import Files, NotHere
from flows.dashboard.guard import COOKIE, host_name
from pipeline import runs, store
from pipeline.stage import Reporter
from tests.flows.dashboard import world
from tests.flows.dashboard.crowd import copies


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("dashboard")
    world.whole_run(place, "good", seed=0)
    world.whole_run(place, "good-1", seed=1)
    return place


def client(workspace: Path, token: str | None = None, host: str = "http://localhost:4280") -> TestClient:
    return TestClient(make_app(workspace, token), base_url=host, follow_redirects=False)


def get(workspace: Path, path: str, **parameters: object):
    answer = client(workspace).get(f"/api/{path}", params=parameters)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_the_list_of_runs(workspace: Path):
    found = {r["name"]: r for r in get(workspace, "runs")["runs"]}
    assert set(found) == {"good", "good-1"}
    run = found["good"]
    assert (run["recipe"], run["model"], run["data"], run["objective"], run["state"]) == (
        "pco", "tiny", "minifarm", "dpo", "done")
    assert run["done"] == run["total"] == 24
    assert [round(w["value"], 3) for w in run["win_rates"]] == [0.7, 0.8]
    assert [w["level"] for w in run["win_rates"]] == [world.LEVEL] * 2, "from the artifact's settings"
    assert run["experiment"] == found["good-1"]["experiment"], "they differ in the seed only"


def test_the_first_rows_of_many_cost_their_own_reading_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """120 runs of two evaluations: 10 rows read 10 records and 20 manifests, all 120 the rest, and again nothing."""
    copies(tmp_path, world.whole_run(tmp_path, "run", number=4), 119)
    read: list[Path] = []
    parse = files_module._parse
    monkeypatch.setattr(files_module, "_parse", lambda path: (read.append(path), parse(path))[1])
    app = client(tmp_path)
    first = app.get("/api/runs", params={"first": 10}).json()
    assert (len(first["runs"]), first["total"]) == (10, 120)
    assert [path.name for path in read].count("run.json") == 10 and len(read) == 30
    assert len(app.get("/api/runs").json()["runs"]) == 120 and len(read) == 360
    assert app.get("/api/runs").json()["runs"][:10] == first["runs"] and len(read) == 360


def test_a_run_has_its_steps_and_where_they_came_from(workspace: Path):
    run = get(workspace, "runs/good-1")
    steps = {s["name"]: s for s in run["steps"]}
    assert steps["sft"]["made_by"] == {"run": "good", "step": "sft"}, "the SFT model has no seed of the loop's"
    assert steps["train[2]"]["made_by"] is None
    assert steps["train[2]"]["memory_mb"] >= 300
    row = run["iterations"][2]
    assert row["cells"]["kept"] == {"value": 37, "step": "pairs[2]", "field": "kept"}
    assert row["cells"]["win_rate"]["step"] == "evaluate[2]"
    assert row["cells"]["gain"] == {"value": 0.1, "step": "report[2]", "field": "gain", "low": 0.012, "high": 0.188,
                                    "level": world.LEVEL, "p_value": 0.0312}
    assert "gain" not in run["iterations"][1]["cells"]
    controlled = row["cells"]["length_controlled"]
    assert controlled["low"] < controlled["value"] < controlled["high"] and controlled["level"] == world.LEVEL
    assert row["dropped"] == {"all_tied": {"value": 3, "step": "pairs[2]"}}
    assert row["cells"]["reward"]["value"] == 0.3, "of the samples trained on, not of the evaluated answers"


def test_a_running_step_has_progress_and_its_log(tmp_path: Path):
    run = world.Maker(tmp_path, "live")
    run.step("data", "import_data", {}, {"sft": 3})
    run.waiting("sft", "sft", state="running")
    run.save(outcome=runs.RUNNING)
    started = time.time() - 10
    (run.folder / "events.jsonl").write_text(
        json.dumps({"step": "sft", "event": "started", "time": started}) + '\n{"step": "sft", "ev')
    (run.folder / "progress.json").write_text(
        json.dumps({"step": "sft", "done": 25, "total": 100, "unit": "steps", "time": started + 10,
                    "began": {"done": 0, "time": started}}))
    runs.log_path(tmp_path, "live", "sft").parent.mkdir()
    runs.log_path(tmp_path, "live", "sft").write_text("one\ntwo\n")
    with runs.hold(tmp_path, "live"):
        step = get(tmp_path, "runs/live")["steps"][1]
    assert step["state"] == "running" and step["tail"] == ["one", "two"]
    assert step["progress"]["ends"] == pytest.approx(started + 40, abs=0.2), "a quarter took 10 s"
    left = get(tmp_path, "runs/live")
    assert left["state"] == "interrupted", "nobody holds the run"
    assert left["steps"][1]["state"] == "interrupted"


def test_the_time_left_counts_what_this_process_did(tmp_path: Path):
    """60 of 100 were there when it went on; 10 more took 20 s: the last 30 take 60 s. Its first word tells no pace."""
    run = world.Maker(tmp_path, "again")
    run.waiting("sft", "sft", state="running")
    run.save(outcome=runs.RUNNING)
    report = Reporter("again", "sft", None, run.folder / "progress.json")
    with runs.hold(tmp_path, "again"):
        report.progress(60, 100, "steps")
        assert get(tmp_path, "runs/again")["steps"][0]["progress"]["ends"] is None
        report._began["time"] -= 20
        report.progress(70, 100, "steps")
        found = get(tmp_path, "runs/again")["steps"][0]["progress"]
    assert found["ends"] == pytest.approx(found["time"] + 60, abs=1)


def test_an_unknown_run_is_answered_with_the_names_like_it(workspace: Path):
    app = client(workspace)
    for path in ("runs/goood", "runs/goood/metrics", "compare?run=good&run=goood"):
        answer = app.get(f"/api/{path}")
        assert answer.status_code == 404
        assert answer.json()["error"].startswith("no run named 'goood' (did you mean good")


def test_damage_hides_nothing_else(tmp_path: Path):
    world.Maker(tmp_path, "fine").save()
    for name, text in (("torn", '{"name": "to'), ("list", "[]"), ("bare", '{"steps": []}')):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "run.json").write_text(text)
    states = {r["name"]: r["state"] for r in get(tmp_path, "runs")["runs"]}
    assert states == {"fine": "done", "torn": "unreadable", "list": "unreadable", "bare": "unreadable"}


def test_an_artifact_that_was_removed_is_missing(tmp_path: Path):
    run = world.Maker(tmp_path, "holes")
    run.step("data", "import_data", {}, {"sft": 3})
    run.save()
    (store.artifact_path(tmp_path, "import_data", run.steps[0]["key"]) / "manifest.json").unlink()
    assert get(tmp_path, "runs/holes")["steps"][0]["state"] == "missing"


def test_curves_go_on_where_a_checkpoint_did(tmp_path: Path):
    """Steps 10, 20, 30 were reported, then the stage went on from 10: the later 20 is the true one."""
    run = world.Maker(tmp_path, "curves")
    run.step("train[1]", "train_preference", {}, {"steps": 1})
    run.save()
    for at, loss in ((10, 1.0), (20, 0.9), (30, 0.8), (20, 0.5)):
        run.report("train[1]", at, loss=loss)
    with (run.folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": "train[1]", "at": 30, "lo')  # being written
    app = client(tmp_path)
    curve = app.get("/api/runs/curves/metrics").json()["steps"][0]
    assert (curve["at"], curve["values"]["loss"]) == ([10, 20], [1.0, 0.5])
    with (run.folder / "metrics.jsonl").open("a") as file:
        file.write('ss": NaN}\n')
    curve = app.get("/api/runs/curves/metrics").json()["steps"][0]
    assert (curve["at"], curve["values"]["loss"]) == ([10, 20, 30], [1.0, 0.5, None])


def test_long_curves_are_averaged(tmp_path: Path):
    """1,300 lines become 434 points of three: the first is the mean of the losses 1, 2 and 3."""
    run = world.Maker(tmp_path, "long")
    run.step("train[1]", "train_preference", {}, {"steps": 1})
    run.save()
    for at in range(1, 1301):
        run.report("train[1]", at, loss=float(at))
    curve = get(tmp_path, "runs/long/metrics")["steps"][0]
    assert (len(curve["at"]), curve["averaged"], curve["values"]["loss"][0], curve["at"][-1]) == (434, 3, 2.0, 1300)


def test_iterations_have_histograms_on_common_bins(workspace: Path):
    made = get(workspace, "runs/good/iterations")
    reward = made["histograms"]["train"]["reward"]
    assert [s["iteration"] for s in reward["series"]] == [1, 2]
    for series in reward["series"]:
        assert sum(series["share"]) == pytest.approx(1, abs=1e-4)
        assert [series[key] for key in ("number", "rows", "of", "unit")] == [160, 160, 160, "completions"]
        assert series["mean"] == pytest.approx(0.15 - 0.001 * 19.5)
    assert set(made["histograms"]["judge"]) == {"reward", "gold"}
    assert [d["content"]["decision"] for d in made["documents"] if d["file"] == "gate.json"] == ["pass", "stop"]


def test_comparing_groups_the_seeds(workspace: Path):
    found = get(workspace, "compare", run=["good", "good-1"])
    assert len({r["experiment"] for r in found["runs"]}) == 1
    assert [round(r["numbers"]["2"]["win_rate"]["value"], 2) for r in found["runs"]] == [0.8, 0.81]
    assert "train.steps" in found["runs"][0]["numbers"]["2"]


def test_the_page_shows_what_align_compare_prints(workspace: Path):
    """The world's outcomes, by hand: 7 of 10 prompts won in iteration 1 (8 by seed 1: 0.71), 8 (9) in iteration 2."""
    rates, tests = get(workspace, "compare", run=["good", "good-1"])["tables"]
    assert [row[:4] for row in rates["rows"]] == [["A", "1", "2", "75.0 ± 7.1"], ["A", "2", "2", "85.0 ± 7.1"]]
    assert [row[:2] for row in tests["rows"]] == [["A2 - A1", "+10.0"]]


def test_two_arms_are_tested_when_asked(workspace: Path):
    found = get(workspace, "compare", run=["good", "good-1"])
    assert [row["arm"] for row in found["leaders"]] == ["A"], "they differ in the seed only"
    assert client(workspace).get("/api/compare/test?run=good&ours=A&theirs=B").status_code == 404


def test_a_selection_is_a_file_of_json_lines(workspace: Path):
    """Sorted by gold's margin, 0.6 for every prompt: the table's order; of 40 prompts those that have it."""
    answer = client(workspace).get("/api/runs/good/export.jsonl", params={
        "step": "score[2]", "by": "margin", "score": "gold", "low": 0.5})
    assert answer.headers["content-disposition"] == 'attachment; filename="good-score-2.jsonl"'
    rows = [json.loads(line) for line in answer.text.splitlines()]
    assert len(rows) == 40 and rows[0]["id"] == "p000000" and len(rows[0]["completions"]) == 4
    assert rows[3]["completions"][0]["mark"] == "rejected", "the first three are in no pair"
    assert client(workspace).get("/api/runs/good/export.jsonl", params={"step": "score[9]"}).status_code == 404


def test_the_command_that_made_a_run_and_how_to_read_it(workspace: Path):
    run = get(workspace, "runs/good")
    assert run["command"] == f"align run recipe=pco objective=dpo run=good workspace={workspace}"
    assert run["go_on"] is None and [v["iteration"] for v in run["verdicts"]] == [1, 2]
    assert "### gamed" in get(workspace, "reading")["text"]


def test_lineage_reaches_the_raw_file_and_says_why(workspace: Path):
    found = get(workspace, "runs/good/lineage", step="evaluate[2]")
    chain = [link["step"] for link in found["chain"]]
    assert chain[0] == "evaluate[2]" and chain[-1] == "data"
    assert found["chain"][-1]["raw"] == [{"file": "sft.jsonl", "hash": "ab" * 32}]
    inputs = [i for link in found["chain"] for i in link["inputs"]]
    assert inputs and all(i["agrees"] for i in inputs)
    position = {name: chain.index(name) for name in chain}
    assert position["train[2]"] < position["pairs[2]"] < position["score[2]"] < position["generate[2]"]
    assert [d["field"] for d in found["rebuilt"]["differences"]] == ["inputs.groups", "inputs.scores"]
    assert found["rebuilt"]["nearest"]["step"] == "evaluate[1]"


def test_many_ways_to_one_artifact_are_walked_once(tmp_path: Path):
    """30 steps that each read all before them: a billion paths, 30 artifacts. And a record whose steps read each other
    ends, too."""
    run = world.Maker(tmp_path, "many")
    for i in range(30):
        run.waiting(f"merge[{i + 1}]", "merge", inputs=tuple(f"merge[{k + 1}]/groups" for k in range(i)))
    run.waiting("a", "merge", inputs=("b/groups",))
    run.waiting("b", "merge", inputs=("a/groups",))
    run.save()
    chain = get(tmp_path, "runs/many/lineage", step="merge[30]")["chain"]
    assert [link["step"] for link in chain] == [f"merge[{i}]" for i in range(30, 0, -1)]
    assert {link["step"] for link in get(tmp_path, "runs/many/lineage", step="a")["chain"]} == {"a", "b"}


def test_unchanged_answers_are_not_sent_twice(workspace: Path):
    app = client(workspace)
    first = app.get("/api/runs")
    again = app.get("/api/runs", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


# ---- what must not be answered ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS"])
def test_read_only(workspace: Path, method: str):
    """Tags, labels and verdicts are written by POST: see test_written.py."""
    assert client(workspace).request(method, "/api/runs").status_code == 405
    assert client(workspace).post("/api/runs").status_code == 403
    assert client(workspace).head("/api/runs").status_code == 200


@pytest.mark.parametrize("path", [
    "/api/runs/..", "/api/runs/%2e%2e", "/api/runs/..%2f..%2fetc", "/api/runs/good%2f..%2f..", "/api/runs/.hidden",
    "/../pyproject.toml", "/static/../app.py", "/%2e%2e/%2e%2e/pyproject.toml", "/app.py", "/vendor/../../app.py",
    "/api/runs/good/log?step=../../run", "/api/runs/good/log?step=..%2f..%2frun.json", "/docs", "/openapi.json",
    "/api/runs/good/samples?step=score[1]&part=../..", "/api/runs/good/samples?step=../score[1]",
    "/api/runs/good/lineage?step=../x", "/api/runs/nothing", "/api/compare?run=../good",
])
def test_no_path_leads_out(workspace: Path, path: str):
    assert client(workspace).get(path).status_code in (404, 422)


def test_links_that_lead_out_are_not_followed(tmp_path: Path):
    """A run folder, a log, a table part and an artifact that are links to something else on the disk."""
    outside, place = tmp_path / "outside", tmp_path / "place"
    world.whole_run(outside, "secret", number=4)
    (outside / "secret.txt").write_text("secret line")
    run = world.whole_run(place, "own", number=4)
    (place / "runs" / "linked").symlink_to(outside / "runs" / "secret")
    (run.folder / "progress.json").symlink_to(outside / "secret.txt")
    log = runs.log_path(place, "own", "sft")
    log.parent.mkdir()
    log.symlink_to(outside / "secret.txt")
    key = next(s["key"] for s in run.steps if s["name"] == "score[2]")
    sampled = next(s["key"] for s in run.steps if s["name"] == "generate[2]")
    table = store.artifact_path(place, "generate", sampled) / "groups"
    (table / "part-00001.parquet").symlink_to(next(outside.rglob("part-00000.parquet")))
    app = client(place)
    assert [(r["name"], r["state"]) for r in app.get("/api/runs").json()["runs"]] == [("own", "unreadable")]
    (run.folder / "progress.json").unlink()
    assert app.get("/api/runs/linked").status_code == 404
    answer = app.get("/api/runs/own/log", params={"step": "sft"})
    assert answer.status_code == 404 and "secret line" not in answer.text
    assert app.get("/api/runs/own/samples", params={"step": "score[2]"}).json()["rows"] == 4
    artifact = store.artifact_path(place, "score", key)
    artifact.rename(tmp_path / "moved")
    artifact.symlink_to(tmp_path / "moved")
    assert app.get("/api/runs/own/samples", params={"step": "score[2]"}).status_code == 404
    with pytest.raises(NotHere):
        Files(place).path("artifacts", "score", key, "manifest.json")


def test_a_pipe_is_not_read(tmp_path: Path):
    """It would never end. A run.json that is no file is no run."""
    (tmp_path / "runs" / "pipe").mkdir(parents=True)
    os.mkfifo(tmp_path / "runs" / "pipe" / "run.json")
    assert get(tmp_path, "runs")["runs"] == []


def test_another_host_name_is_refused_on_loopback(workspace: Path):
    """DNS rebinding: a page of evil.example whose name points to 127.0.0.1 sends its own name as the host."""
    assert client(workspace, host="http://evil.example").get("/api/runs").status_code == 421
    for host in ("http://127.0.0.1:9999", "http://[::1]:4280", "http://LOCALHOST"):
        assert client(workspace, host=host).get("/api/runs").status_code == 200
    assert host_name("localhost.evil.example:80") == "localhost.evil.example"


def test_elsewhere_everything_needs_the_token(workspace: Path):
    app = client(workspace, token="right", host="http://gpu-box:4280")
    for path in ("/", "/app.js", "/api/runs", "/api/runs?token=wrong", "/api/runs?token="):
        assert app.get(path).status_code == 401
    welcome = app.get("/?token=right")
    assert (welcome.status_code, welcome.headers["location"]) == (303, "/")
    kept = welcome.headers["set-cookie"].lower()
    assert "httponly" in kept and "samesite=strict" in kept
    assert app.get("/api/runs").status_code == 200, "the cookie is enough now"
    app.cookies.clear()
    assert app.get("/api/runs", headers={"Cookie": f"{COOKIE}=guess"}).status_code == 401


def test_every_answer_has_the_strict_headers(workspace: Path):
    app = client(workspace)
    for path in ("/", "/app.js", "/api/runs", "/nothing", "/api/runs/nothing"):
        policy = app.get(path).headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
        assert app.get(path).headers["x-content-type-options"] == "nosniff"


def test_the_page_asks_no_other_host():
    """No address of another host in anything the page loads but the library's comments and licences."""
    from flows.dashboard.app import STATIC

    own = [p for p in STATIC.rglob("*") if p.suffix in (".html", ".css", ".js", ".svg") and "vendor" not in p.parts]
    assert len(own) > 15
    for path in own:
        text = path.read_text().replace("http://www.w3.org/2000/svg", "")
        assert "http://" not in text and "https://" not in text, path
        assert "innerHTML" not in text and "eval(" not in text and "style=" not in text, path
        assert path.stat().st_size < 16_000, f"{path}: one module per view, each small"
