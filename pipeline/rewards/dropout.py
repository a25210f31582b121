"""A reward model's score with its uncertainty, by Monte-Carlo dropout (Gal and Ghahramani 2016).

Every completion is scored T times; in pass t each linear layer sees its input features through a mask of its own, the
same for all completions: W diag(z), z_j = 1 / (1 - rate) with probability 1 - rate, else 0. One mask per pass makes a
pass one draw of the model, so that differences between completions of a pass mean something, and the scores do not
depend on how completions are batched. The model itself needs no dropout layers.

Gives the mean of the passes as the score, their standard deviation as <name>_std, and each pass as <name>_pass0 ... for
selections that want to know what the passes disagree about (pipeline.selection.upo).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

from pipeline.config import setting
from pipeline.lm.settings import THIS_MACHINE, ModelRuntime
from pipeline.records import Group
from pipeline.rewards.contract import ScoreGroups, Scorer
from pipeline.rewards.model import open_model, score_groups
from pipeline.rewards.shown import folder_files, folder_problems
from pipeline.stage import derive_seed


@dataclass(frozen=True)
class Settings:
    """Which model, and how often it is asked."""

    path: str | None = None
    """A folder with a trained reward model; null: the one an earlier step trained."""

    passes: int = setting(10, low=2)
    """T. Paper of UPO: 10."""

    rate: float = setting(0.1, above=0.0, below=1.0)
    """Share of the features that is dropped."""

    seed: int = setting(0, low=0)
    """Of the masks. Apart from the run's seed: the same reward model asked again gives the same scores."""

    precision: str = setting("bfloat16", choices=("bfloat16", "float32"))
    """Of the matrix products."""

    def check(self) -> list[tuple[str, str]]:
        return folder_problems("path", self.path, "a reward model")


def suffixes(settings: Settings) -> tuple[str, ...]:
    return "", "_std", *(f"_pass{t}" for t in range(settings.passes))


def scorer(settings: Settings, *, model: Path | None = None, runtime: ModelRuntime = THIS_MACHINE) -> ScoreGroups:
    """See Scorer and pipeline.rewards.model, whose arguments and errors these are."""
    encoder, net = open_model(settings.path, model, runtime, settings.precision)

    def score(groups: Sequence[Group]) -> list[list[Mapping[str, float]]]:
        passes = []
        for t in range(settings.passes):
            with masked(net, settings.rate, derive_seed(settings.seed, "dropout", t)):
                passes.append(score_groups(encoder, net, groups, settings.precision, runtime))
        return [[summary(values) for values in zip(*of_group, strict=True)] for of_group in zip(*passes, strict=True)]

    return score


def summary(passes: Sequence[float]) -> dict[str, float]:
    """Mean, standard deviation (divided by T) and the passes themselves, by what stands behind the score's name."""
    return {"": fmean(passes), "_std": pstdev(passes), **{f"_pass{t}": value for t, value in enumerate(passes)}}


@contextmanager
def masked(net: Any, rate: float, seed: int) -> Iterator[None]:
    """While it is open, every linear layer of `net` drops the same `rate` of its input features, fixed by `seed`."""
    import torch
    from transformers.pytorch_utils import Conv1D

    def hook(index: int) -> Callable[[Any, tuple[Any, ...]], tuple[Any, ...]]:
        def apply(layer: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            first, *rest = inputs
            generator = torch.Generator().manual_seed(derive_seed(seed, index))
            kept = torch.rand(first.shape[-1], generator=generator) >= rate
            return (first * (kept / (1.0 - rate)).to(first), *rest)

        return apply

    layers = [layer for layer in net.modules() if isinstance(layer, (torch.nn.Linear, Conv1D))]
    handles = [layer.register_forward_pre_hook(hook(index)) for index, layer in enumerate(layers)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


SCORER = Scorer(Settings, scorer, needs_model=lambda s: s.path is None, files=lambda s: folder_files(s.path),
                holds_model=True, suffixes=suffixes)
