"""What inputs of a loss take from beyond a micro-batch: partners, random numbers, the whole global batch."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import UserError
from pipeline.lm.examples import Example
from pipeline.objectives.contract import LossInputs
from pipeline.stage import derive_seed

_COLUMNS = ("logps", "lengths", "present", "ref_logps", "previous_logps", "scores")  # (G, K)
_GROUPS = ("labels", "mismatched_logps", "mismatched_ref_logps", "rationale_logps", "explained")  # (G,)


def partners(batch: Sequence[Example]) -> dict[str, Example]:
    """For every group the nearest one before it (cyclic) that has another prompt: the mismatch of KTO's KL point.

    Raises UserError where a group has none.
    """
    found: dict[str, Example] = {}
    for i, one in enumerate(batch):
        others = (batch[i - back] for back in range(1, len(batch)))
        partner = next((o for o in others if not np.array_equal(o.prompt, one.prompt)), None)
        if partner is None:
            raise UserError(f"objective: KTO's KL estimate needs another prompt in the batch, but group {one.id!r} is "
                            f"in a global batch of {len(batch)} with only one prompt; raise "
                            "trainer.preference.batch_size or choose another objective.reference_point")
        found[one.id] = partner
    return found


def token_uniforms(examples: Sequence[Example], seed: int, step: int) -> np.ndarray:
    """(N,) float32 in [0, 1) for every completion token, group after group, completion after completion."""
    drawn = [generator(seed, "tokens", step, e.id).random(e.completion_tokens, np.float32) for e in examples]
    return np.concatenate(drawn)


def generator(seed: int, *what: object) -> np.random.Generator:
    """Of what is drawn for one group: no position, worker or micro-batch changes it."""
    return np.random.Generator(np.random.Philox(key=derive_seed(seed, *what)))


def moved(inputs: LossInputs, device: torch.device | str) -> LossInputs:
    """The per-group part of `inputs` on another device, without what belongs to the model."""
    there: dict[str, Any] = {n: getattr(inputs, n) for n in (*_COLUMNS, *_GROUPS)}
    moved_there: dict[str, Any] = {n: None if v is None else v.to(device) for n, v in there.items()}
    return dataclasses.replace(inputs, tokens=None, state={}, parameters={}, **moved_there)


def joined(parts: Sequence[LossInputs], places: Sequence[Sequence[int]]) -> LossInputs:
    """The inputs of a global batch from those of its micro-batches; `places` are their groups' places in the batch.

    Token views are not joined: an objective over the whole batch sees sequences only.
    """
    order = torch.tensor([i for place in places for i in place]).argsort()
    width = max(p.logps.shape[1] for p in parts)

    def column(name: str) -> Tensor | None:
        values = [getattr(p, name) for p in parts]
        if any(v is None for v in values):
            return None
        wide = [torch.nn.functional.pad(v, (0, width - v.shape[1])) for v in values]
        return torch.cat(wide)[order.to(wide[0].device)]

    def flat(name: str) -> Tensor | None:
        values = [getattr(p, name) for p in parts]
        if all(v is None for v in values):
            return None
        # a micro-batch without any label beside one with some: unlabelled groups count as preferred
        full = [torch.ones_like(p.present[:, 0]) if v is None else v for p, v in zip(parts, values, strict=True)]
        return torch.cat(full)[order.to(full[0].device)]

    gathered: dict[str, Any] = {n: column(n) for n in _COLUMNS} | {n: flat(n) for n in _GROUPS}
    return dataclasses.replace(parts[0], tokens=None, **gathered)
