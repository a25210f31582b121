"""What a run learns from, as `align data show` and `check` say it: what was read, and what stands in each split."""

from typing import Any

from flows import data_read
from flows.dashboard import tables
from flows.dashboard.facts import Row
from flows.dashboard.files import Files, NotHere
from flows.data import Measures, left_out
from pipeline import outside
from pipeline.tables import from_row

_MOST = 2000  # groups of a split that are measured: a page is there at once, whatever the size of the data


def look(files: Files, name: str) -> Row:
    """{notes: lines, splits: one row each, of the first groups}. Of steps that are not done yet nothing."""
    steps = files.run(name)["steps"]
    notes, splits = list[str](), list[Row]()
    imported: dict[str, float] = {}
    for step in steps:
        manifest = files.manifest(step["stage"], step.get("key"))
        if manifest is not None and step["stage"] in outside.IMPORTS:
            notes += data_read.lines_of(manifest, step["iteration"])
            imported = manifest["counts"]
        elif manifest is not None and step["stage"] == "tokenize":
            splits += [_split(files, step, split, manifest, imported) for split in data_read.SPLITS
                       if manifest["counts"].get(split)]
    return {"run": name, "most": _MOST, "notes": notes, "splits": splits}


def _split(files: Files, step: Row, split: str, manifest: dict[str, Any], imported: dict[str, float]) -> Row:
    found = _measured(files, step, split)
    return {"step": step["name"], "split": split, "groups": manifest["counts"][split], "rows": imported.get(split),
            "left": left_out(manifest["dropped"], split), "cells": found.cells() if found else [],
            "sentences": list(found.sentences(split)) if found else []}


def _measured(files: Files, step: Row, split: str) -> Measures | None:
    folder = files.table(step["stage"], step["key"], split)
    try:
        table = tables.open_table(files, folder)
    except NotHere:
        return None

    def made() -> Measures:
        found = Measures()
        for row in tables.rows(table, 0, _MOST):
            found.add(from_row(row))
        return found

    known: Measures = files.remember(("dataset", folder), table.mark, made)
    return known
