"""Ids for every split; what does not fit is counted by split and reason."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from pipeline import tables
from pipeline.config import build
from pipeline.errors import UserError
from pipeline.lm import folders
from pipeline.records import LENGTH, Completion, Group, Message
from pipeline.stage import Context, NoRuntime, keyed
from pipeline.stages import init_model, tokenize

ARCH = {"hidden_size": 16, "intermediate_size": 16, "layers": 1, "heads": 2, "kv_heads": 1, "max_position": 64,
        "vocab_size": 280}
ASK = (Message("user", "How many?"),)


def run(data: Path, model: Path, work: Path, **settings) -> Context:
    wanted = {"max_prompt_tokens": 20, "max_completion_tokens": 30} | settings
    context = Context(build(tokenize.Settings, wanted), NoRuntime(), {"data": (data,), "model": (model,)}, {},
                      work, 0)
    tokenize.run(context)
    return context


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data")
    long = "seven " * 40
    tables.write(root / "sft", [Group("s0", ASK, (Completion("Six."),)), Group("s1", ASK, (Completion(long),)),
                                Group("s2", (Message("user", long),), (Completion("Six."),))])
    tables.write(root / "pref", [
        Group("p0", ASK, (Completion("Six."), Completion("Five!"))),
        Group("p1", ASK, (Completion("Six."), Completion(long))),
        Group("p2", ASK, (Completion("Six."), Completion("Six."))),
    ])
    tables.write(root / "unlabeled", [Group("u0", ASK)])
    return root


@pytest.fixture(scope="module")
def model(data, tmp_path_factory) -> Path:
    context = Context(build(init_model.Settings, {"arch": ARCH, "chat_template": "roles"}), init_model.Runtime(),
                      {"data": (data,)}, {}, tmp_path_factory.mktemp("model"), 0)
    init_model.run(context)
    return context.out / "model"


def test_every_split_gets_ids(data, model, tmp_path):
    context = run(data, model, tmp_path)
    tokens = {split: {g.id: g for g in tables.read(context.out / split)} for split in ("sft", "pref", "unlabeled")}
    assert not (context.out / "eval").exists(), "a split the data does not have is not made up"
    assert list(tokens["sft"]) == ["s0", "s1"] and list(tokens["pref"]) == ["p0"]
    cut = tokens["sft"]["s1"].completions[0]
    assert cut.finish_reason == LENGTH and len(cut.token_ids) == 30
    whole = tokens["sft"]["s0"].completions[0]
    assert whole.token_ids[-1] == 2 != cut.token_ids[-1]
    assert tokens["unlabeled"]["u0"].prompt_ids == tokens["pref"]["p0"].prompt_ids
    assert context.report.dropped == {
        "sft_truncated": 1, "sft_long_prompt": 1, "pref_long_completion": 1, "pref_identical_completion": 1}
    assert context.report.counts["sft"] == 2 and context.report.counts["pref"] == 1


def test_limits_can_be_errors(data, model, tmp_path):
    with pytest.raises(UserError, match=r"example 's2': a prompt of .* tokens, the limit is 20"):
        run(data, model, tmp_path, overlong_prompts="error")


def test_limits_beyond_the_context(data, model, tmp_path):
    with pytest.raises(UserError, match=r"max_prompt_tokens \+ max_completion_tokens = 70, but .* 64 tokens"):
        run(data, model, tmp_path, max_completion_tokens=50)


def test_nothing_left_is_an_error(data, model, tmp_path):
    with pytest.raises(UserError, match="no group of sft is left"):
        run(data, model, tmp_path, max_prompt_tokens=2)


def test_text_is_kept(data, model, tmp_path):
    context = run(data, model, tmp_path)
    (before, *_), (after, *_) = tables.read(data / "pref"), tables.read(context.out / "pref")
    bare = dataclasses.replace(after, prompt_ids=(), completions=tuple(
        dataclasses.replace(c, token_ids=()) for c in after.completions))
    assert bare == before


@pytest.fixture(scope="module")
def refusing(model, tmp_path_factory) -> Path:
    """The model with a template that refuses system turns, as Mistral's and Gemma 2's do."""
    folder = shutil.copytree(model, tmp_path_factory.mktemp("refusing") / "model")
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").write_text(
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + template)
    return folder


@pytest.fixture(scope="module")
def spoken(tmp_path_factory) -> Path:
    """Two demonstrations with a system turn, one of them with reasoning no template here reads, and one without."""
    root = tmp_path_factory.mktemp("spoken")
    system = (Message("system", "Be brief."), *ASK)
    thought = Completion("Five.", more='{"reasoning_content": "2 and 3"}')
    tables.write(root / "sft", [Group("s0", system, (Completion("Six."),)), Group("s1", ASK, (Completion("Six!"),)),
                                Group("s2", system, (thought,))])
    return root


def test_a_refused_system_turn_is_folded_or_its_row_left_out(spoken, refusing, model, tmp_path):
    folded = run(spoken, refusing, tmp_path / "fold", max_prompt_tokens=34)
    made = {g.id: g for g in tables.read(folded.out / "sft")}
    assert list(made) == ["s0", "s1", "s2"] and folded.report.counts["sft_system_folded"] == 2
    encoder = folders.policy_encoder(refusing)
    shown = encoder.tokenizer.decode(made["s0"].prompt_ids)
    assert shown == "<|bos|><|user|>Be brief.\n\nHow many?<|end|><|assistant|>"
    left = run(spoken, refusing, tmp_path / "drop", max_prompt_tokens=34, system_turns="drop")
    assert [g.id for g in tables.read(left.out / "sft")] == ["s1"] and left.report.dropped == {"sft_system_turn": 2}
    assert encoder.rendering.refuses_later_system is False  # only its first turn may be none
    taken = run(spoken, model, tmp_path / "taken", max_prompt_tokens=34, system_turns="drop")
    assert taken.report.counts["sft"] == 3 and "sft_system_folded" not in taken.report.counts


@pytest.fixture(scope="module")
def reasons(tmp_path_factory) -> Path:
    """Pairs with a rationale, the second in a talk of two turns behind a system turn; one without."""
    root = tmp_path_factory.mktemp("reasons")
    talk = (Message("system", "Be brief."), *ASK, Message("assistant", "Two."), Message("user", "Sure?"))
    answers = (Completion("Six."), Completion("Five!"))
    why = Completion("Assistant 1 counts, assistant 2 guesses.")
    tables.write(root / "pref", [Group("p0", ASK, answers, rationale=why), Group("p1", ASK, answers),
                                 Group("p4", talk, answers, rationale=why)])
    return root


@pytest.mark.parametrize("order", ["random", "chosen_first"])
def test_a_rationale_answers_a_question_about_its_pair(reasons, model, tmp_path, order):
    """The hash of p4 puts the preferred answer second, and the rationale's names follow."""
    roomy = with_context(model, tmp_path / "model", 1024)
    context = run(reasons, roomy, tmp_path / "work", rationale_order=order, max_prompt_tokens=60)
    made, decode = {g.id: g for g in tables.read(context.out / "pref")}, folders.policy_encoder(model).tokenizer.decode
    shown = {name: decode(g.rationale.prompt_ids + g.rationale.token_ids) for name, g in made.items() if g.rationale}
    asks = ("Which of the following assistant's response is more preferable and strictly follows with the prompt "
            "question?\nAssistant 1:\"{}\"\nor\nAssistant 2:\"{}\"?\nProvide a rationale of your answer.<|end|>"
            "<|assistant|>{}<|end|>")
    plain = ("Six.", "Five!", "Assistant 1 counts, assistant 2 guesses.")
    turned = plain if order == "chosen_first" else ("Five!", "Six.", "Assistant 2 counts, assistant 1 guesses.")
    assert shown == {
        "p0": "<|bos|><|user|>Given the prompt:\nHow many?\n" + asks.format(*plain),
        "p4": ("<|bos|><|system|>Be brief.<|end|><|user|>Given the prompt:\nuser: How many?\nassistant: Two.\n"
               "user: Sure?\n" + asks.format(*turned))}
    assert made["p0"].completions == made["p1"].completions and made["p0"].rationale.token_ids[-1] == 2
    assert context.report.counts["pref_rationales"] == 2 and context.report.counts["pref"] == 3


def test_a_rationale_beyond_its_limit_goes_and_its_pair_stays(reasons, model, tmp_path):
    """Without a limit it is the model's context, here 64 tokens, for the question and its answer together."""
    roomy = with_context(model, tmp_path / "model", 1024)
    for name, folder, more in (("context", model, {}), ("limit", roomy, {"max_rationale_tokens": 40})):
        context = run(reasons, folder, tmp_path / name, max_prompt_tokens=34, **more)
        kept = list(tables.read(context.out / "pref"))
        assert [g.rationale for g in kept] == [None] * len(kept) and "p0" in [g.id for g in kept]
        assert context.report.dropped["pref_long_rationale"] >= 1 and "pref_rationales" not in context.report.counts


def with_context(model: Path, folder: Path, tokens: int) -> Path:
    """The model's folder with another length of its context."""
    shutil.copytree(model, folder)
    facts = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**facts, "max_position_embeddings": tokens}))
    return folder


def test_a_field_the_template_does_not_read_is_counted(spoken, model, tmp_path):
    context = run(spoken, model, tmp_path, max_prompt_tokens=34)
    assert context.report.counts["sft_unread_reasoning_content"] == 1
    assert [c.more for g in tables.read(context.out / "sft") for c in g.completions] == [
        "", "", '{"reasoning_content": "2 and 3"}']


def test_a_text_that_cannot_be_written_is_left_out_and_counted(model, tmp_path):
    """A stop token of one letter that is not marked as special is in the text itself: nothing else writes it."""
    folder = shutil.copytree(model, tmp_path / "model")
    tokenizer = folders.load_tokenizer(folder)
    tokenizer.add_tokens(["\N{PILCROW SIGN}"])
    tokenizer.save_pretrained(folder)
    facts = json.loads((folder / "generation_config.json").read_text())
    stops = [*facts["eos_token_id"], tokenizer.convert_tokens_to_ids("\N{PILCROW SIGN}")]
    (folder / "generation_config.json").write_text(json.dumps({**facts, "eos_token_id": stops}))
    tables.write(tmp_path / "data" / "sft", [Group(f"s{i}", ASK, (Completion(text),)) for i, text in enumerate(
        ("Six.", "Six\N{PILCROW SIGN}", "<|end|>"))])
    answers = (Completion("Six."), Completion("Five!"))
    tables.write(tmp_path / "data" / "pref", [
        Group("p0", ASK, answers), Group("p1", ASK, answers, rationale=Completion("Six\N{PILCROW SIGN}"))])
    context = run(tmp_path / "data", folder, tmp_path / "work")
    assert [g.id for g in tables.read(context.out / "sft")] == ["s0", "s2"]
    assert [g.id for g in tables.read(context.out / "pref")] == ["p0"]
    assert context.report.dropped == {"sft_special_text": 1, "pref_special_text": 1}


def test_a_setting_that_came_later_is_not_in_the_key_at_its_default():
    later = {"system_turns", "rationale_order", "max_rationale_tokens"}
    assert not later & keyed(tokenize.Settings()).keys()
    assert keyed(tokenize.Settings(system_turns="drop"))["system_turns"] == "drop"


def test_a_killed_one_goes_on_behind_its_last_part(model, tmp_path, monkeypatch):
    """Three parts of two groups; the last one goes missing as if it had not been written."""
    groups = [Group(f"s{i}", ASK, (Completion("Six." if i % 3 else "seven " * 40),)) for i in range(6)]
    tables.write(tmp_path / "data" / "sft", groups, part_size=2)
    whole = run(tmp_path / "data", model, tmp_path / "whole")
    first = run(tmp_path / "data", model, tmp_path / "work")
    assert [tables.rows(part) for part in tables.parts(first.out / "sft")] == [2, 2, 2]
    (first.out / "sft" / "part-00002.parquet").unlink()
    (tmp_path / "work" / "encoded" / "sft-part-00002.json").unlink()
    made = list[Path]()
    monkeypatch.setattr(tables, "read_part", lambda part, real=tables.read_part: made.append(part) or real(part))
    again = run(tmp_path / "data", model, tmp_path / "work")
    assert [part.name for part in made] == ["part-00002.parquet"]
    assert [(p.name, p.read_bytes()) for p in tables.parts(again.out / "sft")] == [
        (p.name, p.read_bytes()) for p in tables.parts(whole.out / "sft")]
    assert (again.report.counts, again.report.dropped) == (whole.report.counts, whole.report.dropped)
    assert whole.report.dropped == {"sft_truncated": 2}
