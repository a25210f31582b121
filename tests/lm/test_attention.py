"""One function of the model: whatever hardware= asks for, trainer, reference, reward model and engine compute the same.

Families with weights of their own, large enough that a cap, a window or a sink shows. The published ones go through the
same options in tests/lm/test_families.py.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from pipeline.engines.engine import Request
from pipeline.engines.transformers import sampling
from pipeline.lm import attention, folders, forward, logps, scores
from pipeline.lm.examples import Example
from pipeline.lm.settings import ModelRuntime

CPU = torch.device("cpu")
SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.3, "pad_token_id": 0,
         "bos_token_id": 1, "eos_token_id": 2}
FALCON = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
          "initializer_range": 0.3, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2}
FAMILIES = {
    "llama": (transformers.LlamaConfig, SIZES),
    "gemma2": (transformers.Gemma2Config, SIZES | {"head_dim": 8, "attn_logit_softcapping": 0.5, "sliding_window": 4}),
    "gemma3": (transformers.Gemma3TextConfig, SIZES | {"head_dim": 8, "sliding_window": 4}),
    "qwen2 sliding": (transformers.Qwen2Config, SIZES | {"use_sliding_window": True, "sliding_window": 5,
                                                         "max_window_layers": 1}),
    "mistral sliding": (transformers.MistralConfig, SIZES | {"sliding_window": 4}),
    "phi3": (transformers.Phi3Config, SIZES | {"sliding_window": 4}),
    "gpt2": (transformers.GPT2Config, {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64,
                                       "initializer_range": 0.3, "bos_token_id": 1, "eos_token_id": 2}),
    "falcon": (transformers.FalconConfig, FALCON),
    "falcon alibi": (transformers.FalconConfig, FALCON | {"alibi": True}),
    "olmo2": (transformers.Olmo2Config, SIZES),
    "gpt-oss": (transformers.GptOssConfig, SIZES | {"head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2,
                                                    "sliding_window": 4}),
}
REFUSED = {"gemma2": "softcap", "falcon": "attention layers of its own", "falcon alibi": "attention layers of its own",
           "gpt-oss": "does not support an attention implementation through torch"}
OPTIONS = [ModelRuntime(device="cpu", attention=name, share_prefix=shared, gradient_checkpointing=checkpointing)
           for name in ("eager", "sdpa") for shared in (True, False) for checkpointing in (False, True)]


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory) -> tuple[str, Path]:
    config, values = FAMILIES[request.param]
    folder = tmp_path_factory.mktemp("family") / "model"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.AutoModelForCausalLM.from_config(config(**values)).save_pretrained(folder)
    return request.param, folder


def plain(folder: Path, kind: type, attention: str, **options: object):
    """The model by transformers alone."""
    return kind.from_pretrained(folder, attn_implementation=attention, dtype=torch.float32, **options).eval()


def rows(example: Example) -> list[torch.Tensor]:
    return [torch.from_numpy(np.concatenate([example.prompt, c]).astype(np.int64))[None] for c in example.completions]


@torch.no_grad()
def test_every_option_gives_the_log_probs_of_the_familys_own_code(family, tiny, capsys):
    name, folder = family
    examples = tiny.examples(3, k=2)
    model = plain(folder, transformers.AutoModelForCausalLM, "eager")
    wanted = []
    for example in examples:
        kept = [model(input_ids=ids).logits[0, len(example.prompt) - 1:-1].log_softmax(-1) for ids in rows(example)]
        wanted.append([p.gather(1, torch.from_numpy(c).long()[:, None]).sum().item()
                       for p, c in zip(kept, example.completions, strict=True)])
    for runtime in OPTIONS:
        found = logps.completion_logps(logps.open_frozen(folder, CPU, runtime, "float32"), examples, runtime, "float32")
        assert np.allclose(found, wanted, atol=2e-4), runtime
    said = capsys.readouterr().err
    assert ("would compute another model" in said) == (name in REFUSED) and REFUSED.get(name, "") in said


@torch.no_grad()
def test_the_engine_samples_with_the_same_model(family):
    """A prompt longer than every window, and the log-probs that the engine keeps against those of the reference."""
    name, folder = family
    network = sampling.load(folder, "float32", CPU)
    assert network.config._attn_implementation == ("eager" if name in REFUSED else "sdpa")
    prompt = np.arange(3, 15, dtype=np.int32)
    made = sampling.generate(network, [Request(tuple(prompt.tolist()), 2, 1.0, 1.0, 0, 8, (2,), 7, True)])[0]
    example = Example("a", prompt, tuple(np.array(m.token_ids, np.int32) for m in made))
    for runtime in OPTIONS:
        found = logps.token_logps(logps.open_frozen(folder, CPU, runtime, "float32"), [example], runtime, "float32")[0]
        assert all(np.allclose(m.logprobs, ours, atol=1e-4) for m, ours in zip(made, found, strict=True)), runtime


@torch.no_grad()
def test_the_reward_model_scores_with_the_same_model(family, tiny):
    _, folder = family
    examples = tiny.examples(3, k=2)
    torch.manual_seed(0)
    transformers.AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=1, pad_token_id=0, dtype=torch.float32).save_pretrained(folder.with_name("reward"))
    model = plain(folder.with_name("reward"), transformers.AutoModelForSequenceClassification, "eager")
    wanted = [[model(input_ids=ids).logits.item() for ids in rows(example)] for example in examples]
    for runtime in OPTIONS[::2]:  # no gradient
        net = folders.load_scorer(folder.with_name("reward"), CPU, runtime)
        scores.prepare(net, runtime.share_prefix)
        assert np.allclose(scores.completion_scores(net, examples, 2048, "float32"), wanted, atol=2e-4), runtime


def test_the_head_of_a_reward_model_is_drawn_alike(family):
    """Also where a model is loaded twice, because the attention asked for cannot be had."""
    _, folder = family
    heads = [next(p for n, p in folders.load_reward(folder, CPU, 3, 0, runtime).named_parameters() if "score" in n)
             for runtime in (OPTIONS[0], OPTIONS[-1])]
    assert torch.equal(*heads)


def test_what_layers_hand_to_their_attention(tiny):
    """A cap as Gemma 2's counts; positions and windows, which every attention function here follows, do not."""
    def of(config: type, values: dict) -> set[str] | None:
        return attention.handed(transformers.AutoModelForCausalLM.from_config(config(**values)))

    assert of(*FAMILIES["gemma2"]) - {"dropout", "scaling"} == {"softcap"}
    assert of(*FAMILIES["mistral sliding"]) - {"dropout", "scaling"} == set()
    assert of(*FAMILIES["gpt-oss"]) - {"dropout", "scaling"} == {"s_aux"}
    assert of(*FAMILIES["falcon"]) is None
    model = tiny.llama().train()
    assert attention.handed(model) is not None
    assert model.training and model.config._attn_implementation == "sdpa" and not forward.is_shared(model)
