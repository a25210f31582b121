"""Ids through chat templates and a real vLLM: what is sent is what is computed on, what is sampled is what comes back.

The templates are those of Llama-3, Qwen 2.5 (without tools), Mistral (v0.1), ChatML and a plain one; each with a
tokenizer that has its special tokens, on the tiny model.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline.engines.engine import Request, model_facts
from pipeline.engines.vllm import client, service
from pipeline.engines.vllm import engine as vllm
from pipeline.lm.template import Encoder
from pipeline.records import Completion, Group, Message

TEMPLATES = Path(__file__).parent / "templates"
TEXTS = ["What is the best way to learn a new language?", "Please write a short note.", "First boil the water"]


@dataclass(frozen=True)
class Family:
    """A tokenizer's special tokens, which of them start and end things, and how a prompt must look."""

    special: tuple[str, ...]
    bos: str | None
    eos: str
    stop: tuple[str, ...]
    before: str  # the rendering before the user's text
    after: str  # and after it: where the answer begins


HEADER = "<|start_header_id|>{}<|end_header_id|>\n\n"
FAMILIES = {
    "llama3": Family(
        ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        "<|begin_of_text|>", "<|eot_id|>", ("<|end_of_text|>", "<|eot_id|>"),
        "<|begin_of_text|>" + HEADER.format("user"), "<|eot_id|>" + HEADER.format("assistant")),
    "qwen": Family(
        ("<|endoftext|>", "<|im_start|>", "<|im_end|>"), None, "<|im_end|>", ("<|im_end|>", "<|endoftext|>"),
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n",
        "<|im_end|>\n<|im_start|>assistant\n"),
    "mistral": Family(("<unk>", "<s>", "</s>"), "<s>", "</s>", ("</s>",), "<s>[INST] ", " [/INST]"),
    "chatml": Family(
        ("<|im_start|>", "<|im_end|>"), None, "<|im_end|>", ("<|im_end|>",), "<|im_start|>user\n",
        "<|im_end|>\n<|im_start|>assistant\n"),
    "plain": Family(("<s>", "</s>"), "<s>", "</s>", ("</s>",), "<s>user: ", "\nassistant:"),
}


def make_tokenizer(family: Family, template: str):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.train_from_iterator(TEXTS, trainers.BpeTrainer(
        vocab_size=320, special_tokens=list(family.special), show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    made = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token=family.bos, eos_token=family.eos,
        additional_special_tokens=list(family.special))
    made.chat_template = template
    return made


@pytest.fixture(params=FAMILIES)
def dressed(request, tiny_model, tmp_path):
    """The tiny model's weights with the family's tokenizer, template and stop ids; the family; its encoder."""
    family = FAMILIES[request.param]
    folder = shutil.copytree(tiny_model, tmp_path / request.param)
    tokenizer = make_tokenizer(family, (TEMPLATES / f"{request.param}.jinja").read_text().rstrip("\n"))
    tokenizer.save_pretrained(folder)
    stop_ids = tokenizer.convert_tokens_to_ids(list(family.stop))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": stop_ids}))
    return folder, family, Encoder(tokenizer, tuple(stop_ids))


def groups() -> list[Group]:
    return [Group(f"g{i}", (Message("user", text),), (Completion("boil the water. "[i:]),))
            for i, text in enumerate(TEXTS)]


def test_an_encoded_prompt_has_its_bos_once_and_its_boundary_where_the_template_puts_it(dressed):
    _, family, encoder = dressed
    for group, text in zip(encoder.encode(groups()), TEXTS, strict=True):
        rendered = encoder.tokenizer.decode(group.prompt_ids)
        assert rendered == f"{family.before}{text}{family.after}"
        if family.bos:
            bos = encoder.tokenizer.convert_tokens_to_ids(family.bos)
            assert group.prompt_ids.count(bos) == 1 and group.prompt_ids[0] == bos
        (completion,) = group.completions
        assert completion.token_ids[-1] == encoder.tokenizer.convert_tokens_to_ids(family.eos)
        assert not set(completion.token_ids[:-1]) & set(encoder.stop_ids)


@pytest.mark.slow
def test_ids_go_through_vllm_unchanged(use_vllm, dressed, tmp_path):
    folder, _, encoder = dressed
    stop_ids = model_facts(folder).stop_ids
    assert set(stop_ids) == set(encoder.stop_ids)
    encoded = encoder.encode(groups())
    wanted = [Request(g.prompt_ids, 16, 1.5, 1.0, 0, 24, stop_ids, 7 * i) for i, g in enumerate(encoded)]
    with vllm.open_engine(folder, vllm.Settings(), tmp_path / "no.log") as engine:
        answers = list(engine.sample(wanted))
    reasons = set()
    for group, answer in zip(encoded, answers, strict=True):
        body = {"model": service.SERVED, "prompt": group.prompt_ids, "max_tokens": 1, "return_token_ids": True}
        _, echoed = client.call(f"{use_vllm.url}/v1/completions", use_vllm.key, body)
        assert tuple(echoed["choices"][0]["prompt_token_ids"]) == group.prompt_ids
        prompt = encoder.tokenizer.decode(group.prompt_ids)
        for sample in answer.samples:
            reasons.add(sample.finish_reason)
            assert (sample.token_ids[-1] in stop_ids) == (sample.finish_reason == "stop")
            assert not set(sample.token_ids[:-1]) & set(stop_ids)
            assert sample.text == encoder.tokenizer.decode(sample.token_ids, skip_special_tokens=True)
            whole = encoder.tokenizer.decode([*group.prompt_ids, *sample.token_ids])
            assert whole == prompt + encoder.tokenizer.decode(sample.token_ids)
    assert reasons == {"stop", "length"}
