"""Score with a reward model: a sequence-classification model with one output, in any Hugging Face folder.

What it is shown is what it was trained on: the carried ids where they are its tokenizer's, else the messages in its own
template (lm/template.Encoder.rows). What comes out is what its own forward gives, every prompt run once (lm/scores).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config import setting
from pipeline.errors import UserError
from pipeline.lm.settings import THIS_MACHINE, ModelRuntime
from pipeline.records import Completion, Group, Message
from pipeline.rewards.contract import ScoreGroups, Scorer
from pipeline.rewards.shown import folder_files, folder_of, folder_problems, head_problems, reader, scored

if TYPE_CHECKING:
    from pipeline.lm.examples import Example
    from pipeline.lm.template import Encoder

_PROBES = ("b", "a b", "ab ba")  # answers that any reward model has a score for


@dataclass(frozen=True)
class Settings:
    """Which model, and how it is run."""

    path: str | None = None
    """A trained reward model, a folder or a hub's org/name@commit; null: the one an earlier step trained."""

    precision: str = setting("bfloat16", choices=("bfloat16", "float32"))
    """Of the matrix products, and of the weights on CUDA. The last layer's stay in float32: scores in bfloat16 would be
    full of ties."""

    def check(self) -> list[tuple[str, str]]:
        return folder_problems("path", self.path, "a reward model")



def scorer(settings: Settings, *, model: Path | None = None, runtime: ModelRuntime = THIS_MACHINE) -> ScoreGroups:
    """See Scorer. Loads the model once, on the runtime's device.

    Args:
        model: folder of the reward model an earlier step made; not looked at where settings.path names one.

    A completion that does not fit the model's positions scores NaN. Raises UserError for a folder that is no reward
    model: more than one output, a head without trained weights, no chat template.
    """
    encoder, net = open_model(settings.path, model, runtime, settings.precision)
    return lambda groups: score_groups(encoder, net, groups, settings.precision, runtime)


def open_model(path: str | None, model: Path | None, runtime: ModelRuntime, precision: str,
               mix: Sequence[float] = (1.0,)) -> tuple[Encoder, Any]:
    """Encoder and network of the folder the settings name, else of `model`. mix: the weights of its outputs.

    Raises UserError where there is none, and for one that gives no number for a short text.
    """
    from pipeline.lm import folders, scores

    folder = folder_of(path, model, "reward")
    device = folders.prepare_machine(runtime)
    encoder = reader(folder, "the reward model's")
    net = folders.load_scorer(folder, device, runtime, mix, folders.frozen(device, precision))
    scores.float32_head(net)
    scores.prepare(net, runtime.share_prefix)
    probe = Group("probe", (Message("user", "a"),), tuple(map(Completion, _PROBES)))
    (found,) = score_groups(encoder, net, [probe], "float32", runtime)
    if bad := [text for text, value in zip(_PROBES, found, strict=True) if not math.isfinite(value)]:
        raise UserError(f"reward: {folder} scores {', '.join(map(repr, bad))} with no finite number, so it would score "
                        "nothing: its weights overflow, or it is no reward model; take another one")
    return encoder, net


def score_groups(encoder: Encoder, net: Any, groups: Sequence[Group], precision: str,
                 runtime: ModelRuntime) -> list[list[float]]:
    """One list of scores per group; NaN for what does not fit the model's positions."""
    from pipeline.lm import folders, scores

    def run(examples: list[Example]) -> list[list[float]]:
        return scores.completion_scores(net, examples, runtime.tokens_per_batch, precision)

    return scored(encoder, groups, folders.context_length(net), run, float("nan"))


SCORER = Scorer(Settings, scorer, needs_model=lambda s: s.path is None, files=lambda s: folder_files(s.path),
                holds_model=True, check=lambda s, limits: head_problems("path", s.path, 1))
