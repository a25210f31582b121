"""The pair_logps stage with real forwards of tiny models: log-ratios against the models' own logits, places by hand."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean

import pytest
import torch
import transformers

from pipeline import columns
from pipeline.records import Completion, Group, Message
from pipeline.stage import Context, Reporter
from pipeline.stages import pair_logps
from pipeline.training.settings import TrainRuntime
from tests import given

PROMPT = (1, 4, 40, 41, 5)
SEEN = [Group("s", (Message("user", "s"),), (Completion("", (50, 51, 52, 2)), Completion("", (50, 60, 52, 2))), PROMPT)]
HELD_OUT = [Group("h#0", (Message("user", "h"),), (Completion("", (70, 2)), Completion("", (71, 2))), PROMPT),
            Group("h#1", (Message("user", "h"),), (Completion("", (70, 2)), Completion("", (70, 72, 2))), PROMPT)]


def logp(folder: Path, ids: tuple[int, ...]) -> list[float]:
    """Token log-probs straight from the model's own logits."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        logits = model(torch.tensor([PROMPT + ids])).logits[0, len(PROMPT) - 1 : -1].log_softmax(-1)
    return [logits[i, token].item() for i, token in enumerate(ids)]


def test_numbers_of_every_completion_and_their_summary(make_model, tmp_path: Path):
    """The seen pair differs at token 1: 50 is before, 52 and the stop token are behind. Held out: 1 of 2 tokens differ
    (a distance of 1/2), and one is put between (1/3): 5/12 on average.
    """
    policy, reference = make_model(tmp_path / "policy", seed=1), make_model(tmp_path / "reference", seed=2)
    inputs = {"model": (policy,), "reference": (reference,), "seen": (given.write(tmp_path / "seen", SEEN).path,),
              "held_out": (given.write(tmp_path / "held_out", HELD_OUT).path,)}
    context = Context(pair_logps.Settings(window=2, precision="float32"), TrainRuntime(device="cpu", threads=1), inputs,
                      given.digests(inputs), tmp_path / "work", 0, Reporter())
    pair_logps.run(context)

    def column(table: str, name: str) -> dict[tuple[str, int], float | None]:
        return {(g, k): value for g, k, value in columns.numbers(context.out / table, name)}

    ours, theirs = logp(policy, (50, 51, 52, 2)), logp(reference, (50, 51, 52, 2))
    moved = [a - b for a, b in zip(ours, theirs, strict=True)]
    assert column("seen", "logp")["s", 0] == pytest.approx(sum(ours), abs=1e-4)
    assert column("seen", "log_ratio")["s", 0] == pytest.approx(sum(moved), abs=1e-4)
    found = [column("seen", place)["s", 0] for place in ("before", "at", "after")]
    assert found == pytest.approx([moved[0], moved[1], fmean(moved[2:])], abs=1e-4)
    assert column("held_out", "before")["h#0", 0] is None
    assert set(column("held_out", "log_ratio")) == {("h#0", 0), ("h#0", 1), ("h#1", 0), ("h#1", 1)}
    ratios = column("held_out", "log_ratio")
    assert ratios["h#0", 0] == pytest.approx(ratios["h#1", 0], abs=1e-5)
    summary = json.loads((context.out / "pair_logps.json").read_text())
    assert (summary["seen"]["edit_distance"], summary["held_out"]["edit_distance"]) == pytest.approx((1 / 4, 5 / 12))
    assert summary["seen"]["chosen_log_ratio"] == pytest.approx(sum(moved), abs=1e-4)
    assert summary["seen"]["by_place"]["after"]["chosen"] == pytest.approx(fmean(ours[2:]), abs=1e-4)
    assert context.report.counts["seen_chosen_log_ratio"] == summary["seen"]["chosen_log_ratio"]
