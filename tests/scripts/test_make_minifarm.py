"""The committed world is what the script makes, and has the properties the protocol asks of it."""

import hashlib
import json
from pathlib import Path
from statistics import fmean

import pytest

from pipeline.worlds.minifarm import gold, words_of
from scripts.make_minifarm import FLIPPED, FURTHER, SEED, SIZES, main, make_world

FOLDER = Path(__file__).parent.parent.parent / "data" / "minifarm"
# Of the four files joined in the order of SIZES; data/README.md states it too.
DIGEST = "c497a6cc842e2350015b54286e05f446ab44858f0f3a5f172e730f57c9e57a85"


@pytest.fixture(scope="module")
def rows() -> dict[str, list[dict]]:
    return {s: [json.loads(line) for line in (FOLDER / f"{s}.jsonl").read_text().splitlines()] for s in SIZES}


def asked(row: dict) -> list[dict[str, str]]:
    return row["messages"][:1] if "messages" in row else row["prompt"]


def margins(pairs: list[dict]) -> list[float]:
    def score(row: dict, side: str) -> float:
        return gold(row["prompt"], row[side][0]["content"])

    return [score(row, "chosen") - score(row, "rejected") for row in pairs]


def test_the_committed_files_are_the_known_bytes():
    content = b"".join((FOLDER / f"{split}.jsonl").read_bytes() for split in SIZES)
    assert hashlib.sha256(content).hexdigest() == DIGEST
    assert DIGEST in (FOLDER.parent / "README.md").read_text()
    assert len(content) < 2_000_000


def test_the_script_makes_the_committed_bytes(tmp_path: Path):
    main([str(tmp_path)])
    for split in SIZES:
        assert (tmp_path / f"{split}.jsonl").read_bytes() == (FOLDER / f"{split}.jsonl").read_bytes(), split


def test_more_pairs_go_on_after_the_others_and_validation_prompts_are_in_no_split(tmp_path: Path, rows):
    """What defaults are chosen on: the same world, other evaluation prompts; a fifth of all labels is turned around."""
    main([str(tmp_path), "--pairs", "6000", "--validation"])
    pairs = [json.loads(line) for line in (tmp_path / "pref.jsonl").read_text().splitlines()]
    assert (len(pairs), pairs[:1750], pairs[1750]["id"]) == (6000, rows["pref"], "pref-1750")
    assert sum(m < 0 for m in margins(pairs)) == FLIPPED * 6000 == 1200
    prompts = {asked(json.loads(line))[0]["content"] for line in (tmp_path / "eval.jsonl").read_text().splitlines()}
    others = {asked(row)[0]["content"] for row in (*pairs, *rows["sft"], *rows["unlabeled"], *rows["eval"])}
    assert len(prompts) == FURTHER["validation"] and not prompts & others and len(others) == 1750 + 6000 + 3500 + 140
    for name in ("sft.jsonl", "unlabeled.jsonl"):
        assert (tmp_path / name).read_bytes() == (FOLDER / name).read_bytes()


def test_another_seed_makes_another_world():
    sizes = dict.fromkeys(SIZES, 20)
    assert make_world(SEED, sizes) == make_world(SEED, sizes) != make_world(SEED + 1, sizes)


def test_the_splits_stand_in_the_proportions_of_the_protocol(rows):
    """SFT : PREF : unlabeled : eval = 10 : 10 : 20 : 0.8."""
    counts = {split: len(made) for split, made in rows.items()}
    assert counts == SIZES
    assert [counts[s] * 10 / counts["sft"] for s in ("sft", "pref", "unlabeled", "eval")] == [10, 10, 20, 0.8]


def test_no_prompt_and_no_id_appears_twice_in_any_split(rows):
    every = [row for made in rows.values() for row in made]
    assert len({asked(row)[0]["content"] for row in every}) == len(every)
    assert len({row["id"] for row in every}) == len(every)


def test_the_rows_are_trl_conversations(rows):
    assert {tuple(row) for row in rows["sft"]} == {("id", "messages")}
    assert {tuple(m["role"] for m in row["messages"]) for row in rows["sft"]} == {("user", "assistant")}
    assert {tuple(row) for row in rows["pref"]} == {("id", "prompt", "chosen", "rejected")}
    assert {row[side][0]["role"] for row in rows["pref"] for side in ("chosen", "rejected")} == {"assistant"}
    assert {tuple(row) for row in rows["unlabeled"] + rows["eval"]} == {("id", "prompt")}


def test_a_fifth_of_the_labels_is_turned_around(rows):
    """0.2 of 1750 pairs: exactly 350 have the worse answer first, and no pair is tied under gold."""
    found = margins(rows["pref"])
    assert all(found)
    assert sum(m < 0 for m in found) == round(FLIPPED * len(found)) == 350


def test_demonstrations_leave_room_and_pairs_reach_beyond_them(rows):
    """The mean demonstration is far from a perfect answer's 10; among the preferred there are nearly perfect ones."""
    shown = fmean(gold(asked(row), row["messages"][1]["content"]) for row in rows["sft"])
    best = max(gold(row["prompt"], row["chosen"][0]["content"]) for row in rows["pref"])
    assert shown < 6.5
    assert best > 9.5


def test_longer_answers_win_more_often_than_not(rows):
    """What a learned reward can mistake for quality: the labels favour length although gold stops at 40 words."""
    lengths = [tuple(len(words_of(row[side][0]["content"])) for side in ("chosen", "rejected")) for row in rows["pref"]]
    assert fmean(a > b for a, b in lengths if a != b) > 0.55
