"""Inputs of stages that tests run by hand: digests that stand for the tables, and side tables of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline import columns, tables
from pipeline.columns import Source
from pipeline.config import build
from pipeline.formats.splits import SPLITS, Imported
from pipeline.records import Group
from pipeline.stage import Context, Reporter


def digests(inputs: Mapping[str, Sequence[Path]]) -> dict[str, tuple[str, ...]]:
    """A digest per input: the path, which no other table of the test has."""
    return {name: tuple(map(str, paths)) for name, paths in inputs.items()}


def source(table: Path) -> Source:
    return Source(table, str(table))


def write(table: Path, groups: Sequence[Group]) -> Source:
    """Write a table of groups."""
    tables.write(table, groups)
    return source(table)


def side_table(folder: Path, of: Source, name: str, values: Sequence[Sequence[float]]) -> Path:
    """Write one number per completion of the groups of a table, as column `name`."""
    columns.write_part(folder, 0, (
        (of.digest, group.id, [{name: value} for value in row])
        for group, row in zip(tables.read(of.path), values, strict=True)))
    return folder


def splits(made: Imported) -> dict[str, tuple[Group, ...]]:
    """The groups of an imported data set by split, all of them."""
    found: dict[str, list[Group]] = {name: [] for name in SPLITS}
    for name, group in made.groups():
        found[name].append(group)
    assert {name: len(groups) for name, groups in found.items()} == made.counts
    return {name: tuple(groups) for name, groups in found.items()}


def run(stage: Any, work: Path, settings: Any, runtime: Any = None, **inputs: Path) -> Path:
    """What a stage's module writes, run in this process. Its metrics: `metrics`."""
    report = Reporter(step="s", metrics_path=work.with_suffix(".jsonl"))
    found = {name: (path,) for name, path in inputs.items()}
    stage.run(Context(build(stage.Settings, settings), build(stage.STAGE.runtime, runtime or {}), found, digests(found),
                      work, 0, report))
    return work / "out"


def metrics(work: Path) -> list[dict[str, Any]]:
    """The lines that a `run` reported, in order."""
    return [json.loads(line) for line in work.with_suffix(".jsonl").read_text().splitlines()]
