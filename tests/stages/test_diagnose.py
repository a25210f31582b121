"""The diagnose stage with real forwards of tiny models: its log-probs against the models' own, its accounts by hand."""

import json
from pathlib import Path

import pytest
import torch
import transformers

from pipeline import tables
from pipeline.config import build
from pipeline.records import Completion, Group, Message
from pipeline.stage import Context, Reporter
from pipeline.stages import diagnose
from pipeline.stages.diagnose import Settings, best_and_worst, chosen_by_hash, kl
from pipeline.training.settings import TrainRuntime
from tests import given

PROMPT = (1, 4, 40, 41, 5)


def group(name: str, *answers: tuple[tuple[int, ...], float, float]) -> Group:
    """Answers as (ids, reward, gold)."""
    completions = tuple(
        Completion(f"text {ids}", ids, scores={"reward": reward, "gold": gold}, sample=i)
        for i, (ids, reward, gold) in enumerate(answers))
    return Group(name, (Message("user", name),), completions, PROMPT)


BASELINE = [
    group("a", ((50, 51, 2), 0.1, 0.0), ((50, 60, 61, 2), 0.3, 1.0)),
    group("b", ((70, 2), 0.0, 0.5), ((71, 2), 0.0, 0.5)),
]
ANSWERS = [
    group("a", ((50, 51, 52, 2), 0.9, 0.0), ((50, 60, 2), 0.5, 1.0)),
    group("b", ((70, 70, 70, 70, 2), 0.4, 0.1), ((71, 2), 0.4, 0.6)),
]
TRAINED = [
    group("t", ((80, 81, 2), 1.0, 1.0), ((80, 82, 2), 0.0, 0.0), ((83, 2), 0.0, 0.0)),
    group("u", ((90, 2), 1.0, 1.0), ((91, 92, 2), 0.0, 0.0)),
]


@pytest.fixture(scope="module")
def found(make_model, tmp_path_factory) -> tuple[dict, Reporter, Path, Path]:
    folder = tmp_path_factory.mktemp("diagnose")
    policy, reference = make_model(folder / "policy", seed=1), make_model(folder / "reference", seed=2)
    samples = [*TRAINED, group("tie", ((80, 2), 0.5, 0.0), ((81, 2), 0.5, 1.0))]
    for name, groups in (("answers", ANSWERS), ("baseline", BASELINE), ("trained", TRAINED), ("samples", samples)):
        tables.write(folder / name, groups)
    inputs = {name: (folder / name,) for name in ("answers", "baseline", "trained", "samples")}
    inputs |= {"groups": (folder / "trained",), "model": (policy,), "reference": (reference,)}
    settings = build(Settings, {
        "score": "gold", "precision": "float32", "window": 2, "negatives": {"module": "pipeline.negatives.mc", "m": 1}})
    report = Reporter()
    context = Context(settings, TrainRuntime(device="cpu", threads=1), inputs, given.digests(inputs), folder / "work",
                      0, report)
    diagnose.run(context)
    return json.loads((context.out / "diagnostics.json").read_text()), report, policy, reference


def logp(folder: Path, ids: tuple[int, ...]) -> list[float]:
    """Token log-probs straight from the model's own logits."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        logits = model(torch.tensor([PROMPT + ids])).logits[0, len(PROMPT) - 1 : -1].log_softmax(-1)
    return [logits[i, token].item() for i, token in enumerate(ids)]


def test_held_out_pairs_are_the_baselines_best_and_worst(found):
    """Prompt a: gold 1 (50 60 61 2) over gold 0 (50 51 2); prompt b ties and is left out."""
    result, _, policy, reference = found
    chosen, rejected = (50, 60, 61, 2), (50, 51, 2)
    summary = result["held_out_pairs"]
    assert summary["pairs"] == 1
    assert summary["chosen_logp"] == pytest.approx(sum(logp(policy, chosen)), abs=1e-3)
    assert summary["rejected_logp_reference"] == pytest.approx(sum(logp(reference, rejected)), abs=1e-3)
    assert summary["chosen_log_ratio"] == pytest.approx(
        sum(logp(policy, chosen)) - sum(logp(reference, chosen)), abs=1e-3)


def test_token_curve_is_aligned_at_the_first_difference(found):
    """They share token 50 and differ from the next on: offset 0 is 60 against 51."""
    result, _, policy, _ = found
    rows = {row["offset"]: row for row in result["token_curve"]["held_out_pairs"]["by_offset"]}
    assert sorted(rows) == [-1, 0, 1]
    assert rows[0]["chosen"] == pytest.approx(logp(policy, (50, 60))[1], abs=1e-3)
    assert rows[0]["rejected"] == pytest.approx(logp(policy, (50, 51))[1], abs=1e-3)
    assert rows[-1]["chosen"] == pytest.approx(rows[-1]["rejected"], abs=1e-5)


def test_kl_is_the_log_ratio_on_the_policys_own_answers(found):
    result, report, policy, reference = found
    ids = [g.completions[0].token_ids for g in ANSWERS]
    ratios = [sum(logp(policy, i)) - sum(logp(reference, i)) for i in ids]
    assert result["kl"]["per_answer"] == pytest.approx(sum(ratios) / 2, abs=1e-3)
    assert result["kl"]["per_token"] == pytest.approx(sum(ratios) / sum(map(len, ids)), abs=1e-3)
    assert report.counts["kl"] == result["kl"]["per_answer"]


def test_a_policy_that_is_the_reference_has_no_kl():
    """Ratios 0.2 and 0.4 of one prompt, 0.6 of another: mean 0.4; over prompt means 0.3 and 0.6: SE 0.15."""
    assert kl([[[-1.0, -2.0]]], [[[-1.0, -2.0]]]) == {"per_answer": 0.0, "standard_error": 0.0, "per_token": 0.0}
    found = kl([[[-0.8], [-0.6]], [[-0.4]]], [[[-1.0], [-1.0]], [[-1.0]]])
    assert found == pytest.approx({"per_answer": 0.4, "standard_error": 0.15, "per_token": 0.4})


def test_looks_by_hand(found):
    """Answer 70 70 70 70 2: 3-grams 70 70 70 twice: one repeat among 4 answers. Tokens (4 + 3 + 5 + 2) / 4."""
    result, report, _, _ = found
    assert (result["answers"]["tokens"], result["answers"]["repeat_3gram"]) == (3.5, 0.25)
    assert result["answers"]["scores"]["gold"] == {
        "mean": pytest.approx(0.425), "sd": pytest.approx(0.46458, abs=1e-4), "best_of_n": 0.8}
    assert report.counts["length_drift"] == pytest.approx(3.5 / 2.75 - 1)


def test_the_reward_model_is_checked_against_the_judge(found):
    """Prompt a: reward 0.9 > 0.5 but gold 0 < 1, wrong; prompt b: reward ties: half. 0.25 over 2 pairs."""
    assert found[0]["reward_model"] == {"checked": "reward", "judge": "gold", "pairs": 2, "accuracy": 0.25}


def test_signal_and_kernel(found):
    """Three prompts sampled, two kept, the third tied. The kernel sees 2 candidates and 1: entropy up to ln 2 / 2."""
    result = found[0]
    assert (result["signal"]["prompts"], result["signal"]["kept"], result["signal"]["lost_same_score"]) == (3, 2, 1)
    assert result["negatives"]["candidates"] == 1.5
    assert 0 < result["negatives"]["kernel_entropy"] <= 0.3466


def test_what_an_iteration_does_not_have_is_null(found, make_model, tmp_path: Path):
    _, _, policy, reference = found
    for name, groups in (("answers", ANSWERS), ("baseline", BASELINE[1:])):
        tables.write(tmp_path / name, groups)
    inputs = {"answers": (tmp_path / "answers",), "baseline": (tmp_path / "baseline",), "model": (policy,),
              "reference": (reference,)}
    settings = build(Settings, {"score": "gold", "learned": "gold", "precision": "float32"})
    context = Context(settings, TrainRuntime(device="cpu", threads=1), inputs, given.digests(inputs), tmp_path / "work",
                      0, Reporter())
    diagnose.run(context)
    result = json.loads((context.out / "diagnostics.json").read_text())
    for name in ("held_out_pairs", "trained_pairs", "negatives", "signal", "reward_model"):
        assert result[name] is None


def test_pairs_need_a_difference_and_a_part_of_the_groups_is_the_same_whatever_the_order():
    assert best_and_worst(BASELINE[1], "gold") is None
    best = best_and_worst(BASELINE[0], "gold")
    assert best is not None and [c.sample for c in best.completions] == [1, 0]
    groups = [group(str(i), ((50, 2), 0.0, 0.0), ((51, 2), 0.0, 0.0)) for i in range(20)]
    assert chosen_by_hash(groups, 5) == chosen_by_hash(groups[::-1], 5)
    part, whole = ({g.id for g in chosen_by_hash(some, 5)} for some in (groups[:10], groups))
    assert part >= whole & {g.id for g in groups[:10]}
