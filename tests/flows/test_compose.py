"""Overrides -> configuration: what the user typed wrong is named, all of it at once."""

from __future__ import annotations

import dataclasses
import importlib
import json
import shutil

import pytest
import yaml

from flows import settings
from flows.compose import CONF, compose
from flows.machine import precision_of
from flows.prepare import absolute, expand
from pipeline.errors import UserError
from pipeline.plan import _without_paths
from tests.flows.test_lists import written as lists

RECIPES = sorted(p.stem for p in (CONF / "recipe").glob("*.yaml"))
STAGES = yaml.safe_load((CONF / "stages.yaml").read_text())


def _problems(*overrides: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        composed = compose(list(overrides))
        expand(composed)
    return caught.value.problems


def _steps(*overrides: str):
    return {step.name: step for step in expand(compose(list(overrides)))}


def test_the_command_line_beats_the_recipe_and_the_recipe_the_defaults():
    assert compose(["recipe=pco"]).config["objective"]["module"] == "pipeline.objectives.pairwise_cringe"
    assert compose(["recipe=pco", "objective=dpo"]).config["objective"]["module"] == "pipeline.objectives.dpo"
    assert compose(["recipe=pco", "objective.alpha=0.5"]).config["objective"]["alpha"] == 0.5
    assert compose(["recipe=onmcpo"]).config["iterations"] == 3
    assert compose(["recipe=onmcpo", "iterations=5"]).config["iterations"] == 5


def test_every_problem_of_the_command_line_at_once():
    problems = _problems("recipe=pcoo", "modell=tiny", "model=tinny", "objective.betta=1", "+x=1", "nonsense")
    assert problems == [
        "recipe: no recipe named 'pcoo' (did you mean pco?)",
        "model: no model named 'tinny' (did you mean tiny?)",
        "+x=1: expected plain key=value (no + or ~; several values are for align sweep)",
        problems[3],
        "modell: unknown key, there is no 'modell' (did you mean model?)",
        "objective.betta: unknown key, objective has no 'betta' (did you mean beta?)",
    ]
    assert problems[3].startswith("nonsense: not of the form key=value")


def test_no_recipe_lists_them():
    (unknown,) = _problems("published=zephr")  # it would bring the recipe
    assert unknown.startswith("published: ") and "did you mean zephyr" in unknown
    assert _problems() == [f"recipe: missing, say which one: recipe=NAME with NAME one of {', '.join(RECIPES)}"]


def test_wrong_types_and_ranges_carry_the_key_the_user_types():
    problems = _problems(
        "recipe=iterative_dpo",
        "objective.beta=abc",
        "trainer.sft.lr=-1",
        "sampling.n=0",
        "model.arch.layers=two",
        "selection.score=3",
    )
    keys = [problem.partition(":")[0] for problem in problems]
    assert keys == ["model.arch.layers", "trainer.sft.lr", "objective.beta", "sampling.n", "selection.score"] or set(
        keys
    ) == {"model.arch.layers", "trainer.sft.lr", "objective.beta", "sampling.n", "selection.score"}
    assert "trainer.sft.lr: -1.0 is out of range, expected 0.0 < x" in problems


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("iterations=0", "iterations"),
        ("iterations=two", "iterations"),
        ("seed=-1", "seed"),
        ("run=a/b", "run"),
        ("objective=5", "objective"),
        ("objective.module=pipeline.objectives.nope", "objective.module"),
        ("reward.scorer.function=no.such.rule", "reward"),
        ("tracking=wandbb", "tracking"),
    ],
)
def test_single_wrong_values(override, key):
    assert any(p.startswith(key) for p in _problems("recipe=pco", override)), _problems("recipe=pco", override)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize(
    "extra", [(), ("iterations=4", "sampling.prompts_per_iteration=500"), ("reward=rule",), ("engine=transformers",),
              ("hardware=cuda",)]
)
def test_every_recipe_can_be_planned(recipe, extra, tiny_model, tmp_path):
    (tmp_path / "model_outputs.json").write_text('[{"instruction": "Why?"}]')
    given = [f"data.root={tmp_path}", f"model.path={tiny_model}", "model.max_prompt_tokens=128",
             "model.max_completion_tokens=128"] if recipe == "benchmark" else []
    if recipe == "mcpo":  # the built-in world has no ranked lists
        given = ["data=files", lists(tmp_path / "lists.jsonl", 5)]
    assert _steps(f"recipe={recipe}", *given, *extra)


OPTIONS = [(group, name) for group in settings.groups(CONF) if group != "recipe"
           for name in settings.options(CONF, group)]


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_composes_with_all_its_settings(group, option):
    """A key that is not there could not be given on the command line."""
    composed = compose(["recipe=mcpo_instruct", f"{group}={option}"])
    assert composed.choices[group] == option
    package = settings.PACKAGES.get(group, settings.Package("", ""))
    node = composed.config[group][package.key] if package.key else composed.config[group]
    schema = settings.part_schema(node.get("module"))
    if schema is not None and option != "minifarm":  # whose file says that it names all there is
        assert set(node) - {"module", "later"} == {field.name for field in dataclasses.fields(schema)}


def test_no_file_repeats_a_default():
    """A dataclass's default is the truth; a file stands where it differs."""
    repeated = []
    for path in sorted(CONF.glob("*/*.yaml")):
        group = path.parent.name
        node = yaml.safe_load(path.read_text()) or {}
        bare = {k: v for k, v in node.items() if k not in ("companions", "defaults")}
        if "defaults" in node:
            continue  # it stands on another file, and may go back to a default
        parts = [(node, "")] + [(v, k) for k, v in node.items() if isinstance(v, dict)]
        for part, where in parts:
            schema = settings.part_schema(part.get("module"))
            known = settings.completed(schema, {}) if schema else {}
            repeated += [f"{path}: {where} {k}" for k, v in part.items() if k in known and known[k] == v]
        for inner, outer in settings.wires(STAGES).items():
            default, given = settings.at_stage(inner)[1], settings.get({group: bare}, outer)
            schema = settings.dataclass_in(settings.at_stage(inner)[0])
            if given is not dataclasses.MISSING:
                repeated += [f"{path}: {outer}"] if given == default else []
                known = settings.completed(schema, {}) if schema and isinstance(given, dict) else {}
                repeated += [f"{path}: {outer}.{k}" for k, v in known.items() if k in given and given[k] == v]
        for key, schema in settings.ROOTS.items():
            known = settings.completed(schema, {}) if key == group else {}
            repeated += [f"{path}: {k}" for k, v in known.items() if k in node and node[k] == v]
    assert repeated == []


def test_a_comparison_with_given_answers_needs_them(tiny_model, tmp_path):
    row = {"question_id": 81, "category": "writing", "turns": ["a", "b"]}
    (tmp_path / "question.jsonl").write_text(json.dumps(row))
    given = ("recipe=benchmark", "data=mt_bench", f"data.root={tmp_path}", f"model.path={tiny_model}", "reward=rule",
             "data.compare=true", "model.max_prompt_tokens=128", "model.max_completion_tokens=128")
    assert _problems(*given) == ["data.format.answers: null, expected the file with the given answers"]
    (tmp_path / "given.jsonl").write_text(json.dumps({"question_id": 81, "choices": [{"turns": ["c", "d"]}]}))
    answers = "data.format.answers=given.jsonl"
    assert "given_second" in _steps(*given, answers)
    assert "evaluate_second" not in _steps(*given, answers, "data.format.two_turns=false", "data.compare_second=false")


def test_pco_has_the_papers_hyper_parameters_per_iteration():
    """Xu et al. 2023, table of simulated preferences: alpha, b, tau = 0.005, 0, 10, then 0.01, -10, 1; k = 5."""
    steps = _steps("recipe=pco", "iterations=3", "objective.labels_from=simulated")
    chosen = [{k: steps[f"train[{i}]"].settings.objective[k] for k in ("alpha", "b", "tau", "k")} for i in (1, 2, 3)]
    assert chosen == [{"alpha": 0.005, "b": 0.0, "tau": 10.0, "k": 5}] + 2 * [
        {"alpha": 0.01, "b": -10.0, "tau": 1.0, "k": 5}
    ]
    generate = steps["generate[2]"].settings
    assert (generate.n, generate.temperatures) == (4, (0.7,))


def test_pco_restarts_from_sft_on_everything_so_far():
    steps = _steps("recipe=pco", "iterations=3")
    assert [str(r) for r in steps["train[3]"].inputs["model"]] == ["sft/model"]
    assert [str(r) for r in steps["generate[3]"].inputs["model"]] == ["train[2]/model"]
    assert [str(r) for r in steps["train[3]"].inputs["groups"]] == ["tokens/pref", "pairs[2]/groups", "pairs[3]/groups"]
    assert steps["diagnose[3]"].inputs["trained"] == steps["train[3]"].inputs["groups"]


def test_only_objectives_with_a_reference_get_one():
    assert not any(name.startswith(("reference", "pref_reference")) for name in _steps("recipe=pco"))
    dpo = _steps("recipe=iterative_dpo", "iterations=3")
    assert [str(r) for r in dpo["train[3]"].inputs["reference"]] == [
        "pref_reference/logps",
        "reference[2]/logps",
        "reference[3]/logps",
    ]


def test_onmcpo_runs_the_optimizer_through():
    steps = _steps("recipe=onmcpo")
    assert "optimizer" not in steps["train[1]"].inputs
    assert [str(r) for r in steps["train[3]"].inputs["optimizer"]] == ["train[2]/optimizer"]
    assert [str(r) for r in steps["train[3]"].inputs["model"]] == ["train[2]/model"]
    sampling = steps["generate[2]"].settings
    assert (sampling.n, len(sampling.temperatures)) == (2, 3)


def test_what_cannot_work_together_is_said_before_anything_runs():
    assert _problems("recipe=pco", "evaluation.score=golt", "sampling.max_tokens=2000") == [
        "evaluation.score: nothing gives a score named 'golt' (did you mean gold?)",
        "sampling.max_tokens: 2000 leaves no room for a prompt in a context of 1024 tokens (model.arch.max_position)",
    ]


def test_a_gate_needs_a_judge_that_is_not_the_reward_it_watches():
    """Data without a judge of its own is judged by the learned reward: it cannot part from itself."""
    plain = ("recipe=mcpo_instruct", "gate=stop", "evaluation.score=reward")
    (problem,) = _problems(*plain)
    assert problem.startswith("gate.win_rate_fall: 0.0 stops where the judge's win rate falls while the learned reward")
    assert "gate.win_rate_fall=null" in problem
    assert _steps(*plain, "gate.win_rate_fall=null") and _steps("recipe=mcpo_instruct", "gate=stop")
    assert _steps("recipe=mcpo_instruct", "evaluation.score=reward")  # no gate


def test_problems_of_all_layers_come_together():
    """A wrong key, a wrong top-level value, a wrong stage setting and a missing path, in one go."""
    problems = _problems("recipe=pco", "objective.alhpa=1", "seed=x", "trainer.sft.lr=abc", "data.root=/no/such/place")
    assert [p.partition(":")[0] for p in problems] == ["objective.alhpa", "seed", "trainer.sft.lr", "data.root"]


@pytest.mark.parametrize(("option", "key", "schema"), [
    *((f"hardware={name}", "hardware.training", "pipeline.training.settings:TrainRuntime") for name in ("cpu", "cuda")),
    *(("trainer=scratch", f"trainer.{block}", "pipeline.training.settings:TrainerSettings")
      for block in ("sft", "reward", "preference")),
    ("engine=vllm", "engine", "pipeline.engines.vllm.service:Settings"),
    ("engine=vllm_ray", "engine", "pipeline.engines.vllm.ray:Settings"),
    ("engine=transformers", "engine", "pipeline.engines.transformers.engine:Settings"),
    ("model=tiny", "model.arch", "pipeline.stages.init_model:Arch"),
    ("filters=default", "filters", "pipeline.selection.filters:Filters"),
])  # fmt: skip
def test_every_setting_can_be_set(option, key, schema):
    node = settings.get(compose(["recipe=pco", option]).config, key)
    module, _, name = schema.partition(":")
    fields = {f.name for f in dataclasses.fields(getattr(importlib.import_module(module), name))}
    assert set(node) - {"module"} == fields


def test_two_stages_that_read_one_key_agree_on_its_default():
    defaults = {}
    for inner, outer in settings.wires(STAGES).items():
        default = settings.at_stage(inner)[1]
        if default is not dataclasses.MISSING:
            defaults.setdefault(outer, []).append(default)
    assert {outer: values for outer, values in defaults.items() if any(v != values[0] for v in values)} == {}


def test_what_was_renamed_is_told_in_one_line():
    assert _problems("recipe=pco", "stage.train_preference.settings.score=x", "filters.ties=keep",
                     "stage.build_groups.settings.filters.length_debias=within") == [
        "stage.train_preference.settings.score: is now train.score",
        "stage.build_groups.settings.filters.length_debias: is now filters.length_debias",
    ]
    assert _problems("recipe=pco", "negatives.module=pipeline.selection.mc",
                     "data.judge.also.gold.function=pipeline.rewards.minifarm.gold") == [
        "negatives.module: pipeline.selection.mc is now pipeline.negatives.mc",
        "data.judge.also.gold.function: pipeline.rewards.minifarm.gold is now pipeline.worlds.minifarm.gold",
    ]


def test_code_of_a_model_has_no_switch():
    (problem,) = _problems("recipe=sft", "model.trust_remote_code=true")
    assert problem.startswith("model.trust_remote_code: code that comes with a model is never run")


def test_a_recipe_with_the_old_name_of_steps_is_told_the_new_one(tmp_path):
    conf = tmp_path / "conf"
    shutil.copytree(CONF, conf)
    (conf / "recipe" / "mine.yaml").write_text(
        "# @package _global_\ndefaults:\n  - /steps@recipe: [sft, restart, judged]\n")
    with pytest.raises(UserError, match=r"^conf/recipe/mine.yaml: the steps restart are now from_sft$"):
        compose(["recipe=mine"], conf=conf)


def test_a_path_is_the_same_from_everywhere_and_its_place_is_not_in_the_key(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert absolute("data.root=rows") == f"data.root={tmp_path / 'rows'}"
    assert absolute("data.root=builtin:minifarm") == "data.root=builtin:minifarm"
    settings = {"reward": {"module": "pipeline.rewards.model", "path": str(tmp_path / "rm")}}
    assert _without_paths(settings, [tmp_path / "rm" / "config.json"])["reward"] == {
        "module": "pipeline.rewards.model", "path": "(its files)"}


def test_a_rule_needs_no_reward_model():
    assert "reward" not in _steps("recipe=pco", "reward=rule")
    assert "reward" in _steps("recipe=pco")


@pytest.mark.parametrize("flags, expected", [
    ("flags : fpu avx2 avx512f avx512_bf16 amx_tile", "bfloat16"), ("Features : fp asimd bf16 i8mm", "bfloat16"),
    ("flags : fpu avx2 fma avx512f", "float32"), (None, "float32")])
def test_precision_is_what_the_machine_computes_in(flags, expected, tmp_path):
    if flags is not None:
        (tmp_path / "cpuinfo").write_text(flags)
    assert precision_of("cpu", tmp_path / "cpuinfo") == expected
    assert precision_of("cuda", tmp_path / "cpuinfo") == "bfloat16"


def test_precision_reaches_every_stage_that_multiplies_and_a_choice_wins():
    steps = _steps("recipe=iterative_dpo", "precision=float32")
    assert {steps[n].settings.trainer.precision for n in ("sft", "reward", "train[1]")} == {"float32"}
    assert steps["pref_reference"].settings.precision == "float32"
    assert steps["answer_scores[1]"].settings.reward["precision"] == "float32"
    wrong = _problems("recipe=pco", "precision=float16")
    assert wrong[0] == "precision: 'float16' is not allowed, expected one of bfloat16, float32"


def test_more_negatives_than_candidates_are_refused():
    """mcpo samples 6 completions a prompt: the best, and 5 candidates."""
    assert "train[1]" in _steps("recipe=mcpo_instruct", "negatives.m=5")
    (problem,) = _problems("recipe=mcpo_instruct", "negatives.m=6")
    assert problem.startswith("negatives.m: 6 with 5 candidates")


def test_a_module_that_declares_nothing_is_named_instead_of_all_options():
    assert _problems("recipe=pco", "objective=contract") == [
        "objective: pipeline/objectives/contract.py is no option, it declares no OBJECTIVE = Objective(...); what it "
        "may declare is in pipeline.objectives.contract"]


@pytest.mark.parametrize(("text", "declares"), [
    ("OBJECTIVE = Objective(loss=1)", True),
    ("OBJECTIVE: Objective = Objective(loss=1)", True),
    ("OBJECTIVE = contract.Objective(loss=1)", True),
    ("OBJECTIVE: Objective", False),
    ("def f():\n    OBJECTIVE = Objective(loss=1)", False),
    ("# OBJECTIVE = Objective(loss=1)\nRULE = Rule(1)", False),
])
def test_a_module_is_an_option_however_it_writes_its_declaration(text, declares, tmp_path, monkeypatch):
    module = tmp_path / "pipeline" / "objectives" / "mine.py"
    module.parent.mkdir(parents=True)
    module.write_text(text + "\n")
    monkeypatch.setattr(settings, "ROOT", tmp_path)
    assert settings.part_files("objective") == ([module] if declares else [])


def test_a_key_that_stands_deeper_in_its_group_is_found():
    assert _problems("recipe=pco", "reward=rule", "reward.function=my.f") == [
        "reward.function: unknown key, reward has no 'function' (did you mean reward.scorer.function?)"]


def test_an_interpolation_that_leads_nowhere_is_said_with_its_place(tmp_path):
    shutil.copytree(CONF, tmp_path / "conf")
    recipe = tmp_path / "conf" / "recipe" / "sft.yaml"
    recipe.write_text(recipe.read_text() + "seed: ${nothing}\n")
    with pytest.raises(UserError, match=r"^seed: Interpolation key 'nothing' not found$"):
        compose(["recipe=sft"], conf=tmp_path / "conf")


@pytest.mark.parametrize("recipe", ["online_dpo", "pco"])
def test_a_reward_model_that_is_trained_again_scores_the_samples(recipe):
    """On the given pairs and those of the iterations before; the evaluation keeps the first. Else nothing changes."""
    steps = {step.name: step for step in expand(compose([f"recipe={recipe}", "iterations=3", "reward.retrain=each"]))}
    read = [str(ref) for ref in steps["retrained[3]"].inputs["groups"]]
    assert read == ["tokens/pref", *(f"pairs[{i}]/groups" for i in (1, 2) if f"pairs[{i}]" in steps)]
    assert [str(ref) for ref in steps["score[3]"].inputs["model"]] == ["retrained[3]/model"]
    assert [str(ref) for ref in steps["answer_scores[3]"].inputs["model"]] == ["reward/model"]
    plain = {step.name: step for step in expand(compose([f"recipe={recipe}", "iterations=3"]))}
    assert [str(ref) for ref in plain["score[3]"].inputs["model"]] == ["reward/model"]
    assert plain.keys() == steps.keys() - {"retrained[2]", "retrained[3]"}
