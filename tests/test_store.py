"""The store: keys, commits that are whole or absent, damage found, locks freed by death."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time

import pytest

from pipeline import files, gc, runs, store

FACTS = {"version": 1, "settings": {}, "inputs": {}, "counts": {}, "dropped": {}, "run": "r", "step": "s",
         "created": 0.0, "process_seconds": 0.0, "peak_memory_mb": 0.0}


def _fill(workspace, kind="score", key="k" * 20, **files: str) -> store.Artifact:
    out = store.work_path(workspace, kind, key) / "out"
    for name, text in (files or {"a": "hello"}).items():
        path = out / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return store.commit(workspace, kind, key, FACTS)


def test_the_key_depends_on_meaning_not_on_spelling():
    base = store.fingerprint("sft", 1, {"a": 1, "b": 2}, {"model": ["x"]}, 0)
    assert store.fingerprint("sft", 1, {"b": 2, "a": 1}, {"model": ["x"]}, 0) == base
    others = [
        store.fingerprint("sft", 2, {"a": 1, "b": 2}, {"model": ["x"]}, 0),
        store.fingerprint("sft", 1, {"a": 1, "b": 3}, {"model": ["x"]}, 0),
        store.fingerprint("sft", 1, {"a": 1, "b": 2}, {"model": ["y"]}, 0),
        store.fingerprint("sft", 1, {"a": 1, "b": 2}, {"model": ["x"]}, 1),
        store.fingerprint("sft", 1, {"a": 1, "b": 2}, {"model": ["x"]}, None),
    ]
    assert len({base, *others}) == 6 and len(base) == store.KEY_LENGTH


def test_nan_has_no_key():
    with pytest.raises(ValueError):
        store.fingerprint("sft", 1, {"a": float("nan")}, {}, 0)


def test_commit_makes_a_whole_artifact_and_leaves_no_work(tmp_path):
    made = _fill(tmp_path, a="hello", model__w="weights")
    found = store.find(tmp_path, "score", "k" * 20)
    assert found is not None and found.manifest == made.manifest
    assert set(found.manifest["files"]) == {"a", "model/w"}
    assert found.manifest["files"]["a"] == {
        "hash": "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824",
        "size": 5,
    }
    assert not store.work_path(tmp_path, "score", "k" * 20).exists()


def test_a_killed_writes_temporary_file_is_not_committed(tmp_path):
    folder = store.work_path(tmp_path, "score", "k" * 20) / "out" / "groups"
    folder.mkdir(parents=True)
    (folder / ".part-00000.parquet.123.tmp").write_text("half")
    assert set(_fill(tmp_path).manifest["files"]) == {"a"}


def test_weights_are_readable_like_their_manifest_and_a_shared_file_is_left_alone(tmp_path):
    out = store.work_path(tmp_path, "sft", "k" * 20) / "out"
    out.mkdir(parents=True)
    theirs = tmp_path / "model.safetensors"
    for path in (out / "adapter.safetensors", theirs):
        path.write_text("weights")
        path.chmod(0o600)  # as safetensors leaves them
    os.link(theirs, out / "model.safetensors")
    made = store.commit(tmp_path, "sft", "k" * 20, FACTS).path
    rights = (made / store.MANIFEST).stat().st_mode
    assert (made / "adapter.safetensors").stat().st_mode == rights != theirs.stat().st_mode == 0o100600


def test_the_digest_is_of_content_alone(tmp_path):
    one = _fill(tmp_path / "x", a="hello", model__w="weights")
    two = _fill(tmp_path / "y", key="j" * 20, a="hello", model__w="weights")
    three = _fill(tmp_path / "z", a="hello", model__w="others")
    assert one.digest() == two.digest() != three.digest()
    assert one.digest("model") == two.digest("model") != three.digest("model")
    with pytest.raises(KeyError):
        one.digest("nothing")


def test_a_folder_without_manifest_or_with_a_short_file_is_no_artifact(tmp_path):
    made = _fill(tmp_path)
    (made.path / "a").write_text("hell")
    assert store.find(tmp_path, "score", made.key) is None
    (made.path / "a").write_text("hello")
    assert store.find(tmp_path, "score", made.key) is not None
    (made.path / store.MANIFEST).unlink()
    assert store.find(tmp_path, "score", made.key) is None


def test_damage_names_every_file(tmp_path):
    made = _fill(tmp_path, a="hello", b="world", c="!")
    (made.path / "a").write_text("jello")
    (made.path / "b").unlink()
    (made.path / "extra").write_text("?")
    words = [problem.rpartition("/")[2] for problem in store.damage(made)]
    assert words == [
        "a: content changed (its sha256 is not the manifest's)",
        "b: missing",
        "extra: not in the manifest",
    ]


def test_swapped_folders_and_changed_counts_are_found(tmp_path):
    """By find, which every run asks, and by damage, which `align verify` asks."""
    one, two = _fill(tmp_path, a="hello"), _fill(tmp_path, key="j" * 20, a="world")
    one.path.rename(tmp_path / "aside")
    two.path.rename(one.path)
    (tmp_path / "aside").rename(two.path)
    for key in (one.key, two.key):
        assert store.find(tmp_path, "score", key) is None
    swapped = store.Artifact("score", one.key, one.path, two.manifest)
    assert store.damage(swapped) == [
        f"{one.path}/manifest.json: is of score/{two.key}, its folder is score/{one.key}"]
    again = _fill(tmp_path, key=one.key, a="hello")
    changed = {**again.manifest, "counts": {"groups": 7}}
    (again.path / store.MANIFEST).write_text(json.dumps(changed))
    assert store.find(tmp_path, "score", one.key) is None
    assert store.damage(store.Artifact("score", one.key, one.path, changed)) == [
        f"{one.path}/manifest.json: content changed (its hash is not the one it carries)"]


@pytest.mark.parametrize("text", ["[]", "3", '{"files": [1]}', '{"files": {"a": 1}}', '"', '{"kind": 1, "files": {}}'])
def test_a_foreign_manifest_is_no_artifact(text, tmp_path):
    made = _fill(tmp_path)
    (made.path / store.MANIFEST).write_text(text)
    assert store.find(tmp_path, "score", made.key) is None


def test_a_manifest_of_older_code_stays_valid(tmp_path):
    """It carries no hash of itself; its digest, which the keys after it are made of, is the same."""
    made = _fill(tmp_path)
    old = {name: value for name, value in made.manifest.items() if name != store.SEAL}
    (made.path / store.MANIFEST).write_text(json.dumps(old, indent=1, sort_keys=True))
    found = store.find(tmp_path, "score", made.key)
    assert found is not None and found.manifest == old and found.digest() == made.digest()
    assert store.damage(found) == []


def test_any_facts_keep_a_manifest_whole(tmp_path):
    """What json changes on its way to the disk and back, and numbers that are none."""
    facts = {"counts": {2: 1.0, 10: 0.1 + 0.2, 3: float("inf")}, "pair": (1, None), "words": "Zürich \u2028 \ud800"}
    out = store.work_path(tmp_path, "score", "k" * 20) / "out"
    out.mkdir(parents=True)
    (out / "a").write_text("hello")
    made = store.commit(tmp_path, "score", "k" * 20, facts)
    found = store.find(tmp_path, "score", "k" * 20)
    assert found is not None and found.manifest == made.manifest and found.manifest["counts"]["10"] == 0.1 + 0.2


def test_only_what_is_damaged_is_set_aside(tmp_path):
    """With it goes the unfinished work that has read it, but for what another process is doing."""
    good, bad = _fill(tmp_path, a="hello"), _fill(tmp_path, key="j" * 20, model__w="weights", b="x")
    (bad.path / "model" / "w").write_text("weighty")
    assert store.find(tmp_path, "score", bad.key) is not None and store.damaged_files(bad, "b") == []
    assert store.damaged_files(bad, "model") == store.damage(bad) != []
    works = [store.work_path(tmp_path, "sft", letter * 20) for letter in "abc"]
    for work, read in zip(works, (bad, good, bad), strict=True):
        seen_at = f"/where/the/store/was/score/{read.key}/model"  # it may have been moved since
        files.write_atomic(work / "step.json", json.dumps({"inputs": {"model": [seen_at]}}))
    with store.lock(tmp_path, "sft", "c" * 20):
        for artifact in (good, bad):
            store.set_aside(tmp_path, artifact)
        assert [work.exists() for work in works] == [False, True, True]
    assert good.path.exists() and not bad.path.exists() and store.find(tmp_path, "score", bad.key) is None
    (aside,) = good.path.parent.glob(".trash-*")
    assert {item.path for item in gc.find_garbage(tmp_path)} >= {aside}


def test_a_damaged_artifact_is_replaced(tmp_path):
    made = _fill(tmp_path)
    (made.path / "a").write_text("broken!")
    again = _fill(tmp_path)
    assert store.damage(again) == [] and [p.name for p in again.path.parent.iterdir()] == [made.key]


KILLED = """
import sys, time
from pathlib import Path
from pipeline import store
workspace, pace = Path(sys.argv[1]), float(sys.argv[2])
out = store.work_path(workspace, "score", "k" * 20) / "out"
out.mkdir(parents=True, exist_ok=True)
for i in range(40):
    if not (out / f"part-{i}").exists():
        store.write_atomic(out / f"part-{i}", str(i) * 2000)
        time.sleep(pace)
store.commit(workspace, "score", "k" * 20, {})
"""


def test_killed_at_random_it_ends_with_the_same_bytes(tmp_path):
    """Kill -9 at random moments, start again until done: the same digest as an undisturbed run."""
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "calm"), "0"], check=True)
    calm = store.find(tmp_path / "calm", "score", "k" * 20)
    rng, kills = random.Random(0), 0
    while store.find(tmp_path / "wild", "score", "k" * 20) is None:
        process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path / "wild"), "0.06"])
        time.sleep(rng.uniform(0.15, 0.6))
        if process.poll() is None:
            process.kill()
            kills += 1
        process.wait()
        assert kills < 100
    wild = store.find(tmp_path / "wild", "score", "k" * 20)
    assert kills >= 2 and wild.digest() == calm.digest() and store.damage(wild) == []


def test_a_lock_says_who_holds_it_and_dies_with_its_holder(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from pipeline import store\n"
        "with store.lock(Path(sys.argv[1]), 'sft', 'k'): print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    holder.stdout.readline()
    with pytest.raises(store.Busy, match=str(holder.pid)), store.lock(tmp_path, "sft", "k"):
        pass
    holder.kill()
    holder.wait()
    with store.lock(tmp_path, "sft", "k"):
        assert json.loads((tmp_path / "locks" / "sft-k.lock").read_text())["pid"] == os.getpid()


def test_file_hashes_are_remembered_until_the_file_changes(tmp_path):
    file = tmp_path / "data.jsonl"
    file.write_text("one")
    first = store.cached_hashes(tmp_path / "w", [file])[file]
    assert store.cached_hashes(tmp_path / "w", [file])[file] == first
    file.write_text("two!")
    assert store.cached_hashes(tmp_path / "w", [file])[file] != first


def test_gc_keeps_what_a_run_points_at(tmp_path):
    kept, loose = _fill(tmp_path), _fill(tmp_path, key="j" * 20)
    unfinished, abandoned = store.work_path(tmp_path, "sft", "u" * 20), store.work_path(tmp_path, "sft", "v" * 20)
    for folder in (unfinished, abandoned):
        folder.mkdir(parents=True)
        (folder / "x").write_text("12345")
    _record(tmp_path, _run("done", kept.key, "u" * 20, None))
    found = {item.path: item for item in gc.find_garbage(tmp_path)}
    assert set(found) == {loose.path, abandoned} and found[abandoned].size == 5
    gc.remove(tmp_path, list(found.values()))
    assert kept.path.exists() and unfinished.exists() and not loose.path.exists() and not abandoned.exists()


def _run(outcome: str, *keys: str | None) -> str:
    """run.json of a run whose steps have these keys."""
    steps = [{"name": f"s{i}", "stage": "score", "iteration": 0, "state": "done", "key": key, "inputs": []}
             for i, key in enumerate(keys)]
    return json.dumps(vars(runs.Run("r", {}, [], {}, steps, outcome, 0.0)))


def _record(workspace, text: str, events: str = "", name: str = "r") -> None:
    folder = workspace / "runs" / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_text(text)
    (folder / "events.jsonl").write_text(events)


def _garbage(workspace) -> set:
    return {item.path for item in gc.find_garbage(workspace)}


def test_gc_keeps_what_an_unfinished_run_ever_pointed_at(tmp_path):
    """Its events name the keys; those of a finished run are only history. A torn line still names its key."""
    made, early = _fill(tmp_path), _fill(tmp_path, key="e" * 20)
    events = f'{{"event": "finished", "key": "{early.key}"}}\n{{"event": "started", "key": "{"t" * 20}", "ti'
    torn = store.work_path(tmp_path, "sft", "t" * 20)
    torn.mkdir(parents=True)
    for outcome in ("running", "interrupted", "failed", "stale"):
        _record(tmp_path, _run(outcome, made.key), events)
        assert _garbage(tmp_path) == set()
    for outcome in ("done", "stopped by gate[2]"):
        _record(tmp_path, _run(outcome, made.key), events)
        assert _garbage(tmp_path) == {early.path, torn}


@pytest.mark.parametrize("text", ["", '{"outcome": "done", "steps": [{"sta', "[]", '{"outcome": "done", "steps": 3}'])
def test_gc_reads_the_events_where_the_record_is_lost(text, tmp_path):
    made, loose = _fill(tmp_path), _fill(tmp_path, key="j" * 20)
    _record(tmp_path, text, f'{{"event": "finished", "key": "{made.key}"}}\n')
    assert _garbage(tmp_path) == {loose.path}
    (tmp_path / "runs" / "r" / "run.json").unlink()
    assert _garbage(tmp_path) == {loose.path}


def test_gc_removes_nothing_where_a_record_cannot_be_read(tmp_path):
    """Neither does it end: a folder of that name, another user's file, a disk that fails there."""
    made, loose = _fill(tmp_path), _fill(tmp_path, key="j" * 20)
    folder = tmp_path / "runs/r"
    (folder / "run.json").mkdir(parents=True)
    assert _garbage(tmp_path) == set() and gc.unreadable(tmp_path) == [folder]
    (folder / "events.jsonl").write_text(f'{{"event": "finished", "key": "{made.key}"}}\n')
    assert _garbage(tmp_path) == {loose.path}
    (folder / "events.jsonl").unlink()
    (folder / "events.jsonl").mkdir()
    (folder / "run.json").rmdir()
    (folder / "run.json").write_text(_run("running", made.key))
    assert _garbage(tmp_path) == set()


def test_gc_removes_nothing_where_a_record_says_nothing(tmp_path):
    _fill(tmp_path)
    _record(tmp_path, "{")
    trash = tmp_path / "artifacts" / "score" / f".trash-{'i' * 20}-1"
    trash.mkdir()
    assert _garbage(tmp_path) == {trash} and gc.unreadable(tmp_path) == [tmp_path / "runs" / "r"]


def test_gc_removes_work_beside_a_finished_artifact(tmp_path):
    made = _fill(tmp_path)
    work = store.work_path(tmp_path, "score", made.key)
    work.mkdir()
    _record(tmp_path, json.dumps({"outcome": "running", "steps": [{"stage": "score", "key": made.key}]}))
    (found,) = gc.find_garbage(tmp_path)
    assert (found.path, found.reason) == (work, "work beside its finished artifact")
    gc.remove(tmp_path, [found])
    assert made.path.exists() and not work.exists()


def test_gc_looks_again_before_it_removes(tmp_path):
    """A run that began after the list was made, and a step that began: both keep theirs."""
    wanted, held, loose = (_fill(tmp_path, key=letter * 20) for letter in "whl")
    found = gc.find_garbage(tmp_path)
    assert {item.path for item in found} == {wanted.path, held.path, loose.path}
    _record(tmp_path, json.dumps({"outcome": "running", "steps": [{"stage": "score", "key": wanted.key}]}))
    with store.lock(tmp_path, "score", held.key):
        assert gc.remove(tmp_path, found) == found[1].size
    assert wanted.path.exists() and held.path.exists() and not loose.path.exists()


LIMITED = """
import resource, sys
from flows import inspection
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
sys.exit(inspection.collect(sys.argv[1], sys.argv[2] == "apply"))
"""


def test_gc_needs_no_disk_and_its_dry_run_writes_nothing(tmp_path):
    loose = _fill(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    for what, left in (("list", True), ("apply", False)):  # not one byte can be written to a file
        done = subprocess.run([sys.executable, "-c", LIMITED, str(tmp_path), what], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert loose.path.exists() == left
        assert not left or sorted(tmp_path.rglob("*")) == before


def test_what_a_killed_commit_left_goes_when_its_artifact_is_found(tmp_path):
    """Killed behind the rename: the work folder, and the damaged artifact that was replaced."""
    made = _fill(tmp_path)
    work, trash = store.work_path(tmp_path, "score", made.key), made.path.with_name(f".trash-{made.key}-7")
    other = store.work_path(tmp_path, "score", "j" * 20)
    for folder in (work, trash, other):
        folder.mkdir()
        (folder / "left").touch()
    store.tidy(tmp_path, "score", made.key)
    store.tidy(tmp_path, "score", "j" * 20)  # not finished: its work stays
    assert (work.exists(), trash.exists(), other.exists()) == (False, False, True)
