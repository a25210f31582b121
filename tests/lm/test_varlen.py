"""The one kernel of CUDA against the segment loop. The kernel has no CPU path: here its formula stands for it, in
float32; scripts/gpu_check.py compares the kernel itself.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from pipeline.lm import packed, varlen
from pipeline.lm.examples import Example
from pipeline.lm.packed import Packed, pack, pack_stem


def formula(query, key, value, queries_from, keys_from, most_queries, most_keys, *, scale, window_size, enable_gqa):
    """What varlen_attn is documented to compute: causal from the end of the keys, the last `window_size[0]` before."""
    copies = query.shape[1] // key.shape[1]
    assert window_size[1] == 0 and enable_gqa == (copies > 1)
    outputs = []
    for i in range(len(queries_from) - 1):
        q = query[queries_from[i]:queries_from[i + 1]]
        k, v = (x[keys_from[i]:keys_from[i + 1]].repeat_interleave(copies, dim=1) for x in (key, value))
        assert len(q) <= most_queries and len(k) <= most_keys
        distance = (torch.arange(len(q)) + len(k) - len(q))[:, None] - torch.arange(len(k))
        distance = distance.to(q.device)
        seen = (distance >= 0) & ((distance <= window_size[0]) | (window_size[0] < 0))
        scores = torch.einsum("qhd,khd->hqk", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale)
        outputs.append(torch.einsum("hqk,khd->qhd", scores.masked_fill(~seen, float("-inf")).softmax(-1), v))
    return torch.cat(outputs)


def ids(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int32)


def long(length: int) -> np.ndarray:
    return np.arange(length, dtype=np.int32) % 50


GROUPS = [Example("tree", ids(1, 2, 3, 4), (ids(5, 6), ids(7, 8, 9), ids(3))),
          Example("alone", ids(1, 2), (ids(3, 4),)), Example("one token", ids(1), (ids(2, 3), ids(4))),
          Example("blocks", long(70), (long(600), long(3)))]


def both(layout: Packed, heads: int, few: int, window: int | None, scaling: float | None, stem_tokens: int = 0):
    """(output, gradients of query, key, value) of the loop and of the kernel's formula."""
    torch.manual_seed(0)
    number, found = layout.input_ids.shape[1], []
    shapes = ((heads, number), (few, number + stem_tokens), (few, number + stem_tokens))
    start = [torch.randn(1, h, length, 8) for h, length in shapes]
    weight = torch.randn(1, heads, number, 8)
    for kernel in (False, True):
        query, key, value = (x.clone().requires_grad_() for x in start)
        if kernel:
            out = varlen.attend(query, key, value, layout.spans, scaling, window, formula)
        else:
            if layout.stem is not None:
                sizes = [s.length for s in layout.stem.segments]
                stem = [x[:, :, :stem_tokens].split(sizes, dim=2) for x in (key, value)]
                layout.stem.cache.of["layer"] = stem[0], stem[1]
            out = packed.attend(query, key[:, :, stem_tokens:], value[:, :, stem_tokens:], layout, scaling, window,
                                module="layer")
        (out * weight).sum().backward()
        found.append((out.detach(), query.grad, key.grad, value.grad))
    return found


@pytest.mark.parametrize(("heads", "few"), [(4, 4), (4, 2), (3, 1)])
@pytest.mark.parametrize("window", [None, 1, 5, 300])
@pytest.mark.parametrize("scaling", [None, 0.7])
def test_values_and_gradients_are_the_loops(heads, few, window, scaling):
    for loop, kernel in zip(*both(pack(GROUPS, "cpu"), heads, few, window, scaling), strict=True):
        torch.testing.assert_close(kernel, loop, atol=2e-5, rtol=1e-5)


def test_completions_on_a_stem_see_its_prompts_and_send_them_gradients():
    groups = [e for e in GROUPS if len(e.prompt) > 1]
    stem = pack_stem(groups, "cpu")
    for loop, kernel in zip(*both(pack(groups, "cpu", stem), 4, 2, None, None, stem.input_ids.shape[1]), strict=True):
        torch.testing.assert_close(kernel, loop, atol=2e-5, rtol=1e-5)
        assert kernel.abs().sum() > 0


def test_spans_by_hand():
    """[p p | a a a | b] and a lone segment of 2: the completions' keys begin with the prompt's."""
    spans = varlen.spans_of([2, 3, 1, 2], [-1, 0, 0, -1], [], torch.device("cpu"))
    assert spans.keys.tolist() == [0, 1, 0, 1, 2, 3, 4, 0, 1, 5, 6, 7]
    assert spans.queries_from.tolist() == [0, 2, 5, 6, 8] and spans.keys_from.tolist() == [0, 2, 7, 10, 12]
    assert (spans.most_queries, spans.most_keys) == (3, 5) and spans.queries_from.dtype == torch.int32


@pytest.mark.parametrize("heads", [2, 1])
def test_a_masked_product_on_cuda_gets_as_many_heads_of_keys_as_of_queries(heads, monkeypatch):
    """With a mask and enable_gqa its memory-efficient kernels refuse, and what is left holds all scores in float32."""
    seen = []
    monkeypatch.setattr(packed.functional, "scaled_dot_product_attention",
                        lambda q, k, v, **rest: seen.append((k.shape[1], rest["enable_gqa"], rest["attn_mask"])) or q)
    for device in ("cuda", "cpu"):
        with FakeTensorMode():
            query, key = torch.empty(1, 4, 2, 8, device=device), torch.empty(1, heads, 5, 8, device=device)
            for mask in (torch.empty(2, 5, device=device), None):
                packed._attention(query, key, key, mask, 0.0, None, grouped=True)
    on_cuda, on_cpu = seen[:2], seen[2:]
    assert [found[:2] for found in on_cuda] == [(4, False), (heads, True)]
    assert [found[:2] for found in on_cpu] == [(heads, True)] * 2


@pytest.mark.parametrize("window", [None, 1, 40, 300])
def test_no_mask_is_larger_than_a_block_of_rows(window):
    """And each says: token i of the last `rows` of `columns` sees j at a distance of 0 to window - 1."""
    layout = pack([Example("long", long(500), (long(700), long(20)))], "cpu")
    for rows, columns in ((256, 755), (187, 1198), (3, 502), (19, 518)):
        mask = packed._mask(layout, rows, columns, window, torch.empty(0))
        distance = torch.arange(columns - rows, columns)[:, None] - torch.arange(columns)
        expected = (distance >= 0) & (distance < (window or columns))
        assert torch.equal(mask, torch.zeros(rows, columns).masked_fill(~expected, float("-inf")))
    (band,) = layout.masks.values()
    assert band.shape[0] <= 384 and band.nbytes < 384 * 2000 * 4


@pytest.mark.gpu
@pytest.mark.parametrize(("heads", "few"), [(32, 8), (8, 8)])
@pytest.mark.parametrize("window", [None, 300])
def test_the_kernel_on_a_card_is_its_formula(heads, few, window):
    """In bfloat16 against float32: values of size 1 to 0.02, gradients to 2 % of the largest."""
    layout, found = pack(GROUPS, "cuda"), []
    torch.manual_seed(0)
    start = [torch.randn(1, h, layout.input_ids.shape[1], 64, device="cuda") for h in (heads, few, few, heads)]
    for kind, kernel in ((torch.float32, formula), (torch.bfloat16, varlen.varlen_attn)):
        query, key, value = (x.to(kind).clone().requires_grad_() for x in start[:3])
        out = varlen.attend(query, key, value, layout.spans, None, window, kernel)
        (out.float() * start[3]).sum().backward()
        found.append((out.detach(), query.grad, key.grad, value.grad))
    assert varlen.serves(start[0].bfloat16(), 0.0) and not varlen.serves(start[0], 0.0)
    for exact, low in zip(*found, strict=True):
        assert (low.float() - exact).abs().max() <= 0.02 * max(1.0, float(exact.abs().max()))
