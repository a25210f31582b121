"""Which model training starts from and which is its reference, by word, by iteration, by folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from flows.compose import compose
from flows.prepare import absolute, expand
from pipeline import plan
from pipeline.errors import UserError
from pipeline.plan import Step


def steps_of(*words: str) -> dict[str, Step]:
    composed = compose(list(words))
    assert composed.problems == []
    steps, problems = plan.try_expand(composed.config, {})
    assert problems == []
    return {step.name: step for step in steps}


def problems_of(*words: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        expand(compose(list(words)))
    return caught.value.problems


def source(steps: dict[str, Step], name: str, part: str = "model") -> list[str]:
    return [str(ref) for ref in steps[name].inputs[part]]


def test_iterative_dpo_of_online_rlhf_is_two_words() -> None:
    steps = steps_of("recipe=iterative_dpo", "start=previous", "reference=sft", "iterations=3")
    assert [source(steps, f"train[{i}]") for i in (1, 2, 3)] == [["sft/model"], ["train[1]/model"], ["train[2]/model"]]
    assert {str(ref) for i in (2, 3) for ref in steps[f"reference[{i}]"].inputs["model"]} == {"sft/model"}
    tables = ["pref_reference/logps", "reference[2]/logps", "reference[3]/logps"]
    assert source(steps, "train[3]", "reference") == tables


def test_what_recipes_do_without_a_word() -> None:
    assert source(steps_of("recipe=pco"), "train[2]") == ["sft/model"]
    assert source(steps_of("recipe=online_dpo"), "train[2]") == ["train[1]/model"]
    assert source(steps_of("recipe=online_dpo", "start=sft"), "train[2]") == ["sft/model"]
    assert source(steps_of("recipe=egpo", "start=sft"), "half[2]") == ["sft/model"]
    assert source(steps_of("recipe=pco", "start=previous", "gate=previous"), "train[2]") == ["gate[1]/model"]


@pytest.mark.parametrize(("recipe", "groups"), [
    ("iterative_dpo", ["tokens/pref", "pairs[2]/groups", "pairs[3]/groups"]),
    ("mcpo_instruct", ["pairs[1]/groups", "pairs[2]/groups", "pairs[3]/groups"]), ("online_dpo", ["pairs[3]/groups"])])
def test_a_reference_that_moves_is_asked_again_about_all_groups(recipe: str, groups: list[str]) -> None:
    steps = steps_of(f"recipe={recipe}", "reference=previous", "iterations=3")
    assert source(steps, "reference[3]") == ["train[2]/model"] and source(steps, "reference[3]", "groups") == groups
    assert source(steps, "train[3]", "reference") == ["reference[3]/logps"]
    assert source(steps, "train[3]", "groups") == groups and "pref_reference" not in steps
    assert source(steps, "reference[1]") == ["sft/model"]


def test_a_live_reference_is_the_same_model() -> None:
    steps = steps_of("recipe=iterative_dpo", "objective=kto", "reference=previous")
    assert source(steps, "train[2]", "reference_model") == source(steps, "reference[2]") == ["train[1]/model"]


def test_words_by_iteration() -> None:
    """Before the first iteration that is named the SFT model stands."""
    steps = steps_of("recipe=iterative_dpo", "start={2: previous, 4: sft}", "iterations=4")
    assert [source(steps, f"train[{i}]")[0] for i in (1, 2, 3, 4)] == [
        "sft/model", "train[1]/model", "train[2]/model", "sft/model"]
    moving = steps_of("recipe=iterative_dpo", "reference={1: sft, 3: previous}", "iterations=3")
    assert [source(moving, f"reference[{i}]")[0] for i in (1, 2, 3)] == ["sft/model", "sft/model", "train[2]/model"]
    fixed = steps_of("recipe=iterative_dpo", "reference={1: sft}")
    assert [(s.name, s.inputs) for s in fixed.values()] == [
        (s.name, s.inputs) for s in steps_of("recipe=iterative_dpo").values()]


def test_a_folder_is_a_model_of_its_own_step(tiny_model: Path) -> None:
    steps = steps_of("recipe=iterative_dpo", "model=path", f"model.path={tiny_model}", f"reference={tiny_model}")
    assert steps["given_a"].stage == "init_model" and steps["given_a"].runtime.path == str(tiny_model)
    assert source(steps, "given_a", "policy") == ["init/model"]
    assert source(steps, "pref_reference") == source(steps, "reference[2]") == ["given_a/model"]
    assert source(steps, "train[2]") == ["sft/model"]


def test_ema_brings_its_decay_and_goes_on_from_the_averages() -> None:
    words = ["recipe=iterative_dpo", "start=ema"]
    assert "start=ema brings train.ema=0.99" in compose(words).notes
    steps = steps_of(*words)
    assert source(steps, "train[2]") == ["train[1]/ema/model"] and source(steps, "train[1]") == ["sft/model"]
    assert steps["train[1]"].settings.ema == 0.99
    assert steps_of(*words, "train.ema=0.5")["train[2]"].settings.ema == 0.5
    assert source(steps_of("recipe=iterative_dpo", "reference=ema"), "reference[2]") == ["train[1]/ema/model"]


def test_without_sft_the_model_given_stands_in_its_place(tiny_model: Path) -> None:
    words = ["recipe=pco", "sft=none", "model=path", f"model.path={tiny_model}", "data=hh", "data.root=/x"]
    steps = steps_of(*words)
    assert "sft" not in steps
    every = {str(ref) for step in steps.values() for refs in step.inputs.values() for ref in refs}
    assert "init/model" in every and "sft/model" not in every and "tokens/sft" not in every
    assert steps["data"].settings.require == ("pref", "unlabeled", "eval")
    assert steps["data"].settings.format["shares"]["sft"] == 0
    kept = steps_of(*words, "data.format.shares.sft=5")
    assert kept["data"].settings.format["shares"]["sft"] == 5


@pytest.mark.parametrize(("words", "message"), [
    (["recipe=pco", "start=previuos"],
     "start: 'previuos', expected sft, previous, ema or a model's folder (did you mean previous?)"),
    (["recipe=pco", "reference={1: sft, 2: prev}"], "reference.2: 'prev', expected sft, previous, ema or a model's"),
    (["recipe=pco", "start=org/name"], "start: org/name is not there, expected a model's folder; one of the hub is "
     "fetched first: hf download ORG/NAME --local-dir DIR, then start=DIR"),
    (["recipe=pco", "reference={1: sft, 2: /no/where}"], "reference.2: /no/where is not there"),
    (["recipe=sft", "start=previous"], "start: 'previous', but the steps of this run train no policy"),
    (["recipe=sft", "sft=none"], "sft: none, but the steps of this run train nothing else"),
    (["recipe=pco", "sft=none"], "sft: none starts from an instruct model, but this one is made from nothing"),
    (["recipe=pco", "sft=off"], "sft: 'off' is not allowed, expected one of train, none"),
    (["recipe=pco", "start=ema", "gate=previous"], "start: ema with gate=previous would go on from iterations that"),
    (["recipe=pco", "start=3"], "start: expected a text or a mapping of a whole number to a text, got 3"),
])  # fmt: skip
def test_words_that_mean_nothing_are_refused(words: list[str], message: str) -> None:
    assert any(problem.startswith(message) for problem in problems_of(*words)), problems_of(*words)


def test_a_folder_with_another_tokenizer_is_refused(make_model: Callable[..., Path], tmp_path: Path) -> None:
    own, other = make_model(tmp_path / "own"), make_model(tmp_path / "other")
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    tokenizer["added_tokens"][-1]["content"] = "<|bye|>"
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    (problem,) = compose(["recipe=pco", "model=path", f"model.path={own}", f"start={other}"]).problems
    assert problem.startswith(f"start or reference: {other} has another tokenizer than {own}")


def test_a_folder_is_the_same_from_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "policy").mkdir()
    monkeypatch.chdir(tmp_path)
    assert absolute("start=policy") == f"start={tmp_path / 'policy'}"
    assert [absolute(word) for word in ("start=previous", "reference={1: sft, 2: ema}")] == [
        "start=previous", "reference={1: sft, 2: ema}"]
    assert absolute("start={1: sft, 2: policy}") == f'start={{1:"sft",2:"{tmp_path}/policy"}}'
    (tmp_path / "sft").mkdir()
    assert absolute("start=sft") == "start=sft"  # the word means the step, whatever lies here
    assert absolute("start={1: sft, 2: ./sft}") == f'start={{1:"sft",2:"{tmp_path}/sft"}}'
    steps = steps_of("recipe=iterative_dpo", absolute("start={1: sft, 2: policy}"))
    assert steps["given_a"].runtime.path == str(tmp_path / "policy")
    assert source(steps, "train[2]") == ["given_a/model"]
