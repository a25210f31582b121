"""Log-probs of every completion under a reference model, once, for every objective, seed and run that needs them.

The key of the artifact holds the digest of the weights and of the tokenised groups, so a stale table cannot be found.
Written part by part; a killed stage goes on behind the last whole part. Output: `groups/` with `ref_logp` filled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from pipeline.config import setting
from pipeline.errors import UserError
from pipeline.lm.settings import PRECISIONS
from pipeline.records import Group
from pipeline.stage import Context, Stage
from pipeline.training.settings import TrainRuntime

_PART = 1024  # groups; fixed, because micro-batches are cut inside a part and rounding depends on them


@dataclass(frozen=True)
class Settings:
    precision: str = setting("bfloat16", choices=PRECISIONS)  # as in training, so that both round alike
    weights: str = setting("full", choices=("full", "nf4"))  # nf4: rounded to 4 bits, as under a qlora adapter


def run(context: Context) -> None:
    from pipeline import tables
    from pipeline.lm import adapters, folders, forward, memory
    from pipeline.lm import examples as data
    from pipeline.lm.settings import AdapterSettings

    runtime, source, target = context.runtime, context.one("groups"), context.out / "groups"
    device = folders.prepare_machine(runtime)
    for stale in target.glob(".part-*"):  # of a try that was killed
        stale.unlink()
    whole, total = len(tables.parts(target)), tables.count(source)
    kind = AdapterSettings(kind={"full": "none", "nf4": "qlora"}[context.settings.weights])
    adapters.require(kind, device)
    model = folders.load_policy(context.one("model"), device, runtime,
                               adapters.quantisation(kind, context.settings.precision))
    forward.prepare(model, context.runtime.share_prefix)
    for index, groups in enumerate(data.chunks(tables.read(source), _PART)):
        if index >= whole:
            context.report.progress(index * _PART, total, "groups")
            with memory.enough(f"at group {index * _PART + 1}", memory.forward_pass(runtime)):
                scored = _score(model, groups, context)
            tables.write_part(target, index, scored)
    context.report.progress(total, total, "groups")
    if total == 0:
        tables.write_part(target, 0, [])
    context.report.count(groups=total)


def _score(model: Any, groups: Sequence[Group], context: Context) -> list[Group]:
    import torch

    from pipeline.lm import batches, folders, forward
    from pipeline.lm import examples as data
    from pipeline.lm.forward import autocast

    problems = [p for g in groups for p in data.row_problems(g)]
    if problems:
        raise UserError.of(problems, 5)
    examples = [data.example(g) for g in groups]
    data.check_fits(examples, model.get_input_embeddings().weight.shape[0], folders.context_length(model))
    device, runtime = next(model.parameters()).device, context.runtime
    scored = list(groups)
    with torch.no_grad(), autocast(device, context.settings.precision):
        for micro in batches.micro_batches(examples, runtime.tokens_per_batch):
            rows = forward.collate([examples[i] for i in micro], device)
            for i, row in zip(micro, forward.group_logps(model, rows, runtime.logits_per_chunk).tolist(), strict=True):
                filled = [replace(c, ref_logp=v) for c, v in zip(groups[i].completions, row, strict=False)]
                scored[i] = replace(groups[i], completions=tuple(filled))
    return scored


STAGE = Stage(Settings, run, version=1, inputs={"model": "one", "groups": "one"}, seeded=False, runtime=TrainRuntime)
