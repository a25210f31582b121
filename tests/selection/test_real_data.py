"""Seven ranked answers per prompt (Nectar): needs the folder of real data sets in ALIGNLOOP_TEST_DATA."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pytest

from pipeline.records import Completion, Group, Message
from pipeline.selection import best_rest, best_worst


@pytest.fixture(scope="module")
def nectar() -> list[Group]:
    folder = os.environ.get("ALIGNLOOP_TEST_DATA")
    if not folder:
        pytest.skip("ALIGNLOOP_TEST_DATA is not set: no folder with real data sets")
    path = Path(folder) / "nectar-sample" / "nectar.train.jsonl.gz"
    if not path.exists():
        pytest.skip("no nectar-sample in ALIGNLOOP_TEST_DATA")
    with gzip.open(path, "rt") as file:
        rows = [json.loads(line) for line in file]
    return [
        Group(str(i), (Message("user", row["prompt"]),), tuple(
            Completion(a["answer"], scores={"reward": -float(a["rank"])}) for a in reversed(row["answers"])
        ))
        for i, row in enumerate(rows)
    ]


def test_ranks_come_out_in_order(nectar: list[Group]) -> None:
    """Scored by minus their rank, worst first: the selection turns them round and drops only repeated answers."""
    assert len(nectar) > 200
    for group in nectar:
        ranked, reason = best_rest.select(group, best_rest.Settings())
        pair, _ = best_worst.select(group, best_worst.Settings())
        distinct = {c.text for c in group.completions if c.text}
        if ranked is None or pair is None:
            assert reason in ("duplicates", "empty", "tied_scores")
            continue
        scores = [c.scores["reward"] for c in ranked.completions]
        assert scores == sorted(scores, reverse=True)
        assert {c.text for c in ranked.completions} == distinct
        assert [c.scores["reward"] for c in pair.completions] == [scores[0], scores[-1]]
