"""Log-probs of completions under language models: what the likelihood and implicit rewards share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import UserError
from pipeline.records import LENGTH, Completion, Group
from pipeline.rewards.model import batches, encode, load_tokenizer

if TYPE_CHECKING:
    from torch import Tensor

_MOST_LOGITS = 2**27  # tokens x vocabulary of one forward pass


@dataclass(frozen=True)
class Row:
    """A prompt with one completion as a model sees it."""

    ids: list[int]
    start: int  # index of the first completion token


def open_causal(folder: Path, threads: int | None) -> tuple[Any, Any]:
    """Tokenizer and causal language model of a folder, float32 weights, on the GPU if there is one."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    if threads is not None:
        torch.set_num_threads(threads)
    logging.disable_progress_bar()
    net = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return load_tokenizer(folder), net.eval().to(device)


def rows_of(tokenizer: Any, group: Group) -> list[Row]:
    """The rows of a group's completions: the carried ids where they are this tokenizer's, else the template's.

    The completion starts where the row parts from the prompt alone.
    """
    alone = replace(group, completions=(Completion("", finish_reason=LENGTH),))
    (prompt,) = encode(tokenizer, alone)
    return [Row(ids, _common(prompt, ids)) for ids in encode(tokenizer, group)]


def _common(prompt: list[int], ids: list[int]) -> int:
    pairs = zip(prompt, ids, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(prompt), len(ids)))


def scorable(rows: Sequence[Row], net: Any, batch_tokens: int) -> Iterator[list[int]]:
    """Batches of indices of the rows that fit the model's positions and have a completion."""
    text_config = net.config.get_text_config()
    limit = getattr(text_config, "max_position_embeddings", None) or float("inf")
    fitting = [i for i, row in enumerate(rows) if 0 < row.start < len(row.ids) <= limit]
    most = min(batch_tokens, _MOST_LOGITS // text_config.vocab_size)
    for batch in batches([len(rows[i].ids) for i in fitting], most):
        yield [fitting[i] for i in batch]


def logits_of(net: Any, rows: Sequence[Row], precision: str) -> Tensor:
    """(R, L, V) float32 logits of rows padded on the right; what stands at padded positions means nothing."""
    import torch

    width = max(len(row.ids) for row in rows)
    ids = torch.tensor([row.ids + [0] * (width - len(row.ids)) for row in rows], device=net.device)
    mask = torch.tensor([[1] * len(row.ids) + [0] * (width - len(row.ids)) for row in rows], device=net.device)
    with torch.inference_mode(), torch.autocast(net.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        logits: Tensor = net(input_ids=ids, attention_mask=mask, use_cache=False).logits
    return logits.float()


def summed(logits: Tensor, rows: Sequence[Row], skipped: frozenset[int] = frozenset()) -> list[float]:
    """Sum of log softmax(logits) over the completion tokens of each row, nats, without the `skipped` ids."""
    import torch

    sums = []
    for row, values in zip(rows, logits, strict=True):
        targets = torch.tensor(row.ids[row.start :], device=logits.device)
        logps = values[row.start - 1 : len(row.ids) - 1].log_softmax(dim=1).gather(1, targets[:, None])[:, 0]
        counted = torch.tensor([token not in skipped for token in targets.tolist()], device=logits.device)
        sums.append(float(logps[counted].double().sum()))
    return sums


def folder_of(path: str | None, given: Path | None, which: str) -> Path:
    """The folder the settings name, else the one of an earlier step. Raises UserError where there is neither."""
    folder = Path(path) if path is not None else given
    if folder is None:
        raise UserError(f"reward: there is no {which} model; give its folder, or the step an input `{which}`")
    return folder


def per_group(values: Sequence[Any], groups: Sequence[Group]) -> list[list[Any]]:
    """A flat list, one item per completion, as one list per group."""
    remaining = iter(values)
    return [[next(remaining) for _ in group.completions] for group in groups]
