"""Log-probs of every completion under a reference model, once, for every objective, seed and run that needs them.

The key of the artifact holds the digest of the weights and of the tokenised groups, so a stale table cannot be found.
Written part by part; a killed stage goes on behind the last whole part. Several processes share the micro-batches of
as many parts as they are. Output: `logps/`, a side table (pipeline.columns) of all tables it is given.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.config import setting
from pipeline.lm.settings import PRECISIONS
from pipeline.stage import Context, Stage, told
from pipeline.training.settings import TrainRuntime, processes

if TYPE_CHECKING:
    from pipeline.columns import Source
    from pipeline.lm.examples import Example

_PART = 1024  # groups; fixed, because micro-batches are cut inside a part and rounding depends on them


@dataclass(frozen=True)
class Settings:
    precision: str = setting("bfloat16", choices=PRECISIONS)  # as in training, so that both round alike
    weights: str = setting("full", choices=("full", "nf4"))  # nf4: rounded to 4 bits, as under a qlora adapter


def run(context: Context) -> None:
    from pipeline import columns, tables
    from pipeline.lm import adapters, folders, forward
    from pipeline.lm import examples as data
    from pipeline.lm import logps as passes
    from pipeline.lm.settings import AdapterSettings
    from pipeline.training import distribute, frozen

    runtime, sources, target = context.runtime, columns.sources(context), context.out / "logps"
    world, device = distribute.join(runtime, folders.prepare_machine(runtime))
    whole, total = world.agree(len(tables.parts(target))), sum(tables.count(source.path) for source in sources)
    kind = AdapterSettings(kind={"full": "none", "nf4": "qlora"}[context.settings.weights])
    adapters.require(kind, device)
    model = passes.open_frozen(context.one("model"), device, runtime, context.settings.precision,
                               adapters.quantisation(kind, context.settings.precision))
    vocabulary, context_length = model.get_input_embeddings().weight.shape[0], folders.context_length(model)
    parts = itertools.islice(enumerate(tables.batches(_examples(sources), _PART)), whole, None)
    for several in tables.batches(parts, world.size):
        own = []
        for turn, (index, part) in enumerate(several):
            context.report.progress(index * _PART, total, "groups")
            with forward.enough_memory(f"at group {index * _PART + 1}", forward.smaller_pass(runtime)):
                examples = [example for _, example in part]
                data.check_fits(examples, vocabulary, context_length)
                own.append(passes.completion_logps(model, examples, runtime, context.settings.precision,
                                                   frozen.share(world, turn)))
        for (index, part), found in zip(several, own, strict=True):
            logps = frozen.together(world, found)
            if world.first:
                columns.write_part(target, index, (
                    (digest, example.id, [{columns.LOGP: value} for value in values])
                    for (digest, example), values in zip(part, logps, strict=True)))
    context.report.progress(total, total, "groups")
    if total == 0 and world.first:
        columns.write_part(target, 0, [])
    context.report.count(groups=total)


def _examples(sources: Sequence[Source]) -> Iterator[tuple[str, Example]]:
    """(digest of its table, the example) of every group."""
    from pipeline.lm import arrays, examples

    for source in sources:
        for chunk in arrays.read(source.path, ""):
            for example in examples.of_chunk(chunk):
                yield source.digest, example


STAGE = Stage(Settings, run, version=2, inputs={"model": "one", "groups": "many"}, seeded=False, runtime=TrainRuntime,
              distributed=True, devices=processes, says=told("{groups:,.0f} groups"))
