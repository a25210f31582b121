"""Out of memory at every place where training can run out: one line with the settings that help there."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import transformers

from pipeline import config, tables
from pipeline.config import load_part
from pipeline.errors import UserError
from pipeline.lm import folders, forward
from pipeline.objectives.contract import Objective
from pipeline.records import Completion, Group
from pipeline.stage import Context, Reporter
from pipeline.stages import reference_logprobs, train_reward
from pipeline.training import checkpoint, delivered, policy, reward, run
from pipeline.training.gradients import World
from pipeline.training.loop import Job, fit
from pipeline.training.settings import TrainerSettings, TrainRuntime

DPO = {"module": "pipeline.objectives.dpo"}
ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you tried to "
                 "allocate 4503599627370496 bytes. Error code 12 (Cannot allocate memory)"),
]  # fmt: skip
WORDINGS = [
    "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "cuDNN error: CUDNN_STATUS_ALLOC_FAILED", "CUDA driver error: out of memory",
    "NCCL error: Failed to CUDA calloc 6291456 bytes", "ncclUnhandledCudaError: Cuda failure 2 'out of memory'",
    "DefaultCPUAllocator: not enough memory: you tried to allocate 4 bytes.",
]  # fmt: skip
every_error = pytest.mark.parametrize("error", ERRORS, ids=["device", "CPU"])


@pytest.fixture
def folder(tiny, tmp_path):
    """A policy's folder, with what a stage reads of it beside the weights."""
    from tokenizers import Tokenizer, models

    made = tmp_path / "policy"
    tiny.llama().save_pretrained(made)
    transformers.GenerationConfig(eos_token_id=2).save_pretrained(made)
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(tiny.vocabulary)}, unk_token="w0"))
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w2", pad_token="w0").save_pretrained(made)
    groups = [Group(f"g{i}", (), tuple(Completion("", (5 + i + k, 2)) for k in (0, 1)), (3, 4)) for i in range(8)]
    tables.write(tmp_path / "groups", groups)
    return made


def context(module, folder, settings=None, **runtime):
    base = folder.parent
    return Context(
        settings=config.build(module.Settings, settings or {}), runtime=TrainRuntime(device="cpu", **runtime),
        inputs={"model": (folder,), "groups": (base / "groups",)}, digests={"model": ("m",), "groups": ("g",)},
        work=base / "work", seed=1, report=Reporter())


def raising(error):
    def instead(*_, **__):
        raise error

    return instead


def job(tmp_path):
    settings = TrainerSettings(batch_size=4, precision="float32")
    return Job(settings, TrainRuntime(tokens_per_batch=100, logits_per_chunk=64), 0, tmp_path / "checkpoints",
               Reporter())


@every_error
def test_in_a_training_pass(tiny, tmp_path, error):
    class Greedy(policy.PolicyTask):
        losses = raising(error)

    greedy = Greedy(load_part(DPO, "objective", Objective), None, 0, 10**6, 2**27)
    with pytest.raises(UserError) as caught:
        fit(tiny.llama(), tiny.examples(4), greedy, job(tmp_path))
    assert caught.value.problems == [
        "out of memory in step 1: lower hardware.training.tokens_per_batch (now 100) or "
        "hardware.training.logits_per_chunk (now 64), or set hardware.training.gradient_checkpointing=true; "
        "no result changes"]


@every_error
def test_in_the_optimizer(tiny, tmp_path, monkeypatch, error):
    monkeypatch.setattr(torch.optim.AdamW, "step", raising(error))
    task = policy.PolicyTask(load_part(DPO, "objective", Objective), None, 0, 10**6, 2**27)
    with pytest.raises(UserError, match=r"out of memory in the optimizer at step 1: every weight needs .*"
                                        r"adapter.kind=lora.*strategy=fsdp2"):
        fit(tiny.llama(), tiny.examples(4), task, job(tmp_path))


@every_error
def test_while_clipping(tiny, tmp_path, monkeypatch, error):
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", raising(error))
    task = policy.PolicyTask(load_part(DPO, "objective", Objective), None, 0, 10**6, 2**27)
    with pytest.raises(UserError, match=r"out of memory in step 1: lower hardware.training.tokens_per_batch"):
        fit(tiny.llama(), tiny.examples(4), task, job(tmp_path))


@every_error
def test_in_a_checkpoint(tiny, tmp_path, monkeypatch, error):
    monkeypatch.setattr(checkpoint, "save_file", raising(error))
    task = policy.PolicyTask(load_part(DPO, "objective", Objective), None, 0, 10**6, 2**27)
    one = job(tmp_path)
    often = dataclasses.replace(one, settings=dataclasses.replace(one.settings, epochs=3),
                                runtime=dataclasses.replace(one.runtime, checkpoint_every_steps=2))
    with pytest.raises(UserError, match=r"out of memory in the checkpoint of step 2: every tensor is made whole"):
        fit(tiny.llama(), tiny.examples(4), task, often)


@every_error
def test_while_writing_the_model(tiny, folder, tmp_path, monkeypatch, error):
    model = folders.load_policy(folder, torch.device("cpu"))
    monkeypatch.setattr(transformers.PreTrainedModel, "save_pretrained", raising(error))
    with pytest.raises(UserError, match=r"out of memory while writing the model: .* goes on from the last checkpoint"):
        run.deliver(model, run.Origin(folder, lambda _: model), tmp_path, TrainerSettings(batch_size=4), World(),
                    delivered.Probe.of(tiny.examples(2)))


@every_error
@pytest.mark.parametrize("load", [folders.load_policy, lambda f, d: folders.load_reward(f, d, 0, 0)],
                         ids=["policy", "reward model"])
def test_while_loading_a_model(folder, monkeypatch, error, load):
    monkeypatch.setattr(transformers.PreTrainedModel, "from_pretrained", raising(error))
    with pytest.raises(UserError, match=r"out of memory while loading .*policy: every weight takes 4 bytes; choose a "
                                        r"smaller model, .*kind=qlora"):
        load(folder, torch.device("cpu"))


@every_error
def test_in_reference_logprobs(folder, monkeypatch, error):
    monkeypatch.setattr(forward, "token_logps", raising(error))
    with pytest.raises(UserError, match=r"out of memory at group 1: lower hardware.training.tokens_per_batch \(now 77\)"
                                        r".*no result changes"):
        reference_logprobs.run(context(reference_logprobs, folder, tokens_per_batch=77))


@every_error
@pytest.mark.parametrize(("place", "said"), [
    ("group_scores", "in step 1: lower .*gradient_checkpointing"), ("accuracy", "on the held-out pairs: lower"),
])
def test_in_reward_training(folder, monkeypatch, error, place, said):
    monkeypatch.setattr(reward, place, raising(error))
    settings = {"held_out": 0.4, "trainer": {"batch_size": 2, "max_steps": 1, "epochs": None, "precision": "float32"}}
    with pytest.raises(UserError, match=f"out of memory {said}"):
        train_reward.run(context(train_reward, folder, settings))


def test_a_real_request_for_more_than_there_is():
    """What this machine's allocator says, word for word."""
    with pytest.raises(UserError, match=r"^out of memory here: do less$"), forward.enough_memory("here", "do less"):
        torch.empty(2**55)


def test_other_errors_pass():
    with pytest.raises(RuntimeError, match="shape"), forward.enough_memory("here", "do less"):
        raise RuntimeError("shape mismatch")
    assert not forward.ran_out(ValueError("no")) and forward.ran_out(MemoryError())


def test_the_error_is_one_line():
    """No traceback of torch's hangs on."""
    with pytest.raises(UserError) as caught, forward.enough_memory("here", "do less"):
        raise ERRORS[0]
    assert caught.value.__suppress_context__ and "\n" not in str(caught.value)


@pytest.mark.parametrize("words", WORDINGS)
def test_every_allocators_wording_is_known(words):
    assert forward.ran_out(RuntimeError(words))
    assert not forward.ran_out(RuntimeError("CUDA error: an illegal memory access was encountered"))
