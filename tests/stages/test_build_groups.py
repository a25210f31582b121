"""The build_groups stage: what is kept, what is dropped and why, and the numbers of the kept groups."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from flows.compose import compose
from flows.prepare import expand
from pipeline import plan, store, tables
from pipeline.config import build, problems_of
from pipeline.errors import UserError
from pipeline.lm import folders
from pipeline.records import LENGTH, Completion, Group, Message
from pipeline.stage import Context, Kinds, NoRuntime, Reporter
from pipeline.stages import build_groups
from tests import given


def group_of(name: str, *samples: tuple[str, float], cut: bool = False) -> Group:
    completions = tuple(
        Completion(text, tuple(map(ord, text)), LENGTH if cut else "stop", {"reward": value}, sample=i)
        for i, (text, value) in enumerate(samples)
    )
    return Group(name, (Message("user", "hi"),), completions, (5,), iteration=2)


GROUPS = [
    group_of("p0", ("aa", 1.0), ("bbbb", 4.0), ("c", -2.0)),
    group_of("p1", ("aa", 1.0), ("bb", 1.0)),
    group_of("p2", ("a", 0.5), ("a", 0.6)),
    group_of("p3", ("aaa", 2.0), ("b", 0.0), cut=True),
    group_of("p4"),
]


def kinds(*layouts: str, scores: Iterable[str] = ()) -> Kinds:
    return Kinds(frozenset(layouts), frozenset(scores))


def settings_of(module: str, filters: dict | None = None, **rule: object) -> build_groups.Settings:
    selection = {"module": f"pipeline.selection.{module}", **rule}
    return build(build_groups.Settings, {"selection": selection, "filters": filters or {}})


def context_of(
    tmp_path: Path, groups: list[Group], module: str, filters: dict | None = None, seed: int = 0, **rule: object
) -> Context:
    if not (tmp_path / "in").exists():
        tables.write(tmp_path / "in", groups, part_size=2)
    work = tmp_path / f"work-{len(list(tmp_path.iterdir()))}"
    inputs = {"groups": (tmp_path / "in",)}
    return Context(settings_of(module, filters, **rule), NoRuntime(), inputs, given.digests(inputs), work, seed,
                   Reporter())


def made_by(context: Context) -> list[tuple[str, str]]:
    build_groups.run(context)
    return [(g.id, " ".join(c.text for c in g.completions)) for g in tables.read(context.out / "groups")]


def test_pairs_and_their_account(tmp_path: Path) -> None:
    """Kept: p0 as b > c (4 and -2, lengths 4 and 1), p3 as a > b (2 and 0, lengths 3 and 1)."""
    context = context_of(tmp_path, GROUPS, "best_worst")
    build_groups.run(context)
    made = list(tables.read(context.out / "groups"))
    assert [(g.id, [c.text for c in g.completions]) for g in made] == [("p0", ["bbbb", "c"]), ("p3", ["aaa", "b"])]
    assert context.report.dropped == {"tied_scores": 1, "duplicates": 1, "too_few_samples": 1}
    assert context.report.counts == {
        "read": 5, "used": 2, "kept": 2, "margin_mean": 4.0, "chosen_score_mean": 3.0, "rejected_score_mean": -1.0,
        "chosen_length_mean": 3.5, "rejected_length_mean": 1.0, "chosen_truncated_share": 0.5, "candidates_mean": 1.0,
    }
    assert context.report.counts["read"] == context.report.counts["used"] + sum(context.report.dropped.values())


def test_ranked_candidates(tmp_path: Path) -> None:
    """p0's rejected side is the mean of 1 and -2: margin 4.5; with p3's 2 the mean margin is 3.25."""
    context = context_of(tmp_path, GROUPS, "best_rest")
    build_groups.run(context)
    assert [[c.text for c in g.completions] for g in tables.read(context.out / "groups")] == [
        ["bbbb", "aa", "c"], ["aaa", "b"]
    ]
    assert context.report.counts["margin_mean"] == pytest.approx(3.25)
    assert context.report.counts["candidates_mean"] == 1.5


def test_nothing_left_is_an_error_that_says_why(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none of the 3 prompts gives a group \(1 duplicates, 1 tied_scores, 1 too"):
        build_groups.run(context_of(tmp_path, [GROUPS[1], GROUPS[2], GROUPS[4]], "best_worst"))


def test_a_bad_selection_is_found_while_planning() -> None:
    (problem,) = problems_of(build_groups.Settings, {"selection": {"module": "pipeline.selection.best_wurst"}}, "s")
    assert problem.startswith("s.selection.module: no module 'pipeline.selection.best_wurst' (did you mean")


def test_several_groups_of_one_prompt_and_what_is_left_out_of_them(tmp_path: Path) -> None:
    """p0: 6, 5, 5, 0 and a copy of the first. Pairs above a margin of 0: a-b, a-c, a-d, b-d, c-d; with a minimum of 2
    a-b and a-c go. p1 gives one pair, whose margin is too low.
    """
    groups = [group_of("p0", ("a", 6.0), ("b", 5.0), ("c", 5.0), ("d", 0.0), ("a", 1.0)),
              group_of("p1", ("a", 1.0), ("b", 0.0))]
    context = context_of(tmp_path, groups, "all_pairs", {"min_margin": 2.0})
    assert made_by(context) == [("p0#0", "a d"), ("p0#1", "b d"), ("p0#2", "c d")]
    assert context.report.dropped == {"completion_duplicates": 1, "group_low_margin": 2, "low_margin": 1}
    assert (context.report.counts["read"], context.report.counts["used"], context.report.counts["kept"]) == (2, 1, 3)


def test_negatives_as_good_as_the_preferred_one_leave_the_list(tmp_path: Path) -> None:
    groups = [group_of("p0", ("a", 6.0), ("b", 6.0), ("c", 5.0), ("d", 0.0))]
    context = context_of(tmp_path, groups, "best_rest", {"min_margin": 1.5})
    assert made_by(context) == [("p0", "a d")]
    assert context.report.dropped == {"completion_tied_scores": 1, "completion_low_margin": 1}


def test_length_is_taken_out_of_the_scores_of_the_whole_table(tmp_path: Path) -> None:
    """Within prompts a score is worth 1 per token: p0 (1: 0, 3: 2), p1 (2: 5, 5: 8). p2's longer answer is better by
    less than its length: (1: 0, 4: 2.4). Slope: products 2 + 4.5 + 3.6 = 10.1 over squares 2 + 4.5 + 4.5 = 11: 0.918.
    Corrected, the long answers lead by 0.16 and 0.25, and p2's trails by 0.35.
    """
    groups = [group_of("p0", ("a", 0.0), ("bbb", 2.0)), group_of("p1", ("aa", 5.0), ("bbbbb", 8.0)),
              group_of("p2", ("a", 0.0), ("bbbb", 2.4))]
    context = context_of(tmp_path, groups, "best_worst", {"length_debias": "within"})
    assert made_by(context) == [("p0", "bbb a"), ("p1", "bbbbb aa"), ("p2", "a bbbb")]
    assert context.report.counts["length_slope_reward"] == pytest.approx(10.1 / 11)
    (last,) = [g for g in tables.read(context.out / "groups") if g.id == "p2"]
    assert [c.scores["reward_raw"] for c in last.completions] == [0.0, 2.4]


def test_the_percentile_of_noise_is_the_tables(tmp_path: Path) -> None:
    """Eleven pairs with de-coupled margins 0 .. 10; the two at or below the 10th percentile, 1, get the label 0.9."""
    groups = [
        Group(f"p{i}", (), tuple(Completion(t, (ord(t),), scores={"reward": v, "mix": i * v}, sample=k)
                                 for k, (t, v) in enumerate((("a", 1.0), ("b", 0.0)))))
        for i in range(11)
    ]
    context = context_of(tmp_path, groups, "spa", decoupled="mix")
    build_groups.run(context)
    labels = [g.completions[0].scores["win_rate"] for g in tables.read(context.out / "groups")]
    assert labels == [0.9, 0.9] + [1.0] * 9


def test_only_rules_that_draw_depend_on_the_seed(tmp_path: Path) -> None:
    """The draws are fixed by (seed, id): the same in another order of the prompts."""
    groups = [group_of(f"p{i}", *((c, float(k)) for k, c in enumerate("abcdef"))) for i in range(20)]
    first = made_by(context_of(tmp_path, groups, "best_random"))
    assert made_by(context_of(tmp_path, groups, "best_random")) == first
    assert made_by(context_of(tmp_path, groups, "best_random", seed=1)) != first
    assert made_by(context_of(tmp_path, groups, "best_worst", seed=1)) == made_by(
        context_of(tmp_path, groups, "best_worst"))
    turned = tmp_path / "turned"
    turned.mkdir()
    assert sorted(made_by(context_of(turned, groups[::-1], "best_random"))) == sorted(first)
    for module, rule, seeded in (("best_worst", {}, False), ("rso", {}, True), ("spa", {}, False),
                                 ("spa", {"pairing": "best_random"}, True), ("relabel", {"rejected": "worst"}, False)):
        assert build_groups.seeded(settings_of(module, **rule)) is seeded


UPSTREAM = ("prompts[1]", "generate[1]", "score[1]")


def steps_of(*overrides: str) -> dict[str, plan.Step]:
    given = ["recipe=online_dpo", *overrides]
    return {step.name: step for step in expand(compose(given))}


def test_scores_stand_in_a_side_table(tmp_path: Path) -> None:
    """Samples without scores and a table of them: the pair and its margin are of the scores beside."""
    bare = [replace(g, completions=tuple(replace(c, scores={}) for c in g.completions)) for g in GROUPS[:1]]
    context = context_of(tmp_path, bare, "best_worst")
    scores = given.side_table(tmp_path / "scores", given.source(tmp_path / "in"), "reward", [(1.0, 4.0, -2.0)])
    context = replace(context, inputs={**context.inputs, "scores": (scores,)})
    assert made_by(context) == [("p0", "bbbb c")]
    assert context.report.counts["margin_mean"] == 6.0
    (made,) = tables.read(context.out / "groups")
    assert [c.scores for c in made.completions] == [{"reward": 4.0}, {"reward": -2.0}]
    other = replace(context, digests={"groups": ("of other samples",), "scores": ("s",)})
    with pytest.raises(UserError, match=r"scores: no scores of .*/in, it is of another table"):
        build_groups.run(other)


def test_another_rule_or_filter_repairs_the_same_scores(tmp_path: Path) -> None:
    """Sampling and scoring stay the very same steps; the groups get another key. The seed is in it where the rule
    draws, and only there.
    """
    sampled, scored = (store.Artifact(kind, "k", tmp_path, {"files": {f"{part}/part-00000.parquet": {"hash": "h"}}})
                       for kind, part in (("generate", "groups"), ("score", "scores")))
    plans = {overrides: steps_of(*overrides) for overrides in (
        (), ("selection=best_random",), ("filters.min_margin=0.5",), ("seed=1",),
        ("selection=best_random", "seed=1"))}
    base, keys = plans[()], {}
    for overrides, changed in plans.items():
        if "seed=1" not in overrides:
            assert [changed[name] for name in UPSTREAM] == [base[name] for name in UPSTREAM]
        keys[overrides] = plan.step_key(tmp_path, changed["pairs[1]"], {"generate[1]": sampled, "score[1]": scored})
    assert keys[()] == keys["seed=1",]
    assert keys["selection=best_random",] != keys["selection=best_random", "seed=1"]
    assert len(set(keys.values())) == 4


def test_what_groups_it_makes_is_known_while_planning() -> None:
    assert build_groups.kinds(settings_of("rso"), Kinds()) == kinds("pairs", scores={"win_rate"})
    assert build_groups.kinds(settings_of("best_rest"), kinds("pairs")) == kinds("lists")
    assert build_groups.kinds(settings_of("pairwise_ranking", rejected="rest"), Kinds()) == kinds("lists")


def test_bad_filters_are_found_while_planning() -> None:
    data = {"selection": {"module": "pipeline.selection.rso", "n": 0}, "filters": {"tie": "drop", "ngram": 0}}
    assert problems_of(build_groups.Settings, data, "s") == [
        "s.filters.tie: unknown key (did you mean ties?)",
        "s.filters.ngram: 0 is out of range, expected 1 <= x",
    ]


def test_rewritten_prompts_are_tokenised(tiny_model: Path, tmp_path: Path) -> None:
    """Each of the two pairs of a prompt has its goal in its own prompt ids; what was cut still has no stop id."""
    cut = Completion("Boil the water.", (9,), LENGTH, {"reward": 7.0})
    group = Group("p0", (Message("user", "hi"),), (cut, Completion("No", (8,), scores={"reward": 2.0})), (5,))
    context = context_of(tmp_path, [group], "relabel")
    context = replace(context, inputs={**context.inputs, "model": (tiny_model,)})
    build_groups.run(context)
    first, second = tables.read(context.out / "groups")
    tokenizer = folders.load_tokenizer(tiny_model)
    for made, score, texts in ((first, "7", ("Boil the water.", "No")), (second, "2", ("No", "Boil the water."))):
        assert f"Overall score: {score}.<|user|>hi" in tokenizer.decode(made.prompt_ids)
        for completion, text in zip(made.completions, texts, strict=True):
            ended = completion.token_ids[-1] == tokenizer.eos_token_id
            assert ended is (completion.finish_reason != LENGTH)
            assert tokenizer.decode(completion.token_ids, skip_special_tokens=True) == text
    assert set(build_groups.required(context.settings)) == {"model"}
    assert build_groups.wanted(context.settings) == {"model", "scores"}
    assert build_groups.wanted(settings_of("rso")) == {"scores"}


def test_draws_keep_their_repetitions(tmp_path: Path) -> None:
    """What the policy says twice counts twice behind the pair; for a comparison it counts once."""
    groups = [group_of("p0", ("a", 1.0), ("b", 4.0), ("a", 1.0)), group_of("p1", ("a", 1.0), ("a", 1.0))]
    context = context_of(tmp_path, groups, "pair_and_samples")
    assert made_by(context) == [("p0", "b a a b a")]
    assert context.report.dropped == {"tied_scores": 1}
    assert (context.report.counts["margin_mean"], context.report.counts["candidates_mean"]) == (3.0, 1.0)
    assert made_by(context_of(tmp_path, groups, "best_rest")) == [("p0", "b a")]


def beside(tmp_path: Path, context: Context, groups: list[Group]) -> Context:
    tables.write(tmp_path / "beside", groups)
    return replace(context, inputs={**context.inputs, "beside": (tmp_path / "beside",)})


def test_samples_of_another_model_beside(tmp_path: Path) -> None:
    """p0: a (1) against the reference's Y (2); p1: tied, left out; the reference's samples are filtered too."""
    groups = [group_of("p0", ("a", 1.0), ("b", 4.0)), group_of("p1", ("a", 1.0), ("b", 4.0))]
    others = [group_of("p0", ("X", 9.0), ("Y", 2.0)), group_of("p1", ("X", 9.0), ("Y", 1.0))]
    context = beside(tmp_path, context_of(tmp_path, groups, "policy_and_reference"), others)
    assert made_by(context) == [("p0", "Y a Y")]
    assert context.report.dropped == {"tied_scores": 1}
    assert build_groups.required(context.settings).keys() == {"beside"}


def test_a_table_beside_of_other_prompts_is_refused(tmp_path: Path) -> None:
    context = context_of(tmp_path, [group_of("p0", ("a", 1.0), ("b", 4.0))], "policy_and_reference")
    with pytest.raises(UserError, match=r"'p0' and 'p9' at the same row; sample both tables from the same prompts"):
        build_groups.run(beside(tmp_path, context, [group_of("p9", ("a", 1.0), ("b", 4.0))]))


def test_drafts_get_prompts_of_their_own_and_keep_their_ids(tiny_model: Path, tmp_path: Path) -> None:
    """The two first answers stand behind the group's prompt; each revision behind a prompt that shows its draft."""
    answers = ("Boil the water.", 7.0), ("No", 2.0)
    context = context_of(tmp_path, [group_of("p0", *answers)], "drafts")
    context = replace(context, inputs={**context.inputs, "model": (tiny_model,)})
    build_groups.run(context)
    (made,) = tables.read(context.out / "groups")
    assert [c.token_ids for c in made.completions] == [tuple(map(ord, t)) for t in (
        "Boil the water.", "No", "Boil the water.", "No", "No", "Boil the water.")]
    assert [bool(c.prompt_ids) for c in made.completions] == [False, False, True, True, True, True]
    shown = folders.load_tokenizer(tiny_model).batch_decode([c.prompt_ids for c in made.completions[2:]])
    for text, draft in zip(shown, ("No", "No", "Boil the water.", "Boil the water."), strict=True):
        assert text.index("hi") < text.index(draft) < text.index("Improve your answer.")


def test_a_score_that_nothing_gives_is_found_while_planning() -> None:
    """What a data set brings is known once it is read; without any score told, nothing can be said."""
    settings = settings_of("cdr")
    assert build_groups.misfit(settings, kinds(scores={"reward", "logp_weak"})) is None
    assert "reads the score 'logp_weak'" in (build_groups.misfit(settings, kinds(scores={"reward"})) or "")
    assert build_groups.misfit(settings, kinds("data", scores={"reward"})) is None
    assert build_groups.misfit(settings, Kinds()) is None
    assert build_groups.kinds(settings, kinds(scores={"gold"})) == kinds("pairs", scores={"gold", "density_ratio"})


def test_a_selection_that_no_prompt_could_serve_is_found_while_planning() -> None:
    with pytest.raises(UserError, match=r"top_bottom needs 4 samples per prompt with these settings, sampling gives 2"):
        steps_of("selection=top_bottom")
    assert steps_of("selection=top_bottom", "sampling=default")
