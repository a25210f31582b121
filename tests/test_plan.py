"""Planning: references, iterations, settings that change with the iteration, keys. Uses stages that need no torch."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pipeline import plan, store
from pipeline.errors import UserError
from pipeline.plan import Ref, at_iteration, merged


def _config(recipe, iterations=2, seed=0, **stages):
    data = {"format": {"module": "pipeline.formats.jsonl"}, "require": []}
    base = {
        "import_data": {"settings": data, "runtime": {"root": "builtin:minifarm"}},
        "select_prompts": {"settings": {"iteration": "$iteration", "count": 10}, "runtime": {}},
        "report": {"settings": {}, "runtime": {}},
    }
    return {"recipe": recipe, "iterations": iterations, "seed": seed, "stage": {**base, **stages}}


LOOP = {
    "once": {"data": {"stage": "import_data"}},
    "each": {
        "prompts": {"stage": "select_prompts", "inputs": {"prompts": "data/unlabeled"}},
        "joined": {
            "stage": "report",
            "from": 2,
            "inputs": {"evaluations": ["joined[i-1]/groups | data/pref", "prompts[*]/groups"]},
        },
    },
}


def test_the_loop_is_unrolled_with_its_references():
    steps = {s.name: s for s in plan.expand(_config(LOOP, iterations=3))}
    assert list(steps) == ["data", "prompts[1]", "prompts[2]", "joined[2]", "prompts[3]", "joined[3]"]
    assert steps["joined[2]"].inputs["evaluations"] == (
        Ref("data", "pref"),
        Ref("prompts[1]", "groups"),
        Ref("prompts[2]", "groups"),
    )
    assert steps["joined[3]"].inputs["evaluations"][0] == Ref("joined[2]", "groups")
    assert [steps[f"prompts[{i}]"].settings.iteration for i in (1, 2, 3)] == [1, 2, 3]


def test_settings_may_change_from_an_iteration_on():
    node = {"alpha": 0.005, "tau": 10, "later": {2: {"alpha": 0.01}, 4: {"tau": 1}}}
    assert [at_iteration(node, i) for i in (0, 1, 2, 3, 4)] == [
        {"alpha": 0.005, "tau": 10},
        {"alpha": 0.005, "tau": 10},
        {"alpha": 0.01, "tau": 10},
        {"alpha": 0.01, "tau": 10},
        {"alpha": 0.01, "tau": 1},
    ]


def test_merged_goes_into_mappings_and_leaves_its_input_alone():
    base = {"a": {"x": 1, "y": 2}, "b": [1]}
    assert merged(base, {"a": {"y": 3}, "b": [2]}) == {"a": {"x": 1, "y": 3}, "b": [2]}
    assert base == {"a": {"x": 1, "y": 2}, "b": [1]}


def test_what_nobody_needs_is_left_out():
    recipe = {
        "once": {
            "data": {"stage": "import_data"},
            "unused": {"stage": "select_prompts", "when": "needed", "inputs": {"prompts": "data/eval"}},
            "used": {"stage": "select_prompts", "when": "needed", "inputs": {"prompts": "data/eval"}},
            "off": {"stage": "select_prompts", "when": False, "inputs": {"prompts": "data/eval"}},
            "joined": {"stage": "report", "inputs": {"evaluations": "used/groups"}},
        }
    }
    stages = {"select_prompts": {"settings": {"iteration": 1, "count": 1}}}
    assert [s.name for s in plan.expand(_config(recipe, **stages))] == ["data", "used", "joined"]


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (
            {"stage": "reprt", "inputs": {"evaluations": "data/pref"}},
            "recipe.once.x.stage: no stage 'reprt' (did you mean report?)",
        ),
        (
            {"stage": "report", "inputs": {"evaluations": "dat/pref"}},
            "recipe.once.x.inputs.evaluations: no earlier step 'dat/pref'",
        ),
        (
            {"stage": "report", "inputs": {"evaluation": "data/pref"}},
            "recipe.once.x.inputs.evaluation: unknown input (did you mean evaluations?)",
        ),
        ({"stage": "report"}, "recipe.once.x.inputs.evaluations: needs at least one reference such as sft/model"),
        ({"stage": "report", "input": {}}, "recipe.once.x.input: unknown key (did you mean inputs?)"),
        (
            {"stage": "report", "inputs": {"evaluations": "data/pref"}, "settings": {"resample": 1}},
            "stage.report.settings.resample: unknown key (did you mean resamples?)",
        ),
    ],
)
def test_a_wrong_step_is_named(node, message):
    with pytest.raises(UserError) as caught:
        plan.expand(_config({"once": {"data": {"stage": "import_data"}, "x": node}}))
    assert any(problem.startswith(message) for problem in caught.value.problems), caught.value.problems


def test_a_failed_step_does_not_blame_those_after_it():
    broken = {"select_prompts": {"settings": {"iteration": 1, "count": "many"}}}
    with pytest.raises(UserError) as caught:
        plan.expand(_config(LOOP, **broken))
    assert caught.value.problems == ["stage.select_prompts.settings.count: expected a whole number, got 'many'"]


def test_a_key_is_known_once_its_inputs_exist(tmp_path):
    steps = plan.expand(_config(LOOP))
    first = plan.look_up_all(tmp_path, steps)
    assert [item.key is not None for item in first] == [True, False, False, False]
    out = store.work_path(tmp_path, "import_data", first[0].key) / "out"
    for name in ("unlabeled", "pref"):
        (out / name).mkdir(parents=True)
        (out / name / "part-00000.parquet").write_text(name)
    store.commit(tmp_path, "import_data", first[0].key, {})
    second = plan.look_up_all(tmp_path, steps)
    assert [item.cached for item in second] == [True, False, False, False]
    assert [item.key is not None for item in second] == [True, True, True, False]
    assert second[1].key != second[2].key  # another iteration, other prompts


def test_more_iterations_change_no_earlier_key_and_the_seed_only_what_is_random(tmp_path):
    def keys(**options):
        steps = plan.expand(_config(LOOP, **options))
        done = {"data": store.Artifact("import_data", "k", tmp_path, {"files": {"unlabeled/p": {"hash": "1"}}})}
        return {s.name: plan.step_key(tmp_path, s, done) for s in steps if s.name.startswith(("data", "prompts"))}

    two, three, other = keys(iterations=2), keys(iterations=3), keys(iterations=2, seed=1)
    assert two.items() <= three.items()
    assert two["data"] == other["data"] and two["prompts[1]"] != other["prompts[1]"]


def test_check_reports_files_that_are_missing(tmp_path):
    config = _config(LOOP)
    config["stage"]["import_data"]["runtime"]["root"] = str(tmp_path / "nowhere")
    problems = plan.check(tmp_path / "w", plan.expand(config))
    assert len(problems) == 1 and problems[0].startswith("data.root:") and "nowhere" in problems[0]


def test_files_found_good_are_read_once_and_again_when_they_change(tmp_path, monkeypatch):
    """What the check of a data set found is remembered until a file, a setting or the version changes; what is wrong
    is looked for every time.
    """
    from pipeline.stages import import_data

    data, read = tmp_path / "data", []
    data.mkdir()
    (data / "a.jsonl").write_text('{"prompt": "q", "completion": "a"}\n')
    monkeypatch.setattr(import_data, "STAGE", replace(
        import_data.STAGE, foresee=lambda *given: read.append(1) or import_data.foresee(*given)))

    def check(**settings):
        config = _config(LOOP)
        config["stage"]["import_data"]["runtime"]["root"] = str(data)
        config["stage"]["import_data"]["settings"]["format"] |= settings
        return plan.check(tmp_path / "w", plan.expand(config)), len(read)

    assert check() == ([], 1) and check() == ([], 1)
    assert check(shares={"sft": 1}) == ([], 2)
    (data / "b.jsonl").write_text('{"prompt": "r"}\n')
    assert check() == ([], 3) and check() == ([], 3)
    (data / "b.jsonl").write_text("no JSON\n")
    for number in (4, 5):
        problems, times = check()
        assert times == number and len(problems) == 1 and problems[0].startswith(f"{data / 'b.jsonl'}:1: not JSON")


def test_an_input_that_names_a_part_the_step_before_did_not_write(tmp_path):
    """The plan cannot know what a stage writes; once it has run, the step that wants more is named, and the parts."""
    (step,) = [s for s in plan.expand(_config(LOOP, iterations=1)) if s.name == "prompts[1]"]
    done = {"data": store.Artifact("import_data", "k", tmp_path, {"files": {"unlabelled/p": {"hash": "1"}}})}
    with pytest.raises(UserError) as raised:
        plan.step_key(tmp_path, step, done)
    assert raised.value.problems == [
        "recipe: step prompts[1] takes data/unlabeled as its input 'prompts', but data wrote no 'unlabeled' "
        "(did you mean unlabelled?)"]
