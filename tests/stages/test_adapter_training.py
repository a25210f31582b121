"""Stages with adapters: the artifacts they leave, resume, and the next stage on the merged model."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import peft
import pytest
import torch
import transformers

from pipeline import tables
from pipeline.errors import UserError
from pipeline.lm import adapters, folders
from pipeline.lm.settings import AdapterSettings
from pipeline.records import Completion, Group, Message
from pipeline.stages import init_model, reference_logprobs, sft, tokenize, train_preference, train_reward
from tests.given import metrics, run

ARCH = {"hidden_size": 32, "intermediate_size": 64, "layers": 2, "heads": 2, "kv_heads": 2, "max_position": 64,
        "vocab_size": 320}
TRAINER = {"lr": 2e-2, "batch_size": 8, "epochs": 4, "precision": "float32",
           "adapter": {"kind": "lora", "r": 4, "alpha": 8}}
RUNTIME = {"threads": 1, "log_every": 1, "device": "cpu"}
DPO = {"objective": {"module": "pipeline.objectives.dpo"}, "trainer": TRAINER}


def losses(work: Path) -> list[float]:
    return [line["loss"] for line in metrics(work) if "loss" in line]


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> SimpleNamespace:
    """A tiny model and 24 tokenised pairs."""
    root = tmp_path_factory.mktemp("world")
    for split, k in (("sft", 1), ("pref", 2)):
        tables.write(root / "data" / split, [
            Group(f"{split}{i}", (Message("user", f"Say {i % 7}."),),
                  (Completion(f"It is {i % 7}, friend."), Completion("No idea at all."))[:k]) for i in range(24)])
    model = run(init_model, root / "init", {"arch": ARCH, "chat_template": "roles"}, data=root / "data") / "model"
    ids = run(tokenize, root / "tokens", {"max_prompt_tokens": 30, "max_completion_tokens": 30},
              data=root / "data", model=model)
    return SimpleNamespace(root=root, model=model, ids=ids)


def test_adapter_and_merged_model(world, tmp_path):
    """model/ is the base with adapter/ merged in, to whoever loads either; the next stage starts from model/."""
    out = run(sft, tmp_path / "sft", {"trainer": TRAINER}, RUNTIME, model=world.model, groups=world.ids / "sft")
    assert losses(tmp_path / "sft")[-1] < losses(tmp_path / "sft")[0] - 0.3
    merged = transformers.AutoModelForCausalLM.from_pretrained(out / "model")
    base = transformers.AutoModelForCausalLM.from_pretrained(world.model)
    ids = torch.arange(3, 15)[None]
    plain = base(ids).logits
    adapted = peft.PeftModel.from_pretrained(base, out / "adapter")(ids).logits
    assert torch.allclose(merged(ids).logits, adapted, atol=1e-4) and not torch.allclose(plain, adapted, atol=1e-2)
    assert (out / "model" / "tokenizer.json").read_bytes() == (world.model / "tokenizer.json").read_bytes()
    assert str(world.root) not in (out / "adapter" / "adapter_config.json").read_text()
    refs = run(reference_logprobs, tmp_path / "refs", {"precision": "float32"}, RUNTIME, model=out / "model",
               groups=world.ids / "pref")
    run(train_preference, tmp_path / "dpo", DPO, RUNTIME, model=out / "model", groups=world.ids / "pref",
        reference=refs / "logps")
    assert losses(tmp_path / "dpo")[0] == pytest.approx(0.693147, abs=1e-4), "it starts as its reference"


def test_four_bit_base(world, tmp_path):
    """The adapter learns over 4-bit weights and is merged into the base in float32: nearer to what was learned than to
    the base, and nothing of the artifact needs bitsandbytes. Resume gives the same bytes.
    """
    pytest.importorskip("bitsandbytes", reason="make setup EXTRAS=qlora")
    trainer = TRAINER | {"adapter": TRAINER["adapter"] | {"kind": "qlora"}}
    inputs, runtime = {"model": world.model, "groups": world.ids / "sft"}, RUNTIME | {"checkpoint_every_steps": 2}
    out = run(sft, tmp_path / "sft", {"trainer": trainer}, runtime, **inputs)
    course = losses(tmp_path / "sft")
    assert course[-1] < course[0] - 0.3
    plain = run(sft, tmp_path / "plain", {"trainer": TRAINER}, RUNTIME, **inputs)
    there = losses(tmp_path / "plain")
    assert course != there and course == pytest.approx(there, abs=0.2), "near those over weights that are not rounded"
    written = json.loads((out / "model" / "config.json").read_text())
    assert "quantization_config" not in written
    ids = torch.arange(3, 15)[None]
    merged = transformers.AutoModelForCausalLM.from_pretrained(out / "model")
    base = transformers.AutoModelForCausalLM.from_pretrained(world.model)
    adapted = peft.PeftModel.from_pretrained(base, out / "adapter")(ids).logits
    assert torch.allclose(merged(ids).logits, adapted, atol=1e-4)
    four = folders.load_policy(world.model, torch.device("cpu"), None, adapters.quantisation(
        AdapterSettings(kind="qlora"), "float32"))
    # In eval mode, where the CPU multiplies bfloat16, bitsandbytes packs the weights in blocks these are too small for.
    learned = peft.PeftModel.from_pretrained(four, out / "adapter").train()(ids).logits
    plain_base = transformers.AutoModelForCausalLM.from_pretrained(world.model)(ids).logits
    assert (learned - adapted).norm() < 0.3 * (learned - plain_base).norm()
    assert {p.name for p in (out / "model").iterdir()} == {p.name for p in (plain / "model").iterdir()}
    kept = {p.relative_to(out): p.read_bytes() for p in out.rglob("*") if p.is_file()}
    shutil.rmtree(out)
    again = run(sft, tmp_path / "sft", {"trainer": trainer}, runtime, **inputs)
    assert {p.relative_to(again): p.read_bytes() for p in again.rglob("*") if p.is_file()} == kept


def test_four_bit_policy_starts_as_its_four_bit_reference(world, tmp_path):
    """The reference of an adapter over 4 bits is the base it sits on; the base of full weights is another model."""
    pytest.importorskip("bitsandbytes", reason="make setup EXTRAS=qlora")
    settings = DPO | {"trainer": TRAINER | {"adapter": TRAINER["adapter"] | {"kind": "qlora"}}}
    first = {}
    for weights in ("nf4", "full"):
        refs = run(reference_logprobs, tmp_path / f"refs-{weights}", {"precision": "float32", "weights": weights},
                   RUNTIME, model=world.model, groups=world.ids / "pref")
        run(train_preference, tmp_path / weights, settings, RUNTIME, model=world.model, groups=world.ids / "pref",
            reference=refs / "logps")
        first[weights] = losses(tmp_path / weights)[0]
    assert first["nf4"] == pytest.approx(math.log(2), abs=1e-5)
    assert abs(first["full"] - math.log(2)) > 1e-4


def test_goes_on_from_a_checkpoint_to_the_same_bytes(world, tmp_path):
    inputs = {"model": world.model, "groups": world.ids / "sft"}
    runtime = RUNTIME | {"checkpoint_every_steps": 2}
    whole = run(sft, tmp_path / "work", {"trainer": TRAINER}, runtime, **inputs)
    kept = {p.relative_to(whole): p.read_bytes() for p in whole.rglob("*") if p.is_file()}
    shutil.rmtree(whole)
    again = run(sft, tmp_path / "work", {"trainer": TRAINER}, runtime, **inputs)
    assert {p.relative_to(again): p.read_bytes() for p in again.rglob("*") if p.is_file()} == kept
    saved = sorted((tmp_path / "work" / "checkpoints").iterdir())[-1] / "model.safetensors"
    assert saved.stat().st_size < sum(p.stat().st_size for p in (again / "model").glob("*.safetensors")) / 2


@pytest.mark.parametrize("kind", ["lora", "qlora"])
def test_reward_model_with_an_adapter(world, tmp_path, kind):
    """Its head learns altogether, never of 4 bits, and is in the plain folder."""
    if kind == "qlora":
        pytest.importorskip("bitsandbytes", reason="make setup EXTRAS=qlora")
    trainer = TRAINER | {"adapter": TRAINER["adapter"] | {"kind": kind}}
    out = run(train_reward, tmp_path / "rm", {"trainer": trainer, "held_out": 0.2}, RUNTIME, model=world.model,
              groups=world.ids / "pref")
    last = json.loads((tmp_path / "rm.jsonl").read_text().splitlines()[-1])
    model = transformers.AutoModelForSequenceClassification.from_pretrained(out / "model").eval()
    group = next(iter(tables.read(world.ids / "pref")))
    with torch.no_grad():
        scores = [float(model(torch.tensor([group.prompt_ids + c.token_ids])).logits) for c in group.completions]
    assert last["held_out_accuracy"] > 0.9 and scores[0] > scores[1]


def test_moments_do_not_run_through_adapters(world, tmp_path):
    with pytest.raises(UserError, match="keep_optimizer: lora adapters start anew in every iteration"):
        run(train_preference, tmp_path / "work", DPO | {"keep_optimizer": True}, RUNTIME, model=world.model,
            groups=world.ids / "pref")
