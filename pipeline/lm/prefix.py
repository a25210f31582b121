"""Prefix sharing for any Hugging Face causal LM: an attention function of our own, and the proof that it holds.

    shared(model) -> None, or why the model cannot use the packed layout

Whether a family takes position ids, hands arguments through to its attention, mixes tokens anywhere else (a recurrent
state, a convolution) or changes its scores is not read off its name: the packed layout has to give the same hidden
states as separate rows on a small probe. A family where it does not stays with rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from pipeline.lm.examples import Example, columns
from pipeline.lm.packed import Packed, attend, pack, pack_stem

ATTENTION = "packed_tree"
# What families hand to every attention function and what changes nothing in ours.
_HARMLESS = frozenset({"position_ids", "cache_position", "use_cache", "is_causal", "output_attentions",
                       "output_hidden_states", "return_dict", "sliding_window"})
_PROBED_WINDOW = 64  # a longer sliding window is not reached by the probe; that its layers hand it over is enough


class NotShareable(Exception):
    """Why a model cannot use the packed layout."""


@torch.compiler.disable  # its segments differ from micro-batch to micro-batch: compiled, it would be compiled each time
def tree_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
    scaling: float | None = None, dropout: float = 0.0, packed: Packed | None = None, **rest: Any,
) -> tuple[Tensor, None]:
    """The attention function transformers calls in every layer: (1, heads, N, D) in, (1, N, heads, D) out.

    Without `packed` it is the plain one, so the model still works for everything else.
    """
    if packed is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling,
                                      **rest)
    odd = sorted(name for name, given in rest.items() if given is not None and name not in _HARMLESS)
    if odd:
        raise NotShareable(f"its attention takes {', '.join(odd)}")
    window = rest.get("sliding_window")
    if window is not None:
        packed.windows.add(window)
    return attend(query, key, value, packed, scaling, window, dropout, module).transpose(1, 2).contiguous(), None


def backbone(model: Any) -> Any:
    """What makes hidden states: the model without its LM head, adapters left in."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return inner.base_model


def hidden_states(model: Any, packed: Packed, every_layer: bool = False) -> Any:
    """(N, H) states of a packed micro-batch, or a list of them, one per layer."""
    # a mask of four dimensions is taken as it is, so that no (N, N) mask is built and thrown away
    out = backbone(model)(input_ids=packed.input_ids, position_ids=packed.position_ids, use_cache=False, packed=packed,
                          attention_mask=torch.zeros(1, 1, 1, 1, device=packed.input_ids.device),
                          output_hidden_states=every_layer)
    return [states[0] for states in out.hidden_states[1:]] if every_layer else out.last_hidden_state[0]


def is_shared(model: Any) -> bool:
    return bool(model.config._attn_implementation == ATTENTION)


def shared(model: Any) -> str | None:
    """Switch the model to the packed layout. Returns why it cannot be, with the model left as it was, or None."""
    AttentionInterface.register(ATTENTION, tree_attention)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)
    before = model.config._attn_implementation
    try:
        _probe(model)
    except Exception as error:  # whatever a family's code raises when it meets the layout is its answer
        model.set_attn_implementation(before)
        return f"{error}" if isinstance(error, NotShareable) else f"{type(error).__name__}: {error}"
    return None


@torch.no_grad()
def _probe(model: Any) -> None:
    config = model.config.get_text_config()
    if getattr(config, "attention_chunk_size", None) is not None:
        raise NotShareable("its attention is cut into chunks by absolute position")
    window = getattr(config, "sliding_window", None)
    examples = _examples(config.vocab_size, 2 + min(window or 4, _PROBED_WINDOW))
    device = next(model.parameters()).device
    rows = [[_alone(model, np.concatenate([e.prompt, c[:-1]]), len(c), device) for c in e.completions]
            for e in examples]
    model.set_attn_implementation(ATTENTION)

    def check(packed: Packed, theirs: list[Tensor]) -> None:
        rows = torch.cat(theirs)
        gap = (hidden_states(model, packed).index_select(0, packed.predict) - rows).abs().max() / rows.abs().max()
        if not gap <= 1e-3:
            raise NotShareable(f"its hidden states differ from those of separate rows by {gap:.2g} of the largest")

    packed = pack(examples, device)
    check(packed, [states for of_group in rows for states in of_group])
    stem = pack_stem([columns(e, [0]) for e in examples], device)
    check(stem, [of_group[0] for of_group in rows])
    check(pack([columns(e, range(1, len(e.completions))) for e in examples], device, stem),
          [states for of_group in rows for states in of_group[1:]])
    if window is not None and not packed.windows:
        raise NotShareable("its layers do not hand their sliding window to the attention function")


def _alone(model: Any, ids: np.ndarray, last: int, device: torch.device) -> Tensor:
    row = torch.from_numpy(ids.astype(np.int64)).to(device)[None]
    states: Tensor = backbone(model)(input_ids=row, use_cache=False).last_hidden_state[0, -last:]
    return states


def _examples(vocabulary: int, prompt: int) -> list[Example]:
    """A tree of three, a single sequence, and a tree whose prompt has one token."""
    rng = np.random.default_rng(0)

    def ids(length: int) -> np.ndarray:
        return rng.integers(0, vocabulary, length).astype(np.int32)

    return [Example("tree", ids(prompt), (ids(3), ids(5), ids(1))), Example("single", ids(4), (ids(4),)),
            Example("bare", ids(1), (ids(2), ids(6)))]
