"""Real data sets of several shapes through every step up to a trained policy, as `align run data=files` reads them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from pipeline import columns, store, tables
from tests.flows.loops import run
from tests.rewards.judges.server import asked, serving

pytestmark = pytest.mark.long

SMALL = ["data=files", "engine=transformers", "iterations=2", "model.arch.hidden_size=32", "model.arch.layers=1",
         "model.arch.heads=2", "model.arch.kv_heads=2", "model.arch.intermediate_size=64", "precision=float32",
         "model.max_prompt_tokens=256", "model.max_completion_tokens=256", "sampling.prompts_per_iteration=12",
         "sampling.max_tokens=12", "sampling.n=2", "trainer.sft.max_steps=2", "trainer.reward.max_steps=2",
         "trainer.preference.max_steps=2", "trainer.sft.batch_size=8", "trainer.reward.batch_size=8",
         "trainer.preference.batch_size=8"]
# A set, the words it needs beside them, and what stands in a group that is trained on: number of answers, a label.
SETS = {
    "pairs": ("ultrafeedback-binarized-sample", ["recipe=iterative_dpo", "replay=weighted"], {2}),
    "transcripts": ("hh-rlhf", ["recipe=pco", "replay=last_k"], {2}),
    "ranked lists": ("nectar-sample", ["recipe=iterative_dpo", "objective=infonca", "train.score=given",
                                       "reward.name=given", "selection.score=given"], {2, 7}),
    "ranked lists as pairs": ("nectar-sample", ["recipe=iterative_dpo", "data.format.lists=best_worst"], {2}),
    "trees": ("oasst-sample", ["recipe=iterative_dpo", "data.format.lists=best_worst"], {2}),
    "judged pairs": ("llmbar", ["recipe=iterative_dpo"], {2}),
    "labels": ("llamafactory-demos", ["recipe=iterative_dpo", "objective=kto", "data.format.files=kto*",
                                      "iterations=1"], {1}),
}


def place(name: str) -> Path:
    folder = Path(os.environ.get("ALIGNLOOP_TEST_DATA", "")) / name
    if "ALIGNLOOP_TEST_DATA" not in os.environ or not folder.is_dir():
        pytest.skip(f"no {name} in ALIGNLOOP_TEST_DATA")
    return folder


def trained(done: dict[str, store.Artifact], name: str) -> store.Artifact:
    artifact = done[name]
    assert artifact.manifest["counts"]["steps"] == 2 and (artifact.path / "model" / "model.safetensors").is_file()
    return artifact


@pytest.mark.parametrize("shape", SETS)
def test_a_real_set_trains_a_policy(shape: str, tmp_path: Path) -> None:
    name, words, sizes = SETS[shape]
    last = "train[1]" if "iterations=1" in words else "train[2]"
    done = run([*SMALL, f"data.root={place(name)}", *words], tmp_path, "real", last)
    trained(done, last)
    groups = list(tables.read(done["tokens"].path / "pref"))
    assert {len(group.completions) for group in groups} <= sizes | {3, 4, 5, 6} and groups
    assert (shape == "labels") == all(group.label is not None for group in groups)
    if "train.score=given" in words:  # the data's own margins, and the learned score under the same name
        assert all(c.scores["given"] for group in groups for c in group.completions)
        source = columns.Source(done["pairs[2]"].path / "groups", done["pairs[2]"].digest("groups"))
        assert all("given" in c.scores for group in tables.read(source.path) for c in group.completions)
    if shape == "transcripts":
        kept = done["replay[2]"].manifest["counts"]
        assert 0 < kept["kept"] <= kept["groups"]


@pytest.mark.parametrize("reward", ["rule", "judge", "model"])
def test_demonstrations_and_prompts_of_two_sets_need_no_pairs(reward: str, tmp_path: Path, make_model: Any) -> None:
    """SFT on the one, samples of the other, preferences by a rule, by a judge behind a server, or by a model given."""
    places = f"[{{path: {place('dolly-hhrlhf-sample')}}},{{path: {place('hh-rlhf')}, files: 'prompts*'}}]"
    words = ["recipe=online_dpo", f"data.sources={places}", "data.require=[sft,unlabeled,eval]"]
    if reward == "model":
        folder = make_model(tmp_path / "base")
        net = transformers.AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, dtype=torch.float32)
        net.save_pretrained(tmp_path / "rm")
        transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "rm")
    with serving(tmp_path / "log") as url:
        words += {"rule": ["reward=length", "reward.scorer.unit=characters", "reward.scorer.high=10"],
                  "judge": ["reward=judge", "reward.scorer.model=judge", f"reward.scorer.base_url={url}"],
                  "model": ["reward=model", f"reward.path={tmp_path / 'rm'}"]}[reward]
        done = run([*SMALL, *words], tmp_path / "ws", "real", "train[2]")
    assert done["train[2]"].manifest["counts"]["steps"] in (1, 2)  # 12 prompts, less those whose samples are tied
    assert (done["train[2]"].path / "model" / "model.safetensors").is_file()
    counts = done["data"].manifest["counts"]
    assert counts["sft"] > 0 and counts["unlabeled"] > 0 and counts["pref"] == 0
    assert done["pairs[2]"].manifest["counts"]["kept"] > 0
    assert (len(asked(tmp_path / "log")) > 0) == (reward == "judge")
