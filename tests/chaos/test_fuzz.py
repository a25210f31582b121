"""Seeded nonsense for everything that reads: a clean error or an answer, within seconds, in bounded memory.

20,000 cases in the long form (`make test-long ARGS=tests/chaos`), some hundreds of each kind in the short one.
"""

from __future__ import annotations

import contextlib
import json
import random
import resource
import signal
import warnings
from collections.abc import Iterator
from urllib.parse import quote

import pytest
from fastapi.testclient import TestClient

from flows import cli, compose
from flows.dashboard.app import make_app
from flows.dashboard.files import NotHere
from pipeline.config import build
from pipeline.errors import UserError
from pipeline.formats import alpaca, alpaca_eval, hh, jsonl, questions
from pipeline.formats.splits import Shares
from tests.chaos import mutate
from tests.flows.dashboard import world
from tests.flows.test_records import readers

SEED, PATIENCE, MEMORY = 1, 20, 2**30  # seconds a case may take; bytes this process may grow by
TIMES = [1, pytest.param(20, marks=pytest.mark.long)]


@contextlib.contextmanager
def bounded(case: object, *clean: type[BaseException]) -> Iterator[None]:
    """One case: it ends in time, well or with one of these errors."""
    def late(*_: object) -> None:
        raise TimeoutError(f"no end of {case!r:.2000}")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(PATIENCE)
    try:
        yield
    except clean:
        pass
    except BaseException as error:
        raise AssertionError(f"{type(error).__name__}: {error}; case {case!r:.3000}") from error
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture(autouse=True)
def small() -> Iterator[None]:
    """Of a test's cases together."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < MEMORY


def _jsonl(*rows: dict) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


SAID = "\n\nHuman: a question {}\n\nAssistant: an answer"
DATA: dict[str, tuple[object, str, bytes, dict]] = {  # format, file, content, settings
    "jsonl": (jsonl, "rows.jsonl", _jsonl(
        *({"prompt": f"say {i}", "chosen": f"yes {i}", "rejected": "no", "system": "be kind"} for i in range(8)),
        *({"messages": [{"role": "user", "content": f"q {i}"}, {"role": "assistant", "content": "a", "train": True}]}
          for i in range(8)),
        *({"prompt": f"do {i}", "completion": "done", "label": i % 2 == 0} for i in range(8)),
        {"prompt": [{"role": "user", "content": "use it"}], "tools": [{"name": "f"}], "chosen": "x", "rejected": "y"}),
        {"shares": Shares(unlabeled=0.2, eval=2)}),
    "alpaca": (alpaca, "a.json", json.dumps([
        *({"instruction": f"Add {i}.", "input": "1 2", "output": "3"} for i in range(8)),
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "system": "s"},
        {"instruction": "Say.", "chosen": "a", "rejected": "b", "history": [["q", "a"]]}]).encode(),
        {"shares": Shares(unlabeled=0.2, eval=2)}),
    "hh": (hh, "base.train.jsonl", _jsonl(*({"chosen": SAID.format(i), "rejected": SAID.format(i) + " or not"}
                                            for i in range(12))), {"shares": Shares(unlabeled=0.2, eval=2)}),
    "alpaca_eval": (alpaca_eval, "model_outputs.json", json.dumps([
        {"instruction": f"q {i}", "output": "a", "generator": "m", "dataset": "d"} for i in range(8)]).encode(), {}),
    "questions": (questions, "question.jsonl", _jsonl(*(
        {"question_id": f"{i}", "category": "c", "turns": ["one", "two"]} for i in range(8))), {"two_turns": True}),
}


@pytest.mark.parametrize("times", TIMES)
@pytest.mark.parametrize("name", DATA)
def test_data_files(name, times, tmp_path):
    """150 of each format in the short form."""
    module, file, content, given = DATA[name]
    settings, rng, lines = build(module.Settings, {}), random.Random(f"{SEED} {name}"), file.endswith("l")
    settings = type(settings)(**{**vars(settings), **given})
    for _ in range(150 * times):
        changed = mutate.of_json(content, rng, lines)
        (tmp_path / file).write_bytes(changed)
        with bounded(changed, UserError):
            for _, group in module.read(tmp_path, settings).groups():
                assert group.messages


@pytest.mark.parametrize("times", TIMES)
def test_command_lines(times, tmp_path, capsys, monkeypatch):
    """40 in the short form: what they say is composed, checked and planned, or refused in words."""
    monkeypatch.chdir(tmp_path)
    rng = random.Random(SEED)
    starts = (["plan", "recipe=pco", "run=a", "objective.alpha=0.02", "trainer.sft.lr=3e-4", "workspace=ws"],
              ["plan", "recipe=sft", "model=tiny", "data=jsonl", "data.root=nowhere", "workspace=ws"],
              ["status", "a", "workspace=ws"], ["explain", "train[2]", "run=a", "workspace=ws"],
              ["options", "objective=dpo"], ["gc", "workspace=ws"], ["verify", "workspace=ws"], ["compare", "a", "b"],
              ["report", "a", "workspace=ws"])
    for _ in range(40 * times):
        first, *words = mutate.of_words(rng.choice(starts), rng) or [""]
        if first in ("dashboard", "server", "chat", "sample", "run"):
            continue
        with bounded([first, *words], SystemExit), warnings.catch_warnings():
            assert cli.main([first, *words]) in (0, 1, 2)
        said = capsys.readouterr()
        assert "Traceback" not in said.out + said.err, [first, *words]


@pytest.mark.parametrize("times", TIMES)
def test_yaml(times, tmp_path, monkeypatch):
    """12 in the short form: a file of the user's own configuration, changed."""
    import shutil

    copy = tmp_path / "conf"
    shutil.copytree(compose.CONF, copy)
    monkeypatch.setattr(compose, "CONF", copy)
    rng = random.Random(SEED)
    chosen = [*copy.glob("objective/*.yaml"), *copy.glob("recipe/*.yaml"), *copy.glob("trainer/*.yaml"),
              *copy.glob("steps/*.yaml"), copy / "model/tiny.yaml"]
    for _ in range(12 * times):
        file = rng.choice(sorted(chosen))
        good = file.read_bytes()
        changed = mutate.of_bytes(good, rng)
        file.write_bytes(changed)
        words = ["recipe=pco", f"workspace={tmp_path}"]
        words += [f"{file.parent.name}={file.stem}"] if file.parent.name in ("objective", "trainer") else []
        words[0] = f"recipe={file.stem}" if file.parent.name == "recipe" else words[0]
        with bounded((file.name, changed), UserError):
            assert isinstance(compose.compose(words).problems, list)
        file.write_bytes(good)


@pytest.mark.long  # records hold times and process ids, so each run of it fuzzes other bytes
@pytest.mark.parametrize("times", TIMES)
def test_records(times, two_runs, capsys):
    """60 in the short form, each read by everything that reads records."""
    rng, place = random.Random(SEED), two_runs / "runs/bad"
    (place / "progress.json").write_text(json.dumps({"step": "scores", "done": 1, "total": 2, "unit": "x", "time": 3}))
    files = sorted([*place.glob("*.json*"), *two_runs.glob("artifacts/score/*/manifest.json"),
                    two_runs / "file-hashes.json"])
    for _ in range(60 * times):
        file = rng.choice(files)
        good = file.read_bytes()
        changed = mutate.of_json(good, rng, file.suffix == ".jsonl")
        file.write_bytes(changed)
        for reader, read in readers(two_runs).items():
            with bounded((file.name, reader, changed), UserError, NotHere):
                read()
        file.write_bytes(good)
        capsys.readouterr()


@pytest.mark.parametrize("times", TIMES)
def test_the_page(times, tmp_path):
    """250 requests in the short form: an answer, or a 4xx."""
    world.whole_run(tmp_path, "good", seed=0)
    app, rng = TestClient(make_app(tmp_path), base_url="http://localhost:4280", raise_server_exceptions=False), \
        random.Random(SEED)
    paths = ("runs", "compare?run=good", "runs/good", "runs/good/log?step=sft&lines=10", "runs/good/metrics",
             "runs/good/iterations", "runs/good/tables",
             "runs/good/samples?step=score[2]&part=groups&start=0&count=5&q=the&answers=true", "runs/good/prompt?id=g1",
             "runs/good/lineage?step=train[2]")
    for _ in range(250 * times):
        path = mutate.of_bytes(rng.choice(paths).encode(), rng).decode("latin-1")[:3000]
        path = quote(path, safe="/?&=[]" if rng.random() < 0.5 else "".join(map(chr, range(33, 127))))
        headers = {"Host": rng.choice(("localhost:4280", "localhost", "evil.example", "127.0.0.1:1", "[::1]", ""))}
        with bounded((path, headers)):
            answer = app.get(f"/api/{path}", headers=headers)
            assert answer.status_code < 500, (path, answer.text[:300])
