"""Forward over groups: hidden states -> LM head only where a completion token is predicted -> sums per completion.

`collate` says which tokens there are and where they belong; how they are laid out is up to the model. One that passed
`sharing.shared` sees every prompt once (`packed`), any other sees K rows `prompt + completion` padded on the right:
with a causal model no token sees what comes after it, so rows need no mask, and what padded positions hold is never
read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import UserError
from pipeline.lm import prefix
from pipeline.lm.examples import Example
from pipeline.lm.head import head_logits, token_logps
from pipeline.lm.packed import Packed, pack

__all__ = ["Rows", "check_head", "collate", "group_logps", "head_logits", "hidden_at_predictions",
           "layers_at_predictions", "positions", "prepare", "say_layout", "sums", "token_logps"]

Layout = Callable[[Sequence[Example], torch.device], Packed]


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


def hidden_at_predictions(model: Any, rows: Rows) -> Tensor:
    """(N, H) hidden states, only at the positions that predict a completion token."""
    if prefix.is_shared(model):
        return prefix.hidden_states(model, rows.packed).index_select(0, rows.packed.predict)
    states = prefix.backbone(model)(input_ids=rows.input_ids, use_cache=False).last_hidden_state
    # index_select: its backward adds each row once, so it is deterministic on a GPU too
    return states.reshape(-1, states.shape[-1]).index_select(0, rows.predict)


def layers_at_predictions(model: Any, rows: Rows) -> Tensor:
    """(N, layers, H) hidden states behind every transformer layer, only where a completion token is predicted."""
    if prefix.is_shared(model):
        layers, places = prefix.hidden_states(model, rows.packed, every_layer=True), rows.packed.predict
    else:
        out = prefix.backbone(model)(input_ids=rows.input_ids, use_cache=False, output_hidden_states=True)
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


def prepare(model: Any, share_prefix: bool = True) -> None:
    """Check the model's head and choose its layout, once, before the first step. The log says what was chosen and which
    attention runs. Raises UserError as `check_head` does.
    """
    check_head(model)
    if share_prefix:
        asked = model.config._attn_implementation
        say_layout(model, asked, prefix.shared(model))


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
    device = next(model.parameters()).device
    ids = torch.arange(8, device=device)[None] % model.get_input_embeddings().weight.shape[0]
    own = model(input_ids=ids, use_cache=False).logits.float()
    ours = head_logits(model, prefix.backbone(model)(input_ids=ids, use_cache=False).last_hidden_state).float()
    if not torch.allclose(own, ours, atol=1e-3, rtol=1e-3):
        name = type(model).__name__
        raise UserError(f"model: {name} changes its logits after the LM head in a way the training core does not know "
                        f"(largest difference {(own - ours).abs().max():.3g}); use another architecture")


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """bf16 matrix products over float32 masters, or plain float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


def device_of(model: Any) -> torch.device:
    return next(model.parameters()).device
