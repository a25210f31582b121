"""Numbers of groups from their side tables, chunk by chunk as the groups are read."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline import columns
from pipeline.columns import Source
from pipeline.lm import arrays
from pipeline.lm.arrays import Chunk, Numbers


@dataclass(frozen=True)
class SideTables:
    """Folders of side tables (pipeline.columns) with numbers of the groups."""

    reference: Sequence[Path] = ()  # log-probs under the reference
    previous: Sequence[Path] = ()  # log-probs under the policy the iteration began with
    scores: Sequence[Path] = ()  # of groups that carry none themselves
    weights: Sequence[Path] = ()  # factors on the groups' weights
    replay: Sequence[Path] = ()  # further factors; a group with 0 is left out
    score: str = "reward"  # which of a completion's scores


class SideNumbers:
    """What the side tables know of one table of groups."""

    def __init__(self, source: Source, given: SideTables) -> None:
        self.source, self.given = source, given
        self.reference, self.previous, self.scores, self.factors, self.replay = (
            columns.load(folders, source.digest)
            for folders in (given.reference, given.previous, given.scores, given.weights, given.replay))

    def missing(self, groups: int) -> Iterator[str]:
        """A message for each side table that should know these groups and does not."""
        for folders, table, what, stage in (
                (self.given.reference, self.reference, "reference log-probs", "reference_logprobs"),
                (self.given.previous, self.previous, "log-probs of the policy before", "reference_logprobs"),
                (self.given.weights, self.factors, "weights", "weigh_prompts"),
                (self.given.replay, self.replay, "factors", "replay")):
            if folders and groups and table is None:
                yield (f"{folders[0]}: no {what} for the {groups} groups of {self.source.path}; run {stage} on exactly "
                       "this table")

    def numbers(self, chunk: Chunk, at: int) -> dict[str, Numbers]:
        """By field of Example, for the groups from the table's completion `at` on. A group's own scores win."""
        scores = _column(self.scores, self.given.score, chunk, at)
        own = np.repeat(chunk.scores.present, np.diff(chunk.first))
        return {
            "ref_logps": _column(self.reference, columns.LOGP, chunk, at),
            "previous_logps": _column(self.previous, columns.LOGP, chunk, at),
            "scores": Numbers(np.where(own, chunk.scores.values, scores.values), chunk.scores.present | scores.present)}

    def weights(self, chunk: Chunk, at: int) -> np.ndarray | float:
        """(G,) factors; 1 where nothing weighs."""
        return _factors(self.factors, columns.WEIGHT, chunk, at) * _factors(self.replay, columns.REPLAY, chunk, at)

    def kept(self, chunk: Chunk, at: int) -> np.ndarray:
        """(G,) bool: groups that are trained on."""
        return np.broadcast_to(_factors(self.replay, columns.REPLAY, chunk, at), len(chunk.ids)) > 0


def _factors(table: pa.Table | None, name: str, chunk: Chunk, at: int) -> np.ndarray | float:
    """(G,) one number of each group; 1 where there is none."""
    if table is None:
        return 1.0
    found = _column(table, name, chunk, at)
    return np.where(found.present, found.values[np.minimum(chunk.first[:-1], len(found.values) - 1)], 1.0)


def _column(table: pa.Table | None, name: str, chunk: Chunk, at: int) -> Numbers:
    """One of the numbers for the groups from completion `at` on; absent everywhere where the table has none."""
    if table is None or name not in table.column_names:
        return Numbers(np.full(chunk.first[-1], np.nan), np.zeros(len(chunk.ids), bool))
    rows = columns.span(table, at, chunk.ids, np.diff(chunk.first))
    return arrays.numbers(rows[name].combine_chunks(), chunk.first)
