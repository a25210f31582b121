"""Tiny models and examples of random ids: enough to check the arithmetic, without a tokenizer."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers

from pipeline.lm.examples import Example

VOCABULARY = 64


def make_examples(number: int, k: int = 2, seed: int = 0, reference: bool = True) -> list[Example]:
    """`number` groups of k completions, 1 to 9 tokens each, prompts of 2 to 12."""
    rng = np.random.default_rng(seed)

    def ids(low: int, high: int) -> np.ndarray:
        return rng.integers(3, VOCABULARY, rng.integers(low, high)).astype(np.int32)

    return [Example(f"g{i}", ids(2, 13), tuple(ids(1, 10) for _ in range(k)), weight=float(rng.integers(1, 4)),
                    ref_logps=tuple(-rng.random(k) * 30) if reference else None) for i in range(number)]


def make_llama(seed: int = 0) -> transformers.PreTrainedModel:
    torch.manual_seed(seed)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=True, initializer_range=0.3))


@pytest.fixture
def tiny() -> SimpleNamespace:
    """examples(number, k, ...) and llama(seed)."""
    return SimpleNamespace(examples=make_examples, llama=make_llama, vocabulary=VOCABULARY)
