"""Published families, small: each accepted, trained, given an adapter and a head, and sampled from by the real stages.

One test fills the cheap cells of a family's row in docs/models.md; the others are in
tests/engines/vllm and tests/flows.
"""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers

from pipeline import tables
from pipeline.engines.engine import Request, model_facts
from pipeline.engines.transformers import engine as engine_module
from pipeline.errors import UserError
from pipeline.lm import checks, folders, logps, prefix, probe, round_trip
from pipeline.lm.examples import Example
from pipeline.lm.settings import THIS_MACHINE, ModelRuntime
from pipeline.records import Completion, Group, Message
from pipeline.stages import init_model, reference_logprobs, sft, tokenize, train_preference, train_reward
from tests.given import metrics, run
from tests.lm import families
from tests.lm.families import CHEAP, FAMILIES

CPU = torch.device("cpu")
RUNTIME = {"threads": 1, "log_every": 1, "device": "cpu"}
TRAINER = {"lr": 3e-3, "batch_size": 8, "epochs": 2, "precision": "float32"}
ADAPTED = TRAINER | {"lr": 2e-2, "adapter": {"kind": "lora", "r": 4, "alpha": 8}}
DPO = {"objective": {"module": "pipeline.objectives.dpo"}}


def losses(work: Path) -> list[float]:
    return [line["loss"] for line in metrics(work) if "loss" in line]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Demonstrations and pairs, some of them in a talk."""
    root = tmp_path_factory.mktemp("data")
    for split, k in (("sft", 1), ("pref", 2)):
        tables.write(root / split, [
            Group(f"{split}{i}", (*((Message("user", "Hi."), Message("assistant", "Hello.")) if i % 2 else ()),
                                  Message("user", f"Say {i % 5}.")),
                  (Completion(f"It is {i % 5}."), Completion("No idea."))[:k]) for i in range(16)])
    return root


@pytest.fixture(params=FAMILIES)
def family(request, data: Path, tmp_path: Path, record_property) -> SimpleNamespace:
    """A folder that planning and init accept, and rows in its ids."""
    name, shape = request.param, FAMILIES[request.param]
    for column in CHEAP:
        record_property(column, name)
    folder = families.make(name, tmp_path / "published")
    chosen = shape.chat_template
    assert checks.problems(checks.Folder.of(folder), chosen is not None) == []
    assert probe.problems(folder, True, chosen) == []
    model = run(init_model, tmp_path / "init", {"chat_template": chosen}, {"path": str(folder), "reward": True})
    ids = run(tokenize, tmp_path / "tokens", {"max_prompt_tokens": 150, "max_completion_tokens": 40}, {},
              data=data, model=model / "model")
    assert tables.count(ids / "sft") == tables.count(ids / "pref") == 16
    return SimpleNamespace(name=name, shape=shape, work=tmp_path, model=model / "model", ids=ids)


def test_a_family_goes_through_every_stage(family: SimpleNamespace):
    seen = {"accepted": lambda _: None, "shares prompts": shares, "trains": trains, "LoRA": adapts,
            "reward model": judges, "samples: transformers": samples}
    assert tuple(seen) == CHEAP
    for look in seen.values():
        look(family)


def test_longrope_is_used_up_to_the_length_of_its_pretraining(data: Path, tmp_path: Path):
    """A long row changes the log-probs of a short one beside it, so no row longer than that is taken."""
    folder = families.make("phi4_mini", tmp_path / "published")
    model = folders.load_policy(folder, CPU)
    ids = torch.arange(250)[None].repeat(2, 1) % 200 + 5
    with torch.no_grad():
        together, alone = (model(ids[:, :length]).logits[0, :190].log_softmax(-1) for length in (250, 190))
    assert (together - alone).abs().max() > 0.1
    assert model.config.max_position_embeddings == 256
    assert folders.context_length(model) == model_facts(folder).max_position == 192
    with pytest.raises(UserError, match=r"= 193, but the model's context is 192 tokens; lower them"):
        run(tokenize, tmp_path / "tokens", {"max_prompt_tokens": 153, "max_completion_tokens": 40}, {}, data=data,
            model=folder)


def shares(family: SimpleNamespace) -> None:
    """Whether every prompt runs once for its completions; where not, the product names its own reason. Either way, and
    with every attention that hardware= can ask for, the log-probs are those of the family's own code.
    """
    why = prefix.enable_prefix_sharing(folders.load_policy(family.model, CPU))
    assert (why is not None) == ("shares prompts" in family.shape.cannot), why
    given = round_trip.examples(family.model)
    own = round_trip.own_logps(transformers.AutoModelForCausalLM.from_pretrained(
        family.model, attn_implementation="eager").eval(), given)
    for asked, shared in itertools.product(("eager", "sdpa"), (True, False)):
        runtime = ModelRuntime(device="cpu", attention=asked, share_prefix=shared)
        found = logps.token_logps(logps.open_frozen(family.model, CPU, runtime, "float32"), given, runtime, "float32")
        assert round_trip.gap(own, found) < 2e-4, runtime


def trains(family: SimpleNamespace) -> None:
    """All weights learn; the policy starts as its reference, so DPO's first loss is log 2."""
    tuned = run(sft, family.work / "sft", {"trainer": TRAINER}, RUNTIME, model=family.model,
                groups=family.ids / "sft")
    course = losses(family.work / "sft")
    assert course[-1] < course[0] - 0.3
    prefers(family, tuned / "model", TRAINER, "dpo")


def prefers(family: SimpleNamespace, start: Path, trainer: dict, name: str) -> None:
    refs = run(reference_logprobs, family.work / f"{name}_refs", {"precision": "float32"}, RUNTIME, model=start,
               groups=family.ids / "pref")
    run(train_preference, family.work / name, DPO | {"trainer": trainer}, RUNTIME, model=start,
        groups=family.ids / "pref", reference=refs / "logps")
    course = losses(family.work / name)
    assert course[0] == pytest.approx(math.log(2), abs=1e-4) and course[-1] < course[0] - 0.02


def adapts(family: SimpleNamespace) -> None:
    """An adapter learns, and model/ is the base with it merged in, to whoever loads either."""
    import peft

    out = run(sft, family.work / "lora", {"trainer": ADAPTED}, RUNTIME, model=family.model, groups=family.ids / "sft")
    course = losses(family.work / "lora")
    assert course[-1] < course[0] - 0.3
    kind, ids = transformers.AutoModelForCausalLM, torch.arange(3, 15)[None]
    with torch.no_grad():
        base = kind.from_pretrained(family.model, attn_implementation="eager")
        plain = base(ids).logits
        apart = peft.PeftModel.from_pretrained(base, out / "adapter")(ids).logits
        merged = kind.from_pretrained(out / "model", attn_implementation="eager")(ids).logits
    assert torch.allclose(merged, apart, atol=1e-3) and not torch.allclose(plain, apart, atol=1e-1)
    prefers(family, out / "model", ADAPTED, "lora_dpo")


def judges(family: SimpleNamespace) -> None:
    """A reward model, loaded by transformers alone, scores the chosen answer of unseen pairs above the other."""
    out = run(train_reward, family.work / "reward", {"trainer": TRAINER, "held_out": 0.25}, RUNTIME,
              model=family.model, groups=family.ids / "pref")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        out / "model", attn_implementation="eager").eval()
    with torch.no_grad():
        gaps = [float(chosen - rejected) for group in tables.read(family.ids / "pref") for chosen, rejected in [
            [model(torch.tensor([group.prompt_ids + c.token_ids])).logits for c in group.completions]]]
    assert np.mean(np.array(gaps) > 0) > 0.9


def samples(family: SimpleNamespace) -> None:
    """Greedy is what transformers' own `generate` gives, and the engine's log-probs are the reference's."""
    model = family.work / "sft" / "out" / "model"
    stops = folders.stop_ids(model)
    asked = [Request(tuple(g.prompt_ids), 1, 0.0, 1.0, 0, 12, stops, 0, True) for g in tables.read(family.ids / "pref")]
    with engine_module.open_engine(model, engine_module.Settings(device="cpu", threads=1), model / "no.log") as engine:
        answers = [answer.samples[0] for answer in engine.sample(asked[:4])]
    oracle = transformers.AutoModelForCausalLM.from_pretrained(model, attn_implementation="eager").eval()
    oracle.generation_config = transformers.GenerationConfig(pad_token_id=0, eos_token_id=list(stops))
    network = logps.open_frozen(model, CPU, THIS_MACHINE, "float32")
    for request, answer in zip(asked, answers, strict=False):
        prompt = torch.tensor([request.prompt_ids])
        ids = oracle.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=12, do_sample=False)
        assert answer.token_ids == tuple(ids[0, len(request.prompt_ids):].tolist())
        example = Example("a", np.array(request.prompt_ids, np.int32), (np.array(answer.token_ids, np.int32),))
        ours = logps.token_logps(network, [example], THIS_MACHINE, "float32")[0][0]
        assert np.allclose(answer.logprobs, ours, atol=1e-3)


def test_the_table_of_the_page_is_that_of_the_tests(tmp_path: Path):
    """What stands there is what tests prove; a run adds the cells that it saw, and takes out those that failed."""
    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text()
    seen, days = families.written(page)
    assert families.BEGIN + families.table(seen, days) + families.END in page
    assert all(seen[column] == set(FAMILIES) for column in CHEAP)
    copy = tmp_path / "models.md"
    copy.write_text(page)
    families.write(copy, {"whole loop": {"gpt2"}}, {"whole loop": {"phi3"}, "LoRA": {"gemma2"}}, "2031-05-06")
    assert families.written(copy.read_text()) == (
        seen | {"whole loop": (seen["whole loop"] | {"gpt2"}) - {"phi3"}, "LoRA": seen["LoRA"] - {"gemma2"}},
        days | {"whole loop": "2031-05-06"})
