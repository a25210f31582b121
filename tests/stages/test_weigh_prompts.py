"""Weights that bring the prompts of thumbs-down to the distribution of thumbs-up."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from flows.compose import compose
from flows.prepare import expand
from pipeline import columns, logistic, tables
from pipeline.config import problems_of
from pipeline.errors import UserError
from pipeline.records import Completion, Group, Message
from pipeline.stage import Context, Reporter
from pipeline.stages import weigh_prompts
from pipeline.stages.weigh_prompts import Settings, density_ratios
from pipeline.training.settings import TrainRuntime
from tests import given


def test_the_ratio_of_two_kinds_of_prompts() -> None:
    """Kind A makes 3 of 4 thumbs-up and 2 of 8 thumbs-down: ratio 3; B 1 of 4 and 6 of 8: 1/3. No penalty."""
    up = [True] * 4 + [False] * 8
    kind = np.array([1.0, 1, 1, 0, 1, 1, 0, 0, 0, 0, 0, 0])[:, None]
    found = density_ratios(kind, up, range(12), 0.0)
    assert found == pytest.approx([3.0 if k else 1 / 3 for k in kind[:, 0]], rel=1e-5)


def test_the_same_prompts_on_both_sides_weigh_alike() -> None:
    features = np.random.default_rng(0).normal(size=(10, 3))
    both = np.concatenate([features, features])
    assert density_ratios(both, [True] * 10 + [False] * 10, range(20), 1.0) == pytest.approx([1.0] * 20, abs=1e-6)


def test_a_feature_that_never_varies_does_nothing() -> None:
    features = np.array([[1.0, 7.0], [0.0, 7.0], [1.0, 7.0], [0.0, 7.0]])
    found = density_ratios(features, [True, True, False, False], range(4), 0.5)
    assert found == pytest.approx([1.0] * 4, abs=1e-6)


def test_more_features_than_prompts_give_the_optimum_of_the_whole_space() -> None:
    """20 prompts, 50 features: the same as a regression on all 51 columns. 8 up and 12 down weigh 10 in all each."""
    rng = np.random.default_rng(3)
    features, up = rng.normal(size=(26, 50)), [True] * 8 + [False] * 12 + [True] * 6
    seen = features[:20]
    x = np.column_stack([(features - seen.mean(0)) / seen.std(0), np.ones(26)])
    share, ridge = np.repeat([10 / 8, 10 / 12], [8, 12]), np.array([2.0] * 50 + [0.0])
    whole = logistic.fit(x[:20], np.array(up[:20], float), ridge, share)
    assert density_ratios(features, up, range(20), 2.0) == pytest.approx(np.exp(x @ whole), rel=1e-7)


def group_of(name: str, prompt: tuple[int, ...], label: bool | None) -> Group:
    answers = (Completion("a", (3, 2)),) if label is not None else (Completion("a", (3, 2)), Completion("b", (4, 2)))
    return Group(name, (Message("user", "x"),), answers, prompt, label, weight=2.0)


def context_of(tmp_path: Path, model: Path, groups: list[Group], **settings: object) -> Context:
    tables.write(tmp_path / "in", groups)
    runtime = weigh_prompts.STAGE.runtime(device="cpu", tokens_per_batch=40)
    inputs = {"model": (model,), "groups": (tmp_path / "in",)}
    return Context(Settings(**settings), runtime, inputs, given.digests(inputs), tmp_path / "work", 0, Reporter())


def test_thumbs_down_on_the_prompts_of_thumbs_up_weigh_more(tiny_model: Path, tmp_path: Path) -> None:
    """Thumbs-up stand on prompts of 11s, most thumbs-down on prompts of 50s, of several lengths; a pair keeps its 2."""
    groups = [group_of(f"u{i}", (11,) * (4 + i % 3), True) for i in range(6)]
    groups += [group_of(f"d{i}", (50,) * (4 + i % 3), False) for i in range(5)]
    groups += [group_of("like", (11,) * 5, False), group_of("pair", (50,) * 4, None)]
    context = context_of(tmp_path, tiny_model, groups, penalty=0.01, high=6.0)
    weigh_prompts.run(context)
    rows = columns.load([context.out / "weights"], str(tmp_path / "in"))
    assert rows["id"].to_pylist() == [*(g.id for g in groups), "pair"] and rows["k"].to_pylist() == [0] * 13 + [1]
    made = dict(zip(rows["id"].to_pylist(), rows["weight"].to_pylist(), strict=True))
    assert {made[f"u{i}"] for i in range(6)} == {made["pair"]} == {1.0}
    assert {made[f"d{i}"] for i in range(5)} == {0.5}
    assert 1.0 < made["like"] <= 6.0
    assert context.report.counts["weighed"] == 6


def test_one_label_alone_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="found 1 thumbs-up and 0 thumbs-down, expected both"):
        weigh_prompts.run(context_of(tmp_path, tiny_model, [group_of("u", (5,), True), group_of("p", (5,), None)]))


@pytest.mark.parametrize(("tokens", "share"), [(40, True), (40, False), (1, True)])
def test_an_embedding_is_the_mean_final_state(tiny_model: Path, tmp_path: Path, tokens: int, share: bool) -> None:
    """However prompts are laid out and batched: as each prompt by itself, through transformers."""
    groups = [group_of("a", (11, 12, 13), True), group_of("b", (50,) * 9, True), group_of("c", (7,), False)]
    context = replace(context_of(tmp_path, tiny_model, groups),
                      runtime=TrainRuntime(device="cpu", tokens_per_batch=tokens, share_prefix=share))
    net = transformers.AutoModel.from_pretrained(tiny_model, dtype=torch.float32).eval()
    with torch.no_grad():
        alone = [net(torch.tensor([g.prompt_ids])).last_hidden_state[0].mean(dim=0) for g in groups]
    assert np.allclose(weigh_prompts._embeddings(context, groups)[1], torch.stack(alone).numpy(), atol=1e-5)


def test_a_recipe_weighs_only_where_it_is_asked_to() -> None:
    def steps(*words: str) -> dict:
        given = ["recipe=pco", "objective=bco", *words]
        return {step.name: step for step in expand(compose(given))}

    plain, weighed = steps(), steps("train.weigh_prompts=true")
    assert not any(name.startswith("weighed") for name in plain)
    assert [str(ref) for ref in plain["train[2]"].inputs["groups"]] == ["tokens/pref", "pairs[2]/groups"]
    assert "weights" not in plain["train[2]"].inputs
    assert weighed["train[2]"].inputs["groups"] == plain["train[2]"].inputs["groups"]
    assert [str(ref) for ref in weighed["train[2]"].inputs["weights"]] == ["weighed[2]/weights"]


def test_settings_are_checked() -> None:
    assert problems_of(Settings, {"low": 2.0, "high": 0.5}, "s") == [
        "s.low: 2.0 is out of range, expected 0.0 < x <= 1.0", "s.high: 0.5 is out of range, expected 1.0 <= x"]
