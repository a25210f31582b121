"""Before the first pass: does our head say what the model says, and may it run every prompt once? Both are proved.

    enable_prefix_sharing(model) -> None, or why the model cannot use the packed layout

Whether a family takes position ids, hands arguments through to its attention, mixes tokens anywhere else (a recurrent
state, a convolution) or changes its scores is not read off its name: the packed layout has to give the same hidden
states as separate rows on a small probe. A family where it does not stays with rows.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from pipeline.errors import UserError
from pipeline.lm.examples import Example, columns
from pipeline.lm.forward import ATTENTION, NotShareable, backbone, device_of, hidden_states, tree_attention
from pipeline.lm.head import head_logits
from pipeline.lm.packed import Packed, pack, pack_stem

_ROUNDING = {torch.bfloat16: 5e-2}  # of states and scores, relative; float32: 1e-3
_PROBED_WINDOW = 64  # a longer sliding window is not reached by the probe; that its layers hand it over is enough


def prepare(model: Any, share_prefix: bool = True) -> None:
    """Check the model's head and choose its layout, once, before the first step. The log says what was chosen and which
    attention runs. Raises UserError as `check_head` does.
    """
    check_head(model)
    if share_prefix:
        asked = model.config._attn_implementation
        say_layout(model, asked, enable_prefix_sharing(model))


def say_layout(model: Any, asked: str, why: str | None) -> None:
    """Tell the log how a model that was to share prompts is laid out: why it does not (None: it does), and which
    attention runs where `asked` was asked for.
    """
    name = type(model).__name__
    if why is None:
        print(f"prompts are shared: {name}: hardware.training.attention={asked} is not used, its layout runs torch's "
              "scaled_dot_product_attention on every segment", flush=True)
    else:
        print(f"prompts are not shared, every completion is a row of its own: {name}: {why}", flush=True)


@torch.no_grad()
def check_head(model: Any) -> None:
    """Compare our head with the model's own forward on a few tokens. Raises UserError where they part.

    Architectures differ in what they do between the last hidden state and the logits; a wrong guess would train a
    wrong model without a word.
    """
    device = device_of(model)
    ids = torch.arange(8, device=device)[None] % model.get_input_embeddings().weight.shape[0]
    own = model(input_ids=ids, use_cache=False).logits.float()
    ours = head_logits(model, backbone(model)(input_ids=ids, use_cache=False).last_hidden_state).float()
    if not torch.allclose(own, ours, atol=rounding(model), rtol=rounding(model)):
        name = type(model).__name__
        raise UserError(f"model: {name} changes its logits after the LM head in a way the training core does not know "
                        f"(largest difference {(own - ours).abs().max():.3g}); use another architecture")


def enable_prefix_sharing(model: Any) -> str | None:
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
    device = device_of(model)
    rows = [[_alone(model, np.concatenate([e.prompt, c[:-1]]), len(c), device) for c in e.completions]
            for e in examples]
    model.set_attn_implementation(ATTENTION)

    def check(packed: Packed, theirs: list[Tensor]) -> None:
        rows = torch.cat(theirs)
        gap = (hidden_states(model, packed).index_select(0, packed.predict) - rows).abs().max() / rows.abs().max()
        if not gap <= rounding(model):
            raise NotShareable(f"its hidden states differ from those of separate rows by {gap:.2g} of the largest")

    packed = pack(examples, device)
    check(packed, [states for of_group in rows for states in of_group])
    stem = pack_stem([columns(e, [0]) for e in examples], device)
    check(stem, [of_group[0] for of_group in rows])
    check(pack([columns(e, range(1, len(e.completions))) for e in examples], device, stem),
          [states for of_group in rows for states in of_group[1:]])
    if window is not None and not packed.windows:
        raise NotShareable("its layers do not hand their sliding window to the attention function")


def rounding(model: Any) -> float:
    """The largest relative difference between two passes of this model that is rounding, by the dtype it is held in."""
    return _ROUNDING.get(model.get_input_embeddings().weight.dtype, 1e-3)


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
