"""A few tokens through all that will use a model, before anything is trained: trainer, reference and reward model.

    transformers' own forward == the training core's log-probs == those of the saved folder, loaded again

What a family does not survive (weights that are missing, a head that is not known, tied weights that come apart, a
configuration that cannot be written, a tokenizer of another model) ends here, not after the first training. Float32 on
the CPU. Of a model of more than `_WHOLE` weights only the first layers make the round: one of each kind, at least two;
that its tokenizer fits is asked of the whole model, whose weights are read layer by layer.
"""

import copy
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from pipeline import weights
from pipeline.errors import UserError, one_line
from pipeline.lm import folders, logps, prefix, scores
from pipeline.lm.examples import Example
from pipeline.lm.forward import device_of
from pipeline.lm.settings import THIS_MACHINE

TOLERANCE = 2e-3  # nats per token, float32: another order of summation gives 1e-5, a fault 1e-1 and more
_WHOLE = 600_000_000
_WORSE = 3.0  # nats per token beyond chance that a model of random numbers or another language stays below
_CPU = torch.device("cpu")
_TEXT = ("The capital of France is", " Paris, a city on the river Seine.", " a large town; two and two are four.")

TokenLogps = list[list[list[float]]]  # of every completion token, nats; by example and completion


def gap(left: TokenLogps, right: TokenLogps) -> float:
    """The largest difference of two models' log-probs on the same tokens, nats; inf where one is no number."""
    pairs = [(a, b) for one, other in zip(left, right, strict=True) for x, y in zip(one, other, strict=True)
             for a, b in zip(x, y, strict=True)]
    found = np.abs(np.array([a for a, _ in pairs]) - np.array([b for _, b in pairs]))
    return float(found.max()) if np.isfinite(found).all() else float("inf")


def same_logprobs(left: TokenLogps, right: TokenLogps, between: str, tolerance: float = TOLERANCE) -> float:
    """Their `gap`. Raises UserError, naming what was compared, where it is more than `tolerance`."""
    found = gap(left, right)
    if not found <= tolerance:
        raise UserError(f"{between}: their log-probs of the same tokens differ by up to {found:.3g} nats, allowed are "
                        f"{tolerance:g}")
    return found


def check(folder: Path, scratch: Path, reward: bool, name: str) -> dict[str, float]:
    """What was measured. Raises UserError where the model of `folder` cannot make the round; name: what it is called.

    scratch: a folder of its own, for a second copy of the model, gone at the end.
    """
    folders.quiet()
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        return _checked(folder, scratch, reward)
    except UserError as error:
        raise UserError(*(f"model.path: {name}: {problem}" for problem in error.problems)) from None
    except Exception as error:  # what a family's code raises is its answer
        raise UserError(f"model.path: {name}: it cannot be trained here: {type(error).__name__}: {one_line(error)}; "
                        "take a model of a family that docs/models.md lists") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def examples(folder: Path) -> list[Example]:
    """A prompt with two answers and one with one, by the folder's tokenizer: real text, as it will be trained on."""
    tokenizer = folders.load_tokenizer(folder)
    prompt, *answers = (np.array(tokenizer(text, add_special_tokens=False)["input_ids"] or [0], np.int32)
                        for text in _TEXT)  # id 0 where it knows none of the words
    bos = tokenizer.bos_token_id
    opened = prompt if bos is None else np.append(np.int32(bos), prompt)
    return [Example("two", opened, tuple(answers)), Example("one", opened, (answers[0],))]


def own_logps(model: Any, given: Sequence[Example]) -> TokenLogps:
    """By the model's own forward pass, row by row, with nothing of ours between."""
    found: TokenLogps = []
    for example in given:
        found.append([])
        for k, completion in enumerate(example.completions):
            prompt = example.prompt_of(k)
            ids = torch.from_numpy(np.concatenate([prompt, completion]).astype(np.int64)).to(device_of(model))
            with torch.no_grad():
                logits = model(input_ids=ids[None], use_cache=False).logits[0, len(prompt) - 1:-1].float()
            found[-1].append(logits.log_softmax(-1).gather(1, ids[len(prompt):, None])[:, 0].tolist())
    return found


def core_logps(model: Any, given: Sequence[Example]) -> TokenLogps:
    """By the pass that trainer and reference share."""
    return logps.token_logps(model, given, THIS_MACHINE, "float32")


def _checked(folder: Path, scratch: Path, reward: bool) -> dict[str, float]:
    cut = _first_layers(folder)
    given = examples(folder)
    if problems := folders.misfits(folder):
        raise UserError(*problems)
    model = folders.load_policy(folder, _CPU, options={} if cut is None else {"config": cut})
    own = own_logps(model, given)
    whole = own if cut is None else own_logps(folders.load_from_disk(folder, scratch / "offload"), given[:1])
    english = _english(whole, weights.rows(folder))
    prefix.prepare(model)
    core = core_logps(model, given)
    found = {"trainer_gap": same_logprobs(own, core, "the training core against transformers' own forward pass")}
    folders.save_folder(model, folder, scratch / "model", "float32")
    del model
    again = logps.open_frozen(scratch / "model", _CPU, THIS_MACHINE, "float32")
    found["saved_gap"] = same_logprobs(core, core_logps(again, given), "the folder saved and loaded against itself")
    del again
    if reward:
        found["reward_gap"] = _reward_gap(scratch, given)
    return found | {"english": english}


def _english(found: TokenLogps, rows: int | None) -> float:
    """Nats per token of plain English, 2 to 4 for a pretrained model. Raises UserError where the whole model is worse
    at it than one that knows nothing, log(rows): then its ids are another tokenizer's.
    """
    nats, chance = -float(np.mean(found[0][0])), math.log(rows or 1)
    if rows is not None and nats > chance + _WORSE:
        raise UserError(f"plain English costs it {nats:.1f} nats a token, more than chance ({chance:.1f}): the "
                        "tokenizer is another model's; copy the tokenizer files of the model it was trained from")
    return round(nats, 4)


def _reward_gap(scratch: Path, given: Sequence[Example]) -> float:
    """A reward model on the saved folder: its scores as trained, and after saving and loading, on the same tokens."""
    base, target = scratch / "model", scratch / "reward"
    pad = folders.pad_id(folders.load_tokenizer(base))
    model = folders.load_reward(base, _CPU, seed=0, pad=pad)
    scores.prepare(model)
    before = scores.completion_scores(model, given, THIS_MACHINE.tokens_per_batch, "float32")
    folders.save_folder(model, base, target, "float32")
    del model
    after = scores.completion_scores(folders.load_scorer(target, _CPU), given, THIS_MACHINE.tokens_per_batch, "float32")
    return same_logprobs([before], [after], "a reward model of it, saved and loaded, against itself", 1e-2)


def _first_layers(folder: Path) -> Any:
    """The configuration of a cut model, one layer of each kind; None for a model that is small enough to load whole."""
    if weights.parameters(folder) <= _WHOLE:
        return None
    config = copy.deepcopy(transformers.AutoConfig.from_pretrained(folder))
    text = config.get_text_config()
    kinds = list(getattr(text, "layer_types", None) or [])
    number = max([2, *(kinds.index(kind) + 1 for kind in set(kinds))])
    text.num_hidden_layers = min(number, text.num_hidden_layers)
    if kinds:
        text.layer_types = kinds[:text.num_hidden_layers]
    return config
