"""The training stages on a real, tiny model: folders that load, references that agree, kill -9 and go on."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers

from pipeline import columns, tables
from pipeline.config import build, problems_of
from pipeline.errors import UserError
from pipeline.records import Completion, Group, Message
from pipeline.stage import Context
from pipeline.stages import import_data, init_model, reference_logprobs, sft, tokenize, train_preference, train_reward
from tests import given
from tests.given import metrics, run

ARCH = {"hidden_size": 32, "intermediate_size": 64, "layers": 2, "heads": 2, "kv_heads": 2, "max_position": 64,
        "vocab_size": 320}
TRAINER = {"lr": 3e-3, "batch_size": 8, "epochs": 2, "precision": "float32"}
RUNTIME = {"threads": 1, "tokens_per_batch": 256, "log_every": 1, "device": "cpu"}
DPO = {"objective": {"module": "pipeline.objectives.dpo"}, "trainer": TRAINER}


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> SimpleNamespace:
    """data -> init_model -> tokenize -> sft -> reference_logprobs, on 48 little conversations."""
    root = tmp_path_factory.mktemp("world")
    for split, k in (("sft", 1), ("pref", 2)):
        tables.write(root / "data" / split, [
            Group(f"{split}{i}", (Message("user", f"Say {i % 7}."),),
                  (Completion(f"It is {i % 7}, friend."), Completion("No idea at all."))[:k]) for i in range(48)])
    model = run(init_model, root / "init", {"arch": ARCH, "chat_template": "roles"}, data=root / "data") / "model"
    ids = run(tokenize, root / "tokens", {"max_prompt_tokens": 30, "max_completion_tokens": 30},
              data=root / "data", model=model)
    tuned = run(sft, root / "sft", {"trainer": TRAINER}, RUNTIME, model=model, groups=ids / "sft") / "model"
    refs = run(reference_logprobs, root / "refs", {"precision": "float32"}, RUNTIME, model=tuned, groups=ids / "pref")
    return SimpleNamespace(root=root, init=model, ids=ids, sft=tuned, refs=refs / "logps")


def test_sft_learns_and_its_folder_loads(world):
    losses = [line["loss"] for line in metrics(world.root / "sft")]
    assert losses[-1] < 0.7 * losses[0]
    loaded = transformers.AutoModelForCausalLM.from_pretrained(world.sft)
    tokenizer = transformers.AutoTokenizer.from_pretrained(world.sft)
    assert tokenizer.chat_template and loaded.generation_config.eos_token_id == [tokenizer.eos_token_id]
    for name in ("tokenizer.json", "chat_template.jinja", "generation_config.json", "tokenizer_config.json"):
        assert (world.sft / name).read_bytes() == (world.init / name).read_bytes()


def test_reference_is_what_the_folder_gives(world):
    """A log-prob equals the sum over a plain forward of the loaded model, one row at a time."""
    model = transformers.AutoModelForCausalLM.from_pretrained(world.sft).eval()
    for group in list(columns.with_logps(given.source(world.ids / "pref"), [world.refs]))[:5]:
        for completion in group.completions:
            ids = torch.tensor([group.prompt_ids + completion.token_ids])
            with torch.no_grad():
                logps = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
            start = len(group.prompt_ids) - 1
            expected = logps[start:].gather(1, ids[0, start + 1:, None]).sum()
            assert completion.ref_logp == pytest.approx(float(expected), abs=1e-3)


def test_reference_goes_on_behind_the_last_part(world, tmp_path, monkeypatch):
    monkeypatch.setattr(reference_logprobs, "_PART", 20)
    inputs = {"model": world.sft, "groups": world.ids / "pref"}
    out = run(reference_logprobs, tmp_path / "work", {"precision": "float32"}, RUNTIME, **inputs) / "logps"
    before = {p.name: p.read_bytes() for p in tables.parts(out)}
    assert len(before) == 3
    tables.parts(out)[2].unlink()
    kept = tables.parts(out)[1].stat().st_mtime_ns
    run(reference_logprobs, tmp_path / "work", {"precision": "float32"}, RUNTIME, **inputs)
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before
    assert tables.parts(out)[1].stat().st_mtime_ns == kept, "a finished part is not made again"


def test_dpo_starts_at_ln_2_and_learns(world, tmp_path):
    run(train_preference, tmp_path / "work", DPO, RUNTIME, model=world.sft, groups=world.ids / "pref",
        reference=world.refs)
    lines = metrics(tmp_path / "work")
    assert lines[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert lines[-1]["loss"] < 0.5 and lines[-1]["accuracy"] > 0.9


def test_rationales_of_a_file_are_trained_on(tmp_path):
    """From rows to a policy. The first loss of all 8 pairs: ln 2, and gamma times the sum over the 4 rationales' tokens
    of -log p by the folder's own forward pass, over 8; three steps later the rationales are likelier."""
    rows = [{"prompt": f"Say {i}.", "chosen": f"It is {i}.", "rejected": "No."} for i in range(8)]
    (tmp_path / "pref.jsonl").write_text("".join(json.dumps(
        row | ({"rationale": f"Assistant 1 says {i}."} if i % 2 else {})) + "\n" for i, row in enumerate(rows)))
    spec = {"module": "pipeline.formats.jsonl", "pref": "pref.jsonl", "shares": {"sft": 0, "unlabeled": 0, "eval": 0}}
    data = run(import_data, tmp_path / "import", {"format": spec}, {"root": str(tmp_path)})
    arch = {**ARCH, "max_position": 256, "vocab_size": 360}
    model = run(init_model, tmp_path / "init", {"arch": arch, "chat_template": "roles"}, data=data) / "model"
    ids = run(tokenize, tmp_path / "tokens", {"max_prompt_tokens": 30, "max_completion_tokens": 30}, data=data,
              model=model) / "pref"
    refs = run(reference_logprobs, tmp_path / "refs", {"precision": "float32"}, RUNTIME, model=model, groups=ids)
    gamma = {"module": "pipeline.objectives.auxiliary", "rationale_gamma": 0.01}
    out = run(train_preference, tmp_path / "work", {**DPO, "auxiliary": gamma, "trainer": {**TRAINER, "epochs": 4}},
              RUNTIME, model=model, groups=ids, reference=refs / "logps")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(model).eval()
    logps = []
    for why in (group.rationale for group in tables.read(ids) if group.rationale is not None):
        whole = torch.tensor([why.prompt_ids + why.token_ids])
        with torch.no_grad():
            of_tokens = loaded(input_ids=whole).logits[0, :-1].log_softmax(-1).gather(1, whole[0, 1:, None])
        logps.append(of_tokens[-len(why.token_ids):].sum().item())
    first, *_, last = metrics(tmp_path / "work")
    assert len(logps) == 4 and first["rationale_share"] == 0.5
    assert first["rationale_logps"] == pytest.approx(sum(logps) / 8, rel=1e-4)
    assert first["loss"] == pytest.approx(math.log(2) - 0.01 * sum(logps) / 8, rel=1e-4)
    assert last["rationale_logps"] > first["rationale_logps"] + 1 and (out / "model/model.safetensors").exists()


def test_objective_without_its_reference(world, tmp_path):
    with pytest.raises(UserError, match="needs reference log-probs, but 48 of 48 groups have none"):
        run(train_preference, tmp_path / "work", DPO, RUNTIME, model=world.sft, groups=world.ids / "pref")


def test_pairs_wanted_demonstrations_given(world, tmp_path):
    dpo = {"objective": {"module": "pipeline.objectives.dpo"}, "trainer": TRAINER}
    with pytest.raises(UserError, match="compares completions, but 48 of 48 groups have one"):
        run(train_preference, tmp_path / "work", dpo, RUNTIME, model=world.sft, groups=world.ids / "sft")


def test_bad_parts_show_when_planning():
    settings = {"objective": {"module": "pipeline.objectives.dpo", "beta": -1},
                "negatives": {"module": "pipeline.negatives.mc", "mm": 2}}
    problems = problems_of(train_preference.Settings, settings)
    assert [p.split(":")[0] for p in problems] == ["objective.beta", "negatives.mm"]
    off = {"objective": DPO["objective"], "negatives": {"module": None}}
    assert build(train_preference.Settings, off).drawn is None


def test_only_objectives_with_a_reference_want_one():
    def wanted(name):
        settings = build(train_preference.Settings, {"objective": {"module": f"pipeline.objectives.{name}"}})
        return train_preference.wanted(settings)

    assert wanted("dpo") == {"optimizer", "weights", "replay", "reference"}
    assert wanted("pairwise_cringe") == {"optimizer", "weights", "replay"}


def test_mc_negatives_and_kept_optimizer(world, tmp_path):
    settings = {"objective": {"module": "pipeline.objectives.rnce"}, "keep_optimizer": True, "trainer": TRAINER,
                "negatives": {"module": "pipeline.negatives.mc", "m": 1}}
    inputs = {"groups": world.ids / "pref", "reference": world.refs}
    first = run(train_preference, tmp_path / "one", settings, RUNTIME, model=world.sft, **inputs)
    assert json.loads((first / "optimizer" / "state.json").read_text()) == {"updates": 12}
    second = run(train_preference, tmp_path / "two", settings, RUNTIME, model=first / "model",
                 optimizer=first / "optimizer", **inputs)
    assert json.loads((second / "optimizer" / "state.json").read_text()) == {"updates": 24}


KILLED = """
import sys
from pathlib import Path
from pipeline.config import build
from pipeline.stage import Context
from pipeline.stages import train_preference as stage
import json
settings, runtime, inputs, work = json.loads(sys.argv[1])
stage.run(Context(build(stage.Settings, settings), build(stage.STAGE.runtime, runtime),
                  {k: (Path(v),) for k, v in inputs.items()}, {k: (v,) for k, v in inputs.items()}, Path(work), 0))
"""


def test_kill_9_and_go_on_gives_the_same_bytes(world, tmp_path):
    """A process killed at some step after its second checkpoint, started again: the bytes of a run left alone.

    The other objective, pairwise_cringe, is trained with by the runs that tests/chaos kills.
    """
    settings = {"objective": {"module": "pipeline.objectives.dpo"}, "keep_optimizer": True,
                "trainer": TRAINER | {"epochs": 12, "precision": "bfloat16", "schedule": "cosine"}}
    runtime = RUNTIME | {"checkpoint_every_steps": 5}
    inputs = {"model": world.sft, "groups": world.ids / "pref", "reference": world.refs}
    whole = run(train_preference, tmp_path / "whole", settings, runtime, **inputs)
    work = tmp_path / "killed"
    arguments = json.dumps([settings, runtime, {k: str(v) for k, v in inputs.items()}, str(work)])
    process = subprocess.Popen([sys.executable, "-c", KILLED, arguments], cwd=Path(__file__).parents[2])
    deadline = time.monotonic() + 120
    while not (work / "checkpoints" / "step-00000010").exists() and time.monotonic() < deadline:
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (work / "out" / "model").exists()
    resumed = run(train_preference, work, settings, runtime, **inputs)
    assert metrics(work)[0]["at"] > 5, "it went on from a checkpoint"
    files = sorted(p.relative_to(whole) for p in whole.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(resumed) for p in resumed.rglob("*") if p.is_file())
    assert [f.name for f in files if (whole / f).read_bytes() != (resumed / f).read_bytes()] == []


def test_a_reward_model_of_two_tables_is_that_of_one(world, tmp_path):
    """What was labelled in several iterations: the order of training goes by ids, wherever they stand."""
    groups = list(tables.read(world.ids / "pref"))
    for name, some in (("a", groups[:7]), ("b", groups[7:]), ("whole", groups)):
        tables.write(tmp_path / name, some)
    settings = build(train_reward.Settings, {"trainer": {**TRAINER, "epochs": 1}, "held_out": 0.2})
    made = []
    for number, names in enumerate((("a", "b"), ("whole",))):
        inputs = {"model": (world.sft,), "groups": tuple(tmp_path / name for name in names)}
        digests = {"model": ("m",), "groups": names}
        context = Context(settings, build(train_reward.STAGE.runtime, RUNTIME), inputs, digests,
                          tmp_path / f"work{number}", 0)
        train_reward.run(context)
        made.append((context.out / "model" / "model.safetensors").read_bytes())
        assert context.report.counts["groups"] + context.report.counts["held_out_groups"] == len(groups)
    assert made[0] == made[1]


def test_reward_model_learns_and_its_folder_scores(world, tmp_path):
    """The folder alone, loaded the usual way and padded, prefers what the pairs prefer."""
    work = tmp_path / "work"
    folder = run(train_reward, work, {"trainer": TRAINER, "held_out": 0.2}, RUNTIME, model=world.sft,
                 groups=world.ids / "pref") / "model"
    last = metrics(work)[-1]
    assert last["held_out_accuracy"] > 0.9 and last["held_out_margin"] > 0
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert model.config.num_labels == 1 and model.config.pad_token_id == tokenizer.pad_token_id
    group = next(iter(tables.read(world.ids / "pref")))
    rows = [list(group.prompt_ids + c.token_ids) for c in group.completions]
    padded = tokenizer.pad({"input_ids": rows}, return_tensors="pt", padding_side="right")
    with torch.no_grad():
        together = model(**padded).logits[:, 0]
        alone = torch.cat([model(input_ids=torch.tensor([row])).logits[:, 0] for row in rows])
    assert torch.allclose(together, alone, atol=1e-4) and together[0] > together[1]


def test_reward_model_needs_pairs(world, tmp_path):
    with pytest.raises(UserError, match="48 groups have one completion"):
        run(train_reward, tmp_path / "work", {"trainer": TRAINER}, RUNTIME, model=world.sft, groups=world.ids / "sft")


@pytest.mark.parametrize(("objective", "said"), [
    ("dpo", "negatives.m: 2 with objective dpo, which takes pairs, expected 1"),
    ("ce", "negatives: objective ce takes single completions, expected negatives=none"),
    ("rnce", None), ("binary_cringe", None),
])
def test_negatives_that_an_objective_cannot_take(objective, said):
    settings = {"objective": {"module": f"pipeline.objectives.{objective}"},
                "negatives": {"module": "pipeline.negatives.mc", "m": 2}}
    assert problems_of(train_preference.Settings, settings) == ([] if said is None else [said])


def test_averaged_weights_are_written_as_a_second_model(world, tmp_path):
    """decay 0: the average is the model itself; 0.9: nearer to the start. With adapters their factors are averaged."""
    def trained(name: str, **settings) -> Path:
        return run(train_preference, tmp_path / name, {**DPO, **settings}, RUNTIME, model=world.sft,
                   groups=world.ids / "pref", reference=world.refs)

    def weights(folder: Path) -> torch.Tensor:
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    plain, same, calm = trained("plain"), trained("same", ema=0.0), trained("calm", ema=0.9)
    assert not (plain / "ema").exists()
    assert torch.equal(weights(plain / "model"), weights(same / "model"))
    assert torch.equal(weights(same / "model"), weights(same / "ema" / "model"))
    start, end, averaged = weights(world.sft), weights(calm / "model"), weights(calm / "ema" / "model")
    assert 0 < (averaged - start).norm() < (end - start).norm()
    adapter = trained("lora", ema=0.9, trainer={**TRAINER, "adapter": {"kind": "lora", "r": 4}})
    moved = [(weights(adapter / part) - start).norm() for part in ("ema/model", "model")]
    assert 0 < moved[0] < moved[1] and (adapter / "ema" / "adapter").is_dir()
