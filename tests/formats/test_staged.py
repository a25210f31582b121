"""An import killed while it reads, and while it writes: it goes on behind its last part, and the bytes are equal."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from pipeline import tables
from pipeline.config import build
from pipeline.errors import Problems, UserError
from pipeline.formats import lines, reader, staged
from pipeline.formats.reader import Source
from pipeline.stage import Context, Reporter
from pipeline.stages import import_data

ROOT = Path(__file__).parents[2]
NUMBER, PART = 1200, 100
# The import in a process that kills itself: before it writes a file of this name.
KILLED = """
import os, signal, sys
from pathlib import Path
from pipeline import files
from tests.formats import test_staged as test
real = files.replacing
def replacing(path, durable=True):
    if str(path).endswith(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
    return real(path, durable)
files.replacing = replacing
test.imported(Path(sys.argv[1]), Path(sys.argv[2]))
"""


def rows() -> list[dict[str, Any]]:
    """Pairs, every tenth a tie, every twelfth under a key that nothing reads, with some prompts twice."""
    return [{"prompt": f"Question {i % (NUMBER - 50)}?", "chosen": "yes", "rejected": "yes" if i % 10 == 3 else "no",
             **({"source": "x"} if i % 12 == 0 else {})} for i in range(NUMBER)]


def imported(source: Path, work: Path, **settings: Any) -> Context:
    """Import in small parts."""
    staged._PART = tables.PART = PART
    try:
        made = build(import_data.Settings, {"format": {"module": "pipeline.formats.files", **settings}})
        context = Context(made, import_data.Runtime(str(source)), {}, {}, work, 0, Reporter())
        import_data.run(context)
        return context
    finally:
        staged._PART = tables.PART = 8192


def content(context: Context) -> dict[str, bytes]:
    return {str(p.relative_to(context.out)): p.read_bytes() for p in sorted(context.out.rglob("*.parquet"))}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows()))
    return path


@pytest.mark.parametrize(("at", "read_again"), [("state/00004.json", True), ("unlabeled/part-00001.parquet", False)])
def test_a_killed_import_goes_on_behind_its_last_part(
        source: Path, at: str, read_again: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = imported(source, tmp_path / "whole")
    done = subprocess.run([sys.executable, "-c", KILLED, str(source), str(tmp_path / "work"), at], timeout=100,
                          env={**os.environ, "PYTHONPATH": str(ROOT)}, cwd=tmp_path)
    assert done.returncode == -signal.SIGKILL
    states = sorted((tmp_path / "work" / "rows" / "state").glob("0*.json"))
    last = json.loads(states[-1].read_text())
    seen, real = list[int](), lines._line
    monkeypatch.setattr(lines, "_line", lambda where, *rest: (seen.append(int(where.rpartition(":")[2])),
                                                              real(where, *rest))[1])
    again = imported(source, tmp_path / "work")
    assert content(again) == content(whole)
    assert (again.report.counts, again.report.dropped) == (whole.report.counts, whole.report.dropped)
    assert whole.report.counts["rows"] == NUMBER
    assert whole.report.dropped["chosen and rejected are the same text"] == 120
    assert seen == (list(range(last["taken"] + 1, NUMBER + 1)) if read_again else [])
    assert len(states) == (4 if read_again else len(list((tmp_path / "work" / "rows" / "state").iterdir())))


def test_staged_and_plain_reading_give_the_same_groups(source: Path, tmp_path: Path) -> None:
    made = imported(source, tmp_path / "w", columns={"prompt": "prompt"})
    part = import_data._format(made.settings)
    plain = part.plugin.read(source, part.settings)
    found: dict[str, list[Any]] = {name: [] for name in plain.counts}
    for name, group in plain.groups():
        found[name].append(group)
    assert {name: list(tables.read(made.out / name)) for name in found} == found


def after(root: Path, place: str) -> list[str]:
    return [row.where for row in reader.rows(Source(str(root)), Problems(), Problems(), place)]


def test_every_kind_of_file_goes_on_behind_a_row(tmp_path: Path) -> None:
    """The rows behind any row are those that follow it in the whole; files before its own are not opened."""
    few = rows()[:7]
    text = "".join(json.dumps(row) + "\n" for row in few)
    (tmp_path / "a.jsonl").write_text(text)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "c.json").write_text(json.dumps(few, indent=1))
    pa.parquet.write_table(pa.Table.from_pylist(few), tmp_path / "d.parquet", row_group_size=2)
    (tmp_path / "e.csv").write_text('prompt,completion\n"one\n\nline",b\nc,d\n')
    (tmp_path / "f.tsv").write_text("prompt\tcompletion\na\tb\nc\td\n")
    everything = after(tmp_path, "")
    assert len(everything) == 32
    for number, place in enumerate(everything):
        assert after(tmp_path, place) == everything[number + 1:]
    (tmp_path / "a.jsonl").write_text("no JSON any more\n")
    assert after(tmp_path, everything[-2]) == everything[-1:]


def test_texts_and_saved_tables_go_on_too(tmp_path: Path) -> None:
    import datasets

    stories = tmp_path / "s.txt"
    stories.write_text("one\n<|endoftext|>\ntwo\nmore\n<|endoftext|>\nthree\n")
    whole = after(stories, "")
    assert len(whole) == 3 and [after(stories, place) for place in whole] == [whole[1:], whole[2:], []]
    datasets.DatasetDict({name: datasets.Dataset.from_list(rows()[:3]) for name in ("train", "test")}).save_to_disk(
        str(tmp_path / "saved"))
    whole = after(tmp_path / "saved", "")
    assert len(whole) == 6 and all(after(tmp_path / "saved", place) == whole[n + 1:] for n, place in enumerate(whole))


def test_wrong_rows_are_told_all_at_once_and_leave_no_part_behind_them(tmp_path: Path) -> None:
    lines_ = [json.dumps(row) for row in rows()[:400]]
    lines_[150], lines_[350] = "no", '{"foo": 1}'
    (tmp_path / "a.jsonl").write_text("\n".join(lines_) + "\n")
    with pytest.raises(UserError) as caught:
        imported(tmp_path / "a.jsonl", tmp_path / "w")
    assert [problem.split(": ")[0].rpartition(":")[2] for problem in caught.value.problems] == ["151", "351"]
    assert len(list((tmp_path / "w" / "rows" / "state").glob("*.json"))) == 1
