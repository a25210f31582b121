"""`data.new=PATH`: what a run gets of it, that the same words resume, and that earlier iterations keep their keys."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from flows import origins, weekly
from flows import step as launch
from flows.prepare import CheckedRun, prepare
from pipeline import plan, runs, store, tables
from pipeline.errors import UserError
from tests.flows.loops import in_this_process

WORDS = ["recipe=pco", "run=job"]


def week(path: Path, number: int) -> Path:
    path.write_text("".join(json.dumps({"prompt": f"Question {i} of week {number}?"}) + "\n" for i in range(8)))
    return path


def started(place: Path, *words: str, outcome: str = runs.DONE) -> CheckedRun:
    """The run as `align run` would leave its record."""
    made = prepare([*words, f"workspace={place}"])
    runs.folder(place, made.run.name).mkdir(parents=True, exist_ok=True)
    runs.save(place, replace(made.run, outcome=outcome))
    return made


@pytest.fixture
def place(tmp_path: Path) -> Path:
    started(tmp_path / "ws", *WORDS)
    return tmp_path / "ws"


def inputs(made: CheckedRun, name: str, part: str) -> list[str]:
    (step,) = (step for step in made.steps if step.name == name)
    return [str(ref) for ref in step.inputs[part]]


def same(one: CheckedRun, other: CheckedRun, last: int) -> bool:
    """Whether both have the same steps up to an iteration: settings, inputs, seeds."""
    return [s for s in one.steps if s.iteration <= last] == [s for s in other.steps if s.iteration <= last]


def test_a_week_is_one_iteration_more_from_the_newest_model_on_new_prompts(place: Path, tmp_path: Path) -> None:
    before = prepare([*WORDS, f"workspace={place}"])
    made = started(place, "run=job", f"data.new={week(tmp_path / 'w2.jsonl', 2)}")
    assert same(before, made, 2)
    assert [s.name for s in made.steps if s.iteration == 3][:3] == ["new_prompts[3]", "new_tokens[3]", "prompts[3]"]
    assert inputs(made, "prompts[3]", "prompts") == ["new_tokens[3]/unlabeled"]
    assert inputs(made, "prompts[2]", "prompts") == ["tokens/unlabeled"]
    assert inputs(made, "new_prompts[3]", "known") == ["data/sft", "data/pref", "data/eval", "prompts[2]/groups"]
    assert inputs(made, "generate[3]", "model") == ["train[2]/model"]
    assert inputs(made, "train[3]", "groups") == ["tokens/pref", "pairs[2]/groups", "pairs[3]/groups"]
    assert made.notes[0] == f"iteration 3 samples from {tmp_path}/w2.jsonl"


def test_the_next_week_adds_to_it_and_the_same_words_again_add_nothing(place: Path, tmp_path: Path) -> None:
    second = started(place, "run=job", f"data.new={week(tmp_path / 'w2.jsonl', 2)}")
    again = started(place, "run=job", f"data.new={tmp_path / 'w2.jsonl'}")
    assert again.steps == second.steps and "what iteration 3 samples from already" in again.notes[0]
    third = started(place, "run=job", f"data.new={week(tmp_path / 'w3.jsonl', 3)}", "iterations=5")
    assert same(second, third, 3)
    (prompts,) = (s for s in third.steps if s.name == "prompts[5]")
    assert (prompts.settings.first, prompts.settings.last, prompts.settings.fewer) == (4, 5, True)
    resumed = prepare(["run=job", f"workspace={place}"])
    assert resumed.steps == third.steps


def test_a_file_that_is_written_anew_every_week_is_another_week(
        place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until its prompts are imported nothing was made of it, and what it holds now counts instead."""
    file = tmp_path / "latest.jsonl"
    second = started(place, "run=job", f"data.new={week(file, 2)}")
    other = started(place, "run=job", f"data.new={week(file, 3)}")
    old, new = ([one["content"] for one in made.run.config["data"]["added"]] for made in (second, other))
    assert len(old) == len(new) == 1 and old != new
    monkeypatch.setattr(weekly, "_imported", lambda *_: True)
    third = prepare(["run=job", f"data.new={week(file, 4)}", f"workspace={place}"])
    assert [(one["first"], one["last"]) for one in third.run.config["data"]["added"]] == [(3, 3), (4, 4)]


def test_the_words_of_the_first_week_keep_what_came_later(place: Path, tmp_path: Path) -> None:
    second = started(place, "run=job", f"data.new={week(tmp_path / 'w2.jsonl', 2)}")
    assert prepare([*WORDS, f"workspace={place}"]).steps == second.steps
    assert prepare([*WORDS, f"data.new={tmp_path / 'w2.jsonl'}", f"workspace={place}"]).steps == second.steps


def test_prompts_that_all_iterations_share_stay_shared_as_they_were(tmp_path: Path) -> None:
    place = tmp_path / "ws"
    first = started(place, *WORDS, "sampling.prompts_per_iteration=null")
    second = started(place, "run=job", f"data.new={week(tmp_path / 'w2.jsonl', 2)}")
    assert same(first, second, 2)
    (prompts,) = (s for s in second.steps if s.name == "prompts[3]")
    assert (prompts.settings.count, prompts.settings.first, prompts.settings.last) == (None, 3, 3)


def test_what_cannot_go_on_is_told(place: Path, tmp_path: Path) -> None:
    file = week(tmp_path / "w2.jsonl", 2)

    def problem(*words: str) -> str:
        with pytest.raises(UserError) as caught:
            prepare([*words, f"workspace={place}"])
        return caught.value.problems[0]

    assert "has none named 'jobs' (did you mean job?); start it without data.new" in problem(
        "run=jobs", f"data.new={file}")
    assert "iterations: 2 with data.new, but 'job' has 2 already" in problem(
        "run=job", f"data.new={file}", "iterations=2")
    assert problem("run=job", f"data.new={tmp_path}/none.jsonl").startswith(f"data.new: {tmp_path}/none.jsonl cannot")
    started(place, "run=job", f"data.new={file}")
    assert "give others with data.new=PATH" in problem("run=job", "iterations=4")
    started(place, "recipe=sft", "run=plain")
    assert "sample from no prompts" in problem("run=plain", f"data.new={file}")
    started(place, *WORDS[:1], "run=gated", outcome="stopped by gate[1]")
    assert "was stopped by gate[1], further iterations would not run" in problem("run=gated", f"data.new={file}")


def pairs(path: Path, number: int, more: str = "") -> Path:
    rows = [{"prompt": f"Pair {i} of week {number}?", "chosen": "Yes, so it is.", "rejected": "no"} for i in range(6)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + more)
    return path


def test_new_preferences_join_what_is_trained_on(place: Path, tmp_path: Path) -> None:
    """From their iteration on, with log-probs of their own; a week without some changes nothing; nor do later weeks."""
    before = prepare([*WORDS, f"workspace={place}"])
    third = started(place, "run=job", f"data.new={pairs(tmp_path / 'w3.jsonl', 3)}")
    assert same(before, third, 2)
    assert inputs(third, "train[3]", "groups") == [
        "tokens/pref", "new_tokens[3]/pref", "pairs[2]/groups", "pairs[3]/groups"]
    assert inputs(third, "diagnose[3]", "trained") == inputs(third, "train[3]", "groups")
    assert inputs(third, "prompts[3]", "prompts") == ["new_tokens[3]/unlabeled"]
    fourth = started(place, "run=job", f"data.new={week(tmp_path / 'w4.jsonl', 4)}", "iterations=5")
    fifth = started(place, "run=job", f"data.new={pairs(tmp_path / 'w6.jsonl', 6)}")
    assert same(third, fourth, 3) and same(fourth, fifth, 5)
    assert inputs(fourth, "train[5]", "groups")[:3] == ["tokens/pref", "new_tokens[3]/pref", "pairs[2]/groups"]
    assert inputs(fifth, "train[6]", "groups")[:3] == ["tokens/pref", "new_tokens[3]/pref", "new_tokens[6]/pref"]
    assert inputs(fifth, "new_prompts[6]", "known")[-1] == "new_prompts[3]/pref"
    assert [one["pairs"] for one in fifth.run.config["data"]["added"]] == [6, 0, 6]
    assert prepare([*WORDS, f"workspace={place}"]).steps == fifth.steps


def test_new_preferences_get_what_the_first_ones_got(tmp_path: Path) -> None:
    """Log-probs under the reference, scores, a place in a reward model that is trained again, and in a replay."""
    place, words = tmp_path / "ws", ["recipe=iterative_dpo", "run=job", "objective=exo_rw", "reward.retrain=each",
                                     "replay=last_k"]
    started(place, *words)
    made = started(place, "run=job", f"data.new={pairs(tmp_path / 'w3.jsonl', 3)}")
    assert inputs(made, "train[3]", "reference")[:2] == ["pref_reference/logps", "new_reference[3]/logps"]
    assert inputs(made, "train[3]", "scored") == ["pref_scores/scores", "new_scores[3]/scores"]
    assert inputs(made, "new_scores[3]", "groups") == ["new_tokens[3]/pref"]
    assert inputs(made, "retrained[3]", "groups") == ["tokens/pref", "new_tokens[3]/pref", "pairs[2]/groups"]
    assert inputs(made, "replay[3]", "groups") == inputs(made, "train[3]", "groups")
    followed = tmp_path / "followed"
    started(followed, "recipe=iterative_dpo", "run=job", "reference=previous")
    made = started(followed, "run=job", f"data.new={tmp_path / 'w3.jsonl'}")
    assert inputs(made, "reference[3]", "groups") == inputs(made, "train[3]", "groups")
    assert inputs(made, "train[3]", "reference") == ["reference[3]/logps"]


def test_where_nothing_trains_on_given_preferences_their_prompts_count_and_labels_are_refused(tmp_path: Path) -> None:
    place = tmp_path / "ws"
    started(place, "recipe=online_dpo", "run=job")
    made = started(place, "run=job", f"data.new={pairs(tmp_path / 'w3.jsonl', 3)}")
    assert made.run.config["data"]["added"][0]["pairs"] is None
    assert not any("new_tokens" in ref for ref in inputs(made, f"train[{made.steps[-1].iteration}]", "groups"))
    label = json.dumps({"prompt": "q", "completion": "a", "label": True}) + "\n"
    started(tmp_path / "other", *WORDS)
    with pytest.raises(UserError) as caught:
        prepare(["run=job", f"workspace={tmp_path / 'other'}", f"data.new={pairs(tmp_path / 'w4.jsonl', 4, label)}"])
    (problem,) = caught.value.problems
    assert f"data.new: {tmp_path}/w4.jsonl holds single answers with a label beside 6 pairs and lists" in problem


SMALL = ["recipe=iterative_dpo", "run=job", "data=files", "engine=transformers", "replay=weighted",
         "model.arch.hidden_size=32", "model.arch.layers=1", "model.arch.heads=2", "model.arch.kv_heads=2",
         "model.arch.intermediate_size=64", "precision=float32", "model.max_prompt_tokens=64",
         "model.max_completion_tokens=32", "sampling.prompts_per_iteration=12", "sampling.max_tokens=8", "sampling.n=4",
         "evaluation.sampling.n=1", "trainer.sft.max_steps=2", "trainer.reward.max_steps=2",
         "trainer.preference.max_steps=2", "trainer.preference.batch_size=8", "data.format.shares.eval=5"]


def driven(made: CheckedRun) -> tuple[runs.Run, dict[str, store.Artifact], list[str]]:
    """The run with every step done, in this process, its artifacts, and the steps that were computed for it."""
    place = launch.Launch(made.workspace, made.run.name, 5.0, 0.0)
    done, computed = dict[str, store.Artifact](), list[str]()
    place.folder.mkdir(parents=True, exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "_run_worker", in_this_process)
        for step in made.steps:
            item = plan.look_up(made.workspace, step, done)
            computed += [] if item.cached else [step.name]
            done[step.name], _ = launch.ensure(place, item, done, {}, lambda *_: None)
    steps = [{**one, "key": done[one["name"]].key, "state": "done"} for one in made.run.steps]
    record = replace(made.run, steps=steps, outcome=runs.DONE)
    runs.save(made.workspace, record)
    return record, done, computed


@pytest.mark.long
def test_two_weeks_of_a_job(tmp_path: Path) -> None:
    """The second week computes its own iteration alone, trains on both weeks, and knows where its groups are from."""
    rows = [{"prompt": f"Say something about the number {i}.", "chosen": f"{i} is fine.", "rejected": "no"}
            for i in range(90)]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    where = f"workspace={tmp_path / 'ws'}"
    _, first, _ = driven(prepare([*SMALL, f"data.root={tmp_path / 'mine.jsonl'}", where]))
    file = week(tmp_path / "latest.jsonl", 2)
    with file.open("a") as lines:
        lines.write(json.dumps({"prompt": rows[0]["prompt"]}) + "\n")
    record, second, computed = driven(prepare(["run=job", f"data.new={file}", where]))
    assert computed and all(name.endswith("[3]") for name in computed)
    assert all(second[name].key == artifact.key for name, artifact in first.items())
    new = second["new_prompts[3]"].manifest
    assert new["counts"]["unlabeled"] == second["prompts[3]"].manifest["counts"]["prompts"] == 8
    assert new["dropped"] == {"prompt that the run has already": 1}
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in origins.table(record, second).splitlines()]
    rows_of = [row for row in table if row[0] == "train[3]"]
    assert [row[1:3] for row in rows_of] == [
        ["the data set", "mine"], ["iteration 2", "mine"], ["iteration 3", "latest"]]
    assert [float(row[5]) / int(row[4]) for row in rows_of] == [0.25, 0.5, 1.0]
    week(file, 3)  # what it held is imported, so it may change
    _, again, computed = driven(prepare(["run=job", where]))
    assert computed == [] and again.keys() == second.keys()
    third = prepare(["run=job", f"data.new={file}", where])
    assert [step.name for step in third.steps if step.stage == "import_prompts"] == ["new_prompts[3]", "new_prompts[4]"]
    trained_on = {group.messages[0].content for group in tables.read(first["data"].path / "pref")}
    file = pairs(tmp_path / "labelled.jsonl", 3)
    with file.open("a") as lines:  # one that the first week had
        lines.write(json.dumps(next(row for row in rows if row["prompt"] in trained_on)) + "\n")
    record, third_done, computed = driven(prepare(["run=job", f"data.new={file}", where]))
    assert computed and all(name.endswith("[4]") for name in computed)
    new = third_done["new_prompts[4]"].manifest
    assert (new["counts"]["unlabeled"], new["counts"]["pref"]) == (6, 6)
    assert new["dropped"] == {"preference that the run has already": 1}
    lines_of = origins.table(record, third_done).splitlines()
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines_of]
    (row,) = [row for row in table if row[0] == "train[4]" and row[2] == "labelled"]
    assert (row[1], int(row[3])) == ("iteration 4", 6 + third_done["pairs[4]"].manifest["counts"]["kept"])
