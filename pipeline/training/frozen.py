"""Log-probs under models that nothing trains, by several processes: each computes every so-many-th micro-batch.

Micro-batches are cut as one process cuts them, so however many share them the numbers are the same to the last bit.
"""

import itertools
from collections.abc import Sequence
from typing import TypeVar

import torch

from pipeline.lm import arrays, folders, logps
from pipeline.lm import examples as data
from pipeline.records import Group
from pipeline.stage import Context
from pipeline.training import distribute
from pipeline.training.gradients import World

T = TypeVar("T")
Logps = list[list[list[float]]]  # by group, completion, token


def share(world: World, turn: int = 0) -> slice:
    """This process's micro-batches. turn: of which table; the first one of each goes to another process."""
    return slice((world.rank + turn) % world.size, None, world.size)


def together(world: World, own: Sequence[list[T]]) -> list[list[T]]:
    """By example what the processes have found: each has the examples of its share, and [] for the others."""
    return [list(itertools.chain.from_iterable(found)) for found in zip(*world.gather(own), strict=True)]


def token_logps(context: Context, wanted: Sequence[Sequence[Group]]) -> tuple[World, list[Logps], list[Logps]]:
    """Token log-probs of the completions of some tables, under the inputs `model` and `reference` one after the other.

    Returns the processes that shared them, and for either model a list per table: nats, by group, completion, token.
    Raises UserError as `logps.open_frozen`, and where a group does not fit the model.
    """
    world, device = distribute.join(context.runtime, folders.prepare_machine(context.runtime))
    ours = _under(context, world, device, "model", wanted, 0)
    return world, ours, _under(context, world, device, "reference", wanted, len(wanted))


def _under(context: Context, world: World, device: torch.device, name: str, wanted: Sequence[Sequence[Group]],
           done: int) -> list[Logps]:
    runtime, precision = context.runtime, context.settings.precision
    model, found = logps.open_frozen(context.one(name), device, runtime, precision), []
    for turn, groups in enumerate(wanted):
        examples = data.of_chunk(arrays.of_groups(groups)) if groups else []
        data.check_fits(examples, model.get_input_embeddings().weight.shape[0], folders.context_length(model))
        own = logps.token_logps(model, examples, runtime, precision, own=share(world, turn))
        found.append(together(world, own))
        context.report.progress(done + turn + 1, 2 * len(wanted), "tables")
    return found
