"""Talking to a folder: the prompt is the template's, the stream is what the engine samples, and a room is kept."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

from pipeline.engines.transformers import sampling, talk
from pipeline.errors import UserError
from pipeline.records import Message

ASKED = [Message("user", "Hi."), Message("assistant", "Yes?"), Message("user", "The cat")]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_stream_is_what_the_engine_samples(tiny_model, temperature):
    talker = talk.opened(tiny_model, "float32")
    request = talker.request("a", ASKED, 20, temperature, seed=5)
    (reply,) = talker.replies([request])
    pieces = list(talker.stream(request))
    assert len(pieces) == reply.tokens
    assert "".join(pieces) == reply.text.rstrip("\ufffd"), "a character that is cut in the middle is not shown"
    (made,) = sampling.generate(talker.network, [request])[0]
    assert list(sampling.stream(talker.network, request)) == made.token_ids


def test_the_prompt_is_the_templates_and_greedy_is_transformers_own(tiny_model):
    talker = talk.opened(tiny_model, "float32")
    request = talker.request("a", ASKED, 12, 0.0, seed=0)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_model)
    turns = [{"role": m.role, "content": m.content} for m in ASKED]
    ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True)["input_ids"]
    assert list(request.prompt_ids) == ids
    assert set(request.stop_ids) == {2, 6}
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_model)
    made = model.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False, eos_token_id=[2, 6])
    assert talker.replies([request])[0].text == tokenizer.decode(made[0, len(ids):], skip_special_tokens=True)


def test_an_answer_is_cut_to_the_room_and_a_full_context_is_refused(tiny_model):
    """tests/conftest's model has 256 positions."""
    talker = talk.opened(tiny_model, "float32")
    short = talker.request("a", ASKED, 1000, 0.0, 0)
    assert len(short.prompt_ids) + short.max_tokens == 256
    with pytest.raises(UserError, match=r"row 3: \d+ tokens, with the answer the model's context holds 256"):
        talker.request("row 3", [Message("user", "z" * 300)], 1000, 0.0, 0)
    with pytest.raises(UserError, match=r"b: \d+ tokens") as caught:
        talk.answers(tiny_model, "float32", [("a", ASKED), *((n, [Message("user", "z" * 300)]) for n in "bc")], 9, 0.0,
                     0)
    assert len(caught.value.problems) == 2


def test_a_folder_that_lists_no_stop_ids_ends_where_its_template_does(make_model, tmp_path: Path):
    """tests/conftest's template ends an answer with </s>, id 2."""
    folder = make_model(tmp_path / "model")
    (folder / "generation_config.json").unlink()
    assert talk.opened(folder, "float32").encoder.stop_ids == (2,)


def test_folders_that_cannot_talk(tiny_model, tmp_path: Path):
    with pytest.raises(UserError, match=r"no config\.json, expected a Hugging Face model folder"):
        talk.opened(tmp_path, "float32")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = None
    transformers.AutoModelForCausalLM.from_pretrained(tiny_model).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"no chat template, .*chat_template\.jinja"):
        talk.opened(tmp_path, "float32")
