"""Tiny models from nothing: a byte-level BPE tokenizer with a chat template, and a Llama drawn from a seed."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BOS, PAD, USER, ASSISTANT, SYSTEM, END = "<|bos|>", "<|pad|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"
IM_START, IM_END = "<|im_start|>", "<|im_end|>"


@dataclass(frozen=True)
class Template:
    """A Jinja chat template, its special tokens, and the one that ends a turn."""

    text: str
    specials: tuple[str, ...]
    end: str


# `roles` spends one token on a role and puts no text next to a boundary, so no merge can cross it.
TEMPLATES = {
    "roles": Template(
        BOS + "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '" + END + "' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '" + ASSISTANT + "' }}{% endif %}",
        (PAD, BOS, END, USER, ASSISTANT, SYSTEM), END),
    "chatml": Template(
        BOS + "{% for m in messages %}{{ '" + IM_START + "' + m['role'] + '\\n' + m['content'] + '" + IM_END
        + "\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '" + IM_START + "assistant\\n' }}{% endif %}",
        (PAD, BOS, IM_START, IM_END), IM_END),
    # Running text: an answer goes on behind its prompt.
    "text": Template(
        BOS + "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ ' ' + m['content'] + '" + END + "' }}"
        "{% else %}{{ m['content'] }}{% endif %}{% endfor %}",
        (PAD, BOS, END), END),
}


def train_tokenizer(texts: Iterable[str], vocab_size: int, template: Template, context: int) -> Any:
    """A byte-level BPE (GPT-2's) of at most `vocab_size` entries, specials first. Any text round-trips."""
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=list(template.specials), show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token=BOS, eos_token=template.end, pad_token=PAD, chat_template=template.text,
        additional_special_tokens=[t for t in template.specials if t not in (PAD, BOS, template.end)],
        model_max_length=context, clean_up_tokenization_spaces=False)


def corpus(data: Path) -> Iterator[str]:
    """Every text of the training splits; the evaluation split is not looked at."""
    from pipeline import tables

    for split in ("sft", "pref", "unlabeled"):
        for group in tables.read(data / split):
            yield from (m.content for m in group.messages)
            yield from (c.text for c in group.completions)


def tiny_llama(arch: Any, tokenizer: Any, seed: int) -> Any:
    """A Llama with random float32 weights drawn from `seed`."""
    import torch
    import transformers

    torch.manual_seed(seed)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=arch.hidden_size, intermediate_size=arch.intermediate_size,
        num_hidden_layers=arch.layers, num_attention_heads=arch.heads, num_key_value_heads=arch.kv_heads,
        max_position_embeddings=arch.max_position, tie_word_embeddings=arch.tie_embeddings,
        initializer_range=arch.initializer_range, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, dtype="float32",
        rope_parameters={"rope_type": "default", "rope_theta": arch.rope_theta}))
