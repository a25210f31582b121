"""Real comparisons (Nectar's seven ranked answers, UltraFeedback's scored pairs): needs ALIGNLOOP_TEST_DATA."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pytest

from pipeline.records import Completion, Group, Message
from pipeline.selection import all_pairs, best_rest, best_worst, relabel, top_bottom
from pipeline.selection.filters import Correction, Filters, clean, compared, lines


def rows_of(folder: str, name: str) -> list[dict]:
    root = os.environ.get("ALIGNLOOP_TEST_DATA")
    if not root:
        pytest.skip("ALIGNLOOP_TEST_DATA is not set: no folder with real data sets")
    path = Path(root) / folder / name
    if not path.exists():
        pytest.skip(f"no {folder} in ALIGNLOOP_TEST_DATA")
    with gzip.open(path, "rt") as file:
        return [json.loads(line) for line in file]


@pytest.fixture(scope="module")
def nectar() -> list[Group]:
    """Scored by minus their rank, worst first."""
    return [
        Group(str(i), (Message("user", row["prompt"]),), tuple(
            Completion(a["answer"], scores={"reward": -float(a["rank"])}, sample=k)
            for k, a in enumerate(reversed(row["answers"]))
        ))
        for i, row in enumerate(rows_of("nectar-sample", "nectar.train.jsonl.gz"))
    ]


@pytest.fixture(scope="module")
def ultrafeedback() -> list[Group]:
    return [
        Group(str(i), (Message("user", row["prompt"]),), tuple(
            Completion(row[side][-1]["content"] if isinstance(row[side], list) else row[side],
                       scores={"reward": row["metadata"][f"score_{side}"]})
            for side in ("chosen", "rejected")
        ))
        for i, row in enumerate(rows_of("ultrafeedback-binarized-sample", "ultrafeedback.train.jsonl.gz"))
    ]


def test_ranks_come_out_in_order(nectar: list[Group]) -> None:
    assert len(nectar) > 200
    used = 0
    for group in nectar:
        cleaned, gone, reason = clean(group, Filters(), ("reward",))
        assert set(gone) <= {"empty", "duplicates"}
        if len(cleaned.completions) < 2:
            assert reason in ("empty", "duplicates")
            continue
        (ranked,), _ = best_rest.select(cleaned, best_rest.Settings())
        (pair,), _ = best_worst.select(cleaned, best_worst.Settings())
        scores = [c.scores["reward"] for c in ranked.completions]
        assert scores == sorted(scores, reverse=True)
        assert {c.text for c in ranked.completions} == {c.text for c in group.completions if c.text}
        assert [c.scores["reward"] for c in pair.completions] == [scores[0], scores[-1]]
        used += 1
    assert used > 0.95 * len(nectar)


def test_every_pair_of_seven_ranks(nectar: list[Group]) -> None:
    """Seven distinct answers with distinct ranks make 21 pairs; top 3 against bottom 3 make 9 of them."""
    whole = [g for g in (clean(g, Filters(), ("reward",))[0] for g in nectar) if len(g.completions) == 7]
    distinct = [g for g in whole if len({c.scores["reward"] for c in g.completions}) == 7]
    assert len(distinct) > 100
    for group in distinct:
        pairs = {tuple(c.sample for c in p.completions) for p in all_pairs.select(group, all_pairs.Settings())[0]}
        ends = {tuple(c.sample for c in p.completions) for p in top_bottom.select(group, top_bottom.Settings(k=3))[0]}
        assert (len(pairs), len(ends)) == (21, 9)
        assert ends <= pairs


def test_longer_answers_are_ranked_higher_and_the_correction_takes_that_out(nectar: list[Group]) -> None:
    """The slope of the ranks on length is positive, and nothing of it is left in the corrected scores."""
    for how in ("pooled", "within"):
        filters = Filters(length_debias=how)
        cleaned = [clean(g, filters, ("reward",))[0] for g in nectar]
        found = lines(cleaned, filters, ("reward",))
        assert found["reward"].slope > 0
        corrected = [Correction(filters, ("reward",), found).apply(g) for g in cleaned]
        assert lines(corrected, filters, ("reward",))["reward"].slope == pytest.approx(0, abs=1e-9)


def test_relabelled_pairs_of_scored_answers(ultrafeedback: list[Group]) -> None:
    """Every pair with a margin gives two, the second turned round; each prompt names its chosen answer's score."""
    made = 0
    for group in ultrafeedback:
        cleaned, _, _ = clean(group, Filters(), ("reward",))
        if len(cleaned.completions) < 2 or compared(cleaned, Filters(), "reward")[0] is None:
            continue
        first, second = relabel.select(cleaned, relabel.Settings())[0]
        assert [c.text for c in first.completions] == [c.text for c in reversed(second.completions)]
        for g in (first, second):
            score = g.completions[0].scores["reward"]
            assert g.messages[0].content.endswith(f"Overall score: {relabel.printed(score, 1)}.")
            assert compared(g, Filters(), "goal")[0] == g
        made += 1
    assert made > 500
