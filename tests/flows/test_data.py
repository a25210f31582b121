"""`align data show` and `check`: what they print of a small set, from artifacts that the run itself would make."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from flows import cli
from flows.data import _script, _spread

ROWS = [{"prompt": f"Name a thing that is number {i} of all.", "chosen": "A large <|end|> stone by the sea.",
         "rejected": "No.", "score_chosen": 9, "score_rejected": 4} for i in range(60)]
LONG = [{**row, "prompt": f"Count {i}.", "chosen": "one two three " * 400} for i, row in enumerate(ROWS[:12])]


def test_show_then_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*ROWS, *LONG]))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.main(["data", "show", "a.jsonl", "--rows", "1"]) == 0
    told = capsys.readouterr().out
    assert "data: 72 rows, read as: pairs (72); kept: sft" in told
    assert "longer in 100%" in told and "scores of the chosen 9 to 9; above the rejected by 5 on average" in told
    assert "scripts: latin 100.0%" in told
    assert re.search(r"left out or cut as tokens: (sft: truncated \d; )?pref: long_completion \d \(model\.max_",
                     " ".join(told.split()))
    assert "\u27e6" in told and "<|end|> stone" in told.replace("\n    ", "")  # a text's own is no special token
    assert all(len(line) <= 80 for line in told.splitlines() if not line.startswith(("data:", "sft:", "pref:", "left")))
    assert cli.main(["data", "check", "a.jsonl"]) == 0
    told = capsys.readouterr().out
    assert "..." not in told  # nothing was made again
    assert "every kept row holds the token contract" in told


def test_what_is_to_be_done_must_be_said(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["data", "look"]) == 2
    assert "show, check or build" in capsys.readouterr().err


def test_pairs_are_built_and_their_distance_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    """Two words of four in each other's place: two substitutions of four. Of tokens, of any pairs: show."""
    (tmp_path / "a.jsonl").write_text("".join(
        json.dumps({"prompt": f"Say four, number {i}.", "answer": "one two three four"}) + "\n" for i in range(60)))
    monkeypatch.chdir(tmp_path)
    assert cli.main(["data", "build", "swap", "a.jsonl", "seed=1"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "pairs/swap.jsonl: 60 rows of 60 normalised edit distance 50.0% of the words" in told
    rows = [json.loads(line) for line in (tmp_path / "pairs" / "swap.jsonl").read_text().splitlines()]
    assert {tuple(sorted(row["rejected"].split())) for row in rows} == {("four", "one", "three", "two")}
    assert cli.main(["data", "show", "pairs/swap.jsonl", "--rows", "0"]) == 0
    assert "pref: normalised edit distance of chosen and rejected" in capsys.readouterr().out
    for words, said in (["swop", "a.jsonl"], "no builder named 'swop' (did you mean swap?)"), (
            ["swap"], "PATH: missing"), (["swap", "b.jsonl", "sed=1"], "sed: unknown here"):
        assert cli.main(["data", "build", *words]) == 2
        assert said in capsys.readouterr().err


@pytest.mark.parametrize(("text", "script"), [("Hello", "latin"), ("Привет, all", "cyrillic"), ("你好", "cjk"),
                                              ("1 + 1", "none")])
def test_the_script_of_a_text(text, script):
    assert _script(text) == script


def test_a_spread_is_median_and_the_length_that_few_exceed():
    assert (_spread(list(range(1, 101))), _spread([])) == ("51 (96)", "-")
