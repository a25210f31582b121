"""One function of the model for everyone: an attention is used where it takes all that the model's layers hand it.

Families hand their attention more than queries, keys and values: Gemma 2 a cap on the logits, gpt-oss a sink. A kernel
that does not know an argument leaves it out without a word, and computes another model. Eager is the family's own code.
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from pipeline.lm import forward

EAGER = "eager"
_LISTENING = "listening"


def open_with(load: Callable[[str], Any], asked: str) -> tuple[Any, str | None]:
    """The model that `load` gives for an attention's name, with `asked` where that computes what the model's own code
    does, else with eager. Returns it and why it is not `asked` (None: it is).
    """
    try:
        model = load(asked)
    except (ValueError, ImportError) as error:  # of the family or the machine; where it is neither, eager fails alike
        if asked == EAGER:
            raise
        return load(EAGER), str(error).partition(". ")[0]
    if asked == EAGER:
        return model, None
    given = handed(model)
    if given is None:
        del model  # it cannot be switched: Falcon's own sdpa, for one, adds ALiBi unscaled
        return load(EAGER), "the family has attention layers of its own, where nothing shows what it leaves out"
    if left_out := sorted(given - set(inspect.signature(AttentionInterface()[asked]).parameters)):
        model.set_attn_implementation(EAGER)
        return model, f"it leaves out {', '.join(left_out)}, which the layers hand to their attention"
    return model, None


@torch.no_grad()
def handed(model: Any) -> set[str] | None:
    """What the model's layers hand to their attention function that changes its result; None where they call none."""
    found: set[str] | None = None

    def listen(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **rest: Any) -> Any:
        nonlocal found
        found = (found or set()) | forward.special_arguments(rest)
        return sdpa_attention_forward(module, query, key, value, mask, **rest)

    AttentionInterface.register(_LISTENING, listen)
    AttentionMaskInterface.register(_LISTENING, sdpa_mask)
    before, training = model.config._attn_implementation, model.training
    model.set_attn_implementation(_LISTENING)
    ids = torch.arange(4, device=forward.device_of(model))[None] % model.get_input_embeddings().weight.shape[0]
    forward.backbone(model.train())(input_ids=ids, use_cache=False)  # 4-bit layers are packed anew in evaluation mode
    model.train(training).set_attn_implementation(before)
    return found
