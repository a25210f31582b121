"""The score stage: every completion scored under its name, part by part, resumable, with its numbers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flows.compose import compose
from flows.prepare import expand
from pipeline import columns, tables
from pipeline.config import build, problems_of
from pipeline.errors import UserError
from pipeline.records import LENGTH, Completion, Group, Message
from pipeline.stage import Context, Kinds, Reporter, keyed
from pipeline.stages import score
from tests.rewards.judges.server import asked, serving

RULE = {"module": "pipeline.rewards.rule", "function": "pipeline.rewards.rule.fresh_trigrams"}


def group_of(name: str, *texts: str, finish: str = "stop") -> Group:
    completions = tuple(Completion(t, (1, 2, 3), finish, {"old": 4.0}, sample=i) for i, t in enumerate(texts))
    return Group(name, (Message("user", "hi"),), completions, (5,), dataset="d", iteration=1)


def context_of(tmp_path: Path, settings: Any, report: Reporter | None = None) -> Context:
    runtime = score.Runtime(answers=str(tmp_path / "kept"))
    return Context(settings, runtime, {"groups": (tmp_path / "in",)}, {"groups": ("in",)}, tmp_path / "work", 0,
                   report or Reporter())


def scored(context: Context) -> list[Group]:
    """What a stage that is given both reads."""
    return list(columns.with_scores(*columns.sources(context), [context.out / "scores"]))


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Two parts. Shares of new 3-grams: a b c a b c -> 3/4, x x x x -> 1/2, one two -> 1."""
    tables.write_part(tmp_path / "in", 0, [group_of("p0", "a b c a b c", "one two"), group_of("p1", finish=LENGTH)])
    tables.write_part(tmp_path / "in", 3, [group_of("p2", "x x x x", "a b c a b c", finish=LENGTH)])
    return tmp_path


def test_every_completion_gets_the_score_and_nothing_else_changes(table: Path) -> None:
    context = context_of(table, build(score.Settings, {"reward": RULE, "name": "fresh"}))
    score.run(context)
    assert [p.name for p in tables.parts(context.out / "scores")] == ["part-00000.parquet", "part-00003.parquet"]
    assert [p.name for p in context.out.iterdir()] == ["scores"], "no text is written again"
    rows = columns.load([context.out / "scores"], "in").to_pylist()
    assert rows == [{"id": name, "k": k, "fresh": value} for name, k, value in (
        ("p0", 0, 0.75), ("p0", 1, 1.0), ("p2", 0, 0.5), ("p2", 1, 0.75))]
    before, after = list(tables.read(table / "in")), scored(context)
    assert [[c.scores for c in g.completions] for g in after] == [
        [{"old": 4.0, "fresh": 0.75}, {"old": 4.0, "fresh": 1.0}], [],
        [{"old": 4.0, "fresh": 0.5}, {"old": 4.0, "fresh": 0.75}],
    ]
    assert [replace(g, completions=tuple(replace(c, scores={"old": 4.0}) for c in g.completions))
            for g in after] == before


def test_numbers(table: Path) -> None:
    """Mean of 0.75, 1, 0.5, 0.75 is 0.75; best of p0 is 1, of p2 0.75: mean 0.875; two of four are cut."""
    report = Reporter(metrics_path=table / "metrics.jsonl", progress_path=table / "progress.json")
    score.run(context_of(table, build(score.Settings, {"reward": RULE}), report))
    assert report.counts == {
        "prompts": 3, "completions": 4, "unscored": 0, "score_mean": 0.75, "best_of_n_mean": 0.875,
        "length_mean": 3.0, "truncated_share": 0.5,
    }
    assert len((table / "metrics.jsonl").read_text().splitlines()) == 2
    assert '"done": 3, "total": 3' in (table / "progress.json").read_text()


def test_scores_that_are_no_numbers_are_counted_and_kept_out_of_the_means() -> None:
    completions = tuple(Completion("", scores={"reward": v}) for v in (1.0, float("nan"), 3.0))
    numbers = score.summary([Group("p", (), completions)], "reward")
    assert (numbers["score_mean"], numbers["best_of_n_mean"], numbers["unscored"]) == (2.0, 3.0, 1)


def test_a_part_that_exists_is_not_scored_again(table: Path) -> None:
    """What a kill leaves behind: part 0 finished, part 3 not. Part 0's bytes stay; the result is the whole table."""
    settings = build(score.Settings, {"reward": RULE})
    context = context_of(table, settings)
    done = score.score_groups(list(tables.read_part(tables.part_path(table / "in", 0))),
                              {"reward": lambda groups: [[9.0] * len(g.completions) for g in groups]})
    score.write(context.out / "scores", tables.part_path(table / "in", 0), "in", done, settings)
    score.run(context)
    assert [[c.scores["reward"] for c in g.completions] for g in scored(context)] == [
        [9.0, 9.0], [], [0.5, 0.75]
    ]


def test_further_scorers_stand_beside_the_first(table: Path) -> None:
    gold = {"module": "pipeline.rewards.rule", "function": "builtins.len"}
    settings = build(score.Settings, {"reward": RULE, "also": {"fresh": RULE}})
    report = Reporter()
    score.run(context_of(table, settings, report))
    assert report.counts["fresh_mean"] == report.counts["score_mean"] == 0.75
    assert report.counts["fresh_best_of_n_mean"] == 0.875
    assert problems_of(score.Settings, {"reward": RULE, "name": "gold", "also": {"gold": gold}}, "stage") == [
        "stage.also.gold: the first score has this name already"
    ]


def test_bad_parts_are_found_while_planning() -> None:
    problems = problems_of(
        score.Settings,
        {"reward": {"module": "pipeline.rewards.modle"}, "also": {"gold": {**RULE, "function": "nowhere"}}},
        "stage.score.settings",
    )
    assert problems[0].startswith("stage.score.settings.reward.module: no module 'pipeline.rewards.modle' (did you")
    assert problems[1].startswith("stage.score.settings.also.gold.function: 'nowhere' is no dotted path")


def test_a_model_is_wanted_only_where_one_is_used(tmp_path: Path) -> None:
    learned = {"module": "pipeline.rewards.model"}
    assert score.wanted(build(score.Settings, {"reward": RULE})) == set()
    assert score.wanted(build(score.Settings, {"reward": learned})) == {"model"}
    assert score.wanted(build(score.Settings, {"reward": RULE, "also": {"learned": learned}})) == {"model"}
    assert [p.name for p in score.files(build(score.Settings, {"reward": RULE}), score.Runtime())] == ["rule.py"]


@pytest.mark.parametrize("hardware", ["cpu", "cuda"])
def test_the_device_is_the_hardwares(hardware: str) -> None:
    """Of whatever runs a model: training, scoring, sampling by transformers."""
    words = ["recipe=pco", f"hardware={hardware}", "engine=transformers"]
    steps = {step.name: step for step in expand(compose(words))}
    assert steps["train[2]"].runtime.device == steps["score[2]"].runtime.models.device == hardware
    assert steps["generate[2]"].runtime.engine["device"] == hardware


IMPLICIT = {"module": "pipeline.rewards.implicit", "decouple": 0.5}


def test_models_go_to_the_scorers_that_need_them(tiny_model: Path, make_model: Any, tmp_path: Path) -> None:
    """Policy and reference are the same: rewards 0, and the extrapolated model is the same too. Beside it a judge of
    pairs and a reward that is several numbers.
    """
    tables.write(tmp_path / "in", [Group("p0", (Message("user", "hi"),), tuple(
        Completion(t, scores={}) for t in ("Boil the water.", "no no no no no")))])
    pairwise = {"module": "pipeline.rewards.pairwise", "function": "pipeline.rewards.pairwise.fresher"}
    settings = build(score.Settings, {"reward": IMPLICIT, "name": "own", "also": {"judge": pairwise, "fresh": RULE}})
    inputs = {"groups": (tmp_path / "in",), "policy": (tiny_model,), "reference": (tiny_model,)}
    context = Context(settings, score.Runtime(), inputs, {"groups": ("in",)}, tmp_path / "work", 0, Reporter())
    score.run(context)
    (group,) = scored(context)
    for completion, judged in zip(group.completions, (0.75, 0.25), strict=True):
        assert set(completion.scores) == {"own", "own_decoupled", "judge", "fresh"}
        assert completion.scores["own"] == 0.0
        assert completion.scores["own_decoupled"] == pytest.approx(0.0, abs=1e-4)
        assert completion.scores["judge"] == judged
    assert score.wanted(settings) == {"policy", "reference"}
    assert set(score.required(settings)) == {"policy", "reference"}
    given = build(score.Settings, {"reward": {**IMPLICIT, "policy": str(tiny_model), "reference": str(tiny_model)}})
    assert score.wanted(given) == set()


def test_the_uncertainty_of_the_reward_model_reaches_the_selection(tiny_model: Path, tmp_path: Path) -> None:
    """Scored by Monte-Carlo dropout, then the pairs the passes agree about: every pair has its information gain."""
    import torch

    from pipeline.lm import folders
    from pipeline.selection import upo

    folders.save_folder(folders.load_reward(tiny_model, torch.device("cpu"), seed=3, pad=0), tiny_model,
                       tmp_path / "reward", "float32")
    texts = ("Boil the water.", "No no no no.", "Eat rice every day.", "What is the best way?")
    tables.write(tmp_path / "in", [Group(f"p{i}", (Message("user", f"hi {i}"),), tuple(map(Completion, texts)))
                                   for i in range(3)])
    settings = build(score.Settings, {"reward": {"module": "pipeline.rewards.dropout", "passes": 3}})
    inputs = {"groups": (tmp_path / "in",), "model": (tmp_path / "reward",)}
    context = Context(settings, score.Runtime(), inputs, {"groups": ("in",)}, tmp_path / "work", 0, Reporter())
    score.run(context)
    samples = scored(context)
    chosen = upo.Settings(share=0.5)
    found = upo.survey(samples, chosen)
    made = [pair for group in samples for pair in upo.select(group, chosen, 0, found)[0]]
    assert len(made) == 6  # half of 3 x 2 x 2
    assert all(0.0 <= pair.completions[0].scores["information_gain"] <= 0.6932 for pair in made)


def _scored(*values: float) -> list[Group]:
    return [Group(f"p{i}", (), (Completion(f"t{i}", scores={"reward": v}),)) for i, v in enumerate(values)]


MODEL = {"module": "pipeline.rewards.model", "path": None}


def test_a_mean_over_nothing_is_not_there():
    numbers = score.summary(_scored(float("nan")), "reward")
    assert "score_mean" not in numbers and "best_of_n_mean" not in numbers and numbers["unscored"] == 1
    assert "length_mean" not in score.summary([], "reward")


@pytest.mark.parametrize("reward, values, problem", [
    (MODEL, [float("nan")] * 3, r"reward: the score 'reward' of all 3 completions is not finite"),
    (RULE, [float("inf")] * 20, r"not finite"),
    (MODEL, [0.25] * 8, r"reward: the score 'reward' of all 8 completions is 0.25; a reward model that tells no two"),
    (MODEL, [0.25] * 7, None),
    (MODEL, [0.25] * 30 + [0.5], None),
    (MODEL, [float("nan")] * 30 + [0.5], None),
    (RULE, [1.0] * 20, None),
    (MODEL, [], None),
])
def test_scores_that_tell_nothing_stop_the_run(reward, values, problem):
    """Equal ones of a rule may be right; of a reward model, with eight different answers, they are not."""
    settings = score.Settings(reward)
    if problem is None:
        score.check_scores(_scored(*values), settings)
    else:
        with pytest.raises(UserError, match=problem):
            score.check_scores(_scored(*values), settings)


def test_what_a_judge_was_asked_stands_beside_the_scores(table: Path) -> None:
    """A part that exists is not judged again, and its questions count; a watcher beside the reward judges too."""
    tables.write_part(table / "in", 5, [group_of("p5", "mumble", "no")])
    report = Reporter()
    with serving(table / "log") as url:
        judge = {"module": "pipeline.rewards.judge", "model": "judge", "base_url": url}
        settings = build(score.Settings, {"reward": RULE, "also": {"gold": judge}})
        score.run(context_of(table, settings))
        (table / "work" / "out" / "scores" / "part-00003.parquet").unlink()
        context = context_of(table, settings, report)
        score.run(context)
        assert len(asked(table / "log")) == 6
    assert [group.completions[0].scores["gold"] for group in scored(context) if group.completions][:2] == [0.75, 0.25]
    assert report.counts["gold_judged"] == 3
    assert report.dropped == {"gold: the reply has no verdict": 1}
    lines = (context.out / "judged" / "part-00005.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{
        "score": "gold", "id": "p5", "first": 1, "second": 0, "outcome": None, "why": "the reply has no verdict",
        "reply": "Both have their merits.", "agree": True}]


def test_a_judge_that_never_decides_says_why(tmp_path: Path) -> None:
    tables.write_part(tmp_path / "in", 0, [group_of("p", "refuse", "no"), group_of("q", "refuse", "no")])
    problem = r"none of the 4 completions has a score 'reward'; most often the reply has no verdict \(2 times\)$"
    with serving(tmp_path / "log") as url, pytest.raises(UserError, match=problem):
        judge = {"module": "pipeline.rewards.judge", "model": "judge", "base_url": url}
        score.run(context_of(tmp_path, build(score.Settings, {"reward": judge})))


def test_an_ensemble_stands_beside_the_scores_and_a_second_pass_changes_nothing(table: Path) -> None:
    """Fresh shares 0.75, 1, 0.5, 0.75 and words 6, 2, 4, 6 against a window of at most 4: 2/3, 1, 1, 2/3."""
    words = {"module": "pipeline.rewards.length", "high": 4}
    given = {"reward": RULE, "also": {"words": words}, "ensemble": {"of": ["reward", "words"], "combine": "minimum"}}
    plain = {**given, "ensemble": {**given["ensemble"], "zscore": False}}
    context = context_of(table, build(score.Settings, plain))
    score.run(context)
    assert [c.scores["ensemble"] for group in scored(context) for c in group.completions] == [2 / 3, 1.0, 0.5, 2 / 3]
    assert context.report.counts["ensemble_mean"] == pytest.approx((2 / 3 + 1 + 0.5 + 2 / 3) / 4)
    before = [part.read_bytes() for part in tables.parts(context.out / "scores")]
    score.run(context)
    assert [part.read_bytes() for part in tables.parts(context.out / "scores")] == before
    wrong = {**given, "ensemble": {"of": ["reward", "word"]}}
    assert problems_of(score.Settings, wrong, "s") == ["s.ensemble.of: no score 'word' (did you mean words or reward?)"]
    assert "ensemble" in score.kinds(build(score.Settings, given), Kinds()).scores


def test_no_ensemble_is_no_part_of_the_key() -> None:
    """A setting that came later leaves the keys of what was made without it."""
    assert "ensemble" not in keyed(build(score.Settings, {"reward": RULE}))
    some = {"reward": RULE, "ensemble": {"of": ["a", "b"]}, "also": {"a": RULE, "b": RULE}}
    assert keyed(build(score.Settings, some))["ensemble"]["of"] == ["a", "b"]
