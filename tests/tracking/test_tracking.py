"""The W&B mirror, with W&B itself: what lands in its offline files, and that a run never pays for its troubles."""

import json
import os
import socket
import struct
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline import columns, store, tables, tracking
from pipeline.config import build, problems_of
from pipeline.records import Completion, Group, Message
from pipeline.tracking import Settings, mirrored, read_lines
from pipeline.tracking.tensorboard import TensorBoard
from pipeline.tracking.wandb import Mirror, Wandb, find_mode, run_id, sample_rows

MIRROR = Settings(Wandb(mode="offline"))


@pytest.fixture
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of two steps, with neither key nor W&B setting in the environment."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    folder = tmp_path / "workspace" / "runs" / "demo"
    folder.mkdir(parents=True)
    steps = [
        {"name": "sft", "stage": "sft", "key": "k1"}, {"name": "train[1]", "stage": "train_preference", "key": "k2"},
    ]
    config = {"seed": 7, "tracking": {"wandb": {"mode": "offline"}}}
    (folder / "run.json").write_text(json.dumps({"name": "demo", "created": 1.5, "config": config, "steps": steps}))
    return folder


def report(run_dir: Path, step: str, *losses: float) -> None:
    with (run_dir / tracking.METRICS).open("a") as file:
        for at, loss in enumerate(losses):
            file.write(json.dumps({"step": step, "at": at, "time": 0.0, "loss": loss}) + "\n")


def records(path: Path) -> list:
    """The records of a W&B offline file: a header of 7 bytes, then LevelDB log records of protobuf messages."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, position, found, message = path.read_bytes(), 7, [], b""
    while position < len(data):
        if 32768 - position % 32768 < 7:  # no room for a record's header: the rest of the block is padding
            position += 32768 - position % 32768
            continue
        _, size, kind = struct.unpack("<IHB", data[position : position + 7])
        message += data[position + 7 : position + 7 + size]
        position += 7 + size
        if kind in (1, 4):  # whole, or the last piece
            found.append(Record.FromString(message))
            message = b""
    return found


def sent(workspace: Path) -> dict[str, dict]:
    """What each offline run holds: W&B's own description of the run, and the losses logged to it."""
    runs: dict[str, dict] = {}
    for path in sorted(workspace.glob("wandb/offline-run-*/*.wandb")):
        made = records(path)
        (about,) = [r.run for r in made if r.WhichOneof("record_type") == "run"]
        losses = [
            json.loads(item.value_json)
            for r in made if r.WhichOneof("record_type") == "history"
            for item in r.history.item if [item.key, *item.nested_key][-1] == "loss"
        ]
        config = {u.key: json.loads(u.value_json) for u in about.config.update}
        entry = runs.setdefault(about.run_id, {"group": about.run_group, "job": about.job_type, "losses": [], **config})
        entry["losses"] += losses
    return runs


def test_every_line_reaches_wandb_one_run_per_step(run_dir: Path):
    workspace, said = run_dir.parent.parent, []
    with mirrored(MIRROR, run_dir, said.append):
        report(run_dir, "sft", 3.0, 2.5)
        report(run_dir, "train[1]", 0.7, 0.6, 0.5)
    found = sent(workspace)
    (sft,) = [v for k, v in found.items() if k.startswith("demo-sft-")]
    (train,) = [v for k, v in found.items() if k.startswith("demo-train-1-")]
    assert (sft["losses"], train["losses"]) == ([3.0, 2.5], [0.7, 0.6, 0.5])
    assert (train["group"], train["job"], train["seed"]) == ("demo", "train_preference", 7)
    assert train["step"]["key"] == "k2"
    assert "5 lines and 0 artifact references sent offline" in said[0]


def test_the_same_run_again_sends_only_the_rest(run_dir: Path):
    workspace = run_dir.parent.parent
    report(run_dir, "sft", 3.0, 2.5)
    with mirrored(MIRROR, run_dir, lambda line: None):
        pass
    report(run_dir, "sft", 2.0)
    with mirrored(MIRROR, run_dir, lambda line: None):
        pass
    (sft,) = sent(workspace).values()
    assert sft["losses"] == [3.0, 2.5, 2.0]


def test_a_resumed_step_goes_on_in_its_curve(run_dir: Path):
    """Two sessions, one W&B run: each line at its own step, as read back from the offline files."""
    for losses in ((3.0, 2.5), (2.0,)):
        report(run_dir, "sft", *losses)
        if len(losses) == 1:  # at 2, where the first session ended
            lines = (run_dir / tracking.METRICS).read_text().splitlines()
            lines[-1] = json.dumps({**json.loads(lines[-1]), "at": 2})
            (run_dir / tracking.METRICS).write_text("\n".join(lines) + "\n")
        with mirrored(MIRROR, run_dir, lambda line: None):
            pass
    paths = sorted((run_dir.parent.parent / "wandb").glob("offline-run-*/*.wandb"))
    made = [[r for r in records(path) if r.WhichOneof("record_type") == "history"] for path in paths]
    assert [[r.history.step.num for r in of] for of in made] == [[0, 1], [2]]


def test_the_arms_of_a_sweep_are_grouped_with_their_numbers_over_the_iterations(run_dir: Path):
    """A W&B run of job type `run`: what W&B's own panels compare arms by. Its settings as they were typed."""
    workspace = run_dir.parent.parent
    (workspace / "sweeps" / "betas").mkdir(parents=True)
    (workspace / "sweeps" / "betas" / "sweep.json").write_text(
        json.dumps({"name": "betas", "words": [], "runs": [{"run": "demo", "words": []}]}, indent=1))
    record = json.loads((run_dir / "run.json").read_text())
    for i, rate in ((1, 0.6), (2, 0.7)):
        out = store.work_path(workspace, "evaluate", f"{i:020x}") / "out"
        out.mkdir(parents=True)
        (out / "evaluation.json").write_text("{}")
        store.commit(workspace, "evaluate", f"{i:020x}", {
            "inputs": {}, "counts": {"win_rate": rate}, "dropped": {}, "settings": {}, "version": 1, "run": "demo",
            "step": f"evaluate[{i}]", "created": 1.0, "process_seconds": 1.0, "peak_memory_mb": 1.0})
        record["steps"].append({"name": f"evaluate[{i}]", "stage": "evaluate", "iteration": i, "key": f"{i:020x}"})
    (run_dir / "run.json").write_text(json.dumps({**record, "overrides": ["recipe=pco", "objective.beta=0.1"]}))
    report(run_dir, "sft", 3.0)
    with mirrored(MIRROR, run_dir, lambda line: None):
        pass
    found = sent(workspace)
    (whole,) = [v for k, v in found.items() if v["job"] == "run"]
    (sft,) = [v for k, v in found.items() if v["job"] == "sft"]
    assert (whole["group"], sft["group"], sft["sweep"]) == ("betas", "demo", "betas")
    assert whole["set"] == {"recipe": "pco", "objective.beta": "0.1"}
    rates = [json.loads(item.value_json) for path in (workspace / "wandb").glob("offline-run-*/*.wandb")
             for r in records(path) if r.WhichOneof("record_type") == "history" for item in r.history.item
             if [item.key, *item.nested_key][-1] == "evaluate.win_rate"]
    assert rates == [0.6, 0.7]


def test_alerts_are_asked_for_and_say_what_notify_says(run_dir: Path):
    """A failed step and the end of the run, read back from the offline files; none without tracking.wandb.alerts."""
    record = json.loads((run_dir / "run.json").read_text())
    record["config"]["tracking"]["wandb"]["alerts"] = True
    (run_dir / "run.json").write_text(json.dumps({**record, "outcome": "done"}))
    report(run_dir, "sft", 3.0)
    event = {"step": "train[1]", "event": "failed", "time": 1.0, "code": 137, "pid": 1}
    (run_dir / tracking.EVENTS).write_text(json.dumps(event) + "\n")
    with mirrored(MIRROR, run_dir, lambda line: None):
        pass
    found = [(r.alert.title, r.alert.text, r.alert.level)
             for path in sorted((run_dir.parent.parent / "wandb").glob("offline-run-*/*.wandb"))
             for r in records(path) if r.WhichOneof("record_type") == "alert"]
    assert sorted(found) == [("demo: failed at train[1]", "exit code 137; align logs demo", "ERROR"),
                             ("demo: finished", "done", "INFO")]


def test_a_run_that_is_stuck_or_was_killed_is_an_alert(run_dir: Path, monkeypatch: pytest.MonkeyPatch):
    """Without a line for 61 minutes: told of once; its driver gone, the record still says running."""
    record = json.loads((run_dir / "run.json").read_text())
    (run_dir / "run.json").write_text(json.dumps({**record, "outcome": "running"}))
    report(run_dir, "sft", 3.0)
    mirror = Mirror(Wandb(mode="offline", alerts=True), "offline", "a test", run_dir)
    told: list[tuple[str, str, str]] = []
    monkeypatch.setattr(Mirror, "_alert", lambda self, step, *words: told.append(words))
    mirror.sent, now = 1, time.time()
    for since in (now - 60 * 59, now - 60 * 61, now - 60 * 61, now - 60 * 90):
        mirror.quiet(since)
    monkeypatch.setattr(Mirror, "_iterations", lambda self: {})
    mirror.close()
    assert told == [("stuck", "no progress for 61 minutes", "WARN"), ("stuck", "no progress for 90 minutes", "WARN"),
                    ("was interrupted", "go on with: align run run=demo", "ERROR")]


def test_nothing_is_written_outside_the_workspace(run_dir: Path, tmp_path: Path):
    report(run_dir, "sft", 3.0)
    with mirrored(MIRROR, run_dir, lambda line: None):
        pass
    assert [p.name for p in tmp_path.iterdir()] == ["workspace"]
    assert {p.name for p in (tmp_path / "workspace").iterdir()} == {"runs", "wandb"}


def test_a_service_that_cannot_be_reached_costs_init_timeout_and_falls_to_offline(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
):
    """A key, and a service address where nothing listens: the numbers end up in offline files, the run goes on."""
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    report(run_dir, "sft", 3.0, 2.0)
    workspace, said, started = run_dir.parent.parent, [], time.monotonic()
    with mirrored(Settings(Wandb(init_timeout=2.0, finish_timeout=60.0)), run_dir, said.append):
        assert time.monotonic() - started < 1.0  # starting the mirror delays nothing
        config = json.loads((run_dir / "run.json").read_text())
        config["config"]["tracking"]["wandb"] = {"init_timeout": 2.0}
        (run_dir / "run.json").write_text(json.dumps(config))
    assert "2 lines and 0 artifact references sent offline (the service could not be reached)" in said[0]
    assert [v["losses"] for v in sent(workspace).values()] == [[3.0, 2.0]]


def test_a_network_that_swallows_everything_delays_no_run(run_dir: Path, monkeypatch: pytest.MonkeyPatch):
    """A key, and a service that takes connections and never answers, as behind a firewall that drops packets: the run
    starts at once, and its end, which waits for the mirror, comes within 25 s with every line in the offline files."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as silent:
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        config = json.loads((run_dir / "run.json").read_text())
        config["config"]["tracking"]["wandb"] = {"init_timeout": 5.0}
        (run_dir / "run.json").write_text(json.dumps(config))
        report(run_dir, "sft", 3.0, 2.0)
        said, started = [], time.monotonic()
        with mirrored(Settings(Wandb()), run_dir, said.append):
            delay = time.monotonic() - started
        waited = time.monotonic() - started
    assert delay < 1.0 and waited < 25.0
    assert "2 lines and 0 artifact references sent offline (the service could not be reached)" in said[0]
    assert [v["losses"] for v in sent(run_dir.parent.parent).values()] == [[3.0, 2.0]]


def finish_step(run_dir: Path, step: str, stage: str, groups: list[Group], **counts: float) -> store.Artifact:
    """Commit an artifact as a run does, and say so in events.jsonl."""
    workspace, key = run_dir.parent.parent, f"key-{stage}"
    if stage == "score":
        columns.write_part(store.work_path(workspace, stage, key) / "out" / "scores", 0, (
            ("sampled", g.id, [c.scores for c in g.completions]) for g in groups))
        tables.write(workspace / "artifacts" / "generate" / "key-generate" / "groups", [
            replace(g, completions=tuple(replace(c, scores={}) for c in g.completions)) for g in groups])
    else:
        tables.write(store.work_path(workspace, stage, key) / "out" / "groups", groups)
    (store.work_path(workspace, stage, key) / "out" / "weights").write_bytes(b"x" * 2_000_000)
    artifact = store.commit(workspace, stage, key, {
        "counts": counts, "inputs": {"groups": ["sampled"]}, "created": 5.0})
    event = {"time": 1.0, "step": step, "event": "finished", "pid": 1, "key": key}
    with (run_dir / tracking.EVENTS).open("a") as file:
        file.write(json.dumps(event) + "\n")
    run = json.loads((run_dir / "run.json").read_text())
    run["steps"] += [{"name": "generate[1]", "stage": "generate", "key": "key-generate"},
                     {"name": step, "stage": stage, "key": key, "inputs": ["sft/model", "generate[1]/groups"]}]
    (run_dir / "run.json").write_text(json.dumps(run))
    return artifact


BOTH = (Completion("so", scores={"gold": 1.0}), Completion("no", scores={"gold": 0.0}))
SCORED = [Group("a", (Message("user", "why?"),), BOTH)]


def test_an_artifact_is_a_reference_with_our_digest_and_nothing_is_copied(run_dir: Path):
    """2 MB of weights: the offline folder stays far smaller; the reference says where, the metadata what. Once."""
    workspace = run_dir.parent.parent
    report(run_dir, "score[1]", 1.0)
    artifact = finish_step(run_dir, "score[1]", "score", SCORED, score_mean=0.5)
    said: list[str] = []
    for _ in range(2):
        with mirrored(MIRROR, run_dir, said.append):
            pass
    assert "1 lines and 1 artifact references sent" in said[0] and "0 lines and 0 artifact" in said[1]
    (path,) = workspace.glob("wandb/offline-run-*/*.wandb")
    logged = [r.artifact for r in records(path) if r.WhichOneof("record_type") == "artifact"]
    (made,) = [a for a in logged if a.type == "score"]  # beside it W&B keeps the table as one of its own
    references = {Path(entry.path).name: entry.ref for entry in made.manifest.contents}
    assert references["weights"] == (artifact.path / "weights").as_uri()
    metadata = json.loads(made.metadata)
    assert metadata["digest"] == artifact.digest()
    assert metadata["files"]["weights"] == artifact.manifest["files"]["weights"]
    assert sum(p.stat().st_size for p in (workspace / "wandb").rglob("*") if p.is_file()) < 500_000
    (shown,) = (workspace / "wandb").rglob("*samples*.table.json")
    assert json.loads(shown.read_text())["data"] == [
        ["a", "why?", 0, "so", "stop", 1.0], ["a", "why?", 0, "no", "stop", 0.0]]


def test_a_table_of_samples_has_every_completion_of_the_first_prompts():
    header, rows = sample_rows([*SCORED, Group("b", (Message("user", "x"),), (Completion("y"),))], 1)
    assert header == ["id", "prompt", "sample", "answer", "finish_reason", "gold"]
    assert rows == [["a", "why?", 0, "so", "stop", 1.0], ["a", "why?", 0, "no", "stop", 0.0]]


def test_tensorboard_gets_every_number_once(run_dir: Path, monkeypatch: pytest.MonkeyPatch):
    """Read back with TensorBoard's own reader; the mirror starts again and sends only the rest."""
    pytest.importorskip("tensorboard", reason="the extra alignloop[tensorboard] is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = json.loads((run_dir / "run.json").read_text())
    config["config"]["tracking"] = {"tensorboard": {}}
    (run_dir / "run.json").write_text(json.dumps(config))
    report(run_dir, "sft", 3.0, 2.5)
    finish_step(run_dir, "train[1]", "train_preference", [], steps=7.0)
    said: list[str] = []
    with mirrored(Settings(tensorboard=TensorBoard()), run_dir, said.append):
        pass
    report(run_dir, "sft", 2.0)
    with mirrored(Settings(tensorboard=TensorBoard()), run_dir, said.append):
        pass
    assert said[0].startswith("TensorBoard: 3 lines in ") and said[1].startswith("TensorBoard: 1 lines in ")
    accumulator = EventAccumulator(str(run_dir / "tensorboard" / "sft")).Reload()
    assert sorted(event.value for event in accumulator.Scalars("loss")) == [2.0, 2.5, 3.0]
    counted = EventAccumulator(str(run_dir / "tensorboard" / "train[1]")).Reload()
    assert [event.value for event in counted.Scalars("count/steps")] == [7.0]


def test_tensorboard_without_its_package_is_said_before_the_run(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    (problem,) = problems_of(Settings, {"tensorboard": {}}, "tracking")
    assert problem.startswith("tracking.tensorboard: the package is not installed; pip install 'alignloop[tensorb")


def test_a_mirror_that_hangs_is_left_after_finish_timeout(run_dir: Path, monkeypatch: pytest.MonkeyPatch):
    """The lock of the mirror is held, as by one that hangs: the run waits `finish_timeout` and no longer."""
    import fcntl

    said: list[str] = []
    with (run_dir / ".tracking.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        impatient = Settings(Wandb(mode="offline", finish_timeout=0.5))
        with mirrored(impatient, run_dir, said.append):
            report(run_dir, "sft", 3.0)
            started = time.monotonic()
        assert time.monotonic() - started < 3.0
    assert "not finished after" in said[0]


def test_a_mirror_that_fails_does_not_fail_the_run(run_dir: Path):
    report(run_dir, "sft", 3.0)
    (run_dir / "run.json").write_text("{")
    said: list[str] = []
    with mirrored(MIRROR, run_dir, said.append):
        pass
    assert "the mirror failed, metrics.jsonl has everything" in said[0]
    assert "JSONDecodeError" in (run_dir / tracking.LOG).read_text()


def test_it_ends_by_itself_when_its_run_is_killed(run_dir: Path):
    """Standard input closes when the process that holds the other end dies, however it dies."""
    code = (
        "import sys, time; from pathlib import Path; from pipeline.tracking import *\n"
        "context = mirrored(Settings(Wandb(mode='offline')), Path(sys.argv[1]))\n"
        "context.__enter__(); print('up', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(run_dir)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        report(run_dir, "sft", 3.0)
        process.kill()
    deadline = time.monotonic() + 30
    while "sent offline" not in (log := (run_dir / tracking.LOG).read_text()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert "1 lines and 0 artifact references sent offline" in log


def test_without_the_mirror_nothing_is_started(run_dir: Path):
    with mirrored(Settings(), run_dir):
        report(run_dir, "sft", 3.0)
    assert not (run_dir / tracking.LOG).exists()


def test_the_mode_given_wins_over_the_environment_and_that_over_a_key():
    assert find_mode(Wandb(mode="online"), {"WANDB_MODE": "offline"}) == ("online", "tracking.wandb.mode=online")
    assert find_mode(Wandb(), {"WANDB_API_KEY": "k" * 40, "WANDB_MODE": "offline"}) == ("offline", "WANDB_MODE")


@pytest.mark.parametrize("environment, mode", [
    ({"WANDB_MODE": "disabled"}, "disabled"), ({"WANDB_MODE": "dryrun"}, "offline"),
    ({"WANDB_MODE": "Offline"}, "offline"), ({"WANDB_MODE": "DISABLED"}, "disabled"),
    ({"WANDB_DISABLED": "true"}, "disabled"), ({"WANDB_DISABLED": "True", "WANDB_MODE": "online"}, "disabled"),
    ({"WANDB_DISABLED": "y"}, "disabled"), ({"WANDB_DISABLED": "0", "WANDB_MODE": " disabled "}, "disabled"),
    ({"WANDB_MODE": "of"}, "offline"), ({"WANDB_MODE": "Online"}, "online")])
def test_what_the_user_switched_off_stays_off(environment: dict[str, str], mode: str):
    """Whatever key there is."""
    assert find_mode(Wandb(), {"WANDB_API_KEY": "k" * 40, **environment})[0] == mode


def test_a_mirror_that_is_switched_off_says_so_and_writes_nothing(run_dir: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WANDB_MODE", "Disabled")
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    record = json.loads((run_dir / "run.json").read_text())
    record["config"]["tracking"]["wandb"]["mode"] = "auto"
    (run_dir / "run.json").write_text(json.dumps(record))
    report(run_dir, "sft", 1.0)
    said: list[str] = []
    with mirrored(Settings(Wandb()), run_dir, said.append):
        pass
    assert said == ["W&B: off (WANDB_MODE), nothing is mirrored"]
    assert not list(run_dir.parent.parent.glob("**/offline-run-*"))


def test_online_needs_a_key(tmp_path: Path):
    """W&B's own look-up, in processes of their own since it keeps what it found. No case reaches the service."""
    (tmp_path / ".netrc").write_text(f"machine api.wandb.ai login user password {'k' * 40}\n")
    cases = [
        ({"NETRC": str(tmp_path / "none")}, ("offline", "no key found")),
        ({}, ("online", "W&B found a key")),
        ({"WANDB_API_KEY": "short"}, ("offline", "WANDB_API_KEY invalid: API key must have 40+ characters, has 5.")),
    ]
    code = "import os; from pipeline.tracking.wandb import Wandb, find_mode; print(find_mode(Wandb(), os.environ))"
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_") and name != "NETRC"}
    environment = {**kept, "HOME": str(tmp_path), "WANDB_CONFIG_DIR": str(tmp_path)}
    asked = [subprocess.Popen([sys.executable, "-c", code], env={**environment, **case}, stdout=subprocess.PIPE,
                              stdin=subprocess.DEVNULL, text=True) for case, _ in cases]
    found = [one.communicate(timeout=120)[0].splitlines()[-1] for one in asked]
    assert found == [repr(expected) for _, expected in cases]


def test_a_line_being_written_waits_and_a_new_file_starts_over(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": "a"}\n{"step": "b')
    lines, offset = read_lines(path, 0)
    assert (lines, offset) == ([{"step": "a"}], 14)
    path.write_text('{"step": "a"}\n{"step": "bc"}\n')
    assert read_lines(path, offset)[0] == [{"step": "bc"}]
    path.write_text('{"step": "new"}\n')
    assert read_lines(path, 29)[0] == [{"step": "new"}]
    assert read_lines(tmp_path / "missing", 5) == ([], 0)


def test_run_ids_are_stable_and_their_own():
    """Letters W&B forbids are replaced; another run of the same name (made at another time) has another id."""
    run = {"name": "my run", "created": 1.5}
    assert run_id(run, "train[2]") == run_id(dict(run), "train[2]")
    assert run_id(run, "train[2]").startswith("my-run-train-2-")
    assert run_id(run, "train[2]") != run_id({"name": "my run", "created": 2.5}, "train[2]")


def test_settings_are_checked():
    assert build(Settings, {"wandb": None}) == Settings()
    assert problems_of(Settings, {"wandb": {"mode": "of", "init_timeout": 0}}, "tracking") == [
        "tracking.wandb.mode: 'of' is not allowed, expected one of auto, online, offline",
        "tracking.wandb.init_timeout: 0.0 is out of range, expected 0.0 < x",
    ]
