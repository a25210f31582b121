"""A reward model from pairs: margins that the data give, and real transcripts against length and chance."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from pipeline import tables
from pipeline.config import build
from pipeline.errors import UserError
from pipeline.records import Completion, Group, Message
from pipeline.stage import Context, Reporter
from pipeline.stages import import_data, init_model, tokenize, train_reward
from pipeline.statistics import outcome, wilson
from pipeline.training import reward
from tests import given
from tests.given import run

DATA = Path(os.environ.get("ALIGNLOOP_TEST_DATA", "nowhere"))
ARCH = {"hidden_size": 32, "intermediate_size": 64, "layers": 2, "heads": 2, "kv_heads": 2, "max_position": 512,
        "vocab_size": 1024}
TRAINER = {"lr": 3e-3, "batch_size": 8, "epochs": 1, "precision": "float32"}
RUNTIME = {"threads": 1, "tokens_per_batch": 4096, "log_every": 1, "device": "cpu"}


def trained(work: Path, model: Path, groups: Path, **settings: Any) -> tuple[Path, Reporter]:
    report, inputs = Reporter(), {"model": (model,), "groups": (groups,)}
    context = Context(build(train_reward.Settings, {"trainer": TRAINER, **settings}),
                      build(train_reward.STAGE.runtime, RUNTIME), inputs, given.digests(inputs), work, 0, report)
    train_reward.run(context)
    return context.out / "model", report


def test_margins_of_the_data(tiny_model: Path, tmp_path: Path) -> None:
    """Scores of 5 and 1 on half of the pairs are read as margins, which train another model; where no pair has the
    score, there is nothing to read.
    """
    tables.write(tmp_path / "pairs", [Group(f"g{i}", (Message("user", "hi"),), tuple(
        Completion(text, (20 + i, token, 2), scores={"given": score} if i % 2 else {})
        for text, token, score in (("a", 50, 5.0), ("b", 60, 1.0))), (1, 4, 5)) for i in range(16)])
    plain, counts = trained(tmp_path / "plain", tiny_model, tmp_path / "pairs", held_out=0.0)
    assert "groups_with_margin" not in counts.counts
    wide, report = trained(tmp_path / "wide", tiny_model, tmp_path / "pairs", held_out=0.0, margin=0.5)
    assert report.counts["groups_with_margin"] == 8
    assert any((one != other).any() for one, other in zip(
        *(load_file(folder / "model.safetensors").values() for folder in (plain, wide)), strict=True))
    with pytest.raises(UserError, match=r"reward.margin: none of the 16 groups has a score 'stars'"):
        trained(tmp_path / "none", tiny_model, tmp_path / "pairs", held_out=0.0, margin=0.5, margin_score="stars")


@pytest.mark.skipif(not DATA.is_dir(), reason="ALIGNLOOP_TEST_DATA names no folder with data")
def test_hh_from_scratch_is_reported_against_length_and_chance(tmp_path: Path) -> None:
    """Real transcripts, a model made from nothing: accuracy with its interval on pairs that were held out, and beside
    it what "the longer one is better" is right about, counted here from the same pairs' ids.
    """
    rows = {"module": "pipeline.formats.hh", "limits": {"sft": 100, "pref": 200, "unlabeled": 20, "eval": 20}}
    data = run(import_data, tmp_path / "data", {"format": rows}, {"root": str(DATA / "hh-rlhf")})
    model = run(init_model, tmp_path / "init", {"arch": ARCH, "chat_template": "roles"}, data=data) / "model"
    ids = run(tokenize, tmp_path / "tokens", {"max_prompt_tokens": 250, "max_completion_tokens": 200}, data=data,
              model=model)
    _, report = trained(tmp_path / "reward", model, ids / "pref", held_out=0.4)
    found = report.counts
    groups = list(tables.read(ids / "pref"))
    _, held = reward.split(groups, 0.4)  # type: ignore[type-var]
    number = int(found["held_out_groups"])
    assert (number, found["groups"]) == (len(held), len(groups) - len(held))
    assert number >= 20
    low, high = wilson(found["held_out_accuracy"], number)
    assert (found["held_out_accuracy_low"], found["held_out_accuracy_high"]) == (low, high)
    assert 0.2 < low < found["held_out_accuracy"] < high < 0.9
    by_length = [outcome(len(g.completions[0].token_ids), len(g.completions[1].token_ids)) for g in held]
    assert found["held_out_length_accuracy"] == pytest.approx(sum(by_length) / number)
    assert train_reward.STAGE.says is not None
    assert train_reward.STAGE.says(found)[:2] == [
        f"held-out accuracy {found['held_out_accuracy']:.1%} ({low:.1%} to {high:.1%})",
        f"length alone {found['held_out_length_accuracy']:.1%}, chance 50 %"]
