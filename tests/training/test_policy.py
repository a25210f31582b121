"""What an objective sees, which negatives stay, and what is refused."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline.config import Part, load_part
from pipeline.errors import UserError
from pipeline.lm import examples as data
from pipeline.lm import forward
from pipeline.negatives.contract import Draw
from pipeline.objectives.contract import Auxiliary, LossInputs, Needs, Objective
from pipeline.training import checks, policy
from pipeline.training.gradients import BatchFacts, accumulate

DPO = load_part({"module": "pipeline.objectives.dpo"}, "objective", Objective)
CE = load_part({"module": "pipeline.objectives.ce"}, "objective", Objective)
CRINGE = load_part({"module": "pipeline.objectives.pairwise_cringe"}, "objective", Objective)
RNCE = load_part({"module": "pipeline.objectives.rnce"}, "objective", Objective)
MC = load_part({"module": "pipeline.negatives.mc", "m": 2}, "negatives", Draw)


RATIONALE = load_part({"module": "pipeline.objectives.auxiliary", "rationale_gamma": 0.1}, "auxiliary", Auxiliary)


def explained(examples, places):
    """The examples, those at `places` with a rationale of three tokens behind a question of four."""
    why = (np.array([5, 9, 11], np.int32),)
    return [replace(e, rationale=data.Example(e.id, np.array([3, 7, i + 4, 8], np.int32), why)) if i in places else e
            for i, e in enumerate(examples)]


def task(objective, negatives=None):
    return policy.PolicyTask(objective, negatives, 0, 10**6, 2**27)


def run(made, model, examples):
    losses, metrics, _ = made.losses(model, examples, 0, made.facts(examples))
    return losses, metrics


def with_own_reference(model, examples):
    """Examples whose reference is the policy itself."""
    with torch.no_grad():
        logps = forward.group_logps(model, forward.collate(examples), 2**27)
    return [dataclasses.replace(e, ref_logps=tuple(row)) for e, row in zip(examples, logps.tolist(), strict=True)]


@pytest.mark.parametrize("objective, k, expected", [(DPO, 2, math.log(2)), (RNCE, 4, math.log(4))])
def test_loss_where_policy_is_reference(tiny, objective, k, expected):
    model = tiny.llama()
    losses, metrics = run(task(objective), model, with_own_reference(model, tiny.examples(5, k=k)))
    assert losses.tolist() == pytest.approx([expected] * 5, abs=1e-5)
    assert metrics["chosen_log_ratio"].tolist() == pytest.approx([0.0] * 5, abs=1e-4)


def test_token_inputs_belong_to_their_log_probs(tiny):
    """Summing the token view by (group, column) gives the sequence log-probs; the largest logits are of their rows."""
    examples = tiny.examples(3)
    seen = task(CRINGE).inputs(tiny.llama(), examples, 0, BatchFacts.of(examples))
    tokens = seen.tokens
    sums = torch.zeros(3, 2).index_put((tokens.group, tokens.column), tokens.logps, accumulate=True)
    assert tokens.top_logits.shape == tokens.top_ids.shape == (len(tokens.targets), 6)  # k = 5 and the label
    first = tokens.top_ids == tokens.targets[:, None]
    assert torch.equal(tokens.top_logits[first], tokens.target_logits[first.any(1)])
    assert torch.allclose(sums, seen.logps, atol=1e-4)
    assert seen.lengths.tolist() == [[len(c) for c in e.completions] for e in examples]


def test_misfits_are_named(tiny):
    pairs, single, lists = tiny.examples(2), tiny.examples(2, k=1), tiny.examples(2, k=4)
    bare = tiny.examples(2, reference=False)
    for examples, words in [
        (single, "compares completions, but 2 of 2 groups have one"),
        (lists, "have more than two completions"),
        (bare, "needs reference log-probs, but 2 of 2"),
    ]:
        with pytest.raises(UserError, match=words):
            checks.fit_to_objective(examples, DPO, None)
    assert checks.fit_to_objective(pairs, DPO, None) == pairs


def test_labels_that_are_missing_are_named(tiny):
    labelled = Objective(object, CE.plugin.loss, Needs(labels=True))
    with pytest.raises(UserError, match="needs labels, but 2 of 2 groups have none"):
        checks.fit_to_objective(tiny.examples(2, k=1), Part("labelled", labelled, None), None)


def test_demonstrations_of_pairs_are_the_preferred_side(tiny):
    (example,) = checks.fit_to_objective(tiny.examples(1), CE, None)
    assert len(example.completions) == 1 == len(example.ref_logps)


def test_demonstrations_labelled_unwanted_are_left_out(tiny):
    good, bad = (replace(e, label=label) for e, label in zip(tiny.examples(2, k=1), (True, False), strict=True))
    assert [e.id for e in checks.fit_to_objective([bad, good], CE, None)] == [good.id]
    with pytest.raises(UserError, match="all 1 groups are labelled unwanted"):
        checks.fit_to_objective([bad], CE, None)


def test_pairs_without_a_rationale_are_named(tiny):
    """Where no group has one; one is enough, since the term acts on the groups that have one."""
    kto = load_part({"module": "pipeline.objectives.kto"}, "objective", Objective)
    with pytest.raises(UserError, match="rationale_gamma needs rationales, but 2 of 2 groups have none"):
        checks.fit_to_objective(tiny.examples(2), kto, None, RATIONALE)
    some = explained(tiny.examples(2), [1])
    assert checks.fit_to_objective(some, kto, None, RATIONALE) == some


@pytest.mark.parametrize("name, negatives, tokens", [
    ("dpo", None, 10**6), ("dpo", None, 60), ("unlikelihood", None, 40),  # divided by groups, and by tokens
    ("aot", None, 10**6), ("aot", None, 40),  # the loss compares the groups of the batch: two passes where it is cut
    ("rnce", MC, 40)])  # negatives drawn at every step
def test_the_rationale_term_is_the_log_prob_of_its_ids(tiny, name, negatives, tokens):
    """Loss and gradient of 4 groups, two of them with a rationale and weights 1, 1, 0.5, 3: the objective's own, and
    gamma times the sum over each rationale's tokens of -log softmax, by the model's own forward pass."""
    part, k = load_part({"module": f"pipeline.objectives.{name}"}, "objective", Objective), 4 if negatives else 2
    bare = [replace(e, weight=w) for e, w in zip(tiny.examples(4, k=k), (1.0, 1.0, 0.5, 3.0), strict=True)]
    found = []
    for examples, terms in ((bare, None), (explained(bare, [1, 3]), RATIONALE)):
        model, made = tiny.llama(), policy.PolicyTask(part, negatives, 0, 10**6, 2**27, terms)
        _, metrics, _ = accumulate(model, made, examples, 0, "float32", tokens)
        found.append((metrics["loss"], {n: p.grad for n, p in model.named_parameters()}))
    model, term = tiny.llama(), torch.zeros(())
    for example in explained(bare, [1, 3]):
        if example.rationale is not None:
            ids = torch.tensor([*example.rationale.prompt, *example.rationale.completions[0]])
            logps = model(ids[None]).logits[0, :-1].log_softmax(-1).gather(1, ids[1:, None])[:, 0]
            term = term - 0.1 * example.weight / 5.5 * logps[len(example.rationale.prompt) - 1:].sum()
    term.backward()
    (loss, without), (whole, gradient) = found
    assert whole - loss == pytest.approx(term.item(), rel=1e-4) and term.item() > 0.1
    for parameter, value in model.named_parameters():
        assert torch.allclose(gradient[parameter] - without[parameter], value.grad, atol=2e-5), parameter
    assert metrics["rationale_share"] == 0.5


@pytest.mark.parametrize("name", ["dpo", "ce", "unlikelihood", "binary_cringe", "hard_cringe", "pairwise_cringe"])
def test_terms_average_over_groups_beside_every_objective(tiny, name):
    """Also where the objective's own loss is divided by tokens; groups may weigh differently."""
    part = load_part({"module": f"pipeline.objectives.{name}"}, "objective", Objective)
    found = checks.fit_to_objective(tiny.examples(4), part, None)
    examples = [replace(e, weight=w) for e, w in zip(found, (1.0, 1.0, 0.5, 3.0), strict=True)]
    losses = []
    for weight in (0.0, 0.5):
        spec = {"module": "pipeline.objectives.auxiliary", "sft_weight": weight, "sft_normalise": "mean"}
        made = policy.PolicyTask(part, None, 0, 10**6, 2**27, load_part(spec, "auxiliary", Auxiliary))
        losses.append(accumulate(tiny.llama(), made, examples, 0, "float32", 10**6)[1]["loss"])
    with torch.no_grad():
        logps = made.logps(tiny.llama(), examples)[:, 0]
    nll = sum(-lp * e.weight / len(e.completions[0]) for lp, e in zip(logps, examples, strict=True)) / 5.5
    assert losses[1] - losses[0] == pytest.approx(0.5 * nll.item(), rel=1e-4)


def test_rows_that_do_not_fit_the_model(tiny):
    with pytest.raises(UserError, match="vocabulary of 10"):
        data.check_fits(tiny.examples(3), 10, None)
    with pytest.raises(UserError, match="the model's context is 5"):
        data.check_fits(tiny.examples(3), 64, 5)


def test_drift_from_the_reference():
    """Logps -3, -5 against -2, -9: mean of 1 and -4; a lone completion counts alone."""
    inputs = LossInputs(
        logps=torch.tensor([[-3.0, -5.0], [-1.0, 0.0]]), lengths=torch.tensor([[2, 3], [4, 0]]),
        present=torch.tensor([[True, True], [True, False]]), ref_logps=torch.tensor([[-2.0, -9.0], [-1.5, 0.0]]))
    assert policy.common_metrics(inputs)["reference_kl"].tolist() == [-1.5, -0.5]
