"""Numbers of groups from their side tables, chunk by chunk as the groups are read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline import columns
from pipeline.columns import Source
from pipeline.lm import arrays
from pipeline.lm.arrays import Chunk, Numbers

_WANTED = {  # side table -> (what it gives to every group, the stage that makes it)
    "reference": ("reference log-probs", "reference_logprobs"),
    "previous": ("log-probs of the policy before", "reference_logprobs"),
    "weights": ("weights", "weigh_prompts"),
}


@dataclass(frozen=True)
class SideTables:
    """Folders of side tables (pipeline.columns) with numbers of the groups."""

    reference: Sequence[Path] = ()  # log-probs under the reference
    previous: Sequence[Path] = ()  # log-probs under the policy the iteration began with
    scores: Sequence[Path] = ()  # of groups that carry none themselves
    weights: Sequence[Path] = ()  # factors on the groups' weights
    score: str = "reward"  # which of a completion's scores


class SideNumbers:
    """What the side tables know of one table of groups."""

    def __init__(self, source: Source, given: SideTables) -> None:
        self.source, self.given = source, given
        self.tables = {name: columns.load(getattr(given, name), source.digest) for name in (*_WANTED, "scores")}

    def missing(self, groups: int) -> Iterator[str]:
        """A message for each side table that should know these groups and does not."""
        for name, (what, stage) in _WANTED.items():
            folders = getattr(self.given, name)
            if folders and groups and self.tables[name] is None:
                yield (f"{folders[0]}: no {what} for the {groups} groups of {self.source.path}; run {stage} on exactly "
                       "this table")

    def numbers(self, chunk: Chunk, at: int) -> dict[str, Numbers]:
        """By field of Example, for the groups from the table's completion `at` on. A group's own scores win."""
        scores = self._column("scores", self.given.score, chunk, at)
        own = np.repeat(chunk.scores.present, np.diff(chunk.first))
        return {
            "ref_logps": self._column("reference", columns.LOGP, chunk, at),
            "previous_logps": self._column("previous", columns.LOGP, chunk, at),
            "scores": Numbers(np.where(own, chunk.scores.values, scores.values), chunk.scores.present | scores.present)}

    def weights(self, chunk: Chunk, at: int) -> np.ndarray | float:
        """(G,) factors; 1 where nothing weighs."""
        if self.tables["weights"] is None:
            return 1.0
        found = self._column("weights", columns.WEIGHT, chunk, at)
        return np.where(found.present, found.values[np.minimum(chunk.first[:-1], len(found.values) - 1)], 1.0)

    def _column(self, table: str, name: str, chunk: Chunk, at: int) -> Numbers:
        found, counts = self.tables[table], np.diff(chunk.first)
        if found is None or name not in found.column_names:
            return Numbers(np.full(chunk.first[-1], np.nan), np.zeros(len(chunk.ids), bool))
        rows = columns.span(found, at, chunk.ids, counts)
        return arrays.numbers(rows[name].combine_chunks(), chunk.first)
