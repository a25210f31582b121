"""The score of a sequence: a one-output classification head where the last token stands that is not the pad token.

Whoever loads the folder gets this score by the model's own forward pass. The packed layout, where `prepare` allows it,
gives the same with every prompt run once per group.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.lm import forward, packed, prefix
from pipeline.lm.examples import Example
from pipeline.lm.forward import autocast, device_of
from pipeline.lm.packed import Packed, pack


def group_scores(model: Any, examples: Sequence[Example], pad: int, masked: bool = False) -> tuple[Tensor, Tensor]:
    """(G, K) float32 scores and (G, K) bool present. `masked`: rows come with a mask, for models that look ahead."""
    rows = forward.collate(examples, device_of(model), pad)
    present = rows.present
    shared = forward.is_shared(model)
    flat = _packed_scores(model, examples, pad) if shared else _row_scores(model, rows, masked)  # (R,)
    return torch.zeros_like(present, dtype=torch.float32).masked_scatter(present, flat), present


def completion_scores(model: Any, examples: Sequence[Example], tokens_per_batch: int,
                      precision: str) -> list[list[float]]:
    """The score of every completion, by example, without gradient."""
    found: list[list[float]] = [[] for _ in examples]
    for micro in packed.micro_batches(examples, tokens_per_batch, padded=not forward.is_shared(model)):
        some = [examples[i] for i in micro]
        with torch.inference_mode(), autocast(device_of(model), precision), _padding(model, some) as pad:
            scores, _ = group_scores(model, some, pad, masked=True)
        for i, row in zip(micro, scores.tolist(), strict=True):
            found[i] = row[:len(examples[i].completions)]
    return found


def prepare(model: Any, share_prefix: bool = True) -> None:
    """Choose the model's layout, once, before the first pass; the log says which. A model whose score is more than a
    layer on a hidden state stays with rows.
    """
    if not share_prefix:
        return
    before = model.config._attn_implementation
    why = prefix.enable_prefix_sharing(model) or _differs(model)
    if why is not None:
        model.set_attn_implementation(before)
    prefix.say_layout(model, before, why)


def float32_head(model: Any) -> None:
    """Take the layer that gives the score out of autocast: scores rounded to bfloat16 would be full of ties."""
    head = [m for m in model.modules() if isinstance(m, torch.nn.Linear) and m.out_features == 1][-1].float()

    def in_float32(hidden: Tensor) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            return torch.nn.functional.linear(hidden.float(), head.weight, head.bias)

    head.forward = in_float32  # type: ignore[method-assign, assignment]


def _row_scores(model: Any, rows: forward.Rows, masked: bool = False) -> Tensor:
    mask = {"attention_mask": rows.there} if masked else {}
    return model(input_ids=rows.input_ids, use_cache=False, **mask).logits[:, 0].float()  # type: ignore[no-any-return]


def _packed_scores(model: Any, examples: Sequence[Example], pad: int) -> Tensor:
    # the layout leaves out the last token of every completion, which predicts nothing but is scored: give it one more
    longer = [replace(e, completions=tuple(np.append(c, pad) for c in e.completions)) for e in examples]
    packed = pack(longer, device_of(model))
    ends = torch.from_numpy(_ends(examples, packed, pad)).to(packed.input_ids.device)
    states = forward.hidden_states(model, packed).index_select(0, ends)
    return model.score(states)[:, 0].float()  # type: ignore[no-any-return]


def _ends(examples: Sequence[Example], packed: Packed, pad: int) -> np.ndarray:
    """(R,) where the last token of every completion stands that is not the pad token; the first where all are."""
    rows = [np.concatenate([e.prompt_of(k), c]) for e in examples for k, c in enumerate(e.completions)]
    lasts = (max(np.flatnonzero(ids != pad), default=0) for ids in rows)
    return np.array([places[last] for places, last in zip(packed.sequences, lasts, strict=True)], np.int64)


@contextmanager
def _padding(model: Any, examples: Sequence[Example]) -> Iterator[int]:
    """The model's padding id. One that has none is lent an id that ends no row: its own forward scores the last token
    that differs from it.
    """
    config = model.config.get_text_config()
    own = config.pad_token_id
    if own is None:
        endings = {int(c[-1]) for e in examples for c in e.completions}
        config.pad_token_id = next(i for i in range(len(endings) + 1) if i not in endings)
    try:
        yield int(config.pad_token_id)
    finally:
        config.pad_token_id = own


@torch.no_grad()
def _differs(model: Any) -> str | None:
    """Why packed scores are not the model's own, None where they are."""
    if not hasattr(model, "score"):
        return "it has no layer `score` on its hidden states"
    pad = model.config.get_text_config().pad_token_id or 0
    other = (pad + 1) % model.get_input_embeddings().weight.shape[0]
    ids = np.array([other, other, pad, other, pad, other], np.int32)
    probe = [Example("tree", ids, (ids[:4], ids[:3], ids[:1])), Example("single", ids[:2], (ids,))]
    with _padding(model, probe) as pad:
        own = _row_scores(model, forward.collate(probe, device_of(model), pad))
        packed = _packed_scores(model, probe, pad)
    limit = prefix.rounding(model)
    if torch.allclose(own, packed, atol=limit, rtol=limit):
        return None
    return f"its packed scores differ from its own by {(own - packed).abs().max():.2g}"
