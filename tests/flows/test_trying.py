"""What a run's models are tried and taken with: chat, sample and export, on a small workspace that is put together."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import peft
import pytest
import torch
import transformers

from flows import card, chat, publish, run_models, sample, screen
from flows.cli import main
from pipeline import runs, store, upload
from pipeline.errors import UserError
from pipeline.lm import adapters, folders
from pipeline.lm.settings import AdapterSettings
from pipeline.records import Message

CPU = torch.device("cpu")


def step(workspace: Path, name: str, stage: str, iteration: int, make: Callable[[Path], object], *inputs: str) -> dict:
    """An artifact as a stage would leave it, and its line in run.json."""
    key = f"{name.strip(']').replace('[', '-'):0<20}"
    make(store.work_path(workspace, stage, key) / "out" / "model")
    store.commit(workspace, stage, key, {
        "run": "r", "step": name, "iteration": iteration, "settings": {"trainer": {"lr": 1e-3, "base": "/home/me/b"}},
        "counts": {"groups": 7}, "dropped": {}, "versions": {"torch": "2"}, "version": 1, "inputs": {},
        "references": {"model": list(inputs)}})
    return {"name": name, "stage": stage, "iteration": iteration, "key": key, "state": "done", "inputs": list(inputs)}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory, make_model) -> Path:
    """A run "r": start, an SFT model by LoRA, a reward model, one iteration, and a second that is not there yet."""
    place = tmp_path_factory.mktemp("models")

    def by_lora(out: Path) -> None:
        model = folders.load_policy(store.artifact_path(place, "init_model", steps[0]["key"]) / "model", CPU)
        adapters.add(model, AdapterSettings(kind="lora", r=4), seed=0)
        learned = {n: torch.randn_like(p) for n, p in model.named_parameters() if p.requires_grad}
        adapters.save(model, learned, out.parent / "adapter")
        start = store.artifact_path(place, "init_model", steps[0]["key"]) / "model"
        folders.save_folder(adapters.merged(folders.load_policy(start, CPU), out.parent / "adapter"), start, out,
                            "float32")

    steps = [step(place, "init", "init_model", 0, make_model)]
    steps.append(step(place, "sft", "sft", 0, by_lora, "init/model"))
    steps.append(step(place, "reward", "train_reward", 0, lambda out: make_model(out, seed=3), "sft/model"))
    steps.append(step(place, "train[1]", "train_preference", 1, lambda out: make_model(out, seed=2), "sft/model"))
    steps.append({"name": "train[2]", "stage": "train_preference", "iteration": 2, "key": None, "state": "waiting"})
    config = {"choices": {"recipe": "pco", "data": "jsonl"}, "data": {"root": "/home/me/secret/prefs"},
              "model": {"path": None}, "engine": {"dtype": "float32"}}
    overrides = ["recipe=pco", "data=jsonl", "data.root=/home/me/secret/prefs", "run=r", "engine.url=http://inside:1"]
    runs.save(place, runs.Run("r", config, overrides, {}, steps, runs.RUNNING, 1.0))
    rows = [{"iteration": 0}, {"iteration": 1, "win_rate": 0.625, "margin": None}]
    (runs.folder(place, "r") / "report.json").write_text(json.dumps({"iterations": rows}))
    return place


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="auto").state_dict()


def test_which_model_is_meant(workspace, tiny_model):
    found = run_models.find(str(workspace), "r")
    assert [m.label for m in found] == ["start", "sft", "train[1]"]
    assert run_models.choose(found, None, None).label == "train[1]"
    assert run_models.choose(found, None, 0).label == "sft"
    assert run_models.choose(found, "init", None).label == run_models.choose(found, "start", None).label == "start"
    with pytest.raises(UserError, match=r"--iteration 2: no model of it; there are: start, init, sft, train\[1\]"):
        run_models.choose(found, None, 2)
    with pytest.raises(UserError, match=r"stf: no model of that step \(did you mean sft\?\)"):
        run_models.choose(found, "stf", None)
    with pytest.raises(UserError, match="--iteration 1: given together with the step sft"):
        run_models.choose(found, "sft", 1)
    assert [m.folder for m in run_models.find(str(workspace), str(tiny_model))] == [tiny_model]
    with pytest.raises(UserError, match="no run named 'rr'"):
        run_models.find(str(workspace), "rr")


def test_models_given_go_by_their_own_names(tmp_path):
    """start=FOLDER and reference=FOLDER are models beside the one that the run started from."""
    kinds = {"init": "init_model", "given_a": "init_model", "given_b": "init_model", "sft": "sft"}
    steps = [step(tmp_path, name, stage, 0, lambda out: out.mkdir(parents=True)) for name, stage in kinds.items()]
    runs.save(tmp_path, runs.Run("r", {"engine": {}}, [], {}, steps, runs.RUNNING, 1.0))
    found = run_models.find(str(tmp_path), "r")
    assert [m.label for m in found] == ["start", "given_a", "given_b", "sft"]
    assert run_models.choose(found, "given_b", None) == found[2] and run_models.choose(found, "start", None) == found[0]
    runs.save(tmp_path, runs.Run("r", {"engine": {}}, [], {}, steps[:3], runs.RUNNING, 1.0))
    with pytest.raises(UserError, match="nothing of it is trained yet"):
        publish.export(str(tmp_path), "r", None, str(tmp_path / "out"), False, None, None)


def talked(monkeypatch, capsys, text: str, *words: str) -> tuple[str, str]:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    assert main(["chat", *words, "--max-tokens", "8"]) == 0
    return capsys.readouterr()


def test_chat_through_a_pipe(workspace, monkeypatch, capsys):
    """Each line is a turn; the second sees the first, and after /reset a question gets its first answer again."""
    where = f"workspace={workspace}"
    first, _ = talked(monkeypatch, capsys, "Hello there\nThe cat\n/reset\n\nThe cat\nHello there\n", "r", where)
    second, said = talked(monkeypatch, capsys, "Hello there\n/rest\n/quit\nThe cat\n", "r", where)
    assert first.startswith(second) and first != second
    assert "/rest: no such command" in said and "cut at 8 tokens" in said and "loading train[1]" in said
    alone, _ = talked(monkeypatch, capsys, "The cat\n", "r", where)
    assert first.endswith(alone + first[first.index(alone) + len(alone):])
    other, said = talked(monkeypatch, capsys, "Hello there\n", "r", "--iteration", "0", where)
    assert other != second and "loading sft" in said


def test_chat_goes_on_where_the_context_is_full(tiny_model, monkeypatch, capsys):
    _, said = talked(monkeypatch, capsys, "z" * 300 + "\nHello\n", str(tiny_model))
    assert "error: the conversation: " in said and "/reset starts a new conversation" in said
    assert main(["chat", str(tiny_model), "--temperature", "-1", "--max-tokens", "0"]) == 2
    said = capsys.readouterr().err
    assert "--max-tokens: 0, expected at least 1" in said and "--temperature: -1, expected 0" in said


def test_what_a_model_writes_is_shown_and_not_executed(capsys):
    """An escape that clears the screen, a carriage return, a C1 control, and a mark that turns the writing round."""
    text = "a\x1b[2J\rb\x9b31m\u202ec\td\n\u00e9\U0001f600\u200d"
    assert screen.harmless(text) == "a\\x1b[2J\\rb\\x9b31m\\u202ec\td\n\u00e9\U0001f600\u200d"
    talker = SimpleNamespace(request=lambda *_: SimpleNamespace(max_tokens=9), stream=lambda _: iter(text))
    assert chat._answer(talker, [], 9, 0.0, 0) == text
    assert capsys.readouterr().out == screen.harmless(text) + "\n"
    row = {"prompt": [{"role": "user", "content": "x\x1b]0;t\x07"}],
           "answers": [{"model": "m", "text": text, "finish_reason": "stop"}]}
    assert not any(c in sample._text(1, row) for c in "\x1b\x07\r\x9b\u202e")


def test_an_answer_that_is_stopped_stays_in_the_conversation(capsys):
    def stream(_: object) -> Iterator[str]:
        yield "Hel"
        raise KeyboardInterrupt

    talker = SimpleNamespace(request=lambda *_: SimpleNamespace(max_tokens=9), stream=stream)
    assert chat._answer(talker, [], 9, 0.0, 0) == "Hel"
    assert capsys.readouterr().out == "Hel (stopped)\n"


def test_sample_side_by_side(workspace, tmp_path, capsys):
    """Every model that is there, by name, within 80 columns; with --json the same answers as data."""
    file = tmp_path / "p.jsonl"
    file.write_text(json.dumps({"prompt": "The cat " * 15}) + "\n\n" + json.dumps(
        {"messages": [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Yes?"},
                      {"role": "user", "content": "Go."}, {"role": "assistant", "content": "the reference answer"}]}))
    words = ["sample", "r", f"workspace={workspace}", "--prompts", str(file), "--max-tokens", "6"]
    assert main([*words, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [[a["model"] for a in row["answers"]] for row in rows] == [["start", "sft", "train[1]"]] * 2
    assert [len(row["prompt"]) for row in rows] == [1, 3], "an answer in the file is not shown to the models"
    assert len({a["text"] for a in rows[0]["answers"]}) == 3
    assert main(words) == 0
    text = capsys.readouterr().out
    assert all(len(line) <= 80 for line in text.splitlines())
    assert text.startswith("1. The cat") and "\n2. Go. (after 2 turns)\n   start" in text and "[cut]" in text
    (workspace / "one.txt").write_text("The cat\n")
    assert main(["sample", "r", f"workspace={workspace}", "--prompts", str(workspace / "one.txt"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["prompt"] == [{"role": "user", "content": "The cat"}]


def test_prompts_that_are_none(tmp_path):
    file = tmp_path / "p.jsonl"
    file.write_text('{"prompt": 3}\nno json\n{"text": "a"}\n{"prompt": [{"role": "robot", "content": "x"}]}\n'
                    '{"prompt": "a", "tools": [1]}\n{"prompt": [{"role": "user", "content": "a", "name": "Bo"}]}\n')
    with pytest.raises(UserError) as caught:
        sample.read(str(file))
    assert [problem.partition(": ")[0] for problem in caught.value.problems] == [f"{file}:{i}" for i in range(1, 7)]
    assert [problem.split()[1] for problem in caught.value.problems[4:]] == ["tools", "name"]
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(UserError, match="has no prompt"):
        sample.read(str(tmp_path / "empty"))
    with pytest.raises(UserError, match="cannot be read"):
        sample.read(str(tmp_path / "absent"))
    (tmp_path / "one").write_text(' a b \n{"c": 1}\n')
    assert [m for _, m in sample.read(str(tmp_path / "one"))] == [(Message("user", "a b"),),
                                                                  (Message("user", '{"c": 1}'),)]


def test_export_is_a_plain_folder_with_a_card(workspace, tmp_path, capsys):
    words = ["export", "r", f"workspace={workspace}", "--to", str(tmp_path / "out")]
    assert main(words) == 0, capsys.readouterr().err
    stored = store.find(workspace, "train_preference", "train-1" + "0" * 13)
    theirs, ours = tensors(tmp_path / "out"), tensors(stored.path / "model")
    assert all(torch.equal(theirs[name], ours[name]) for name in ours)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 10000.0
    assert config["torch_dtype"] == config["dtype"] == "float32"
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert "`align run recipe=pco data=jsonl data.root=prefs run=r`" in card and "/home/me" not in card
    assert "| win rate against the baseline | 0.625 |" in card and "| `trainer.lr` | `0.001` |" in card
    assert stored.digest() in card and [line for line in card.splitlines() if line.startswith("| sft | sft |")]
    assert "reward" not in card.partition("## Lineage")[2], "it did not go into this model"
    assert main(words) == 2
    assert "is there and not an empty folder" in capsys.readouterr().err
    assert main(words[:3]) == 2
    assert "--to: missing" in capsys.readouterr().err


@pytest.mark.parametrize(("word", "public"), [
    ("data.root=/home/me/secret/prefs", "data.root=prefs"),
    ("data.root=~/secret/prefs", "data.root=prefs"),
    ("data.root=../secret/prefs", "data.root=prefs"),
    ("data.root=/home/me/two words/prefs", "data.root=prefs"),
    ('data.sources=[{path:/home/me/a,weight:0.5},{path:"/home/me/b"}]',
     'data.sources=[{path:a,weight:0.5},{path:"b"}]'),
    ("start={1: sft, 2: /home/me/x}", "start={1: sft, 2: x}"),
    ("data.files.sft=[/home/me/*.jsonl, ~me/b.jsonl]", "data.files.sft=[*.jsonl, b.jsonl]"),
    ("data.root=file:///home/me/x", "data.root=x"),
    ("model.path=org/name@0a1b", "model.path=org/name@0a1b"),
    ("data.root=hf:org/name", "data.root=hf:org/name"),
    ("notes=http://host:1/page", "notes=http://host:1/page"),
    ("text=yes / no", "text=yes / no"),
])
def test_no_place_of_this_machine_is_on_the_card(word: str, public: str):
    assert card._public_word(word) == public


def test_export_in_bfloat16(workspace, tmp_path):
    words = ["export", "r", "sft", f"workspace={workspace}", "--to", str(tmp_path / "b")]
    assert main([*words, "--dtype", "bfloat16"]) == 0
    stored = tensors(store.artifact_path(workspace, "sft", "sft" + "0" * 17) / "model")
    made = tensors(tmp_path / "b")
    assert all(made[name].dtype == torch.bfloat16 and torch.equal(made[name], weights.bfloat16())
               for name, weights in stored.items())
    assert json.loads((tmp_path / "b" / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_export_of_the_adapter_alone(workspace, tmp_path, capsys):
    """What peft loads is the adapter on its base: the merged model."""
    words = ["export", "r", "sft", f"workspace={workspace}", "--to", str(tmp_path / "a"), "--adapter"]
    assert main(words) == 0
    loaded = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "a")
    merged = transformers.AutoModelForCausalLM.from_pretrained(
        store.artifact_path(workspace, "sft", "sft" + "0" * 17) / "model")
    ids = torch.arange(3, 23)[None]
    with torch.no_grad():
        assert torch.allclose(loaded(input_ids=ids).logits, merged(ids).logits, atol=1e-3)
    assert "library_name: peft" in (tmp_path / "a" / "README.md").read_text()
    assert main(["export", "r", f"workspace={workspace}", "--to", str(tmp_path / "c"), "--adapter"]) == 2
    assert "--adapter: train[1] of r trained no adapter" in capsys.readouterr().err
    assert not (tmp_path / "c").exists()


def test_a_damaged_model_is_not_exported(workspace, tmp_path, capsys):
    place = tmp_path / "w"
    shutil.copytree(workspace, place)
    weights = store.artifact_path(place, "sft", "sft" + "0" * 17) / "model" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert main(["export", "r", "sft", f"workspace={place}", "--to", str(tmp_path / "out")]) == 2
    assert "model.safetensors: content changed" in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.fixture
def hub(monkeypatch) -> Iterator[dict[str, object]]:
    """A server that speaks as much of the hub's API as an upload needs; gives the files that were sent."""
    sent: dict[str, object] = {}

    class Hub(BaseHTTPRequestHandler):
        def _answer(self, content: dict, status: int = 200) -> None:
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            if self.headers.get("Authorization") != "Bearer hf_good":
                self._answer({"error": "Invalid credentials"}, 401)
            else:
                self._answer({"name": "me", "type": "user", "id": "1", "sha": "0" * 40, "siblings": []})

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path == "/api/repos/create":
                sent["created"] = json.loads(body)
                self._answer({"url": f"{address}/me/policy", "name": "me/policy", "id": "1"})
            elif self.path == "/api/validate-yaml":
                self._answer({"errors": [], "warnings": []})
            elif "/preupload/" in self.path:
                self._answer({"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False,
                                         "oid": None} for f in json.loads(body)["files"]]})
            else:
                assert "/commit/main" in self.path, self.path
                sent.update({line["value"]["path"]: line["value"]["content"]
                             for line in map(json.loads, body.splitlines()) if line["key"] == "file"})
                self._answer({"success": True, "commitOid": "1" * 40, "commitUrl": f"{address}/me/policy/commit/1"})

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    yield sent
    server.shutdown()


def test_export_to_the_hub(workspace, tmp_path, hub):
    """By a process of its own, against a local server that speaks the hub's API: a private model with these files."""
    from huggingface_hub.constants import ENDPOINT

    words = ["export", "r", f"workspace={workspace}", "--to", str(tmp_path / "out"), "--hub", "policy"]
    root = Path(__file__).parent.parent.parent
    done = subprocess.run([sys.executable, "-m", "flows.cli", *words], capture_output=True, text=True,
                          env={**os.environ, "HF_ENDPOINT": ENDPOINT, "PYTHONPATH": str(root)})
    assert done.returncode == 0, done.stderr
    assert hub.pop("created")["visibility"] == "private"
    assert set(hub) == {p.name for p in (tmp_path / "out").iterdir()}
    assert "me/policy" in done.stdout


@pytest.mark.parametrize("name, token, words", [
    ("a/b/c", "hf_good", r"--hub: 'a/b/c', expected NAME or ORGANISATION/NAME"),
    ("policy", "hf_bad", r"--hub: http://127.0.0.1:\d+ said no or nothing \(Invalid user token.*nothing was written"),
])
def test_a_hub_that_says_no(workspace, tmp_path, hub, monkeypatch, name, token, words):
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(UserError, match=words):
        upload.check(name)
    where = ["--to", str(tmp_path / "out"), "--hub", name]
    assert main(["export", "r", f"workspace={workspace}", *where]) == 2
    assert not (tmp_path / "out").exists()


def test_no_hub(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    with pytest.raises(UserError, match=r"--hub: http://127.0.0.1:1 said no or nothing .*nothing was written"):
        upload.check("policy")
