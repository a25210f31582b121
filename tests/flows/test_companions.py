"""What an option brings along, and who wins: the command line, then companions, then the recipe, then the defaults."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from flows import settings
from flows.compose import COMPANIONS, CONF, brought, compose
from flows.prepare import expand
from pipeline import plan
from pipeline.errors import UserError

BRINGING = sorted(path for path in CONF.glob("*/*.yaml") if COMPANIONS in (yaml.safe_load(path.read_text()) or {})
                  and path.parent.name != "published")  # see test_published


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    """Two recipes over three groups: a brings b's second option, which brings c's second and a value."""
    files = {
        "recipe/one": "defaults: [{/steps@recipe: [first, loop]}, {override /b: b1}]",
        "recipe/two": "defaults: [{/steps@recipe: [first]}, {override /b: b2}]",
        "a/a1": "x: 1",
        "a/a2": "companions: {b: b2, steps: {loop: other}}",
        "b/b1": "x: 1",
        "b/b2": "companions: {c: c2, stage.t.settings.score: s}",
        "c/c2": "x: 1",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.yaml").write_text(text)
    return tmp_path


def test_companions_bring_their_own(conf: Path) -> None:
    found = brought({"recipe": "one", "a": "a2"}, set(), conf)
    assert found.options == {"b": "b2", "c": "c2"}
    assert found.values == [("stage.t.settings.score", "s")]
    assert found.steps == ["first", "other"]
    assert found.notes == ["a=a2 brings b=b2, the steps other for loop", "b=b2 brings c=c2, stage.t.settings.score=s"]


def test_what_the_command_line_says_wins(conf: Path) -> None:
    """With b=b1 nothing of b2 comes, with the score given only the option."""
    assert brought({"recipe": "one", "a": "a2", "b": "b1"}, set(), conf).options == {}
    found = brought({"recipe": "one", "b": "b2"}, {"stage.t.settings.score"}, conf)
    assert (found.options, found.values, found.steps) == ({"c": "c2"}, [], None)


def test_nothing_is_said_of_what_the_recipe_has_already(conf: Path) -> None:
    """Recipe two has b2 and no loop; only options the command line names bring something, so c stays the recipe's."""
    assert brought({"recipe": "two"}, set(), conf).options == {}
    found = brought({"recipe": "two", "a": "a2"}, set(), conf)
    assert found.steps is None and found.notes == ["b=b2 brings c=c2, stage.t.settings.score=s"]


@pytest.mark.parametrize("path", BRINGING, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_companions_are_real_and_reach_no_settings(path: Path) -> None:
    """Every option and step named is there, every key can be set, and the part is built without them."""
    for key, value in yaml.safe_load(path.read_text())[COMPANIONS].items():
        names = value.items() if key == "steps" else [(value, value)]
        if (CONF / key).is_dir():
            known = [p.stem for p in (CONF / key).glob("*.yaml")] if key == "steps" else settings.options(CONF, key)
            assert all(name in known for pair in names for name in pair)
    composed = compose(["recipe=iterative_dpo", f"{path.parent.name}={path.stem}"])
    assert composed.problems == [] and composed.notes
    assert all(COMPANIONS not in node for node in composed.config.values() if isinstance(node, dict))


def steps_of(*words: str) -> dict[str, plan.Step]:
    given = ["recipe=iterative_dpo", *words]
    return {step.name: step for step in expand(compose(given))}


def test_hypo_alone_trains_on_samples_of_its_own_in_every_iteration() -> None:
    steps = steps_of("objective=hypo")
    assert steps["pairs[1]"].settings.selection["module"] == "pipeline.selection.pair_and_samples"
    assert [str(ref) for ref in steps["train[2]"].inputs["groups"]] == ["pairs[1]/groups", "pairs[2]/groups"]


def test_xpo_alone_samples_the_reference_and_nothing_else_does() -> None:
    steps = steps_of("objective=xpo")
    assert [str(ref) for ref in steps["reference_samples[2]"].inputs["model"]] == ["sft/model"]
    assert [str(ref) for ref in steps["generate[2]"].inputs["model"]] == ["train[1]/model"]
    assert [str(ref) for ref in steps["pairs[2]"].inputs["beside"]] == ["reference_samples[2]/groups"]
    assert [str(ref) for ref in steps["pairs[2]"].inputs["beside_scores"]] == ["reference_scores[2]/scores"]
    others = steps_of("objective=hypo")
    assert not any(name.startswith("reference_s") for name in others) and "beside" not in others["pairs[2]"].inputs


def test_upo_alone_scores_with_dropout_and_reads_the_gain() -> None:
    steps = steps_of("objective=upo")
    assert steps["score[1]"].settings.reward["module"] == "pipeline.rewards.dropout"
    assert steps["train[1]"].settings.score == "information_gain"


def test_both_half_steps_of_egpo_start_alike() -> None:
    """Same weights, same optimizer; what differs is whom the samples are judged against."""
    given = ["recipe=egpo"]
    steps = {step.name: step for step in expand(compose(given))}
    for name in ("model", "optimizer"):
        assert steps["half[2]"].inputs[name] == steps["train[2]"].inputs[name]
    assert [str(ref) for ref in steps["opponents[2]"].inputs["model"]] == ["half[2]/model"]
    assert [str(ref) for ref in steps["pairs[2]"].inputs["beside"]] == ["opponents[2]/groups"]
    assert [str(ref) for ref in steps["pairs[2]"].inputs["beside_scores"]] == ["opponent_scores[2]/scores"]
    assert "beside" not in steps["half_pairs[2]"].inputs
    assert not steps["half[2]"].settings.keep_optimizer and steps["train[2]"].settings.keep_optimizer


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["objective=hypo", "selection=best_worst"], r"needs a special group layout \(pair_and_samples:"),
        (["objective=upo", "selection=best_worst"], r"reads the score 'information_gain', which the groups"),
        (["selection=policy_and_reference"], r"inputs.beside: these settings need it"),
        (["selection=drawn"], r"the selection makes drawn"),
        (["selection=maxmin", "reward=model"], r"maxmin reads the score 'reward_2', which no stage before it gives"),
        (["selection=cdr", "reward=rule"], r"cdr reads the score 'logp_weak'.*scores there: reward\)"),
        (["objective=upo", "objective.labels=printed"], r"upo with these settings reads 'sampling_share'"),
        (["recipe=online_dpo", "objective=online_ipo", "objective.version=2"], r"drawn, .* set selection=drawn_pair$"),
        (["recipe=egpo", "sampling=two"], r"drawn needs 3 samples per prompt .* gives 2 "),
        (["recipe=mcpo_instruct", "objective=kto"], r"^negatives: .* set negatives=none, and selection=best_worst"),
        (["recipe=pco", "objective=kto", "selection=best_rest", "negatives=none"],
         r"objective kto takes single completions and pairs.* set selection=best_worst and negatives=none"),
        (["recipe=pco", "objective=bco", "selection=best_rest", "negatives=none"], r"set selection=best_worst and "),
        (["recipe=mcpo_instruct", "objective=bco"], r"^negatives: .* set negatives=none, and selection=best_worst"),
        (["sampling.temperatures=[0.0]"], r"^sampling.n: 4 samples at temperature 0 are 4 times the same answer"),
        (["recipe=online_dpo", "auxiliary.rationale_gamma=0.1"], r"selection makes pairs without one; set "),
        (["objective=cpl", "auxiliary.length_alpha=0.5"], r"^auxiliary.length_alpha: cpl sums the log-probs of tokens"),
        (["objective=tdpo", "auxiliary.length_alpha=0.5"], r"^auxiliary.length_alpha: tdpo sums"),
        (["objective=sparsepo", "auxiliary.length_alpha=0.5"], r"^auxiliary.length_alpha: sparsepo sums"),
        (["selection=spa", "reward.path=/my/rm"],
         r"^reward.path: not read by reward=implicit; set reward.scorer.policy or .* or reward=model$"),
        (["reward=rule", "reward.path=/my/rm"], r"^reward.path: not read by reward=rule; set reward=model$"),
        (["objective=hypo", "train.weigh_prompts=true"], r"^train.weigh_prompts: true, but the steps"),
        (["recipe=mcpo_instruct", "train.weigh_prompts=true"], r"^train.weigh_prompts: true, but the steps"),
        (["selection=upo", "reward=model"], r"upo reads the score 'reward_pass0'"),
        (["selection=spa", "selection.decoupled=reward_decoupled"], r"spa reads the score 'reward_decoupled'"),
    ],
)
def test_an_explicit_choice_that_cannot_work_is_refused_by_name(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        steps_of(*words)


@pytest.mark.parametrize(
    "words",
    [
        ["recipe=online_dpo", "objective=online_ipo"],
        ["recipe=online_dpo", "objective=egpo"],
        ["recipe=online_dpo", "objective=online_ipo", "objective.version=2", "selection=drawn_pair"],
        ["objective=hypo", "objective.lam=0"],
        ["objective=hypo", "objective.lam=0", "selection=best_worst"],
        ["objective=upo", "objective.labels=printed", "train.score=sampling_share"],
        ["auxiliary.length_alpha=0.5"],
        ["recipe=pco", "objective=bco", "train.weigh_prompts=true"],
    ],
)
def test_what_can_work_is_planned(words: list[str]) -> None:
    assert "train[1]" in steps_of(*words)


def test_scores_that_a_reward_gives_beside_its_own_are_known() -> None:
    assert steps_of("selection=spa", "selection.decoupled=reward_decoupled", "reward.scorer.decouple=0.5")
