"""What scoring models are shown, and the folders they come from: shared by the scorers that run a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import hub, weights
from pipeline.errors import UserError
from pipeline.lm import checks
from pipeline.lm.settings import ModelRuntime
from pipeline.records import Group

if TYPE_CHECKING:
    from pipeline.lm.examples import Example
    from pipeline.lm.template import Encoder, Row

_LANGUAGE = ("lm_head.weight", "model.embed_tokens.weight")
_HUB = "reward.path"
_SUFFIXES = {".safetensors", ".json", ".jinja", ".model", ".txt"}


def folder_problems(key: str, path: str | None, what: str) -> list[tuple[str, str]]:
    """What is wrong with a model folder given by the user; nothing where none is given, or a hub's name is."""
    if path is None or hub.named(path):
        return []
    folder = Path(path)
    if not folder.is_dir():
        return [(key, f"no folder {path!r}, expected {what} in the Hugging Face layout")]
    expected = {"config.json": ["config.json"], "weights": ["*.safetensors"], "tokenizer": ["tokenizer*"]}
    missing = [name for name, globs in expected.items() if not any(any(folder.glob(g)) for g in globs)]
    pickled = "weights" in missing and any(folder.glob("*.bin"))
    way_out = "; its *.bin files are pickled and are not read: load the model and save_pretrained it again"
    lacks = [f"{path!r} has no {' and no '.join(missing)}{way_out if pickled else ''}"] if missing else []
    return [(key, problem) for problem in [*lacks, *(f"{path!r}: {link}" for link in checks.links(folder))]]


def head_problems(key: str, path: str | None, number: int) -> list[tuple[str, str]]:
    """What a folder's files tell against a reward model with so many outputs: its head, its chat template."""
    if path is None or folder_problems(key, path, ""):
        return []
    problems = list[tuple[str, str]]()
    try:
        folder, found = small_files(path), None if hub.named(path) else weights.outputs(Path(path))
    except UserError as error:
        return [(key, error.problems[0].partition(": ")[2])]
    except (OSError, ValueError) as error:
        return [(key, f"{path}: the weights cannot be read ({error})")]
    if found is not None and found != number:
        ways = "one: reward=heads takes several, with a weight for each" if number == 1 else f"{number}, one per weight"
        problems.append((key, f"{path} has {found} outputs, expected {ways}"))
    if found is None and not hub.named(path) and any(name in weights.tensors(folder) for name in _LANGUAGE):
        problems.append((key, f"{path} is a language model, it has no head that gives a score"))
    settings = folder / "tokenizer_config.json"
    told = settings.is_file() and "chat_template" in settings.read_text()
    if not told and not any(folder.glob("chat_template*")) and not any(folder.glob("additional_chat_templates/*")):
        problems.append((key, f"{path} has no chat template, so it cannot be shown a conversation; put a "
                         "chat_template.jinja into the folder"))
    return problems


def small_files(path: str) -> Path:
    """The folder with a model's configuration and tokenizer: of a hub's name (`org/name@commit`) the cache's. Raises
    UserError where the hub has it not.
    """
    return hub.fetched(path, False, _HUB) if hub.named(path) else Path(path)


def folder_files(path: str | None) -> list[Path]:
    """The files of a model folder that make its scores; none where no path is given, or a hub's commit is."""
    if path is None or hub.named(path):
        return []
    return sorted(p for p in Path(path).iterdir() if p.is_file() and p.suffix in _SUFFIXES)


def folder_of(path: str | None, given: Path | None, which: str) -> Path:
    """The folder the settings name, else the one of an earlier step. Raises UserError where there is neither."""
    if path is not None:
        return hub.fetched(path, True, _HUB) if hub.named(path) else Path(path)
    if given is None:
        raise UserError(f"reward: there is no {which} model; give its folder, or the step an input `{which}`")
    return given


def open_causal(folder: Path, runtime: ModelRuntime, precision: str) -> tuple[Encoder, Any]:
    """Encoder and frozen language model of a folder, on the runtime's device; precision: of the products."""
    from pipeline.lm import folders, logps

    device = folders.prepare_machine(runtime)
    return reader(folder, "the scoring model's"), logps.open_frozen(folder, device, runtime, precision)


def reader(folder: Path, of: str) -> Encoder:
    """The encoder of a model that only reads. Raises UserError where its chat template loses what was said."""
    from pipeline.lm import folders, template, template_check

    tokenizer = folders.load_tokenizer(folder, template=True)
    if problems := template_check.talk_problems(tokenizer):
        raise UserError(*(f"reward: {folder}: {problem}" for problem in problems))
    return template.Encoder(tokenizer, of=of)


def scored(encoder: Encoder, groups: Sequence[Group], longest: int | None,
           scores: Callable[[list[Example]], Sequence[Sequence[Any]]], nothing: Any,
           fewest: int = 0) -> list[list[Any]]:
    """One list per group, one score per completion.

    Args:
        longest: tokens of a row that the model has positions for; None: any number.
        scores: of examples with the completions that can be scored, one list each.
        nothing: the score of a completion that does not fit, or has fewer than `fewest` tokens.
    """
    found = [[nothing] * len(group.completions) for group in groups]
    examples, places = [], []
    for g, rows in enumerate(encoder.rows(groups)):
        fitting = [k for k, row in enumerate(rows) if row.start > 0 and len(row.ids) - row.start >= fewest
                   and 1 < len(row.ids) <= (longest or len(row.ids))]
        if fitting:
            places.append((g, fitting))
            examples.append(_example(groups[g].id, [rows[k] for k in fitting]))
    for (g, fitting), values in zip(places, scores(examples), strict=True):
        for k, value in zip(fitting, values, strict=True):
            found[g][k] = value
    return found


def _example(name: str, rows: Sequence[Row]) -> Example:
    """The rows of a group. One without a completion (an empty answer) lends it the prompt's last token."""
    import numpy as np

    from pipeline.lm.examples import Example

    ids = [np.asarray(row.ids, np.int32) for row in rows]
    starts = [min(row.start, len(row.ids) - 1) for row in rows]
    prompts = tuple(one[:start] for one, start in zip(ids, starts, strict=True))
    shared = all(np.array_equal(prompt, prompts[0]) for prompt in prompts)
    return Example(name, prompts[0], tuple(one[start:] for one, start in zip(ids, starts, strict=True)),
                   prompts=None if shared else prompts)
