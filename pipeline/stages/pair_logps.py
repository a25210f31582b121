"""What training did to the log-probs of pairs: of some it saw, of some held out. For a run that only trains.

Writes side tables (pipeline.columns) seen/ and held_out/ with numbers of every completion, in nats,

    logp, log_ratio       the sum over its tokens under the policy, and that less the reference's
    before, at, after     mean log-ratio of its tokens before, at and after the first that differs from the chosen one's
                          (of the chosen itself: from the first rejected one's); absent where it has no such token

and pair_logps.json: summaries of both tables, log-probs by place and by offset (Pal et al. 2024, figures 3, 5, 6).
"""

import json
from dataclasses import asdict, dataclass
from typing import Any

from pipeline import statistics
from pipeline.config import setting
from pipeline.evaluation import logprobs
from pipeline.evaluation.logprobs import PairLogps
from pipeline.lm.settings import PRECISIONS
from pipeline.records import Group
from pipeline.stage import Context, Stage, told
from pipeline.training.settings import TrainRuntime, processes

TABLES = ("seen", "held_out")
Logps = list[list[float]]  # by completion, token


@dataclass(frozen=True)
class Settings:
    window: int = setting(8, low=1)  # tokens on each side of the first differing one
    precision: str = setting("bfloat16", choices=PRECISIONS)  # as in training


def run(context: Context) -> None:
    from pipeline import columns, tables
    from pipeline.training import frozen

    sources = {name: columns.sources(context, name)[0] for name in TABLES}
    groups = {name: list(tables.read(source.path)) for name, source in sources.items()}
    world, policy, reference = frozen.token_logps(context, [*groups.values()])
    if not world.first:
        return
    result: dict[str, Any] = {"schema": 1}
    for name, ours, theirs in zip(TABLES, policy, reference, strict=True):
        found = groups[name]
        pairs = [PairLogps(g.completions[0].token_ids, g.completions[k].token_ids, a[0], a[k], b[0], b[k])
                 for g, a, b in zip(found, ours, theirs, strict=True) for k in range(1, len(g.completions))]
        columns.write_part(context.out / name, 0, (
            (sources[name].digest, g.id, _numbers(g, a, b)) for g, a, b in zip(found, ours, theirs, strict=True)))
        result[name] = {**asdict(logprobs.summarise(pairs)), "by_place": logprobs.by_place(pairs),
                        "by_offset": logprobs.around_first_difference(pairs, context.settings.window)}
    (context.out / "pair_logps.json").write_text(json.dumps(result, indent=2, allow_nan=False) + "\n")
    numbers = {f"{name}_{key}": result[name][key] for name in TABLES for key in (
        "chosen_log_ratio", "rejected_log_ratio", "chosen_less_likely", "ranking_accuracy", "edit_distance")}
    context.report.count(**numbers)
    context.report.metric(0, **numbers)


def _numbers(group: Group, ours: Logps, theirs: Logps) -> list[dict[str, float]]:
    """Of every completion of a group; ours, theirs: of its tokens under policy and reference."""
    made = []
    for k, (completion, a, b) in enumerate(zip(group.completions, ours, theirs, strict=True)):
        other = group.completions[0 if k else 1]
        at = logprobs.first_difference(completion.token_ids, other.token_ids)
        moved = [x - y for x, y in zip(a, b, strict=True)]
        places = {"before": moved[:at], "at": moved[at : at + 1], "after": moved[at + 1 :]}
        made.append({"logp": sum(a), "log_ratio": sum(moved),
                     **{name: statistics.mean(values) for name, values in places.items() if values}})
    return made


STAGE = Stage(
    Settings, run, version=1, inputs={"model": "one", "reference": "one", "seen": "one", "held_out": "one"},
    seeded=False, runtime=TrainRuntime, distributed=True, devices=processes,
    says=told("chosen {held_out_chosen_log_ratio:+.1f} nats held out, {seen_chosen_log_ratio:+.1f} of those trained on",
              "rejected {held_out_rejected_log_ratio:+.1f}"))
