"""A model from nothing, a model from a folder, and every way a folder can be unfit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers

from pipeline import plan, store, tables
from pipeline.config import build, problems_of
from pipeline.errors import UserError
from pipeline.lm import folders
from pipeline.lm.template import Encoder
from pipeline.records import Completion, Group, Message
from pipeline.stage import Context
from pipeline.stages import init_model

ARCH = {"hidden_size": 32, "intermediate_size": 48, "layers": 2, "heads": 4, "kv_heads": 2, "max_position": 64,
        "vocab_size": 320}


def make(work: Path, data: Path | None, path: Path | None = None, template: str = "roles", seed: int = 0) -> Path:
    scratch = {"arch": ARCH, "chat_template": template} if path is None else {}
    context = Context(
        build(init_model.Settings, scratch), build(init_model.Runtime, {"path": path and str(path)}),
        {"data": (data,)} if data else {}, {}, work, seed)
    init_model.run(context)
    return context.out / "model"


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data")
    rows = [Group(f"g{i}", (Message("user", f"Count to {i} with the ducks."),), (Completion(f"{i} ducks swim."),))
            for i in range(50)]
    tables.write(root / "sft", rows)
    tables.write(root / "eval", [Group("e", (Message("user", "zzyzx zzyzx zzyzx zzyzx"),))] * 50)
    return root


@pytest.fixture(scope="module")
def model(data, tmp_path_factory) -> Path:
    return make(tmp_path_factory.mktemp("made"), data)


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


@pytest.mark.parametrize("template", ["roles", "chatml"])
def test_from_scratch_is_a_plain_folder(data, tmp_path, template):
    folder = make(tmp_path, data, template=template)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert loaded.dtype == torch.float32 and loaded.config.num_hidden_layers == 2
    assert len(tokenizer) == loaded.get_input_embeddings().weight.shape[0] <= 320
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Count to 3."}], add_generation_prompt=True, return_dict=False)
    assert ids.count(tokenizer.bos_token_id) == 1 == ids[:1].count(tokenizer.bos_token_id)
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == [tokenizer.eos_token_id]
    for text in ("ducks  swim\n", "naïve 鴨 🦆", "\t<b>&amp;</b>"):
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_same_seed_same_bytes(data, model, tmp_path):
    assert contents(make(tmp_path / "again", data)) == contents(model)
    other = contents(make(tmp_path / "other", data, seed=1))
    assert {n for n, b in other.items() if b != contents(model)[n]} == {"model.safetensors"}


def test_the_tokenizer_does_not_see_the_evaluation_split(model):
    assert "zzy" not in (model / "tokenizer.json").read_text()


def test_from_a_folder(model, tmp_path):
    """The copy has the same weights and tokenizer; its content, not its place, is what `files` offers for the key."""
    elsewhere = shutil.copytree(model, tmp_path / "elsewhere")
    (elsewhere / "generation_config.json").write_text('{"temperature": 0.7}')
    (elsewhere / "old.bin").write_bytes(b"not read")
    (elsewhere / "modeling_mine.py").write_text("raise SystemExit")
    made = make(tmp_path / "work", None, path=elsewhere)
    assert (made / "model.safetensors").read_bytes() == (model / "model.safetensors").read_bytes()
    stops = json.loads((model / "generation_config.json").read_text())["eos_token_id"]
    assert json.loads((made / "generation_config.json").read_text()) == {"temperature": 0.7, "eos_token_id": stops}
    listed = init_model.files(init_model.Settings(), init_model.Runtime(str(elsewhere)))
    assert {p.name for p in listed} == {p.name for p in elsewhere.iterdir()} - {"old.bin", "modeling_mine.py"}


def test_every_problem_of_a_folder_at_once(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    problems = init_model.check(init_model.Settings(), init_model.Runtime(str(tmp_path)))
    assert len(problems) == 4 and all(p.startswith(f"model.path: {tmp_path}: no ") for p in problems)
    for word in ("config.json", "pickled", "tokenizer", "chat template"):
        assert any(word in p for p in problems)


def test_weights_cut_short(model, tmp_path):
    broken = shutil.copytree(model, tmp_path / "broken")
    whole = (broken / "model.safetensors").read_bytes()
    for size in (len(whole) - 1, 100, 3):
        (broken / "model.safetensors").write_bytes(whole[:size])
        (problem,) = init_model.check(init_model.Settings(), init_model.Runtime(str(broken)))
        assert "model.safetensors is cut short" in problem


def test_neither_a_path_nor_a_config(tmp_path):
    (problem,) = init_model.check(init_model.Settings(), init_model.Runtime())
    assert problem.startswith("model.path: missing")
    (problem,) = init_model.check(init_model.Settings(), init_model.Runtime(str(tmp_path / "no")))
    assert "is not a folder" in problem


def test_from_scratch_needs_text(tmp_path):
    with pytest.raises(UserError, match="expected an input `data`"):
        make(tmp_path, None)


def test_architecture_that_cannot_be():
    problems = problems_of(init_model.Settings, {"arch": {"hidden_size": 100, "heads": 8, "kv_heads": 3}}, "s")
    assert [p.split(":")[0] for p in problems] == ["s.arch.hidden_size", "s.arch.kv_heads"]


def step(folder: Path, seed: int) -> plan.Step:
    return plan.Step("init", "init_model", 0, {}, build(init_model.Settings, {}), init_model.Runtime(str(folder)), seed)


def test_a_given_model_is_the_same_for_every_seed(model, tmp_path):
    """And for every data set: neither is in its key. The weights of a made one come from both."""
    first, second = (plan.step_key(tmp_path, step(model, seed), {}) for seed in (0, 1))
    assert first == second
    assert "data" not in init_model.STAGE.wanted(build(init_model.Settings, {}))
    scratch = build(init_model.Settings, {"arch": ARCH, "chat_template": "roles"})
    assert "data" in init_model.STAGE.wanted(scratch) and init_model.STAGE.seeded(scratch)


def test_weights_are_shared_and_a_change_of_them_is_found(model, tmp_path):
    """In one place on the disk; what the user writes into it later damages the artifact, which every reader sees."""
    given = shutil.copytree(model, tmp_path / "given")
    (tmp_path / "ws/artifacts/init_model").mkdir(parents=True)
    work = store.work_path(tmp_path / "ws", "init_model", "k")
    make(work, None, path=given)
    artifact = store.commit(tmp_path / "ws", "init_model", "k", {})
    shared = artifact.path / "model" / "model.safetensors"
    linked = shared.samefile(given / "model.safetensors")  # else a clone, which is independent
    with (given / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"!")
    assert [line.split(": ")[1][:15] for line in store.damaged_files(artifact)] == ["content changed"] * linked
    shutil.rmtree(given)
    assert shared.is_file()


def test_large_weights_are_hashed_when_the_step_runs(model, tmp_path, monkeypatch):
    """Planning leaves the key open; once the hashes are known it has it."""
    monkeypatch.setattr(plan, "_HASHED_AT_PLAN", 1000)
    assert plan.look_up(tmp_path, step(model, 0), {}, planning=True).key is None
    key = plan.look_up(tmp_path, step(model, 0), {}).key
    assert key is not None and plan.look_up(tmp_path, step(model, 0), {}, planning=True).key == key


def test_a_model_of_the_hub_has_its_commit_in_the_key(tmp_path):
    one, other = (init_model.Runtime(f"org/name@{commit * 40}") for commit in "ab")
    assert init_model.files(init_model.Settings(), one) == []
    assert init_model.sources(init_model.Settings(), one) == [f"hub:org/name@{'a' * 40}"]
    keys = {plan.step_key(tmp_path, plan.Step("init", "init_model", 0, {}, init_model.Settings(), runtime, 0), {})
            for runtime in (one, other)}
    assert len(keys) == 2


def base_model(model: Path, folder: Path) -> Path:
    shutil.copytree(model, folder)
    (folder / "chat_template.jinja").unlink()
    return folder


def given_template(work: Path, folder: Path, **settings) -> Path:
    context = Context(build(init_model.Settings, settings), init_model.Runtime(str(folder)), {}, {}, work, 0)
    init_model.run(context)
    return context.out / "model"


def test_a_model_without_a_template_takes_one(model, tmp_path):
    """Without it the ways out are named; with it the copy has the template, and the file's content is in the key."""
    folder = base_model(model, tmp_path / "base")
    (problem,) = init_model.check(init_model.Settings(), init_model.Runtime(str(folder)))
    assert "model.chat_template=FILE" in problem and "model.chat_template=plain" in problem
    for choice, text in (("plain", "User: "), ("roles", "<|' + m['role'] + '|>")):
        made = given_template(tmp_path / choice, folder, chat_template=choice)
        assert text in (made / "chat_template.jinja").read_text()
    own = tmp_path / "own.jinja"
    own.write_text((model / "chat_template.jinja").read_text() + "{# mine #}")
    made = given_template(tmp_path / "file", folder, chat_template=str(own))
    assert (made / "chat_template.jinja").read_text() == own.read_text() and not (made / "own.jinja").exists()
    assert own in init_model.files(init_model.Settings(chat_template=str(own)), init_model.Runtime(str(folder)))


def test_a_template_that_is_unfit_is_refused_before_anything_is_computed(model, tmp_path):
    """Planning tries it: given by the setting, or the folder's own."""
    folder = base_model(model, tmp_path / "base")
    for text, found in (("{{ oops", "the chat template cannot be used: "),
                        ("{% for m in messages %}{{ m['content'] + '<|end|>' }}{% endfor %}<|bos|>", "BOS tokens")):
        own = tmp_path / "own.jinja"
        own.write_text(text)
        problems = init_model.check(init_model.Settings(chat_template=str(own)), init_model.Runtime(str(folder)))
        own.rename(folder / "chat_template.jinja")
        assert problems == init_model.check(init_model.Settings(), init_model.Runtime(str(folder)))
        assert any(found in problem for problem in problems)
        assert all(problem.startswith(f"model.path: {folder}: ") for problem in problems)
    assert problems_of(init_model.Settings, {"chat_template": "chatmll"}, "s") == [
        "s.chat_template: 'chatmll' is no file, expected a file of Jinja or one of roles, chatml, text, plain (did "
        "you mean chatml?)"]


def test_the_date_of_a_template_is_a_setting(model, tmp_path):
    """It goes with the model's folder, so that everything that renders says the same day."""
    folder = shutil.copytree(model, tmp_path / "dated")
    text = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").write_text(text.replace("<|bos|>", "<|bos|>{{ strftime_now('%d %b %Y') }}", 1))
    for date, shown in ((None, "26 Jul 2024"), ("2025-01-02", "02 Jan 2025")):
        made = given_template(tmp_path / str(date), folder, date=date)
        encoder = folders.policy_encoder(made)
        assert encoder.rendering.prompt(Group("g", (Message("user", "Hi"),))).startswith(f"<|bos|>{shown}<|user|>Hi")
        scorer = Encoder(folders.load_tokenizer(made), of="the reward model's")
        assert scorer.rendering.prompt(Group("g", (Message("user", "Hi"),))).startswith(f"<|bos|>{shown}<|user|>Hi")
        if date is None:
            assert (made / "tokenizer_config.json").read_bytes() == (folder / "tokenizer_config.json").read_bytes()
    assert problems_of(init_model.Settings, {"date": "today"}, "s") == [
        "s.date: 'today', expected a day such as 2024-07-26"]
