"""Hub names against a server of our own that speaks as much of the hub's API as huggingface_hub asks for.

huggingface_hub reads its variables when it is imported, so each case is a process of its own with its own cache.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pipeline import hub
from tests.hub_server import serving

ROOT = Path(__file__).parent.parent
FIRST, SECOND = "a" * 40, "b" * 40


@dataclass
class Stub:
    """A hub with the model org/small, whose main can move; org/gated wants terms accepted, all else is not there."""

    files: dict[str, bytes]
    commit: str = FIRST
    url: str = ""
    asked: list[tuple[str, str]] = field(default_factory=list)  # path and token of every request

    def answer(self, path: str, token: str) -> tuple[int, dict[str, str], bytes]:
        self.asked.append((path, token))
        parts = path.strip("/").split("/")
        name = "/".join(parts[2:4] if parts[0] == "api" else parts[:2])
        if name == "org/gated" and "good" not in token:
            return 403, {"X-Error-Code": "GatedRepo", "X-Error-Message": "restricted"}, b""
        if name not in ("org/small", "org/gated"):
            return 404, {"X-Error-Code": "RepoNotFound"}, b""
        if parts[0] == "api":
            return self._api(parts[4:])
        return self._file("/".join(parts[4:]))

    def _api(self, rest: list[str]) -> tuple[int, dict[str, str], bytes]:
        if rest[:1] == ["revision"] and rest[1] not in ("main", "v1", self.commit):
            return 404, {"X-Error-Code": "RevisionNotFound"}, b""
        if rest[:1] == ["tree"]:
            entries = [{"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                       for name, data in self.files.items()]
            return 200, {"Content-Type": "application/json"}, json.dumps(entries).encode()
        siblings = [{"rfilename": name, "size": len(data)} for name, data in self.files.items()]
        facts = {"id": "org/small", "sha": self.commit, "siblings": siblings, "tags": [], "private": False}
        return 200, {"Content-Type": "application/json"}, json.dumps(facts).encode()

    def _file(self, name: str) -> tuple[int, dict[str, str], bytes]:
        data = self.files.get(name)
        if data is None:
            return 404, {"X-Error-Code": "EntryNotFound"}, b""
        return 200, {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": self.commit}, data


@pytest.fixture
def stub(tiny_model: Path) -> Iterator[Stub]:
    made = Stub({p.name: p.read_bytes() for p in tiny_model.iterdir()} | {
        "pytorch_model.bin": b"pickled", "consolidated.safetensors": b"the same in another form"})

    with serving(lambda path, headers: made.answer(path, headers.get("authorization", ""))) as made.url:
        yield made


def asked(code: str, cache: Path, endpoint: str, **environment: str) -> str:
    """What `code` prints, in a process whose hub is `endpoint`."""
    variables = {"HF_ENDPOINT": endpoint, "HF_HOME": str(cache), "PYTHONPATH": str(ROOT), "HF_HUB_DISABLE_XET": "1",
                 **environment}
    run = ("from pathlib import Path\nfrom pipeline import hub\nfrom pipeline.errors import UserError\n"
           f"try:\n    {code}\nexcept UserError as error:\n    print(error)")
    kept = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    done = subprocess.run([sys.executable, "-c", run], env={**kept, **variables}, capture_output=True, text=True,
                          timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(("text", "name"), [
    ("org/small", ("org/small", None)), ("org/small@v1", ("org/small", "v1")), ("org/a.b-c_d@refs/pr/1",
     ("org/a.b-c_d", "refs/pr/1")), ("small", None), ("/org/small", None), ("./org/small", None), ("a/b/c", None),
    ("~/small", None), ("org/small.gguf", None), ("null", None), ("tests/lm", None)])
def test_what_is_a_name_and_what_a_path(text: str, name: tuple[str, str | None] | None, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert hub.named(text) == name  # tests/lm is a folder here


def test_a_name_means_one_commit_in_a_workspace(stub: Stub, tmp_path: Path):
    """The hub's main moves, the run goes on with the commit it began with; another workspace begins with the new."""
    pin = "print(hub.pinned({!r}, Path({!r})))"
    cache, place = tmp_path / "cache", str(tmp_path / "ws")
    assert asked(pin.format("org/small", place), cache, stub.url) == f"org/small@{FIRST}"
    stub.commit = SECOND
    assert asked(pin.format("org/small", place), cache, stub.url) == f"org/small@{FIRST}"
    assert asked(pin.format("org/small", str(tmp_path / "other")), cache, stub.url) == f"org/small@{SECOND}"
    assert asked(pin.format(f"org/small@{FIRST}", str(tmp_path / "third")), cache, stub.url) == f"org/small@{FIRST}"


def test_small_files_first_then_weights_and_never_pickles(stub: Stub, tmp_path: Path, tiny_model: Path):
    fetch = f"print(hub.fetched('org/small@{FIRST}', weights={{}}))"
    small = Path(asked(fetch.format(False), tmp_path, stub.url))
    assert (small / "config.json").read_bytes() == (tiny_model / "config.json").read_bytes()
    assert not (small / "model.safetensors").exists()
    whole = Path(asked(fetch.format(True), tmp_path, stub.url))
    assert (whole / "model.safetensors").read_bytes() == (tiny_model / "model.safetensors").read_bytes()
    for left in ("pytorch_model", "consolidated"):
        assert not list(whole.glob(f"{left}*")) and not any(left in path for path, _ in stub.asked)
    sizes = json.loads(asked(f"import json; print(json.dumps(hub.sizes('org/small@{FIRST}')))", tmp_path, stub.url))
    assert sizes["model.safetensors"] == (tiny_model / "model.safetensors").stat().st_size


def test_weights_are_counted_before_they_are_fetched(stub: Stub, tmp_path: Path, tiny_model: Path):
    """By the bytes of the one file, or the sum in the index: how large a model is decides its rates (conf/trainer)."""
    code = f"print(hub.parameters('org/small@{FIRST}'), hub.parameters('org/small'))"
    size = (tiny_model / "model.safetensors").stat().st_size
    assert asked(code, tmp_path, stub.url) == f"{size // 4} None"
    asked(f"hub.fetched('org/small@{FIRST}', weights=True)", tmp_path, stub.url)
    assert asked(code, tmp_path, "http://127.0.0.1:9") == f"{size // 4} None", "what is in the cache needs no hub"
    stub.files["config.json"] = json.dumps({"torch_dtype": "bfloat16"}).encode()
    stub.files["model.safetensors.index.json"] = json.dumps({"metadata": {"total_size": 16_060_522_496}}).encode()
    stub.commit = SECOND
    number = len(stub.asked)
    assert asked(f"print(hub.parameters('org/small@{SECOND}'))", tmp_path, stub.url) == "8030261248"
    assert not any("model.safetensors" in path.split("/") for path, _ in stub.asked[number:])


def test_offline_the_cache_is_used(stub: Stub, tmp_path: Path):
    code = (f"print(hub.pinned('org/small', Path({str(tmp_path / 'ws')!r}))); "
            f"hub.fetched('org/small@{FIRST}', weights=True)")
    asked(code, tmp_path, stub.url)
    number = len(stub.asked)
    code = code.replace("ws", "other")
    assert asked(code, tmp_path, stub.url, HF_HUB_OFFLINE="1") == f"org/small@{FIRST}"
    assert len(stub.asked) == number
    assert asked(code.replace("other", "third"), tmp_path, "http://127.0.0.1:9") == f"org/small@{FIRST}"


def test_a_model_in_the_cache_is_accepted_without_the_hub(stub: Stub, tmp_path: Path):
    """In a workspace that never saw it. With its small files alone the hub is asked, and told to be out of reach."""
    check = ("from pipeline.stages import init_model as m; "
             f"print(m.check(m.Settings(), m.Runtime('org/small@{FIRST}')))")
    asked(f"hub.fetched('org/small@{FIRST}', weights=False)", tmp_path, stub.url)
    assert "the hub cannot be reached" in asked(check, tmp_path, "http://127.0.0.1:9")
    asked(f"hub.fetched('org/small@{FIRST}', weights=True)", tmp_path, stub.url)
    assert asked(check, tmp_path, "http://127.0.0.1:9") == "[]"
    assert asked(check, tmp_path, stub.url, HF_HUB_OFFLINE="1") == "[]"


def test_what_the_hub_refuses_is_one_line(stub: Stub, tmp_path: Path):
    def refusal(name: str, url: str = stub.url, **environment: str) -> str:
        text = asked(f"print(hub.pinned({name!r}, Path({str(tmp_path)!r})))", tmp_path / "cache", url, **environment)
        assert text.startswith(f"model.path: {name}: ") and "\n" not in text
        return text

    assert "no folder here and no model on the hub has this name" in refusal("org/none")
    assert "accept them on its page, then set HF_TOKEN" in refusal("org/gated")
    assert "the hub's model has no such revision" in refusal("org/small@v9")
    assert "the hub cannot be reached" in refusal("org/small", "http://127.0.0.1:9")
    assert "HF_HUB_OFFLINE is set" in refusal("org/small", HF_HUB_OFFLINE="1")
    asked(f"print(hub.pinned('org/gated', Path({str(tmp_path)!r})))", tmp_path / "cache", stub.url, HF_TOKEN="hf_good")
    assert ("/api/models/org/gated", "Bearer hf_good") in stub.asked


def test_a_model_of_the_hub_is_taken_whole(stub: Stub, tmp_path: Path, tiny_model: Path):
    """Planned from its small files, then fetched, checked again and gone through; a shard that is missing is told."""
    source = f"org/small@{FIRST}"
    head = ("from pipeline.stages import init_model as m; from pipeline.stage import Context; "
            f"r = m.Runtime({source!r}); ")
    check = f"{head}print(m.check(m.Settings(), r))"
    assert asked(check, tmp_path, stub.url) == "[]"
    assert not any("model.safetensors" in path for path, _ in stub.asked)
    run = (f"{head}c = Context(m.Settings(), r, {{}}, {{}}, Path({str(tmp_path / 'work')!r}), 0); m.run(c); "
           "print(c.report.counts['saved_gap'])")
    assert asked(run, tmp_path, stub.url).splitlines()[-1] == "0.0"
    made = tmp_path / "work" / "out" / "model"
    assert (made / "model.safetensors").read_bytes() == (tiny_model / "model.safetensors").read_bytes()
    assert not (made / "model.safetensors").is_symlink()
    stub.files["model.safetensors.index.json"] = json.dumps(
        {"metadata": {}, "weight_map": {"a": "model-00001-of-00002.safetensors"}}).encode()
    del stub.files["model.safetensors"]
    stub.files["model-00002-of-00002.safetensors"] = b""
    assert "model-00001-of-00002.safetensors missing" in asked(check, tmp_path / "again", stub.url)


def test_a_reward_model_of_the_hub_scores_as_its_folder(stub: Stub, tmp_path: Path, tiny_model: Path):
    """Checked by its small files alone; the weights come when it scores. A name that is none is told by its own key."""
    import transformers

    from pipeline.records import Completion, Group, Message
    from pipeline.rewards import model

    folder = tmp_path / "rm"
    transformers.AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    transformers.AutoModelForSequenceClassification.from_pretrained(tiny_model, num_labels=1).save_pretrained(folder)
    stub.files = {path.name: path.read_bytes() for path in folder.iterdir()}
    head = ("from pipeline.rewards import model as m; from pipeline.rewards.contract import Limits; "
            "from pipeline.records import Completion as C, Group as G, Message as M; "
            f"s = m.Settings('org/small@{FIRST}', 'float32'); ")
    check = f"{head}print(s.check(), m.SCORER.check(s, Limits()), m.SCORER.files(s))"
    assert asked(check, tmp_path / "cache", stub.url) == "[] [] []"
    assert not any("model.safetensors" in path for path, _ in stub.asked)
    score = f"{head}print(list(m.scorer(s)([G('p', (M('user', 'hi'),), (C('one'), C('two')))])[0]))"
    there = json.loads(asked(score, tmp_path / "cache", stub.url).splitlines()[-1])
    group = Group("p", (Message("user", "hi"),), (Completion("one"), Completion("two")))
    ((*here,),) = model.scorer(model.Settings(str(folder), "float32"))([group])
    assert there == pytest.approx(here, abs=1e-6)
    assert here[0] != here[1]
    pin = f"print(hub.pinned('org/none', Path({str(tmp_path / 'ws')!r}), 'reward.path'))"
    assert asked(pin, tmp_path / "cache", stub.url).startswith(
        "reward.path: org/none: no folder here and no model on the hub has this name")
