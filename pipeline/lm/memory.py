"""Running out of memory, said as the settings that help."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from pipeline.errors import UserError
from pipeline.lm.settings import ModelRuntime

WEIGHTS = ("every weight needs its gradient and two moments beside it; set the stage's trainer.adapter.kind=lora, or "
           "spread them with hardware.training.strategy=fsdp2 over more hardware.training.processes")
LOADING = ("every weight takes 4 bytes; choose a smaller model, set the stage's trainer.adapter.kind=qlora (4-bit "
           "weights), or hardware.training.device=cpu where that has more memory")

WRITING = ("every tensor is made whole, 4 bytes a weight and 8 more in a checkpoint (with fsdp2 on the device first); "
           "free memory and run the same command, which goes on from the last checkpoint where there is one, or train "
           "anew with the stage's trainer.adapter.kind=lora")


def forward_pass(runtime: ModelRuntime) -> str:
    """What makes a pass without gradient smaller."""
    return f"{_smaller(runtime)}; no result changes"


def training_pass(runtime: ModelRuntime) -> str:
    """What makes a pass with gradient smaller."""
    return f"{_smaller(runtime)}, or set hardware.training.gradient_checkpointing=true; no result changes"


def _smaller(runtime: ModelRuntime) -> str:
    return (f"lower hardware.training.tokens_per_batch (now {runtime.tokens_per_batch}) or "
            f"hardware.training.logits_per_chunk (now {runtime.logits_per_chunk})")


@contextmanager
def enough(when: str, ways: str) -> Iterator[None]:
    """Raises UserError, "out of memory WHEN: WAYS", where what is done within runs out of it."""
    try:
        yield
    except Exception as error:
        if not ran_out(error):
            raise
        raise UserError(f"out of memory {when}: {ways}") from None


def ran_out(error: Exception) -> bool:
    """Whether it says that memory ran out. On a CPU torch has no class of its own for it, and mapping a file none."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "allocate memory" in str(error)
