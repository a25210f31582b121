"""Weights for answers judged one by one, where thumbs-down stand on other prompts than thumbs-up. Writes weights/,
a side table of factors (pipeline.columns).

    w(x) = clip( p(x | up) / p(x | down), low, high )   on a thumbs-down; 1 on everything else

Underlying distribution matching of BCO (Jung et al. 2024): so weighed, both labels are seen on one distribution of
prompts. The ratio is that of a logistic classifier with both labels counting alike, on the mean final hidden state of a
prompt's tokens under `model`. Groups without a label have both sides on one prompt and need no weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline import logistic
from pipeline.config import setting
from pipeline.errors import UserError
from pipeline.records import Group
from pipeline.stage import Context, Stage, derive_seed
from pipeline.training.settings import TrainRuntime, processes

if TYPE_CHECKING:
    from pipeline.training.gradients import World


@dataclass(frozen=True)
class Settings:
    """How the ratio is estimated."""

    sample: int = setting(1024, low=2)
    """Most prompts of each label the classifier sees. Paper: up to 1024 prompts."""

    low: float = setting(0.5, above=0.0, high=1.0)
    """Smallest weight. Paper: 0.5."""

    high: float = setting(10.0, low=1.0)
    """Largest weight. Paper: 10."""

    penalty: float = setting(1.0, low=0.0)
    """Of the squared coefficients, half of it times their sum of squares, on standardised features. A choice."""


def run(context: Context) -> None:
    """Raises UserError where a label is missing."""
    from pipeline import columns, tables

    settings = context.settings
    found = [(source.digest, group) for source in columns.sources(context) for group in tables.read(source.path)]
    groups = [group for _, group in found]
    judged = [group for group in groups if group.label is not None]
    up = [group.label is True for group in judged]
    if not (any(up) and not all(up)):
        raise UserError(f"weigh_prompts: found {sum(up)} thumbs-up and {len(up) - sum(up)} thumbs-down, expected both; "
                        "set train.weigh_prompts=false")
    seen = _sampled(judged, settings.sample, context.seed)
    world, features = _embeddings(context, judged)
    if not world.first:
        return
    ratios = density_ratios(features, up, seen, settings.penalty)
    weights = {group.id: min(settings.high, max(settings.low, ratio))
               for group, ratio, wanted in zip(judged, ratios, up, strict=True) if not wanted}
    columns.write_part(context.out / "weights", 0, (
        (digest, g.id, [{columns.WEIGHT: weights.get(g.id, 1.0)}] * len(g.completions)) for digest, g in found))
    context.report.count(groups=len(groups), weighed=len(weights), weight_mean=sum(weights.values()) / len(weights))


def density_ratios(features: np.ndarray, up: Sequence[bool], seen: Sequence[int], penalty: float) -> list[float]:
    """p(x | up) / p(x | down) of each prompt, > 0.

    Args:
        features: (N, H). up: N labels, both present among `seen`.
        seen: places of the prompts the classifier is fitted to. penalty: >= 0, on standardised features.
    """
    labels, chosen = np.asarray(up, bool), list(seen)
    values = features.astype(np.float64)
    middle, spread = values[chosen].mean(axis=0), values[chosen].std(axis=0)
    values = (values - middle) / np.where(spread > 0, spread, 1.0)
    # All that the fitted prompts can tell lies in their own span: at most as many directions as there are prompts.
    basis, _ = np.linalg.qr(values[chosen].T)
    design = np.column_stack([values @ basis, np.ones(len(values))])
    y = labels[chosen]
    share = np.where(y, 0.5 / y.sum(), 0.5 / (~y).sum()) * len(y)  # both labels count alike
    ridge = np.append(np.full(basis.shape[1], penalty), 0.0)
    return np.exp(design @ logistic.fit(design[chosen], y.astype(float), ridge, share)).tolist()


def _sampled(groups: Sequence[Group], most: int, seed: int) -> list[int]:
    """Places of up to `most` groups of each label, the same ones wherever they stand."""
    order = sorted(range(len(groups)), key=lambda i: derive_seed(seed, "weigh_prompts", groups[i].id))
    return [i for wanted in (True, False) for i in [i for i in order if groups[i].label is wanted][:most]]


def _embeddings(context: Context, groups: Sequence[Group]) -> tuple[World, np.ndarray]:
    """The processes that shared the passes, and (N, H) float32, mean final hidden state over a prompt's tokens."""
    import torch

    from pipeline.lm import folders, forward, logps, packed
    from pipeline.lm.examples import Example
    from pipeline.training import distribute, frozen

    runtime = context.runtime
    world, device = distribute.join(runtime, folders.prepare_machine(runtime))
    model = logps.open_frozen(context.one("model"), device, runtime, "float32")
    prompts = [np.asarray(group.prompt_ids, np.int32) for group in groups]
    examples = [Example(g.id, ids, (ids[:1],)) for g, ids in zip(groups, prompts, strict=True)]  # any one more token
    own: list[list[np.ndarray]] = [[] for _ in groups]
    shares, done = packed.micro_batches(examples, runtime.tokens_per_batch)[frozen.share(world)], 0
    for micro in shares:
        with torch.no_grad():
            states = forward.states_of_sequences(model, forward.collate([examples[i] for i in micro], device))
            for i, mean in zip(micro, torch.stack([one.float().mean(dim=0) for one in states]).cpu(), strict=True):
                own[i] = [mean.numpy()]
        done += len(micro)
        context.report.progress(done, sum(map(len, shares)), "prompts")
    return world, np.stack([mean for (mean,) in frozen.together(world, own)])


STAGE = Stage(Settings, run, version=4, inputs={"model": "one", "groups": "many"}, seeded=True, runtime=TrainRuntime,
              distributed=True, devices=processes)
