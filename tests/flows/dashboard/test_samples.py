"""Reading tables page by page: the right rows, marks, search, tokens, and never the whole table."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from flows.dashboard import samples, tables
from flows.dashboard.files import Files
from pipeline import columns
from pipeline import tables as writer
from tests.flows.dashboard import world


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    place = tmp_path_factory.mktemp("samples")
    world.whole_run(place, "one")
    world.whole_run(place, "two", seed=1, objective="ce")
    return Files(place)


@pytest.fixture
def parted(tmp_path: Path) -> tuple[Files, Path]:
    """1,000 groups in ten parts of 100."""
    groups = world.prompts(1000, 1)
    for part in range(10):
        writer.write_part(tmp_path / "groups", part, groups[100 * part : 100 * part + 100])
    return Files(tmp_path), tmp_path / "groups"


def test_rows_across_a_part_boundary(parted: tuple[Files, Path]):
    table = tables.open_table(*parted)
    assert table.rows == 1000
    found = tables.rows(table, 95, 10)
    assert [r["id"] for r in found] == [f"p{i:06d}" for i in range(95, 105)]
    assert found[0]["completions"][3]["scores"] == {"reward": pytest.approx(0.3 - 0.095), "gold": pytest.approx(0.41)}
    assert tables.rows(table, 998, 10)[-1]["id"] == "p000999"
    assert tables.rows(table, 1000, 10) == []


def test_a_side_table_is_looked_at_for_as_many_prompts_as_a_table_of_groups(parted: tuple[Files, Path], tmp_path: Path):
    """About 250 of 1,000 prompts are every fourth of ten parts: three parts, four completions a prompt."""
    for part in range(10):
        columns.write_part(tmp_path / "scores", part, (
            ("d" * 64, g.id, [c.scores for c in g.completions]) for g in world.prompts(1000, 1)[100 * part:][:100]))
    groups, read = tables.scores(tables.open_table(*parted), 250)
    assert (read, len(groups["reward"])) == (300, 1200)
    beside, read = tables.scores(tables.open_table(parted[0], tmp_path / "scores"), 250)
    assert (read, len(beside["reward"])) == (1200, 1200)
    assert beside["reward"].tolist() == groups["reward"].tolist()


def test_a_page_reads_one_row_group(parted: tuple[Files, Path], monkeypatch: pytest.MonkeyPatch):
    table = tables.open_table(*parted)
    read: list[Path] = []
    real = pq.ParquetFile.read_row_group
    monkeypatch.setattr(pq.ParquetFile, "read_row_group", lambda self, i, **k: read.append(i) or real(self, i, **k))
    tables.rows(table, 250, 10)
    assert len(read) == 1
    tables.at(table, [5, 7, 905])
    assert len(read) == 3


def test_new_parts_are_seen(parted: tuple[Files, Path]):
    files, folder = parted
    assert tables.open_table(files, folder).rows == 1000
    writer.write_part(folder, 10, world.prompts(1003, 1)[1000:])
    assert tables.open_table(files, folder).rows == 1003


def test_search_goes_on_where_it_stopped(parted: tuple[Files, Path]):
    table = tables.open_table(*parted)
    first, after = tables.search(table, "NUMBER 7", 0, 5, False, 10)
    assert first == [7, 70, 71, 72, 73] and after == 74
    rest, end = tables.search(table, "number 7", after, 500, False, 10)
    assert len(first + rest) == 111 and end == 1000, "7, 70 to 79, 700 to 799"
    assert tables.search(table, "version 2", 0, 3, False, 10)[0] == []
    assert tables.search(table, "version 2", 0, 3, True, 10)[0] == [0, 1, 2]
    assert tables.search(table, ".*", 0, 3, True, 10)[0] == [], "a text, not a pattern"


def test_search_that_takes_too_long_says_how_far_it_came(parted: tuple[Files, Path]):
    table = tables.open_table(*parted)
    assert tables.search(table, "nowhere", 0, 5, False, -1) == ([], 0)
    assert tables.search(table, "nowhere", 300, 5, False, -1) == ([], 300)


def test_ids_are_found(parted: tuple[Files, Path]):
    files, folder = parted
    table = tables.open_table(files, folder)
    assert tables.find_ids(files, table, ["p000999", "p000000", "nobody"]) == {"p000999": 999, "p000000": 0}


def test_the_chosen_and_the_rejected_are_marked(files: Files):
    page = samples.page(files, "one", "score[2]", "groups", 0, 5, False)
    marks = [[c.get("mark") for c in g["completions"]] for g in page["groups"]]
    assert marks == [[None] * 4] * 3 + [["rejected", None, None, "chosen"]] * 2, "three prompts were dropped"
    pairs = samples.page(files, "one", "pairs[2]", "groups", 0, 1, False)
    assert [c["mark"] for c in pairs["groups"][0]["completions"]] == ["chosen", "rejected"]
    judged = samples.page(files, "one", "answer_scores[2]", "groups", 0, 1, False)
    assert not any("mark" in c for c in judged["groups"][0]["completions"])


def test_scores_come_from_the_side_table(files: Files):
    """The step that scored shows the sampled answers with its numbers; the step that sampled shows none."""
    scored = samples.page(files, "one", "score[2]", "groups", 7, 1, False)["groups"][0]
    assert scored["id"] == "p000007" and scored["completions"][3]["text"].endswith("Version 3.")
    assert scored["completions"][3]["scores"] == {"reward": pytest.approx(0.293), "gold": pytest.approx(0.586)}
    sampled = samples.page(files, "one", "generate[2]", "groups", 7, 1, False)["groups"][0]
    assert [c["scores"] for c in sampled["completions"]] == [{}] * 4
    found = samples.search(files, "one", "score[2]", "groups", 0, 1, "number 7?", False, False)["groups"]
    assert found[0]["completions"] == scored["completions"]


def test_log_probs_of_a_side_table_and_tables_of_earlier_versions(tmp_path: Path):
    """logps/ shows with the pairs it is of; an artifact that holds the whole groups, as it used to, shows as it is."""
    run = world.Maker(tmp_path, "old")
    pairs = world.paired(world.prompts(3, 1))
    run.step("pairs[1]", "build_groups", {}, {"kept": 3}, pairs)
    run.step("reference[1]", "reference_logprobs", {"groups": "pairs[1]/groups"}, {"groups": 3})
    writer.write(tmp_path / "artifacts" / "score" / ("0" * 20) / "groups", world.prompts(2, 1))
    run.steps.append({"name": "score[1]", "stage": "score", "iteration": 1, "key": "0" * 20, "seconds": 1.0,
                      "inputs": ["pairs[1]/groups"], "state": "done"})
    digest = run._artifact("pairs[1]").digest("groups")
    columns.write_part(tmp_path / "artifacts" / "reference_logprobs" / run.steps[1]["key"] / "logps", 0, (
        (digest, g.id, [{"logp": -1.0 - i}, {"logp": -2.0}]) for i, g in enumerate(pairs)))
    run.save()
    shown = samples.page(Files(tmp_path), "old", "reference[1]", "groups", 1, 1, False)["groups"][0]
    assert [(c["ref_logp"], c["mark"]) for c in shown["completions"]] == [(-2.0, "chosen"), (-2.0, "rejected")]
    assert set(shown["completions"][0]["scores"]) == {"reward", "gold"}, "the pairs' own"
    old = samples.page(Files(tmp_path), "old", "score[1]", "groups", 0, 5, False)
    assert old["rows"] == 2 and set(old["groups"][0]["completions"][0]["scores"]) == {"reward", "gold"}


def test_log_probs_of_several_tables_show_with_all_of_them(tmp_path: Path):
    """Two tables of pairs, one side table: three groups of the first, then the two of the second, each with its own."""
    run = world.Maker(tmp_path, "two")
    several = world.paired(world.prompts(3, 1)), world.paired(world.prompts(5, 1))[3:]
    for i, pairs in enumerate(several, 1):
        run.step(f"pairs[{i}]", "build_groups", {}, {"kept": len(pairs)}, pairs, files=[f"rows{i}:0"])
    run.step("reference[2]", "reference_logprobs", {"groups": "pairs[1]/groups"}, {"groups": 5})
    run.steps[-1]["inputs"] = ["pairs[1]/groups", "pairs[2]/groups"]
    digests = [run._artifact(f"pairs[{i}]").digest("groups") for i in (1, 2)]
    columns.write_part(tmp_path / "artifacts" / "reference_logprobs" / run.steps[-1]["key"] / "logps", 0, (
        (digest, g.id, [{"logp": -10.0 * i}, {"logp": -10.0 * i - 1}])
        for i, (digest, g) in enumerate(zip([*[digests[0]] * 3, *[digests[1]] * 2], [*several[0], *several[1]],
                                                strict=True))))
    run.save()
    page = samples.page(Files(tmp_path), "two", "reference[2]", "groups", 0, 9, False)
    assert page["rows"] == 5 and [g["id"] for g in page["groups"]] == [f"p00000{i}" for i in range(5)]
    assert [[c["ref_logp"] for c in g["completions"]] for g in page["groups"]] == [
        [-10.0 * i, -10.0 * i - 1] for i in range(5)]
    assert tables.find_ids(Files(tmp_path), samples.find(Files(tmp_path), "two", "reference[2]", "groups")[1],
                           ["p000004"]) == {"p000004": 4}


def test_a_page_holds_no_more_than_it_may(files: Files):
    assert len(samples.page(files, "one", "score[2]", "groups", 0, 10_000, False)["groups"]) == 40


def test_the_same_prompt_across_iterations_and_runs(files: Files):
    found = samples.same_prompt(files, "one", "p000004", ["two"])
    places = [(p["run"], p["step"]) for p in found["places"]]
    assert ("one", "baseline_scores") in places and ("one", "score[1]") in places and ("two", "score[2]") in places
    assert ("two", "baseline_scores") not in places, "it is the same artifact"
    assert all(p["group"]["id"] == "p000004" for p in found["places"])


def test_tables_of_a_run(files: Files):
    found = samples.tables_of(files, "one")["tables"]
    assert (found[0]["step"], found[0]["rows"], found[0]["purpose"]) == ("score[2]", 40, ["train"])
    assert {t["step"] for t in found} >= {"generate[1]", "pairs[1]", "answer_scores[2]", "baseline_scores"}


def test_special_tokens_are_shown_and_characters_stay_whole(tmp_path: Path, tiny_model: Path):
    """A character of three bytes is three tokens of the byte-level tokenizer and one piece on the page."""
    from tokenizers import Tokenizer

    run = world.Maker(tmp_path, "tokens")
    tokenizer = Tokenizer.from_file(str(tiny_model / "tokenizer.json"))
    ids = [1, 5, *tokenizer.encode("tea \u20ac 5", add_special_tokens=False).ids, 2]
    run.step("sft", "sft", {}, {"steps": 1})
    out = tmp_path / "artifacts" / "sft" / run.steps[0]["key"] / "model"
    out.mkdir()
    (out / "tokenizer.json").write_bytes((tiny_model / "tokenizer.json").read_bytes())
    group = world.prompts(1, 1)[0]
    answer = world.Completion("tea \u20ac 5", tuple(ids), sample=0)
    run.step("generate[1]", "generate", {"model": "sft"}, {"prompts": 1},
             [world.Group(group.id, group.messages, (answer,), prompt_ids=(1, 4))])
    run.save()
    page = samples.page(Files(tmp_path), "tokens", "generate[1]", "groups", 0, 1, True)
    pieces = page["groups"][0]["completions"][0]["pieces"]
    assert "".join(text for text, _ in pieces) == "<s><|assistant|>tea \u20ac 5</s>"
    assert [text for text, special in pieces if special] == ["<s>", "<|assistant|>", "</s>"]
    assert any("\u20ac" in text for text, _ in pieces)
    assert [text for text, _ in page["groups"][0]["prompt_pieces"]] == ["<s>", "<|user|>"]
