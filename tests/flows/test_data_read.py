"""What plan says of the data, and that a set seen before is not read again."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet

from flows.data_read import _lines
from flows.prepare import prepare
from pipeline import plan as plan_of

ROOT = Path(__file__).parents[2]
PLAN = """
import sys
from flows.cli import main
from pipeline.formats import reader
if {seen}:
    reader.rows = None  # what it would read with
code = main({words})
print(code, sorted(name for name in ("torch", "datasets") if name in sys.modules))
"""


def plan(seen: bool, words: list[str]) -> str:
    done = subprocess.run([sys.executable, "-c", PLAN.format(seen=seen, words=words)], capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=100)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_set_that_was_planned_before_is_not_read_again(tmp_path: Path):
    rows = [{"prompt": f"say {i}", "completion": "a", "source": "x"} for i in range(10)]
    pa.parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    words = ["plan", "recipe=sft", "data=files", f"data.root={tmp_path}/a.parquet", f"workspace={tmp_path}/ws"]
    first, second = plan(False, words), plan(True, words)
    said = ("data: 10 rows, read as: demonstrations (10); kept: sft 10, pref 0, unlabeled 0, eval 0\n"
            "data: keys not read: source (10)\n")
    assert said in first and said in second
    assert "'datasets'" in first.splitlines()[-1] and second.endswith("0 []\n")


def test_nor_where_other_steps_mind_what_the_preferences_are(tmp_path: Path):
    """A loop looks whether they are pairs, and whether the prompts are enough: both are known from the first plan."""
    rows = [{"prompt": f"say {i}", "chosen": "a", "rejected": "b"} for i in range(60)]
    pa.parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    words = ["plan", "recipe=iterative_dpo", "data=files", f"data.root={tmp_path}/a.parquet",
             f"workspace={tmp_path}/ws", "sampling.prompts_per_iteration=10"]
    first, second = plan(False, words), plan(True, words)
    assert "data: 60 rows, read as: pairs (60)" in second
    assert "'datasets'" in first.splitlines()[-1] and second.endswith("0 []\n")


def test_the_place_of_a_mixture_is_not_in_its_key(tmp_path: Path):
    """Equal files elsewhere are the same artifact; another share of them is another one."""
    keys = []
    for place, weight in (("a", 0.5), ("b", 0.5), ("a", 0.25)):
        (tmp_path / place).mkdir(exist_ok=True)
        rows = "".join(f'{{"prompt": "{i}", "completion": "a"}}\n' for i in range(9))
        (tmp_path / place / "x.jsonl").write_text(rows)
        made = prepare(["recipe=sft", "data=files", f"data.sources=[{{path:{tmp_path / place},weight:{weight}}}]",
                        f"workspace={tmp_path}/ws"])
        keys.append(plan_of.look_up_all(tmp_path / "ws", made.steps)[0].key)
    assert keys[0] == keys[1] != keys[2]


def test_nothing_is_said_of_data_without_unread_keys_that_count_no_rows():
    assert _lines({"sft": 3, "pref": 0, "unlabeled": 0, "eval": 0}) == []
