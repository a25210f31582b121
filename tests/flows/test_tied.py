"""An adapter on the tied embedding or head is refused at plan, where model or folder shows that it is tied."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flows.prepare import prepare
from flows.tied import tied_layers
from pipeline.errors import UserError


def config(path: Path | None, targets: list[str], kind: str = "lora", tie: bool = True) -> dict:
    trainer = {"adapter": {"kind": kind, "target_modules": targets}}
    plain = {"adapter": {"kind": "none", "target_modules": ["lm_head"]}}
    return {"model": {"path": path, "arch": {"tie_embeddings": tie}}, "trainer": {"sft": plain, "preference": trainer}}


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("said", [True, False], ids=["said in config.json", "seen in the weights"])
def test_a_folder(make_model, tmp_path: Path, tie, said):
    folder = make_model(tmp_path / "model", tie_word_embeddings=tie)
    if not said:
        content = json.loads((folder / "config.json").read_text())
        del content["tie_word_embeddings"]
        (folder / "config.json").write_text(json.dumps(content))
    found = tied_layers(config(folder, ["q_proj", "lm_head"]))
    assert [problem.partition(": this")[0] for problem in found] == (
        ["trainer.preference.adapter.target_modules: lm_head"] if tie else [])
    assert tied_layers(config(folder, ["all-linear"])) == tied_layers(config(folder, ["lm_head"], "none")) == []


def test_a_model_from_nothing_and_a_folder_that_is_not_there(tmp_path: Path):
    assert len(tied_layers(config(None, ["embed_tokens", "lm_head"]))) == 1
    assert tied_layers(config(None, ["embed_tokens"], tie=False)) == []
    assert tied_layers(config(tmp_path / "absent", ["lm_head"])) == []


def test_planning_says_so(tmp_path: Path):
    with pytest.raises(UserError, match=r"trainer\.sft\.adapter\.target_modules: lm_head: this model's embedding and"):
        prepare(["recipe=sft", f"workspace={tmp_path}", "trainer.sft.adapter.kind=lora",
                 "trainer.sft.adapter.target_modules=[q_proj,lm_head]"])
