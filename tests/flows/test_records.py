"""Records that are torn, foreign, of another version: each is told of, and none takes another one down."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flows import estimate, inspection, prepare
from flows.dashboard import app
from flows.dashboard.files import Files, NotHere
from flows.driver import Driver
from pipeline import files, plan, runs, store
from pipeline.errors import UserError

STORES = Path(__file__).parent / "stores"
WHOLE = [b"", b'{"na', b"[]", b"null", b'"text"', b"3", b"\xff\xfe\x00", b"{}", b"\n\n", b'[{"a": 1}]', b"[" * 9000]
VALUES = ["x", 3, None, [None], {"a": None}, float("inf")]
GONE = object()


def readers(workspace: Path) -> dict[str, Callable[[], object]]:
    """Everything that reads records. Of the run "bad" may be refused what is its own, with a word of why."""
    place, routes = str(workspace), app.routes(Files(workspace))
    of_page = {f"{route} {name}": lambda route=route, name=name: app.dump(routes[f"runs/{{name}}{route}"](name))
               for name in ("good", "bad") for route in ("", "/metrics", "/iterations", "/tables")}

    def planned() -> object:
        steps = plan.steps_of(runs.load(workspace, "good"))
        return estimate.measured(workspace), plan.check(workspace, steps), plan.look_up_all(workspace, steps)

    return {"status": lambda: inspection.status(place, None), "status good": lambda: inspection.status(place, "good"),
            "status bad": lambda: inspection.status(place, "bad"), "verify": lambda: inspection.verify(place, None),
            "gc": lambda: inspection.collect(place, False), "plan": planned,
            "go on bad": lambda: prepare._loaded(workspace, "bad"),
            "page": lambda: app.dump(routes["runs"]()),
            "lineage good": lambda: app.dump(routes["runs/{name}/lineage"]("good", "scores")), **of_page}


def broken(written: bytes, lines: bool) -> Iterator[bytes]:
    """The file torn, foreign, and with every value at its top, and one below, of another kind or gone."""
    yield from (*WHOLE, written[: len(written) // 2], written + written)
    if lines:
        yield from (written + line + b"\n" + written for line in WHOLE)
    data = json.loads(written.splitlines()[0] if lines else written)
    if store.SEAL in data:  # any other change is the same one: the hash is not that of the rest
        data = {"files": data["files"], store.SEAL: data[store.SEAL]}
    data = data if lines or "steps" not in data else {**data, "steps": data["steps"][:1]}
    for key, value in data.items():
        for other in (*VALUES, GONE):
            yield json.dumps({k: v for k, v in {**data, key: other}.items() if v is not GONE}).encode()
        inner = value[0] if isinstance(value, list) and value else value
        for name in inner if isinstance(inner, dict) else ():
            for other in ("x", 3, None, [None], GONE):
                changed = {k: v for k, v in {**inner, name: other}.items() if v is not GONE}
                yield json.dumps({**data, key: [changed] if isinstance(value, list) else changed}).encode()


@pytest.fixture
def two_runs(two_steps) -> Path:
    """A workspace with the finished runs "good" and "bad", which share nothing but their data."""
    workspace = two_steps()
    run = runs.load(workspace, "shown")
    for name, score in (("good", "reward"), ("bad", "other")):
        run.config["stage"]["score"]["settings"]["name"] = score
        runs.save(workspace, runs.Run(**{**vars(run), "name": name}))
        mine = runs.load(workspace, name)
        Driver(workspace, mine, plan.steps_of(mine)).walk()
        lines = [json.dumps({"step": "scores", "at": at, "time": 1.0, "loss": 0.5}) + "\n" for at in (1, 2)]
        (runs.folder(workspace, name) / "metrics.jsonl").write_text("".join(lines))
    shutil.rmtree(runs.folder(workspace, "shown"))
    (workspace / "file-hashes.json").write_text('{"/a:1:2:3": "h"}')
    return workspace


@pytest.mark.parametrize("name", ["run.json", "events.jsonl", "metrics.jsonl", "manifest.json", "old manifest.json",
                                  "progress.json", "file-hashes.json"])
def test_one_bad_record_takes_nothing_else_down(name, two_runs, capsys):
    path = runs.folder(two_runs, "bad") / name
    if name.endswith("manifest.json"):
        key = runs.load(two_runs, "bad").steps[1]["key"]
        path = store.artifact_path(two_runs, "score", key) / "manifest.json"
    if name == "old manifest.json":
        path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != store.SEAL}))
    if name == "file-hashes.json":
        path = two_runs / name
    if name == "progress.json":
        path.write_text(json.dumps({"step": "scores", "done": 1, "total": 2, "unit": "x", "time": 3,
                                    "began": {"done": 0, "time": 1}}))
    written = path.read_bytes()
    for content in broken(written, name.endswith("jsonl")):
        path.write_bytes(content)
        for reader, read in readers(two_runs).items():
            try:
                read()
            except (UserError, NotHere) as error:
                assert reader.endswith("bad"), (reader, content, error)
            except Exception as error:
                raise AssertionError(f"{reader} of {content!r}") from error
        said = capsys.readouterr().out
        assert name != "run.json" or content in (written * 2,) or "good" in said


def test_a_damaged_record_is_shown_with_what_to_do(two_runs, capsys):
    (runs.folder(two_runs, "bad") / "run.json").write_text('{"name": "ba')
    assert inspection.status(str(two_runs), None) == 0
    said = capsys.readouterr().out
    assert "good" in said and "damaged: " in said and "move runs/bad away" in said
    (runs.folder(two_runs, "bad") / "events.jsonl").unlink()
    assert inspection.collect(str(two_runs), True) == 0
    said = capsys.readouterr().out
    assert "does not say what the run needs" in said and "nothing to remove" in said
    assert len(list(store.artifacts(two_runs))) == 3


@pytest.fixture
def opened(tmp_path) -> Callable[[str], Path]:
    """opened("older") -> a workspace with the records of that version: ebeb688, or one to come."""

    def make(version: str) -> Path:
        for name, text in json.loads((STORES / f"{version}.json").read_text()).items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text.replace("WORKSPACE", str(tmp_path)))
        return tmp_path

    return make


def test_a_store_of_an_older_version_opens(opened, capsys):
    workspace = opened("older")
    assert runs.load(workspace, "old").schema == runs.SCHEMA
    assert inspection.status(str(workspace), None) == inspection.status(str(workspace), "old") == 0
    assert "done" in capsys.readouterr().out
    assert inspection.verify(str(workspace), None) == 0 and inspection.collect(str(workspace), False) == 0
    said = capsys.readouterr().out
    assert "2 artifacts, 2 files, 0 problems" in said and "nothing to remove" in said
    (run,) = app.routes(Files(workspace))["runs"]()["runs"]
    assert (run["state"], run["done"], run["total"]) == ("done", 2, 2)


def test_a_store_of_a_newer_version_is_left_as_it_is(opened, capsys):
    """Its run is told of and refused, its artifacts are read, and gc takes nothing that its run names."""
    workspace = opened("newer")
    before = {path: path.read_bytes() for path in workspace.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match="its schema is 2, this version reads up to 1: use the newer version"):
        runs.load(workspace, "old")
    assert inspection.status(str(workspace), None) == 0 and inspection.verify(str(workspace), None) == 0
    assert inspection.collect(str(workspace), True) == 0
    said = capsys.readouterr().out
    assert "its schema is 2" in said and "2 artifacts, 2 files, 0 problems" in said and "nothing to remove" in said
    assert {path: path.read_bytes() for path in workspace.rglob("*") if path.is_file()} == before


def test_settings_an_upgrade_added_or_took_away_do_not_stop_a_run(tmp_path):
    words = ["recipe=sft", "run=r", f"workspace={tmp_path}"]
    runs.save(tmp_path, prepare.prepare(words).run)
    path = runs.folder(tmp_path, "r") / "run.json"
    record = json.loads(path.read_text())
    record["config"]["stage"]["sft"]["settings"]["gone"] = 1
    record["config"]["trainer"]["sft"]["gone"] = 1
    del record["config"]["filters"]["near_duplicates"]
    del record["config"]["stage"]["build_groups"]["settings"]["filters"]["near_duplicates"]
    record["of_old"] = True
    path.write_text(json.dumps(files.sealed(record, runs.SEAL)))
    for again in (words, words[1:]):
        made = prepare.prepare(again)
        assert any(note.startswith("trainer.sft.gone: was 1, is no longer there; 'r' goes on") for note in made.notes)
        assert [step.name for step in made.steps] == [step["name"] for step in record["steps"]]
    with pytest.raises(UserError, match="was made by another version"):
        prepare.prepare([*words, "trainer.sft.epochs=1"])
