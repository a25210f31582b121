"""Evaluation of a policy against a baseline: pairing, ties, samples per prompt, and what is refused."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline import tables
from pipeline.config import build, problems_of
from pipeline.errors import UserError
from pipeline.records import LENGTH, STOP, Completion, Group, Message
from pipeline.stage import Context, Reporter
from pipeline.stages import evaluate
from pipeline.stages.evaluate import Settings
from tests import given
from tests.rewards.judges.server import asked, serving


def group(
    name: str, *scores: float, text: str = "an answer", tokens: int = 3, cut: bool = False, **further: float
) -> Group:
    completions = tuple(
        Completion(
            text, tuple(range(tokens)), LENGTH if cut else STOP, scores={"gold": score, **further}, sample=index
        )
        for index, score in enumerate(scores)
    )
    return Group(name, (Message("user", f"question {name}"),), completions)


def run(folder: Path, ours: list[Group], theirs: list[Group], runtime: evaluate.Runtime | None = None,
        **settings: object) -> tuple[dict, Reporter, Path]:
    for name, groups in (("ours", ours), ("theirs", theirs)):
        tables.write(folder / name, groups)
    report = Reporter()
    inputs = {"groups": (folder / "ours",), "baseline": (folder / "theirs",)}
    made = build(Settings, {"score": "gold", "resamples": 200, **settings})
    context = Context(made, runtime or evaluate.STAGE.runtime(), inputs, given.digests(inputs), folder / "work", seed=3,
                      report=report)
    evaluate.run(context)
    return json.loads((context.out / "evaluation.json").read_text()), report, context.out


def test_wins_ties_and_losses_by_hand(tmp_path: Path):
    """Gold 2 > 1 a win, 1 = 1 a tie, 0 < 1 a loss, 5 > 1 a win: (2 + 1/2) / 4 = 0.625; means 2 and 1."""
    ours = [group("a", 2.0), group("b", 1.0), group("c", 0.0), group("d", 5.0)]
    theirs = [group(name, 1.0) for name in "abcd"]
    result, report, out = run(tmp_path, ours, theirs)
    gold = result["scores"]["gold"]
    assert (gold["wins"], gold["ties"], gold["losses"]) == (2, 1, 1)
    assert gold["win_rate"] == report.counts["win_rate"] == 0.625
    assert (gold["mean"], gold["baseline_mean"], gold["gain"]) == (2.0, 1.0, 1.0)
    assert gold["low"] < 0.625 < gold["high"]
    outcomes = [json.loads(line) for line in (out / "outcomes.jsonl").read_text().splitlines()]
    assert [(o["id"], o["outcome"]) for o in outcomes] == [("a", 1.0), ("b", 0.5), ("c", 0.0), ("d", 1.0)]


def test_a_smaller_difference_than_the_tie_margin_is_a_tie(tmp_path: Path):
    result, _, _ = run(tmp_path, [group("a", 1.2), group("b", 2.0)], [group("a", 1.0), group("b", 1.0)], tie_margin=0.5)
    assert (result["scores"]["gold"]["wins"], result["scores"]["gold"]["ties"]) == (1, 1)


def test_prompts_not_samples_are_the_independent_units(tmp_path: Path):
    """2 prompts x 8 samples with the same outcome each tell as much as 2 prompts x 1: the intervals are the same."""
    many, _, _ = run(tmp_path / "8", [group("a", *[2.0] * 8), group("b", *[0.0] * 8)],
                     [group("a", *[1.0] * 8), group("b", *[1.0] * 8)])
    one, _, _ = run(tmp_path / "1", [group("a", 2.0), group("b", 0.0)], [group("a", 1.0), group("b", 1.0)])
    assert many["comparisons"] == 16
    assert many["prompts"] == one["prompts"] == 2
    for bound in ("win_rate", "low", "high", "bootstrap_low", "bootstrap_high"):
        assert many["scores"]["gold"][bound] == one["scores"]["gold"][bound]


def test_best_of_n_judges_the_answer_that_is_ranked_first(tmp_path: Path):
    """Of 5, 0, 2, 1 without the first, which is the baseline's own draw: 2, against each of 1 and 3. One win in two."""
    ours, theirs = [group("a", 5.0, 0.0, 2.0, 1.0)], [group("a", 1.0, 3.0)]
    result, _, out = run(tmp_path / "n", ours, theirs, best_by="gold", left_out=1)
    assert (result["comparisons"], result["scores"]["gold"]["win_rate"]) == (2, 0.5)
    assert [json.loads(line)["score"] for line in (out / "outcomes.jsonl").read_text().splitlines()] == [2.0, 2.0]
    with pytest.raises(UserError, match=r"prompt 'a' has no answer with a finite score 'reward' after the first 1"):
        run(tmp_path / "x", ours, theirs, best_by="reward", left_out=1)


def test_other_scores_are_compared_beside_the_deciding_one(tmp_path: Path):
    """A reward that is being gamed: the learned score rises (1.0 > 0.5 everywhere) while gold falls."""
    ours = [group(name, 0.0, reward=1.0) for name in "abc"]
    theirs = [group(name, 1.0, reward=0.5) for name in "abc"]
    result, report, _ = run(tmp_path, ours, theirs)
    assert list(result["scores"]) == ["gold", "reward"]
    assert (result["scores"]["gold"]["win_rate"], result["scores"]["reward"]["win_rate"]) == (0.0, 1.0)
    assert report.counts["win_rate_reward"] == 1.0


def test_lengths_and_truncation(tmp_path: Path):
    """Ours: 5 and 7 tokens, one cut, 2 and 4 words. Theirs: 3 tokens, none cut."""
    ours = [group("a", 1.0, text="two words", tokens=5, cut=True), group("b", 1.0, text="now there are four", tokens=7)]
    result, report, _ = run(tmp_path, ours, [group("a", 1.0), group("b", 1.0)])
    assert result["policy"] == {"tokens": 6.0, "words": 3.0, "characters": 13.5, "truncated": 0.5}
    assert result["baseline"] == {"tokens": 3.0, "words": 2.0, "characters": 9.0, "truncated": 0.0}
    assert (report.counts["length_mean"], report.counts["truncated_share"]) == (6.0, 0.5)


def test_answers_without_a_counterpart_or_a_finite_score_are_counted(tmp_path: Path):
    ours = [group("a", 2.0, 2.0, 2.0), group("only ours", 1.0), group("nan", math.nan)]
    theirs = [group("a", 1.0, 1.0), group("only theirs", 1.0, 1.0), group("nan", 1.0)]
    result, report, _ = run(tmp_path, ours, theirs)
    assert result["comparisons"] == 2
    assert report.dropped == {
        "no answer of the baseline": 2, "no answer of the policy": 2, "without a finite score": 1,
    }


def test_the_same_tables_and_seed_give_the_same_bytes(tmp_path: Path):
    ours, theirs = [group(n, 1.0 + (n in "ace")) for n in "abcde"], [group(n, 1.5) for n in "abcde"]
    first, again = run(tmp_path / "1", ours, theirs)[2], run(tmp_path / "2", ours[::-1], theirs)[2]
    for name in ("evaluation.json", "outcomes.jsonl"):
        assert (first / name).read_bytes() == (again / name).read_bytes()


def test_given_outputs_as_the_baseline(tmp_path: Path):
    """One given answer per prompt, scored 1, against three samples scored 2, 1 and 0: a win, a tie, a loss."""
    result, report, _ = run(tmp_path, [group("a", 2.0, 1.0, 0.0), group("b", 2.0)], [group("a", 1.0), group("b", 1.0)])
    gold = result["scores"]["gold"]
    assert (gold["wins"], gold["ties"], gold["losses"]) == (2, 1, 1)
    assert report.dropped == {}
    assert gold["win_rate"] == 0.75  # prompt a 0.5, prompt b 1: each counts once
    assert (gold["mean"], gold["baseline_mean"]) == (1.5, 1.0)  # (1 + 2) / 2 over prompts


def test_categories_and_length_control_are_written(tmp_path: Path):
    """Both categories are judged apart. All lengths are equal, so the controlled rate is the raw one."""
    ours = [replace(group(n, 2.0 if n in "ab" else 0.0), dataset="cook" if n in "abc" else "math") for n in "abcd"]
    result, report, out = run(tmp_path, ours, [group(n, 1.0) for n in "abcd"])
    found = {name: (v["win_rate"], v["prompts"]) for name, v in result["categories"].items()}
    assert found == {"cook": (pytest.approx(2 / 3), 3), "math": (0.0, 1)}
    assert result["length_controlled"]["win_rate"] == pytest.approx(0.5, abs=1e-3)
    assert report.counts["length_controlled_win_rate"] == result["length_controlled"]["win_rate"]
    first = json.loads((out / "outcomes.jsonl").read_text().splitlines()[0])
    assert (first["category"], first["characters"], first["baseline_characters"]) == ("cook", 9, 9)


def annotations(folder: Path, *rows: tuple[str, float, str, str]) -> dict[str, str]:
    """A file of AlpacaEval annotations: prompt, preference, output of the policy, output of the baseline."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "annotations.json").write_text(json.dumps([
        {"instruction": f"question {n}", "generator_1": "base", "generator_2": "ours", "preference": p,
         "output_2": ours, "output_1": theirs} for n, p, ours, theirs in rows]))
    return {"module": "pipeline.formats.alpaca_eval_judgments", "path": str(folder / "annotations.json")}


def test_a_judges_preferences_decide_where_given(tmp_path: Path):
    """AlpacaEval annotations by instruction: 1.9 and 1.25 of output 2, ours: preferences 0.9 and 0.25; c has none."""
    part = annotations(tmp_path, ("a", 1.9, "an answer", "an answer"), ("b", 1.25, " an answer\n", "an answer"))
    groups = [group(n, 1.0) for n in "abc"]
    result, report, _ = run(tmp_path, groups, groups, judgments=part)
    decided = result["scores"]["judgments"]
    assert result["score"] == "judgments" and decided["mean"] is None and result["benchmark"] is None
    assert decided["win_rate"] == pytest.approx(0.575)
    assert (decided["wins"], decided["losses"], result["scores"]["gold"]["win_rate"]) == (1, 1, 0.5)
    assert report.dropped == {"without a judgment": 1}
    settings = build(Settings, {"score": "gold", "judgments": part})
    assert evaluate.files(settings, evaluate.STAGE.runtime()) == [tmp_path / "annotations.json"]


def test_a_verdict_is_used_for_the_answers_it_was_given_on_alone(tmp_path: Path):
    """Of two samples of a the second was judged; b was judged with another answer of ours, c with another baseline."""
    part = annotations(tmp_path, ("a", 2.0, "second", "base"), ("b", 2.0, "older", "base"), ("c", 2.0, "now", "other"))
    said = lambda n, *texts: Group(  # noqa: E731
        n, (Message("user", f"question {n}"),),
        tuple(Completion(t, scores={"gold": 1.0}, sample=i) for i, t in enumerate(texts)))
    result, report, out = run(
        tmp_path, [said("a", "first", "second"), said("b", "now"), said("c", "now")],
        [said(n, "base") for n in "abc"], judgments=part)
    (line,) = [json.loads(line) for line in (out / "outcomes.jsonl").read_text().splitlines()]
    assert (line["id"], line["sample"], line["outcome"], result["comparisons"]) == ("a", 1, 1.0, 1)
    assert report.dropped == {"judged with other answers": 3}
    with pytest.raises(UserError, match=r"none of the 1 comparisons has a verdict \(1 judged with other answers\)"):
        run(tmp_path / "2", [said("b", "now")], [said("b", "base")], judgments=part)


def test_arena_hards_own_score_is_beside_the_win_rate_over_prompts(tmp_path: Path):
    """a: "A>>B" then "A=B": three votes lost, a tie: 0.125. b: one win: 1. Over prompts 0.5625, over the five votes
    (0.5 + 1) / 5 = 0.3."""
    rows = [{"question_id": "a", "model": "m", "games": [{"score": "A>>B"}, {"score": "A=B"}]},
            {"question_id": "b", "model": "m", "games": [{"score": "B>A"}, {"score": None}]}]
    path = tmp_path / "judgment.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    groups = [group(n, 1.0) for n in "ab"]
    result, report, _ = run(tmp_path, groups, groups,
                            judgments={"module": "pipeline.formats.arena_hard_judgments", "path": str(path)})
    assert result["scores"]["judgments"]["win_rate"] == 0.5625
    found = result["benchmark"]
    assert (found["name"], found["win_rate"], found["votes"]) == ("Arena-Hard", pytest.approx(0.3), 5)
    assert 0 <= found["low"] < 0.3 < found["high"] <= 1
    assert report.counts["benchmark_win_rate"] == found["win_rate"]


def test_difficulties_are_a_term_of_the_regression_and_must_cover_the_prompts(tmp_path: Path):
    (tmp_path / "hard.json").write_text(json.dumps({"a": 1.0, "b": -1.0}))
    groups = [group("a", 2.0), group("b", 0.0)]
    result, _, _ = run(
        tmp_path, groups, [group("a", 1.0), group("b", 1.0)], difficulties=str(tmp_path / "hard.json"))
    assert result["length_controlled"]["difficulty"] > 1
    with pytest.raises(UserError, match=r"difficulties: .* has no number for 1 of the 3 prompts, first 'c'"):
        run(tmp_path / "2", [*groups, group("c", 1.0)], [group(n, 1.0) for n in "abc"],
            difficulties=str(tmp_path / "hard.json"))


def test_a_missing_score_names_the_nearest(tmp_path: Path):
    with pytest.raises(UserError, match=r"evaluate\.score: .* 'golf' is on no completion \(did you mean gold\?\)"):
        run(tmp_path, [group("a", 1.0)], [group("a", 1.0)], score="golf")


def test_a_score_on_some_completions_only_is_said_to_be_so(tmp_path: Path):
    with pytest.raises(UserError, match="'reward' is missing from some completions"):
        run(tmp_path, [group("a", 1.0, reward=1.0)], [group("a", 1.0)], score="reward")


def test_tables_of_other_prompts_are_refused(tmp_path: Path):
    with pytest.raises(UserError, match="no prompt id and sample index of the 1 groups"):
        run(tmp_path / "1", [group("a", 1.0)], [group("b", 1.0)])
    other = Group("a", (Message("user", "something else"),), (Completion("x", scores={"gold": 1.0}),))
    with pytest.raises(UserError, match="prompt 'a' is 'question a' in the groups and 'something else' in the base"):
        run(tmp_path / "2", [group("a", 1.0)], [other])
    with pytest.raises(UserError, match="finite number for neither"):
        run(tmp_path / "3", [group("a", math.nan)], [group("a", 1.0)])


def test_a_judge_is_shown_both_answers_and_decides(tmp_path: Path):
    """The longer answer wins: a a win, b a loss, c equal texts and so a tie unasked; d refused, left out and counted.
    The scores are compared beside it, and the same evaluation again asks nothing.
    """
    texts = {"a": ("longer", "long"), "b": ("no", "much"), "c": ("same", "same"), "d": ("refuse", "some")}
    ours = [group(name, 1.0, text=one) for name, (one, _) in texts.items()]
    theirs = [group(name, 0.0, text=other) for name, (_, other) in texts.items()]
    with serving(tmp_path / "log") as url:
        spec = {"module": "pipeline.rewards.judge", "model": "judge", "base_url": url}
        runtime = evaluate.Runtime(answers=str(tmp_path / "kept"))
        result, report, out = run(tmp_path / "1", ours, theirs, judge=spec, runtime=runtime)
        assert len(asked(tmp_path / "log")) == 6
        again, _, _ = run(tmp_path / "2", ours, theirs, judge=spec, runtime=runtime)
        assert len(asked(tmp_path / "log")) == 6
    assert again == result
    assert list(result["scores"]) == ["judge", "gold"]
    judged = result["scores"]["judge"]
    assert (judged["wins"], judged["ties"], judged["losses"], judged["win_rate"]) == (1, 1, 1, 0.5)
    assert result["scores"]["gold"]["win_rate"] == 1.0
    assert report.dropped == {"without a verdict": 1}
    assert report.counts["judge: the reply has no verdict"] == 1
    rows = [json.loads(line) for line in (out / "judged.jsonl").read_text().splitlines()]
    assert [(row["id"], row["outcome"]) for row in rows] == [("a", 1.0), ("b", 0.0), ("c", 0.5), ("d", None)]


def test_a_judge_that_cannot_decide_is_refused_at_plan():
    judge = {"module": "pipeline.rewards.judge", "model": "m"}
    wrong = [problems_of(Settings, {"score": "gold", **more}, "e")[0] for more in (
        {"judge": {**judge, "scheme": "champion"}}, {"judge": {"module": "pipeline.rewards.model"}},
        {"judge": judge, "judgments": {"module": "pipeline.formats.alpaca_eval_judgments", "path": __file__}})]
    assert [problem.partition(",")[0] for problem in wrong] == [
        "e.judge.scheme: champion keeps one of two that tie",
        "e.judge.module: pipeline.rewards.model runs a model; score with it: evaluation.scoring.also",
        "e.judge: together with judgments: one of the two decides"]
