"""Score with a reward model: a sequence-classification model with one output, in any Hugging Face folder.

What it is shown. Where the model's own tokenizer and chat template turn the conversation into exactly the prompt ids
the group carries, they are the policy's, and the carried ids are scored as they are. Otherwise conversation and
completion are formatted from the messages with the model's own template. Either way there is one BOS if the tokenizer
uses one, and the end of turn is there if and only if the completion ended (`finish_reason` "stop").

What comes out is what the model's own forward gives for right-padded rows: transformers reads the score at the last
token that is not the padding token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config import setting
from pipeline.errors import UserError
from pipeline.records import STOP, Completion, Group
from pipeline.rewards.contract import Scorer

if TYPE_CHECKING:
    from torch import Tensor

_SUFFIXES = {".safetensors", ".json", ".jinja", ".model", ".txt", ".bin"}


@dataclass(frozen=True)
class Settings:
    """Which model, and how it is run."""

    path: str | None = None
    """A folder with a trained reward model; null: the one an earlier step trained."""

    precision: str = setting("bfloat16", choices=("bfloat16", "float32"))
    """Of the matrix products. Weights and the last layer stay in float32: scores in bfloat16 would be full of ties."""

    def check(self) -> list[tuple[str, str]]:
        return folder_problems("path", self.path, "a reward model")


def folder_problems(key: str, path: str | None, what: str) -> list[tuple[str, str]]:
    """What is wrong with a model folder given by the user; nothing where none is given."""
    if path is None:
        return []
    folder = Path(path)
    if not folder.is_dir():
        return [(key, f"no folder {path!r}, expected {what} in the Hugging Face layout")]
    expected = {"config.json": ["config.json"], "weights": ["*.safetensors", "*.bin"], "tokenizer": ["tokenizer*"]}
    missing = [name for name, globs in expected.items() if not any(any(folder.glob(g)) for g in globs)]
    return [(key, f"{path!r} has no {' and no '.join(missing)}")] if missing else []


def folder_files(path: str | None) -> list[Path]:
    """The files of a model folder that make its scores; none where no path is given."""
    return [] if path is None else sorted(p for p in Path(path).iterdir() if p.is_file() and p.suffix in _SUFFIXES)


def files(settings: Settings) -> list[Path]:
    return folder_files(settings.path)


def scorer(
    settings: Settings, *, model: Path | None = None, batch_tokens: int = 16384, threads: int | None = None
) -> Callable[[Sequence[Group]], list[list[float]]]:
    """See Scorer. Loads the model once, on the GPU if there is one.

    Args:
        model: folder of the reward model an earlier step made; not looked at where settings.path names one.
        batch_tokens: most tokens of one forward pass, padding included (one longer row goes alone).
        threads: CPU threads; None: torch's choice.

    A completion that does not fit the model's positions scores NaN. Raises UserError for a folder that is no reward
    model: more than one output, a head without trained weights, no chat template.
    """
    tokenizer, net = open_model(settings.path, model, threads)
    return lambda groups: score_groups(tokenizer, net, groups, settings.precision, batch_tokens)


def open_model(path: str | None, model: Path | None, threads: int | None) -> tuple[Any, Any]:
    """Tokenizer and network of the folder the settings name, else of `model`. Raises UserError where there is none."""
    import torch

    folder = Path(path) if path is not None else model
    if folder is None:
        raise UserError("reward: there is no reward model; set reward.path to a folder, or train one in the loop")
    if threads is not None:
        torch.set_num_threads(threads)
    return load_tokenizer(folder), load_model(folder)


def score_groups(
    tokenizer: Any, net: Any, groups: Sequence[Group], precision: str, batch_tokens: int
) -> list[list[float]]:
    """One list of scores per group; NaN for what does not fit the model's positions."""
    limit = getattr(net.config.get_text_config(), "max_position_embeddings", None) or float("inf")
    rows = [ids for group in groups for ids in encode(tokenizer, group)]
    scores = [float("nan")] * len(rows)
    fitting = [i for i, row in enumerate(rows) if 0 < len(row) <= limit]
    for batch in batches([len(rows[i]) for i in fitting], batch_tokens):
        indices = [fitting[i] for i in batch]
        for i, value in zip(indices, forward_rows(net, [rows[i] for i in indices], precision), strict=True):
            scores[i] = value
    remaining = iter(scores)
    return [[next(remaining) for _ in group.completions] for group in groups]


def batches(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Cut rows into batches of similar length, the longest first (a batch too large for the memory fails at once).

    Returns lists of row indices; rows * longest row <= batch_tokens, except for a single row longer than that.
    """
    found: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if found and (len(found[-1]) + 1) * lengths[found[-1][0]] <= batch_tokens:
            found[-1].append(index)
        else:
            found.append([index])
    return found


def encode(tokenizer: Any, group: Group) -> list[list[int]]:
    """The ids the model is shown for each completion of a group. See the module's text for the rules."""
    messages = [{"role": m.role, "content": m.content} for m in group.messages]
    prompt_text = _render(tokenizer, messages, group.id, add_generation_prompt=True)
    same = tuple(_tokens(tokenizer, prompt_text)) == group.prompt_ids

    def ids_of(completion: Completion) -> list[int]:
        if same and completion.token_ids and max(completion.token_ids) < len(tokenizer):
            return [*group.prompt_ids, *completion.token_ids]
        if completion.finish_reason != STOP:
            return _tokens(tokenizer, prompt_text + completion.text)
        answered = [*messages, {"role": "assistant", "content": completion.text}]
        return _tokens(tokenizer, _render(tokenizer, answered, group.id, add_generation_prompt=False))

    return [ids_of(completion) for completion in group.completions]


def _render(tokenizer: Any, messages: list[dict[str, str]], name: str, add_generation_prompt: bool) -> str:
    from jinja2 import TemplateError

    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt)
    except TemplateError as error:
        raise UserError(f"reward: the reward model's chat template refuses {name!r}: {error}") from None


def _tokens(tokenizer: Any, text: str) -> list[int]:
    """Ids of a rendered conversation with one BOS, whether the template, the tokenizer, both or neither write it."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    bos = tokenizer.bos_token_id
    if bos is None:
        return ids
    start = 0
    while start < len(ids) and ids[start] == bos:
        start += 1
    adds_its_own = tokenizer("")["input_ids"][:1] == [bos]
    return [bos, *ids[start:]] if start or adds_its_own else ids


def load_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    if tokenizer.chat_template is None:
        raise UserError(
            f"reward: the tokenizer in {folder} has no chat template, expected one (chat_template.jinja) that turns "
            "conversations into what the reward model was trained on"
        )
    return tokenizer


def load_model(folder: Path) -> Any:
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification
    from transformers.utils import logging

    logging.disable_progress_bar()
    labels = AutoConfig.from_pretrained(folder).num_labels
    if labels != 1:
        raise UserError(f"reward: the model in {folder} has {labels} outputs, expected one (a scalar reward model)")
    net, info = AutoModelForSequenceClassification.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    if info["missing_keys"]:  # a language model's folder loads too, with a head of random numbers
        missing = ", ".join(sorted(info["missing_keys"]))
        raise UserError(f"reward: {folder} is no trained reward model, these weights are missing: {missing}")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    net.eval().to(device)
    _keep_head_in_float32(net, device)
    return net


def _keep_head_in_float32(net: Any, device: Any) -> None:
    import torch

    head = [m for m in net.modules() if isinstance(m, torch.nn.Linear) and m.out_features == 1][-1]

    def in_float32(hidden: Tensor) -> Tensor:
        with torch.autocast(device.type, enabled=False):
            return torch.nn.functional.linear(hidden.float(), head.weight, head.bias)

    head.forward = in_float32  # type: ignore[method-assign, assignment]


def forward_rows(net: Any, rows: list[list[int]], precision: str) -> list[float]:
    import torch

    text_config = net.config.get_text_config()
    given = text_config.pad_token_id
    # Without a padding token any id that ends no row will do: the last token that differs from it is the row's last.
    endings = {row[-1] for row in rows}
    pad = given if given is not None else next(i for i in range(len(rows) + 1) if i not in endings)
    width = max(map(len, rows))
    ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows], device=net.device)
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=net.device)
    text_config.pad_token_id = pad
    with torch.inference_mode(), torch.autocast(net.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        logits = net(input_ids=ids, attention_mask=mask).logits
    text_config.pad_token_id = given
    return logits[:, 0].float().tolist()


SCORER = Scorer(Settings, scorer, needs_model=lambda s: s.path is None, files=files)
