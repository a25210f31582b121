"""Chat templates after the published ones, each with the special tokens of its family, on small tokenizers made here.

A test that wants a family takes `SHAPES[name]` and `tokenizer_of(shape)`; ids differ from the published ones, the
rendering does not.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from typing import Any

TEXTS = ["Name three birds that can swim.", "Ducks, swans and grebes.", "Say it again, shorter please."] * 4


@dataclass(frozen=True)
class Shape:
    """A family's template and tokens. bos, eos and pad are roles; `stops` is what generation_config.json lists."""

    template: str | None
    special: tuple[str, ...]
    bos: str | None
    eos: str
    stops: tuple[str, ...]
    end: str  # what ends an answer: the first stop token the template writes behind it
    unmarked: tuple[str, ...] = ()  # added tokens that are not marked as special
    metaspace: bool = False  # SentencePiece's way with spaces and bytes, else GPT-2's
    system: bool = True  # whether the template takes system turns
    adds_bos: bool = False  # whether the tokenizer puts BOS in front of a text by itself
    prompt: str = ""  # the rendering of one user turn "Hi", up to where the answer begins


def _turns(head: str, user: str, assistant: str, system: str, generation: str) -> str:
    return (head + "{% for message in messages %}{% if message['role'] == 'user' %}" + user
            + "{% elif message['role'] == 'assistant' %}" + assistant + "{% else %}" + system
            + "{% endif %}{% endfor %}" + generation)


_CHATML = ("{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>'"
           " + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")
_DEFAULT = "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are helpful.<|im_end|>\n' }}{% endif %}"
_REFUSE = "{{ raise_exception('System role not supported') }}"
_LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}"
    "{% set system_message = false %}{% endif %}{% for message in loop_messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if loop.index0 == 0 and system_message != false %}"
    "{% set content = '<<SYS>>\n' + system_message + '\n<</SYS>>\n\n' + message['content'] %}{% else %}"
    "{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% else %}"
    "{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}")
_LLAMA3 = (
    "{{ bos_token }}{% if strftime_now is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% else %}"
    "{% set date_string = '26 Jul 2024' %}{% endif %}{% if messages[0]['role'] == 'system' %}"
    "{% set system_message = messages[0]['content'] | trim %}{% set messages = messages[1:] %}{% else %}"
    "{% set system_message = '' %}{% endif %}{{ '<|start_header_id|>system<|end_header_id|>\n\n' }}"
    "{{ 'Cutting Knowledge Date: December 2023\n' }}{{ 'Today Date: ' + date_string + '\n\n' }}{{ system_message }}"
    "{{ '<|eot_id|>' }}{% for message in messages %}{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>"
    "\n\n' + message['content'] | trim + '<|eot_id|>' }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}")
_MODEL = ("{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}"
          "{% endif %}")
_MODEL_PROMPT = "{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
_GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}" + _REFUSE + "{% endif %}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must "
    "alternate user/assistant/user/assistant/...') }}{% endif %}" + _MODEL +
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}" + _MODEL_PROMPT)
_GEMMA3 = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{% set first_user_prefix = messages[0]['content'] + '\n\n' %}{% set loop_messages = messages[1:] %}{% else %}"
    "{% set first_user_prefix = '' %}{% set loop_messages = messages %}{% endif %}{% for message in loop_messages %}"
    + _MODEL + "{{ '<start_of_turn>' + role + '\n' + (first_user_prefix if loop.first else '') }}"
    "{{ message['content'] | trim }}{{ '<end_of_turn>\n' }}{% endfor %}" + _MODEL_PROMPT)
_QWEN3 = (
    "{% if tools %}{{ '<|im_start|>system\n' }}{% if messages[0].role == 'system' %}{{ messages[0].content + '\n\n' }}"
    "{% endif %}{{ '# Tools' }}{% for tool in tools %}{{ '\n' }}{{ tool | tojson }}{% endfor %}{{ '<|im_end|>\n' }}"
    "{% elif messages[0].role == 'system' %}{{ '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}"
    "{% endif %}{% set ns = namespace(last=messages|length - 1) %}{% for message in messages %}"
    "{% if message.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for message in messages %}{% set content = message.content %}{% if message.role == 'user' %}"
    "{{ '<|im_start|>user\n' + content + '<|im_end|>\n' }}{% elif message.role == 'assistant' %}"
    "{% set reasoning_content = '' %}{% if message.reasoning_content is string %}"
    "{% set reasoning_content = message.reasoning_content %}{% elif '</think>' in content %}"
    "{% set reasoning_content = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}"
    "{% set content = content.split('</think>')[-1].lstrip('\n') %}{% endif %}{{ '<|im_start|>assistant\n' }}"
    "{% if loop.index0 > ns.last and (loop.last or reasoning_content) %}"
    "{{ '<think>\n' + reasoning_content.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') }}{% else %}{{ content }}"
    "{% endif %}{% if message.tool_calls %}{% for call in message.tool_calls %}"
    "{{ '\n<tool_call>\n' }}{{ call.function | tojson }}{{ '\n</tool_call>' }}{% endfor %}{% endif %}"
    "{{ '<|im_end|>\n' }}{% elif message.role == 'tool' %}"
    "{{ '<|im_start|>user\n<tool_response>\n' + content + '\n</tool_response><|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{% endif %}")
_R1 = (
    "{% set ns = namespace(system='') %}{% for message in messages %}{% if message['role'] == 'system' %}"
    "{% set ns.system = message['content'] %}{% endif %}{% endfor %}{{ bos_token }}{{ ns.system }}"
    "{% for message in messages %}{% if message['role'] == 'user' %}{{ '<｜User｜>' + message['content'] }}"
    "{% elif message['role'] == 'assistant' %}{% set content = message['content'] %}{% if '</think>' in content %}"
    "{% set content = content.split('</think>')[-1] %}{% endif %}"
    "{{ '<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\n' }}{% endif %}")
_SMOLLM3 = (
    "{{ '<|im_start|>system\n## Metadata\n\nToday Date: ' + strftime_now('%d %B %Y') + '\n\n' }}"
    "{% if messages[0].role == 'system' %}{{ messages[0].content }}{% endif %}{{ '<|im_end|>\n' }}"
    "{% for message in messages %}{% if message.role == 'user' %}"
    "{{ '<|im_start|>user\n' + message.content + '<|im_end|>\n' }}{% elif message.role == 'assistant' %}"
    "{{ '<|im_start|>assistant\n<think>\n\n</think>\n' + message.content.lstrip('\n') + '<|im_end|>\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n\n</think>\n' }}{% endif %}")
_FALCON = (
    "{% for message in messages %}{% if not loop.first %}{{ '\n' }}{% endif %}{% if message['role'] == 'system' %}"
    "{{ 'System: ' }}{% elif message['role'] == 'user' %}{{ 'User: ' }}{% else %}{{ 'Falcon:\n' }}{% endif %}"
    "{{ message['content'] }}{% if message['role'] == 'assistant' %}{{ '<|endoftext|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\nFalcon:\n' }}{% endif %}")
_MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
    "{{ ' ' + message['content'] + eos_token }}{% else %}"
    "{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}")

_IM = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_IM_STOPS = ("<|im_end|>", "<|endoftext|>")
_L3 = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
_THINK = ("<think>", "</think>")
_PHI = ("<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
_R1_TOKENS = ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>")

SHAPES = {
    "llama2": Shape(_LLAMA2, ("<unk>", "<s>", "</s>"), "<s>", "</s>", ("</s>",), "</s>", metaspace=True, adds_bos=True,
                    prompt="<s>[INST] Hi [/INST]"),
    "llama3": Shape(_LLAMA3, _L3, _L3[0], "<|eot_id|>", ("<|end_of_text|>", "<|eot_id|>"), "<|eot_id|>", adds_bos=True,
                    prompt="<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: "
                           "December 2023\nToday Date: 26 Jul 2024\n\n<|eot_id|><|start_header_id|>user"
                           "<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"),
    "mistral": Shape(_MISTRAL, ("<unk>", "<s>", "</s>"), "<s>", "</s>", ("</s>",), "</s>", metaspace=True, system=False,
                     adds_bos=True, prompt="<s>[INST] Hi [/INST]"),
    "gemma2": Shape(_GEMMA, ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"), "<bos>", "<eos>",
                    ("<eos>", "<end_of_turn>"), "<end_of_turn>", system=False, adds_bos=True,
                    prompt="<bos><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n"),
    "gemma3": Shape(_GEMMA3, ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"), "<bos>", "<eos>",
                    ("<eos>", "<end_of_turn>"), "<end_of_turn>", adds_bos=True,
                    prompt="<bos><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n"),
    "phi3": Shape("{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' "
                  "}}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}"
                  "{% endif %}",
                  ("<s>", *_PHI), "<s>", "<|endoftext|>", ("<|endoftext|>", "<|assistant|>", "<|end|>"), "<|end|>",
                  prompt="<|user|>\nHi<|end|>\n<|assistant|>\n"),
    "phi4_mini": Shape("{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' "
                       "}}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% else %}{{ eos_token }}"
                       "{% endif %}", _PHI, "<|endoftext|>", "<|endoftext|>", ("<|end|>", "<|endoftext|>"), "<|end|>",
                       prompt="<|user|>Hi<|end|><|assistant|>"),
    "qwen2_5": Shape(_DEFAULT + _CHATML, _IM, None, "<|im_end|>", _IM_STOPS, "<|im_end|>",
                     prompt="<|im_start|>system\nYou are helpful.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
                            "<|im_start|>assistant\n"),
    "qwen3": Shape(_QWEN3, _IM, None, "<|im_end|>", _IM_STOPS, "<|im_end|>", unmarked=_THINK,
                   prompt="<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"),
    "smollm2": Shape(_DEFAULT + _CHATML, _IM, "<|im_start|>", "<|im_end|>", ("<|im_end|>",), "<|im_end|>",
                     prompt="<|im_start|>system\nYou are helpful.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
                            "<|im_start|>assistant\n"),
    "smollm3": Shape(_SMOLLM3, _IM, "<|im_start|>", "<|im_end|>", ("<|im_end|>",), "<|im_end|>", unmarked=_THINK,
                     prompt="<|im_start|>system\n## Metadata\n\nToday Date: 26 July 2024\n\n<|im_end|>\n"
                            "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n"),
    "olmo2": Shape("{{ bos_token }}" + _turns(
        "", "{{ '<|user|>\n' + message['content'] + '\n' }}",
        "{{ '<|assistant|>\n' + message['content'] + eos_token + ('' if loop.last else '\n') }}",
        "{{ '<|system|>\n' + message['content'] + '\n' }}",
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"), ("<|endoftext|>", "<|pad|>"),
        "<|endoftext|>", "<|endoftext|>", ("<|endoftext|>",), "<|endoftext|>",
        prompt="<|endoftext|><|user|>\nHi\n<|assistant|>\n"),
    "falcon": Shape(_FALCON, ("<|endoftext|>",), None, "<|endoftext|>", ("<|endoftext|>",), "<|endoftext|>",
                    prompt="User: Hi\nFalcon:\n"),
    "r1": Shape(_R1, _R1_TOKENS, _R1_TOKENS[0], _R1_TOKENS[1], (_R1_TOKENS[1],), _R1_TOKENS[1], unmarked=_THINK,
                adds_bos=True, prompt="<｜begin▁of▁sentence｜><｜User｜>Hi<｜Assistant｜><think>\n"),
    "gpt2": Shape(None, ("<|endoftext|>",), "<|endoftext|>", "<|endoftext|>", ("<|endoftext|>",), "<|endoftext|>"),
}


@cache
def _inner(special: tuple[str, ...], unmarked: tuple[str, ...], metaspace: bool) -> str:
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    if metaspace:
        made = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
                                          decoders.Strip(" ", 1, 0)])
        letters = [f"<0x{i:02X}>" for i in range(256)]
    else:
        made = Tokenizer(models.BPE())
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
        letters = []
    made.train_from_iterator(TEXTS, trainers.BpeTrainer(
        vocab_size=400 if metaspace else 320, special_tokens=[*special, *letters], show_progress=False,
        initial_alphabet=[] if metaspace else pre_tokenizers.ByteLevel.alphabet()))
    made.add_tokens([AddedToken(name, special=False, normalized=False) for name in unmarked])
    whole = json.loads(made.to_str())
    # bytes are ordinary tokens
    whole["added_tokens"] = [one for one in whole["added_tokens"] if one["content"] not in letters]
    return json.dumps(whole)


def tokenizer_of(shape: Shape) -> Any:
    """A small tokenizer with the shape's tokens and template. Any text round-trips."""
    from tokenizers import Tokenizer, processors
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer.from_str(_inner(shape.special, shape.unmarked, shape.metaspace))
    if shape.adds_bos and shape.bos is not None:
        inner.post_processor = processors.TemplateProcessing(
            single=f"{shape.bos} $A", special_tokens=[(shape.bos, inner.token_to_id(shape.bos))])
    made = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token=shape.bos, eos_token=shape.eos, pad_token=shape.special[0],
        unk_token="<unk>" if "<unk>" in shape.special else None, additional_special_tokens=list(shape.special),
        clean_up_tokenization_spaces=False)
    made.chat_template = shape.template
    return made


def stop_ids_of(shape: Shape, tokenizer: Any) -> tuple[int, ...]:
    return tuple(tokenizer.convert_tokens_to_ids(list(shape.stops)))
