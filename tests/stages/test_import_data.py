"""The import stage: tables and counts out, every problem before anything runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flows.compose import compose
from pipeline import tables
from pipeline.config import build, problems_of
from pipeline.errors import UserError
from pipeline.stage import Context, Reporter
from pipeline.stages import import_data
from pipeline.stages.import_data import Runtime, Settings

JSONL = {"module": "pipeline.formats.jsonl"}


def config(name: str) -> dict[str, Any]:
    node: dict[str, Any] = compose(["recipe=sft", f"data={name}"]).config["data"]
    return node


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(tmp_path: Path, settings: Settings, root: str) -> Context:
    context = Context(settings, Runtime(root), {}, {}, tmp_path / "work", seed=0, report=Reporter())
    import_data.run(context)
    return context


def test_four_tables_and_their_counts(tmp_path: Path) -> None:
    write(tmp_path / "p.jsonl", *({"prompt": f"q{i}", "chosen": "x", "rejected": "y"} for i in range(300)),
          {"prompt": "r", "chosen": "x", "rejected": "x"})
    context = run(tmp_path, Settings({**JSONL, "identical": "drop"}), str(tmp_path))
    counts = {split: tables.count(context.out / split) for split in ("sft", "pref", "unlabeled", "eval")}
    assert sum(counts.values()) == 300
    assert context.report.counts == {**counts, "eval_prompts_in_training": 0}
    assert context.report.dropped == {"chosen and rejected are the same text": 1}
    group = next(tables.read(context.out / "pref"))
    assert [c.text for c in group.completions] == ["x", "y"]
    assert (group.prompt_ids, group.completions[0].token_ids, group.iteration) == ((), (), 0)


def test_the_same_data_give_the_same_bytes(tmp_path: Path) -> None:
    write(tmp_path / "p.jsonl", *({"prompt": f"q{i}", "chosen": "x", "rejected": "y"} for i in range(50)))
    first, second = (run(tmp_path / name, Settings(JSONL), str(tmp_path)).out for name in ("one", "two"))
    for part in first.rglob("*.parquet"):
        assert part.read_bytes() == (second / part.relative_to(first)).read_bytes()


def test_a_split_without_rows_is_an_empty_table(tmp_path: Path) -> None:
    write(tmp_path / "s.jsonl", {"prompt": "q", "completion": "x"})
    context = run(tmp_path, Settings({**JSONL, "shares": {"unlabeled": 0, "eval": 0}}), str(tmp_path))
    assert tables.parts(context.out / "pref")
    assert list(tables.read(context.out / "pref")) == []


def test_evaluation_prompts_that_files_share_with_training_are_counted(tmp_path: Path) -> None:
    write(tmp_path / "s.jsonl", {"prompt": "Same?", "completion": "x"}, {"prompt": "other", "completion": "x"})
    write(tmp_path / "e.jsonl", {"prompt": "same"}, {"prompt": "new"})
    context = run(tmp_path, Settings({**JSONL, "sft": "s.jsonl", "eval": "e.jsonl"}), str(tmp_path))
    assert context.report.counts["eval_prompts_in_training"] == 1


def test_a_split_the_recipe_needs_must_not_be_empty(tmp_path: Path) -> None:
    file = write(tmp_path / "s.jsonl", {"prompt": "q", "completion": "x"})
    settings = Settings({**JSONL, "shares": {"unlabeled": 0, "eval": 0}}, require=("sft", "pref", "eval"))
    assert import_data.check(settings, Runtime(str(file))) == [
        f"data.root: {file} gives no preference pairs, and this recipe needs the split 'pref' (recipe=sft needs none; "
        "nor does a recipe that samples its pairs, with reward=rule or another scorer that learns from none: "
        "data.require=[sft,eval]); found: sft 1, pref 0, unlabeled 0, eval 0",
        f"data.root: {file} gives no evaluation prompts, and this recipe needs the split 'eval'; "
        "found: sft 1, pref 0, unlabeled 0, eval 0"]
    with pytest.raises(UserError, match="no preference pairs"):
        run(tmp_path, Settings(JSONL, require=("pref",)), str(file))
    assert not list((tmp_path / "work").rglob("*.parquet"))


@pytest.mark.parametrize("name", ["hh", "alpaca", "jsonl"])
def test_without_a_root_the_message_says_what_to_give(name: str) -> None:
    settings = Settings(config(name)["format"])
    (problem,) = import_data.check(settings, Runtime(None))
    assert problem.startswith("data.root: not set, expected a ")
    assert problem.endswith("give data.root=PATH")
    with pytest.raises(UserError, match=r"^data\.root: not set"):
        import_data.files(settings, Runtime(None))


@pytest.mark.parametrize("name", ["hh", "alpaca", "jsonl", "minifarm"])
def test_a_root_that_is_not_there_is_told_once(name: str, tmp_path: Path) -> None:
    (problem,) = import_data.check(Settings(config(name)["format"]), Runtime(str(tmp_path / "nowhere")))
    assert problem.startswith(f"data.root: {tmp_path / 'nowhere'} cannot be opened (No such file or directory)")


def test_every_problem_of_the_data_is_told(tmp_path: Path) -> None:
    file = write(tmp_path / "p.jsonl", {"chosen": "x"}, {"prompt": "q", "chosen": "x", "rejected": "x"})
    with file.open("ab") as stream:
        stream.write(b'\xff\n{"pro')
    problems = import_data.check(Settings(JSONL), Runtime(str(file)))
    assert [p.split(": ")[0] for p in problems] == [f"{file}:{line}" for line in (1, 2, 3, 4)]


def test_settings_are_checked_with_the_formats_own_names() -> None:
    bad = {"format": {"module": "pipeline.formats.hh", "fils": "x", "limits": {"sft": 0}}, "require": ["prefs"]}
    assert problems_of(Settings, bad, "stage.import_data.settings") == [
        "stage.import_data.settings.require: 'prefs' is not allowed, expected one of sft, pref, unlabeled, eval"]
    bad["require"] = []
    problems = problems_of(Settings, bad, "stage.import_data.settings")
    assert any("format.fils: unknown key (did you mean files?)" in p for p in problems)
    assert any("format.limits.sft: 0 is out of range" in p for p in problems)
    (problem,) = problems_of(Settings, {"format": {"module": "pipeline.formats.json"}})
    assert "no module 'pipeline.formats.json' (did you mean jsonl" in problem


def test_a_part_that_is_no_format_is_told() -> None:
    other = {"module": "pipeline.stages.select_prompts", "iteration": 1, "count": 1}
    (problem,) = import_data.check(Settings(other), Runtime("x"))
    assert problem.startswith("data.format.module: pipeline.stages.select_prompts has no FORMAT = Format(...)")


def test_the_built_in_world_is_found_from_any_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    node = config("minifarm")
    settings = build(Settings, {"format": node["format"], "require": ["sft", "pref", "unlabeled", "eval"]})
    assert [f.name for f in import_data.files(settings, Runtime(node["root"]))] == [
        "eval.jsonl", "pref.jsonl", "sft.jsonl", "unlabeled.jsonl"]
    assert import_data.check(settings, Runtime(node["root"])) == []


def test_checking_the_data_imports_neither_torch_nor_pyarrow(tmp_path: Path) -> None:
    file = write(tmp_path / "s.jsonl", {"prompt": "q", "completion": "x"})
    code = ("import sys; from pipeline.stages import import_data as s, select_prompts; "
            f"assert s.check(s.Settings({JSONL!r}), s.Runtime({str(file)!r})) == []; "
            "print(sorted({'torch', 'transformers', 'pyarrow'} & set(sys.modules)))")
    root = Path(import_data.__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root,
                          env={**os.environ, "PYTHONPATH": str(root)})
    assert done.stdout.strip() == "[]"


def test_keys_that_nothing_reads_stand_first_among_the_counts(tmp_path: Path) -> None:
    write(tmp_path / "s.jsonl", {"prompt": "q", "completion": "x", "source": "a"},
          {"prompt": "r", "completion": "x", "source": "b", "mood": "glad"})
    counts = run(tmp_path, Settings(JSONL), str(tmp_path / "s.jsonl")).report.counts
    assert next(iter(counts)) == "unread keys mood, source"
    assert (counts["unread keys mood, source"], counts["unread: mood"], counts["unread: source"]) == (2, 1, 2)
