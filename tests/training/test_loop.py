"""One global batch, one gradient: however it is cut, in whatever order, interrupted or not."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch

from pipeline import columns
from pipeline.config import load_part
from pipeline.errors import UserError
from pipeline.lm import examples, folders, prefix
from pipeline.lm.examples import normalised_weights
from pipeline.negatives.contract import Draw
from pipeline.objectives.contract import Objective
from pipeline.records import Completion, Group
from pipeline.stage import Reporter
from pipeline.training import checkpoint, optim, policy, run
from pipeline.training.gradients import accumulate
from pipeline.training.loop import Job, Norms, fit
from pipeline.training.settings import TrainerSettings, TrainRuntime
from tests import given

DPO = {"module": "pipeline.objectives.dpo"}
CRINGE = {"module": "pipeline.objectives.pairwise_cringe", "alpha": 0.5}
RNCE = {"module": "pipeline.objectives.rnce"}
MC = {"module": "pipeline.negatives.mc", "m": 2}


def task(spec, tokens=10**6, negatives=None):
    drawn = None if negatives is None else load_part(negatives, "negatives", Draw)
    return policy.PolicyTask(load_part(spec, "objective", Objective), drawn, 0, tokens, 2**27)


def job(tmp_path, tokens=10**6, optimizer=None, report=None, **changes):
    settings = {"lr": 1e-2, "batch_size": 4, "epochs": 1.0, "precision": "float32"} | changes
    runtime = TrainRuntime(tokens_per_batch=tokens, checkpoint_every_steps=2, log_every=1)
    return Job(TrainerSettings(**settings), runtime, 0, tmp_path / "checkpoints", report or Reporter(), optimizer)


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("spec, k, negatives", [(DPO, 2, None), (CRINGE, 2, None), (RNCE, 5, MC)])
def test_any_split_gives_the_same_gradient(tiny, tmp_path, spec, k, negatives):
    """One group at a time, a few, or all at once: the gradients of one step agree to 1e-6 in float32."""
    gradients = []
    for tokens in (1, 90, 10**6):
        model, made = tiny.llama(), task(spec, tokens, negatives)
        accumulate(model, made, tiny.examples(8, k=k), 3, "float32", tokens)
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert gradients[2].abs().max() > 0.1
    for other in gradients[:2]:
        assert torch.allclose(other, gradients[2], atol=1e-6, rtol=1e-6)


def test_normalisation(tiny):
    """Weights 1 and 3 over 2 and 5 tokens: 1/4, 3/4 by groups; 1/17, 3/17 by tokens."""
    a, b = tiny.examples(2, k=1)
    a = dataclasses.replace(a, weight=1.0, completions=(a.prompt[:1].repeat(2),))
    b = dataclasses.replace(b, weight=3.0, completions=(b.prompt[:1].repeat(5),))
    assert normalised_weights([a, b], "groups") == [0.25, 0.75]
    assert normalised_weights([a, b], "tokens") == [1 / 17, 3 / 17]


def test_loss_falls_and_is_reported(tiny, tmp_path):
    report = Reporter(metrics_path=tmp_path / "metrics.jsonl")
    fit(tiny.llama(), tiny.examples(8), task(DPO), job(tmp_path, report=report, epochs=10.0))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["at"] for line in lines] == list(range(1, 21))
    assert lines[-1]["loss"] < 0.1 < lines[0]["loss"]
    assert {"grad_norm", "lr", "tokens_per_second", "chosen_logps", "rejected_logps", "accuracy"} <= lines[0].keys()


def test_goes_on_from_a_checkpoint_to_the_same_bytes(tiny, tmp_path):
    """Straight through, and again with everything after step 4 forgotten: same weights, same moments."""
    whole = tiny.llama()
    first = fit(whole, tiny.examples(12), task(CRINGE), job(tmp_path, epochs=2.0))
    newest = checkpoint.newest(tmp_path / "checkpoints")
    assert newest is not None and newest.name == "step-00000004"
    again = tiny.llama(seed=1)  # other weights: all of them have to come from the checkpoint
    second = fit(again, tiny.examples(12), task(CRINGE), job(tmp_path, epochs=2.0))
    assert torch.equal(weights(whole), weights(again))
    ours, theirs = (optim.state_tensors(m, o.optimizer) for m, o in ((whole, first), (again, second)))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)


def test_optimizer_runs_through_two_stages(tiny, tmp_path):
    """Two stages of 2 steps with kept moments and schedule make the warm-up a single run of 4 steps makes."""
    def train(folder, epochs, model, optimizer=None):
        report = Reporter(metrics_path=folder.with_suffix(".jsonl"))
        made = fit(model, tiny.examples(4), task(DPO), job(
            folder, optimizer=optimizer, report=report, epochs=epochs, warmup_steps=4, batch_size=4))
        optim.save_folder(folder / "optimizer", optim.state_tensors(model, made.optimizer), made.updates)
        return [json.loads(line)["lr"] for line in folder.with_suffix(".jsonl").read_text().splitlines()]

    single, parts = tiny.llama(), tiny.llama()
    whole = train(tmp_path / "whole", 4.0, single)
    pieces = train(tmp_path / "one", 2.0, parts) + train(tmp_path / "two", 2.0, parts, tmp_path / "one" / "optimizer")
    assert pieces == whole == pytest.approx([0.0025, 0.005, 0.0075, 0.01])
    assert torch.allclose(weights(single), weights(parts), atol=1e-6)  # a batch of all 4: the order plays no part


def test_loss_that_is_not_finite_stops(tiny, tmp_path):
    examples = tiny.examples(4)
    bad = dataclasses.replace(examples[2], ref_logps=(float("nan"), 0.0))
    with pytest.raises(UserError) as caught:
        fit(tiny.llama(), [*examples[:2], bad, examples[3]], task(DPO), job(tmp_path))
    assert "step 1" in str(caught.value) and "groups 'g2';" in str(caught.value)
    assert "there is no checkpoint yet" in str(caught.value)


def test_norms_that_explode_stop_it_before_they_are_infinite(tiny, tmp_path):
    """At this learning rate they are 4.8, 47, 45, 52, 56, 5e3, 1e6, 2e14, 8e13, 2e7 ..., and nan four steps later. A
    run that goes on from the checkpoint of step 8 stops at the same step, and carries nothing of it to the objective.
    """
    exploding = {"lr": 10.0, "epochs": 5.0}
    for start in ("from the first step", "from a checkpoint"):
        made = task({"module": "pipeline.objectives.ce"})
        with pytest.raises(UserError, match=r"stopped at step 10: loss \d+.*norms of the last 5 steps are over 1,000 "
                                            r"times that of the first \(4\.\d+\).*step-00000008; lower the stage's"):
            fit(tiny.llama(), tiny.examples(12), made, job(tmp_path, **exploding))
        assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir())[-1] == "step-00000008", start
        assert not made.state


def test_a_few_norms_far_above_the_first_stop_nothing():
    """Four in a row; five, one of them below; and none that is under 1,000 times the limit. Five in a row do."""
    def explode(norms, limit=1.0):
        seen = Norms()
        return [seen.explode(norm, limit) for norm in norms]

    assert not any(explode([0.0, 2.0, 2001.0, 2001.0, 2001.0, 2001.0, 1999.0, 2001.0]))
    assert explode([2.0, *[2001.0] * 5]) == [*[False] * 5, True]
    assert not any(explode([2.0, *[2001.0] * 9], limit=3.0)) and not any(explode([1e-9, *[999.0] * 9], limit=None))


def test_out_of_memory_names_the_settings_that_help(tiny, tmp_path):
    """A micro-batch that really asks for more than any machine has."""
    class Greedy(policy.PolicyTask):
        def losses(self, *_):
            return torch.empty(2**50), {}

    greedy = Greedy(load_part(DPO, "objective", Objective), None, 0, 10**6, 2**27)
    message = r"out of memory in step 1: lower hardware.training.tokens_per_batch \(now 1000000\)"
    with pytest.raises(UserError, match=message):
        fit(tiny.llama(), tiny.examples(4), greedy, job(tmp_path))


def test_a_step_made_again_is_reported_once(tiny, tmp_path):
    """Killed after reporting step 3 with a checkpoint at step 2: the lines go on at step 4, as if nothing had been."""
    def report():
        return Reporter(step="train", metrics_path=tmp_path / "metrics.jsonl")

    fit(tiny.llama(), tiny.examples(12), task(DPO), job(tmp_path, report=report(), epochs=2.0))
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines(keepends=True)
    checkpoints = sorted((tmp_path / "checkpoints").iterdir())
    assert [p.name for p in checkpoints] == ["step-00000002", "step-00000004"]
    shutil.rmtree(checkpoints[1])
    other = json.dumps({"step": "sft", "at": 99}) + "\n"
    (tmp_path / "metrics.jsonl").write_text("".join([other, *lines[:3]]) + '{"step": "tr')
    (tmp_path / "metrics.jsonl").open("a").write("\n")
    fit(tiny.llama(), tiny.examples(12), task(DPO), job(tmp_path, report=report(), epochs=2.0))
    text = (tmp_path / "metrics.jsonl").read_text().splitlines()
    again = [json.loads(line) for line in text if line.endswith("}")]
    assert [line["at"] for line in again] == [99, 1, 2, 3, 4, 5, 6]
    assert [line["loss"] for line in again[4:]] == [json.loads(line)["loss"] for line in lines[3:]]


def test_what_an_objective_carries_along_survives(tiny, tmp_path):
    """BCO's running shift is saved with the weights: a second run from the checkpoint ends with the same number."""
    def shifted():
        part = load_part({"module": "pipeline.objectives.bco"}, "objective", Objective)
        return policy.PolicyTask(part, None, 0, 10**6, 2**27, state=policy.first_state(part, torch.device("cpu")))

    whole, again = shifted(), shifted()
    fit(tiny.llama(), tiny.examples(12), whole, job(tmp_path, epochs=2.0))
    fit(tiny.llama(), tiny.examples(12), again, job(tmp_path, epochs=2.0))
    assert whole.state.keys() == again.state.keys() != set()
    assert all(whole.state[name] == again.state[name] != 0 for name in whole.state)


@pytest.mark.parametrize("change", ["gradient_checkpointing", pytest.param("compile", marks=pytest.mark.slow)])
def test_neither_recomputing_nor_compiling_changes_the_gradient(tiny, tmp_path, change):
    """The gradients of one step, with and without."""
    found = []
    for runtime in (TrainRuntime(), TrainRuntime(**{change: True})):
        tiny.llama().save_pretrained(tmp_path / "model")
        model = folders.load_policy(tmp_path / "model", torch.device("cpu"), runtime)
        prefix.prepare(model)
        run.adapt(model, TrainerSettings(), runtime, 0)
        accumulate(model, task(DPO), tiny.examples(4), 0, "float32", 10**6)
        found.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert found[0].abs().max() > 0.1
    assert torch.allclose(found[0], found[1], atol=1e-5, rtol=1e-5)


def test_a_dpo_step_runs_through_the_ten_files_that_architecture_names(tiny, tmp_path, monkeypatch):
    """From a row of the mapped table to optimizer.step(): every file of ours that is called on the way."""
    root = Path(policy.__file__).parents[1]
    table = given.write(tmp_path / "g", [
        Group(f"g{i}", (), tuple(Completion("", ids, "length") for ids in ((5, 6, 7), (8, 9))), (1, 4))
        for i in range(4)])
    logps = given.side_table(tmp_path / "logps", table, columns.LOGP, [[-1.0, -2.0]] * 4)
    rows = examples.load([table], tmp_path / "arrays", examples.SideTables(reference=[logps]))
    seen, step = [], torch.optim.AdamW.step

    def called(frame, event, _):
        place = Path(frame.f_code.co_filename)
        if event == "call" and place.is_relative_to(root):
            seen.append((frame.f_code.co_name, place.relative_to(root).as_posix()))

    def stepped(self, *arguments):
        sys.setprofile(None)
        return step(self, *arguments)

    monkeypatch.setattr(torch.optim.AdamW, "step", stepped)
    model = tiny.llama()
    prefix.prepare(model)
    sys.setprofile(called)
    fit(model, rows, task(DPO), job(tmp_path))
    begun = [name for name, _ in seen].index("global_batches")
    text = (root.parent / "docs" / "architecture.md").read_text()
    named = set(re.findall(r"`([\w/]+\.py)`", text.partition("runs through ten files:")[2].partition("\n\n")[0]))
    assert {file for _, file in seen[begun:]} == named
    assert len(named) == 10
