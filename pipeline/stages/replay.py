"""What an iteration trains on, of the groups of all iterations so far: which, and with what weight.

Of a prompt that several iterations made groups of, the newest's stay. Of the others a rule (pipeline.replay) decides.

    kept/         a side table (pipeline.columns): every group's factor, 0 where it is left out, and its iteration
    replay.json   where the groups come from: by iteration and data set how many there are, are kept, and weigh
"""

import hashlib
import json
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.config import load_part, part_problems
from pipeline.errors import UserError
from pipeline.replay.contract import Past, Replay
from pipeline.stage import Context, Stage, told

_PART = 8192  # groups of a part
OLDER, LEFT = "older group of a prompt that was sampled again", "left out by the rule"


@dataclass(frozen=True)
class Settings:
    rule: dict[str, Any]
    """Which groups, and with what weight: a part such as {module: pipeline.replay.last_k}."""

    def check(self) -> list[tuple[str, str]]:
        return part_problems(self.rule, "rule", Replay)


@dataclass(frozen=True)
class _Row:
    """A group, without its tokens."""

    digest: str  # of its table
    id: str
    prompt: str  # as one text
    iteration: int
    dataset: str
    completions: int


def run(context: Context) -> None:
    """Raises UserError where nothing is left to train on."""
    from pipeline import columns, tables

    part, target = load_part(context.settings.rule, "replay", Replay), context.out / "kept"
    prompt, point, iteration, dataset = array("Q"), array("d"), array("q"), array("q")
    names: dict[str, int] = {}
    for row in _rows(context):
        prompt.append(_mark(row.prompt))
        point.append(_mark(row.id) / 2**64)
        iteration.append(row.iteration)
        dataset.append(names.setdefault(row.dataset, len(names)))
    of, points, made_in, sets = map(np.array, (prompt, point, iteration, dataset))
    newest = _newest(of, made_in)
    factors = np.zeros(len(of))
    factors[newest] = part.plugin.factors(Past(made_in[newest], points[newest]), part.settings)
    if not (factors > 0).any():
        raise UserError(f"replay: none of {len(of)} groups is left to train on; take another rule (align options "
                        "replay)")
    whole = len(tables.parts(target))
    for index, rows in enumerate(tables.batches(zip(_rows(context), factors.tolist(), strict=True), _PART)):
        if index >= whole:
            columns.write_part(target, index, (
                (row.digest, row.id, [{columns.REPLAY: factor, "iteration": row.iteration}] * row.completions)
                for row, factor in rows))
        context.report.progress(index * _PART + len(rows), len(of), "groups")
    found = origins(made_in, sets, factors, list(names))
    (context.out / "replay.json").write_text(json.dumps({"rule": part.name, "from": found}, indent=2) + "\n")
    context.report.drop(OLDER, int((~newest).sum()))
    context.report.drop(LEFT, int((newest & (factors == 0)).sum()))
    recent = made_in == made_in.max()
    context.report.count(groups=len(of), kept=int((factors > 0).sum()),
                         on_policy_share=float(factors[recent].sum() / factors.sum()))


def origins(iteration: np.ndarray, dataset: np.ndarray, factors: np.ndarray, names: list[str]) -> list[dict[str, Any]]:
    """For each iteration and data set: its groups, those that are kept, the sum of their factors, and its share of it.

    iteration, dataset, factors: (G,); names: of the data sets.
    """
    found = []
    for i, d in np.unique(np.stack([iteration, dataset], 1), axis=0).tolist():
        here = factors[(iteration == i) & (dataset == d)]
        found.append({"iteration": i, "dataset": names[d], "groups": len(here), "kept": int((here > 0).sum()),
                      "weight": round(float(here.sum()), 6), "share": round(float(here.sum() / factors.sum()), 6)})
    return found


def _newest(prompt: np.ndarray, iteration: np.ndarray) -> np.ndarray:
    """(G,) bool: groups of the newest iteration that has some of their prompt."""
    found, of = np.unique(prompt, return_inverse=True)
    last = np.zeros(len(found), np.int64)
    np.maximum.at(last, of.reshape(-1), iteration)
    return np.asarray(iteration == last[of.reshape(-1)])


def _rows(context: Context) -> Iterator[_Row]:
    """Every group of every table, from the columns that are looked at."""
    import pyarrow.parquet as pq

    from pipeline import columns, tables

    wanted = ["id", "messages", "template", "iteration", "dataset", "completions.list.element.sample"]
    for source in columns.sources(context):
        for part in tables.parts(source.path):
            with pq.ParquetFile(part) as file:
                there = [name for name in wanted if name.partition(".")[0] in file.schema_arrow.names]
                for batch in file.iter_batches(batch_size=1024, columns=there):
                    yield from (_Row(source.digest, row["id"], json.dumps([row["messages"], row.get("template") or ""]),
                                     row["iteration"], row["dataset"], len(row["completions"]))
                                for row in batch.to_pylist())


def _mark(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


STAGE = Stage(Settings, run, version=1, inputs={"groups": "many"}, seeded=False,
              says=told("{kept:,.0f} of {groups:,.0f} groups", "{on_policy_share:.0%} of this iteration"))
