"""What objectives read of the logits, chunk by chunk, against the same written out on whole (tokens, vocabulary)."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import load_part
from pipeline.errors import UserError
from pipeline.lm import head
from pipeline.objectives.contract import Objective, TokenInputs
from pipeline.training.gradients import BatchFacts
from pipeline.training.policy import PolicyTask

N, H, V, K = 23, 16, 512, 3


def model_of(seed: int, vocabulary: int = V, kind: torch.dtype = torch.float64, **config) -> torch.nn.Module:
    torch.manual_seed(seed)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(
        vocab_size=vocabulary, hidden_size=H, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        tie_word_embeddings=False, initializer_range=0.5)).to(kind)
    if config.pop("bias", False):
        model.lm_head = torch.nn.Linear(H, vocabulary, bias=True, dtype=kind)
    for name, value in config.items():
        setattr(model.config, name, value)
    return model


def written_out(model, hidden, targets, reference, ref_hidden) -> head.Reductions:
    """The definitions, on all logits at once."""
    logits = head.head_logits(model, hidden)
    logps, q = logits.log_softmax(1), head.head_logits(reference, ref_hidden).detach().log_softmax(1)
    top = logits.topk(K, dim=1)
    return head.Reductions(
        logps.gather(1, targets[:, None])[:, 0], logits.gather(1, targets[:, None])[:, 0], top.values, top.indices,
        logps.detach().exp().square().sum(1).log(), q.gather(1, targets[:, None])[:, 0], (q.exp() * (q - logps)).sum(1))


def summed(found: head.Reductions, slopes: head.Reductions) -> torch.Tensor:
    """A scalar in which every reduction that has a gradient has slopes of its own."""
    pairs = ((found.logps, slopes.logps), (found.target_logits, slopes.target_logits),
             (found.top_logits, slopes.top_logits), (found.divergences, slopes.divergences))
    return sum((a * b).sum() for a, b in pairs)


@pytest.mark.parametrize("chunk", [2, 8 * V, 40 * V, 2**27], ids=["one token", "four", "twenty", "whole"])
@pytest.mark.parametrize("config", [{}, {"bias": True}, {"logit_scale": 0.25}, {"final_logit_softcapping": 2.0}],
                         ids=lambda c: next(iter(c), "plain"))
@pytest.mark.parametrize(("kind", "near"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_values_and_gradients_are_those_of_whole_logits(config, chunk, kind, near):
    model, reference = model_of(1, kind=kind, **config), model_of(2, kind=kind)
    torch.manual_seed(3)
    hidden, ref_hidden = torch.randn(2, N, H, dtype=kind).unbind()
    hidden.requires_grad_()
    targets = torch.randint(0, V, (N,))
    targets[:5] = head.head_logits(model, hidden)[:5].argmax(1)  # a target that is among the largest
    leaves = [hidden, *model.get_output_embeddings().parameters()]
    ours = head.reduced(model, hidden, targets, chunk, K, True, (reference, ref_hidden))
    naive = written_out(model, hidden, targets, reference, ref_hidden)
    for name, a, b in zip(ours._fields, ours, naive, strict=True):
        assert torch.allclose(a, b, atol=near, rtol=near), name
        assert a.requires_grad == (name not in ("top_ids", "log_sum_squares", "ref_logps")), name
    slopes = head.Reductions(*(torch.randn(v.shape, dtype=kind) for v in naive))
    for a, b in zip(*(torch.autograd.grad(summed(f, slopes), leaves) for f in (ours, naive)), strict=True):
        assert torch.allclose(a, b, atol=10 * near, rtol=near), (a - b).abs().max()


@pytest.mark.parametrize("used", ["logps", "target_logits", "top_logits", "divergences"])
def test_a_reduction_alone_has_its_own_gradient(used):
    """What the loss does not use adds nothing."""
    model, reference = model_of(1), model_of(2)
    hidden, targets = torch.randn(N, H, dtype=torch.float64, requires_grad=True), torch.arange(N)
    ours = head.reduced(model, hidden, targets, 8 * V, K, False, (reference, hidden.detach()))
    naive = written_out(model, hidden, targets, reference, hidden.detach())
    found = [torch.autograd.grad(getattr(f, used).square().sum(), hidden)[0] for f in (ours, naive)]
    assert torch.allclose(*found, atol=1e-9) and found[0].abs().max() > 0


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 700), st.integers(1, 9), st.integers(0, 10**6))
def test_largest_is_topk(vocabulary, k, seed):
    logits = torch.randn(4, vocabulary, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(head.largest(logits, k), logits.topk(min(k, vocabulary), dim=1).indices)


def test_largest_with_ties_takes_largest_values():
    """bfloat16 has many equal logits: which of them is taken is open, their values are not."""
    logits = torch.randn(50, 1000, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert torch.equal(logits.gather(1, head.largest(logits, 6)), logits.topk(6, dim=1).values)


def test_nothing_of_the_size_of_all_logits_is_kept():
    """Beyond the budget, 4 of 23 tokens here, no tensor of the graph has a vocabulary of columns."""
    hidden = torch.randn(N, H, dtype=torch.float64, requires_grad=True)
    found = head.reduced(model_of(1), hidden, torch.zeros(N, dtype=torch.int64), 8 * V,
                         K, True, (model_of(2), hidden.detach()))
    kept = [t for t in found.logps.grad_fn.saved_tensors if t is not None and t.shape[-1] == V]
    assert sum(len(t) for t in kept) == 8  # four of the policy's, four of the reference's


def test_another_vocabulary_is_named():
    hidden = torch.randn(N, H, dtype=torch.float64)
    with pytest.raises(UserError, match="reference_model: its vocabulary has 600 tokens, the policy's 512"):
        head.reduced(model_of(1), hidden, torch.zeros(N, dtype=torch.int64), 2**27,
                     reference=(model_of(2, 600), hidden))


@pytest.mark.parametrize("spec", [
    {"module": "pipeline.objectives.pairwise_cringe", "alpha": 0.3},
    {"module": "pipeline.objectives.hard_cringe", "b": 200.0},
    {"module": "pipeline.objectives.binary_cringe", "k": 2}, {"module": "pipeline.objectives.wpo"},
    {"module": "pipeline.objectives.tdpo"}, {"module": "pipeline.objectives.sparsepo", "mask": "mapo"},
    {"module": "pipeline.objectives.npo", "retain_weight": 1.0, "retain": "kl"},
], ids=lambda s: s["module"].rpartition(".")[2])
def test_objectives_have_the_gradient_of_whole_logits(tiny, spec):
    """Losses and gradients of every token-level objective, chunks of three tokens against logits held whole, as near
    as float32, in which Llama has its norms, allows.
    """
    model, part = tiny.llama().double(), load_part(spec, "objective", Objective)
    examples = [dataclasses.replace(e, label=True) for e in tiny.examples(4)]
    task = PolicyTask(part, None, 0, 10_000, 6 * tiny.vocabulary, reference_model=tiny.llama(1).double())
    given = task.inputs(model, examples, 0, BatchFacts.of(examples))
    ours = part.plugin.loss(given, part.settings)[0]
    naive = part.plugin.loss(with_whole_logits(given, model, task.reference_model, examples, part), part.settings)[0]
    assert torch.allclose(ours, naive, rtol=1e-5)
    gradients = [torch.autograd.grad(f.sum(), list(model.parameters())) for f in (ours, naive)]
    for a, b in zip(*gradients, strict=True):
        assert (scale := b.abs().max()) > 0 and (a - b).abs().max() <= 1e-5 * scale


def with_whole_logits(given, model, reference, examples, part):
    """The inputs again, every completion a row by itself through the model's own forward pass."""
    def logits_of(network):
        rows = [torch.tensor([*e.prompt.tolist(), *c.tolist()]) for e in examples for c in e.completions]
        lengths = [len(c) for e in examples for c in e.completions]
        return torch.cat([network(input_ids=r[None]).logits[0, -n - 1:-1]
                          for r, n in zip(rows, lengths, strict=True)])

    tokens, logits, refs = given.tokens, logits_of(model), logits_of(reference).detach()
    at, logps = tokens.targets[:, None], logits.log_softmax(1)
    q = refs.log_softmax(1)
    top = logits.topk(6, dim=1)
    whole = TokenInputs(
        tokens.targets, tokens.group, tokens.column, tokens.position, logps.gather(1, at)[:, 0], tokens.uniforms,
        logits.gather(1, at)[:, 0], top.values, top.indices, (2 * logps.detach()).logsumexp(1),
        (q.exp() * (q - logps)).sum(1), q.gather(1, at)[:, 0], tokens.ref_hidden)
    sums = torch.zeros_like(given.logps, dtype=torch.float64)
    sums = sums.index_put((tokens.group, tokens.column), whole.logps, accumulate=True)
    return dataclasses.replace(given, logps=sums, tokens=whole)
