"""Forward over groups: hidden states -> LM head only where a completion token is predicted -> sums per completion.

`collate` says which tokens there are and where they belong; how they are laid out is up to the model. One that passed
`prefix.enable_prefix_sharing` sees every prompt once (`packed`), by an attention function of our own; any other sees K
rows `prompt + completion` padded on the right: with a causal model no token sees what comes after it, so rows need no
mask, and what padded positions hold is never read.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from pipeline.errors import UserError
from pipeline.lm.examples import Example
from pipeline.lm.head import token_logps
from pipeline.lm.packed import Packed, attend, pack
from pipeline.lm.settings import ModelRuntime

ATTENTION = "packed_tree"
# What families hand to every attention function and what changes nothing in ours.
_HARMLESS = frozenset({"position_ids", "cache_position", "use_cache", "is_causal", "output_attentions",
                       "output_hidden_states", "return_dict", "sliding_window"})

_NO_MEMORY = re.compile(r"allocate memory|CUDA error: out of memory|_STATUS_(ALLOC_FAILED|NOT_ENOUGH_MEMORY)|"
                        r"ALLOCATION_FAILED|Failed to (CUDA|Cuda|cuda) (host )?(c|m)alloc|CUDA failure.*out of memory|"
                        r"CUDA driver error: out of memory|not enough memory", re.IGNORECASE)

Layout = Callable[[Sequence[Example], torch.device], Packed]


class NotShareable(Exception):
    """Why a model cannot use the packed layout."""


@dataclass(frozen=True)
class Rows:
    """G groups with up to K completions, and their N completion tokens: group by group, completion by completion."""

    examples: tuple[Example, ...]
    pad: int
    targets: Tensor  # (N,) int64, the tokens predicted
    slot: Tensor  # (N,) int64 into the flattened (G * K * T), one place per completion token
    group: Tensor  # (N,) int64
    column: Tensor  # (N,) int64
    lengths: Tensor  # (G, K) int64, 0 where absent
    longest: int  # T, tokens of the longest completion
    layout: Layout = pack

    @property
    def present(self) -> Tensor:
        return self.lengths > 0

    @cached_property
    def packed(self) -> Packed:
        """The layout in which every prompt stands once."""
        return self.layout(self.examples, self.lengths.device)

    @cached_property
    def input_ids(self) -> Tensor:
        """(R, L) int64, one row per completion, padded on the right."""
        width = max(e.longest for e in self.examples)
        ids = np.full((sum(len(e.completions) for e in self.examples), width), self.pad, np.int64)
        for row, (prompt, completion) in zip(ids, self._sequences(), strict=True):
            row[: len(prompt)], row[len(prompt):len(prompt) + len(completion)] = prompt, completion
        return torch.from_numpy(ids).to(self.lengths.device)

    @property
    def there(self) -> Tensor:
        """(R, L) int64, 1 where `input_ids` are no padding."""
        lengths = torch.tensor([len(prompt) + len(c) for prompt, c in self._sequences()], device=self.lengths.device)
        return (torch.arange(self.input_ids.shape[1], device=lengths.device) < lengths[:, None]).long()

    @cached_property
    def predict(self) -> Tensor:
        """(N,) int64 into the flattened (R * L), the positions that predict a completion token."""
        width = self.input_ids.shape[1]
        places = [np.arange(len(c)) + len(prompt) - 1 + row * width
                  for row, (prompt, c) in enumerate(self._sequences())]
        return torch.from_numpy(np.concatenate(places).astype(np.int64)).to(self.lengths.device)

    def _sequences(self) -> list[tuple[np.ndarray, np.ndarray]]:
        return [(e.prompt_of(k), c) for e in self.examples for k, c in enumerate(e.completions)]


def collate(
    examples: Sequence[Example], device: torch.device | str = "cpu", pad: int = 0, layout: Layout = pack,
) -> Rows:
    """Where every completion token of the groups belongs. `pad` fills rows; nothing reads what a padded place gives."""
    most = max(len(e.completions) for e in examples)
    longest = max(len(c) for e in examples for c in e.completions)
    lengths = np.zeros((len(examples), most), np.int64)
    targets, slot = [], []
    for g, e in enumerate(examples):
        for k, completion in enumerate(e.completions):
            lengths[g, k] = len(completion)
            slot.append(np.arange(len(completion)) + (g * most + k) * longest)
            targets.append(completion)

    def put(parts: list[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.concatenate(parts).astype(np.int64)).to(device)

    slots = put(slot)
    return Rows(tuple(examples), pad, put(targets), slots, slots // (most * longest), slots // longest % most,
                torch.from_numpy(lengths).to(device), longest, layout)


def special_arguments(rest: Mapping[str, Any]) -> set[str]:
    """What of the arguments a layer hands to its attention changes the result in ways of the family's own."""
    return {name for name, given in rest.items() if given is not None and name not in _HARMLESS}


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
    if odd := special_arguments(rest):
        raise NotShareable(f"its attention takes {', '.join(sorted(odd))}")
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


def hidden_at_predictions(model: Any, rows: Rows) -> Tensor:
    """(N, H) hidden states, only at the positions that predict a completion token."""
    if is_shared(model):
        return hidden_states(model, rows.packed).index_select(0, rows.packed.predict)
    states = backbone(model)(input_ids=rows.input_ids, use_cache=False).last_hidden_state
    # index_select: its backward adds each row once, so it is deterministic on a GPU too
    return states.reshape(-1, states.shape[-1]).index_select(0, rows.predict)


def states_of_sequences(model: Any, rows: Rows) -> list[Tensor]:
    """Per completion (P + T - 1, H) hidden states of its prompt and of itself, all but the last token, which predicts
    nothing.
    """
    if is_shared(model):
        states = hidden_states(model, rows.packed)
        return [states[torch.from_numpy(places).to(states.device)] for places in rows.packed.sequences]
    states = backbone(model)(input_ids=rows.input_ids, use_cache=False).last_hidden_state
    return [row[:number - 1] for row, number in zip(states, rows.there.sum(1).tolist(), strict=True)]


def layers_at_predictions(model: Any, rows: Rows) -> Tensor:
    """(N, layers, H) hidden states behind every transformer layer, only where a completion token is predicted."""
    if is_shared(model):
        layers, places = hidden_states(model, rows.packed, every_layer=True), rows.packed.predict
    else:
        out = backbone(model)(input_ids=rows.input_ids, use_cache=False, output_hidden_states=True)
        layers, places = [s.reshape(-1, s.shape[-1]) for s in out.hidden_states[1:]], rows.predict
    return torch.stack([s.index_select(0, places) for s in layers], dim=1)


def positions(rows: Rows) -> Tensor:
    """(N,) int64, the index of each token in its completion."""
    return rows.slot % rows.longest


def sums(rows: Rows, per_token: Tensor) -> Tensor:
    """(G, K) float32 sums of (N,) token values over each completion; 0 where absent.

    Placed in a padded grid and summed along it: unlike a scatter-add, the order of additions is fixed on every device.
    """
    groups, most = rows.lengths.shape
    grid = per_token.new_zeros(groups * most * rows.longest, dtype=torch.float32)
    grid = grid.index_copy(0, rows.slot, per_token.float())
    return grid.view(groups, most, rows.longest).sum(2)


def group_logps(model: Any, rows: Rows, logits_per_chunk: int) -> Tensor:
    """(G, K) float32 sums of completion log-probs, nats; 0 where absent."""
    return sums(rows, token_logps(model, hidden_at_predictions(model, rows), rows.targets, logits_per_chunk))


def lengths_of(examples: Sequence[Example], device: torch.device | str) -> Tensor:
    """(G, K) int64 tokens of the completions; 0 where absent."""
    width = max(len(e.completions) for e in examples)
    return torch.tensor([[len(c) for c in e.completions] + [0] * (width - len(e.completions)) for e in examples],
                        device=device)


def padded(values: Sequence[Sequence[float] | None], device: torch.device | str) -> Tensor:
    """(G, K) float32 from one row of numbers per group; 0 where absent."""
    table = np.zeros((len(values), max(len(v or ()) for v in values)), np.float32)
    for g, row in enumerate(values):
        assert row is not None, "fit_to_objective checks this"
        table[g, : len(row)] = row
    return torch.from_numpy(table).to(device)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """bf16 matrix products over float32 masters, or plain float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


def device_of(model: Any) -> torch.device:
    return next(model.parameters()).device


def smaller_pass(runtime: ModelRuntime, gradient: bool = False) -> str:
    """What makes a pass smaller, with or without gradient."""
    more = ", or set hardware.training.gradient_checkpointing=true" if gradient else ""
    return (f"lower hardware.training.tokens_per_batch (now {runtime.tokens_per_batch}) or "
            f"hardware.training.logits_per_chunk (now {runtime.logits_per_chunk}){more}; no result changes")


@contextmanager
def enough_memory(when: str, ways: str) -> Iterator[None]:
    """Raises UserError, "out of memory WHEN: WAYS", where what is done within runs out of it."""
    try:
        yield
    except Exception as error:
        if not ran_out(error):
            raise
        raise UserError(f"out of memory {when}: {ways}") from None


def ran_out(error: Exception) -> bool:
    """Whether it says that memory ran out. On a CPU torch has no class of its own for it, and mapping a file none;
    CUDA's libraries and NCCL allocate for themselves.
    """
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or bool(_NO_MEMORY.search(str(error)))
