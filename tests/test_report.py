"""From the manifests of a run's steps to its table."""

import json

import pytest

from pipeline.report import HEADERS, StepRecord, cells, diagnostics_table, rows, to_json, to_markdown


def steps() -> list[StepRecord]:
    """Two iterations of PCO as the planner names them; the second samples, scores and pairs."""
    return [
        StepRecord("sft", "sft", 0, seconds=10.0, peak_memory_mb=2048.0, cached=True, key="k-sft"),
        StepRecord("baseline", "generate", 0, ("sft",), counts={"prompts": 8, "completions": 32}, seconds=4.0),
        StepRecord("train[1]", "train_preference", 1, ("sft",), seconds=20.0, peak_memory_mb=3072.0),
        StepRecord("answers[1]", "generate", 1, ("train[1]",), counts={"prompts": 8, "completions": 32, "tokens": 10,
                   "tokens_per_second": 1.0}, seconds=1.0),
        StepRecord("answer_scores[1]", "score", 1, ("answers[1]",), counts={"score_mean": 9.0}),
        StepRecord("evaluate[1]", "evaluate", 1, ("answer_scores[1]", "baseline"), dropped={"unscored": 3},
                   counts={"win_rate": 0.6, "win_rate_low": 0.5, "win_rate_high": 0.7, "length_mean": 20.0,
                           "truncated_share": 0.125}),
        StepRecord("generate[2]", "generate", 2, ("train[1]",), seconds=5.0, dropped={"too long": 2},
                   counts={"prompts": 100, "completions": 400, "tokens": 6000, "tokens_per_second": 2000.0}),
        StepRecord("score[2]", "score", 2, ("generate[2]",), counts={"score_mean": 0.25, "best_of_n_mean": 1.5}),
        StepRecord("pairs[2]", "build_groups", 2, ("score[2]",), counts={"kept": 90, "margin_mean": 1.25},
                   dropped={"tie": 8, "too long": 1}),
        StepRecord("answers[2]", "generate", 2, ("train[2]",), counts={"prompts": 8, "completions": 32, "tokens": 10,
                   "tokens_per_second": 1.0}),
        StepRecord("answer_scores[2]", "score", 2, ("answers[2]",), counts={"score_mean": 9.0, "best_of_n_mean": 9.0}),
        StepRecord("evaluate[2]", "evaluate", 2, ("answer_scores[2]", "baseline"), counts={"win_rate": 0.75}),
    ]


def test_one_row_per_iteration_with_the_costs_of_its_steps():
    """Iteration 1: 20 + 1 seconds, the larger of its peaks; iteration 0 had one of two steps cached."""
    zero, first, second = rows(steps())
    assert [r.iteration for r in (zero, first, second)] == [0, 1, 2]
    assert (zero.steps, zero.cached, zero.seconds) == (2, 1, 14.0)
    assert (first.seconds, first.peak_memory_mb) == (21.0, 3072.0)


def test_sampling_for_training_and_for_evaluation_are_kept_apart():
    """100 prompts were sampled to train on; the 8 evaluation prompts, their scores and drops are not among them."""
    zero, first, second = rows(steps())
    assert zero.prompts is None
    assert (second.prompts, second.samples, second.tokens_per_s) == (100, 400, 2000.0)
    assert (second.reward_mean, second.reward_best) == (0.25, 1.5)
    assert (first.prompts, first.samples, first.reward_mean, first.tokens_per_s) == (None, None, None, None)
    assert (first.win_rate, first.length, first.truncated) == (0.6, 20.0, 0.125)
    assert first.dropped == {}


def test_drops_are_added_up_by_reason():
    """`too long` twice from generate and once from build_groups."""
    second = rows(steps())[2]
    assert (second.kept, second.margin) == (90, 1.25)
    assert second.dropped == {"tie": 8, "too long": 3}


def test_speed_over_several_samplings_is_total_tokens_by_total_time():
    """100 tokens at 100/s and 900 at 300/s: 1,000 tokens in 4 s = 250/s, not the mean 200/s."""
    made = [StepRecord(name, "generate", 1, counts={"tokens": tokens, "tokens_per_second": speed})
            for name, tokens, speed in (("cool", 100, 100.0), ("hot", 900, 300.0))]
    (row,) = rows([*made, StepRecord("pairs", "build_groups", 1, ("cool", "hot"))])
    assert row.tokens_per_s == pytest.approx(250.0)


def test_what_no_step_reported_stays_empty():
    row = rows([StepRecord("sft", "sft", 0, seconds=1.0)])[0]
    texts = dict(zip(HEADERS, cells([row])[0], strict=True))
    assert texts["win rate (interval)"] == texts["margin"] == texts["prompts"] == ""
    assert texts["steps (cached)"] == "1 (0)"


def test_a_mean_over_nothing_is_none_and_not_0():
    """Two prompts were sampled, no sample has a finite score and none was kept: there is no mean, no best, no margin.
    What the diagnosis could not take is none, too."""
    steps = [StepRecord("generate[2]", "generate", 2, counts={"prompts": 2, "completions": 4}),
             StepRecord("score[2]", "score", 2, ("generate[2]",), counts={"completions": 4, "unscored": 4}),
             StepRecord("pairs[2]", "build_groups", 2, ("score[2]",), counts={"kept": 0})]
    texts = dict(zip(HEADERS, cells(rows(steps))[0], strict=True))
    assert [texts[name] for name in ("reward mean", "best of N", "margin", "kept")] == ["none", "none", "none", "0"]
    answers = {"scores": {}, "tokens": 8.0, "repeat_3gram": 0.5, "distinct_2": 0.25, "truncated": 0.0}
    table = diagnostics_table([(1, {
        "answers": answers, "held_out_pairs": None, "learned": "reward", "score": "gold", "kl": {"per_answer": 1.5},
        "baseline": {"tokens": 8.0}, "reward_model": None, "negatives": None})])
    assert table.splitlines()[2] == ("| 1 | none | none | 1.50 | +0% | none | none | none | 0.50 | 0.250 | 0.0% | none "
                                     "| none |")


def test_markdown_has_the_table_the_reasons_and_every_step():
    text = to_markdown("demo", rows(steps()), steps(), {"Evaluation": "| from the report stage |", "Gates": ""})
    assert text.startswith("# demo\n")
    assert "60.0% (50.0% to 70.0%)" in text
    assert "| 2 | too long | 3 |" in text
    assert "## Evaluation\n\n| from the report stage |" in text
    assert "## Gates" not in text
    assert "| sft | sft | 10.0 | 2.0 GB | cached | `k-sft` |" in text
    widths = {line.count("|") for line in text.splitlines()[2:7]}
    assert widths == {len(HEADERS) + 1}


def test_json_is_plain_and_complete():
    data = json.loads(json.dumps(to_json("demo", rows(steps()), steps()), allow_nan=False))
    assert data["iterations"][2]["dropped"] == {"tie": 8, "too long": 3}
    assert [s["step"] for s in data["steps"]] == [s.step for s in steps()]
