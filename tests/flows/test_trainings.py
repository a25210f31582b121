"""Values by kind of model, what a plan says of its trainings, and trainings it refuses."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from flows import trainings
from flows.compose import compose
from flows.prepare import expand
from pipeline import plan, store
from pipeline.errors import UserError
from pipeline.plan import Planned, Step
from pipeline.stages.tokenize import STAGE as TOKENIZE
from pipeline.wiring import Ref

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def model_of(tmp_path: Path) -> Callable[[float], Path]:
    """model_of(8e9) -> a folder whose one safetensors file declares so many weights and holds none of them."""

    def make(weights: float) -> Path:
        folder = tmp_path / f"model-{weights:g}"
        folder.mkdir(exist_ok=True)
        shape = [int(weights) // 1000, 1000]
        header = {"w": {"dtype": "F32", "shape": shape, "data_offsets": [0, 4 * int(weights)]}, "__metadata__": {}}
        text = json.dumps(header).encode()
        with (folder / "model.safetensors").open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + 4 * int(weights))  # what is not written takes no room
        return folder

    return make


def settings_of(*words: str) -> dict[str, Step]:
    """Steps by name, of a recipe whose files are not looked at."""
    steps, problems = plan.try_expand(compose(list(words)).config, {})
    assert problems == []
    return {step.name: step for step in steps}


def test_weights_are_counted_from_headers_alone(model_of, tmp_path: Path) -> None:
    """Of a folder, and of an adapter those of its base; what cannot be read is told by the check of the model."""
    folder, adapter = model_of(8e9), tmp_path / "adapter"
    assert trainings.pretrained_weights({"path": str(folder)}) == 8_000_000_000
    assert trainings.pretrained_weights({"path": str(tmp_path)}) is trainings.pretrained_weights({}) is None
    adapter.mkdir()
    (folder / "config.json").write_text("{}")
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(folder)}))
    assert trainings.pretrained_weights({"path": str(adapter)}) == 8_000_000_000
    (adapter / "adapter_config.json").write_text("{}")
    assert trainings.pretrained_weights({"path": str(adapter)}) is None
    assert trainings.pretrained_weights({"path": str(adapter), "base": str(folder)}) == 8_000_000_000
    (folder / "model.safetensors").write_bytes(b"12345678901")
    assert trainings.pretrained_weights({"path": str(folder)}) is None


def test_the_kind_of_model_brings_the_trainer_and_the_users_word_wins(model_of) -> None:
    """lr of SFT, reward and preference: tiny, 135 M, 8 B, each published or marked in conf/trainer."""
    def rates(*words: str) -> tuple[float, ...]:
        steps = settings_of("recipe=iterative_dpo", *words)
        return tuple(steps[name].settings.trainer.lr for name in ("sft", "reward", "train[1]"))

    small, large = f"model.path={model_of(135e6)}", f"model.path={model_of(8e9)}"
    assert rates() == rates("trainer=scratch") == (3e-3, 1e-3, 1e-4)
    assert rates("model=path", small) == (2e-5, 1e-5, 1e-6)
    assert rates("model=path", large) == (2e-5, 2e-6, 5e-7)
    assert rates("model=path", small, "trainer=lora") == (2e-4, 1e-4, 1e-5)
    assert rates("model=path", large, "trainer=qlora") == (2e-4, 2e-5, 5e-6)
    assert rates("model=path", large, "trainer.reward.lr=3e-6") == (2e-5, 3e-6, 5e-7)
    assert rates("model=path", small, "trainer=scratch") == (3e-3, 1e-3, 1e-4)


def test_a_preset_whose_path_is_an_expression_is_as_large_as_what_lies_there(model_of, monkeypatch) -> None:
    """${oc.env:...} in a model's file: the 8 B weights behind it count."""
    monkeypatch.setenv("SOME_MODELS", str(model_of(8e9).parent))
    raw = {"trainer": {"of_size": {3e9: {"reward": {"lr": 2e-6}}}}, "objective": None,
           "model": {"path": "${oc.env:SOME_MODELS}/model-8e+09"}}
    assert trainings.values_for(raw, {})[0] == [("trainer.reward.lr", 2e-6)]


def test_a_model_of_the_hub_whose_size_is_not_told_is_named() -> None:
    raw = {"trainer": {"of_size": {3e9: {"reward": {"lr": 2e-6}}}}, "objective": None, "model": {"path": "org/name"}}
    values, (note,) = trainings.values_for(raw, {})
    assert values == [] and note.endswith("is not told by its files: the rates are those of a model below 3 B")


def test_an_objective_brings_its_own_values_for_pretrained_models_only(model_of) -> None:
    model = ["model=path", f"model.path={model_of(8e9)}"]
    for objective, full, lora in (("simpo", 1e-6, 1e-5), ("orpo", 5e-6, 5e-5), ("kto", 5e-7, 5e-6)):
        words = ["recipe=iterative_dpo", f"objective={objective}"]
        assert settings_of(*words, *model)["train[1]"].settings.trainer.lr == full
        assert settings_of(*words, *model, "trainer=lora")["train[1]"].settings.trainer.lr == lora
        assert settings_of(*words)["train[1]"].settings.trainer.lr == 1e-4
    composed = compose(["recipe=iterative_dpo", "objective=orpo", *model, "trainer.preference.epochs=2"])
    assert "objective=orpo brings trainer.preference.lr=5e-06" in composed.notes
    assert composed.config["trainer"]["preference"]["epochs"] == 2


def test_nothing_caps_a_real_data_set_in_silence(model_of) -> None:
    """No max_steps, no row limits, every prompt; the tiny model keeps its own."""
    data = ["recipe=iterative_dpo", "data=hh", "data.root=/x"]
    model = ["model=path", f"model.path={model_of(135e6)}"]
    large, tiny = compose([*data, *model]).config, compose(data).config
    assert set(large["data"]["format"]["limits"].values()) == {None}
    assert tiny["data"]["format"]["limits"] == {"sft": 1200, "pref": 1200, "unlabeled": 4000, "eval": 96}
    assert large["trainer"]["preference"]["max_steps"] is None and tiny["trainer"]["preference"]["max_steps"] == 1000
    assert large["sampling"]["prompts_per_iteration"] is None and tiny["sampling"]["prompts_per_iteration"] == 1000
    assert large["stage"]["select_prompts"]["settings"]["last"] == 2
    assert tiny["stage"]["select_prompts"]["settings"]["last"] is None


def test_a_rate_that_ruins_a_pretrained_model_is_refused_unless_the_user_named_it(model_of) -> None:
    def wrong(weights: float, *words: str) -> list[str]:
        composed = compose(["recipe=iterative_dpo", "model=path", f"model.path={model_of(weights)}",
                            "hardware.memory_gb=1000", *words])
        steps, _ = plan.try_expand(composed.config, {})
        return trainings.problems(composed.config, steps, {"": composed.given})

    ruinous = wrong(135e6, "trainer=scratch")
    assert [line.partition(":")[0] for line in ruinous] == ["trainer.sft.lr", "trainer.reward.lr"]
    assert ruinous[0] == (
        "trainer.sft.lr: 0.003 for all 135 M weights of a pretrained model, which it would ruin, expected at most "
        "0.0001; take trainer=full or trainer=lora, or say it yourself: trainer.sft.lr=0.003")
    assert wrong(135e6, "trainer=scratch", "trainer.sft.lr=3e-3", "trainer.reward.lr=1e-3") == []
    assert wrong(99e6, "trainer=scratch") == wrong(135e6) == wrong(135e6, "trainer=lora") == []


def test_what_does_not_fit_into_memory_is_refused_with_what_would(model_of) -> None:
    """8 B weights: 16 bytes each in full, 8 for LoRA on a CPU, which merges beside the model."""
    def wrong(*words: str) -> list[str]:
        composed = compose(["recipe=iterative_dpo", "model=path", f"model.path={model_of(8e9)}", *words])
        steps, _ = plan.try_expand(composed.config, {})
        return trainings.problems(composed.config, steps, {"": composed.given})

    cpu = ["hardware=cpu", "hardware.memory_gb=80"]
    (problem,) = wrong(*cpu)
    assert problem == (
        "trainer.sft, trainer.reward, trainer.preference: training all 8 B weights takes 128.0 GB before activations, "
        "the device has 80.0 GB; set trainer=lora (64.0 GB), more devices (hardware.training.strategy=fsdp2) or take "
        "a smaller model")
    assert wrong(*cpu, "trainer=lora") == []
    assert "set trainer=qlora (9.6 GB)" in wrong("hardware=cuda", "hardware.memory_gb=31", "trainer=lora",
                                                  "objective=kto")[0]
    spread = ["hardware.training.processes=8", "hardware.training.strategy=fsdp2"]
    assert wrong("hardware=cuda", "hardware.memory_gb=80", *spread) == []
    assert wrong("hardware=cuda", "hardware.memory_gb=24", *spread)[0].endswith("or take a smaller model")


@pytest.mark.parametrize("installed", [False, True])
def test_qlora_without_its_package_is_told_at_plan(monkeypatch: pytest.MonkeyPatch, installed: bool) -> None:
    """Not by the first stage that trains."""
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: find("json" if installed else "no_such_package")
                        if name == "bitsandbytes" else find(name))
    composed = compose(["recipe=iterative_dpo", "trainer=qlora"])
    steps, _ = plan.try_expand(composed.config, {})
    assert trainings.problems(composed.config, steps, {"": composed.given}) == ([] if installed else [
        "trainer.sft.adapter.kind, trainer.reward.adapter.kind, trainer.preference.adapter.kind: qlora needs the "
        "package bitsandbytes, which is not installed; pip install 'alignloop[qlora]' or take trainer=lora"])


def test_bytes_of_a_training() -> None:
    """A weight with gradient and two moments: 16; a frozen one: 4; KTO's reference beside it: 4 more."""
    def bytes_of(kind: str, on_cpu: bool = False, copies: int = 0, devices: int = 1) -> float:
        return trainings.bytes_needed(1000, kind, on_cpu, copies, devices)

    assert [bytes_of("none"), bytes_of("none", copies=1), bytes_of("none", devices=8)] == [16e3, 20e3, 4e3]
    assert [bytes_of("lora"), bytes_of("lora", on_cpu=True), bytes_of("lora", copies=1)] == [4e3, 8e3, 8e3]
    assert bytes_of("qlora") == pytest.approx(600)
    assert trainings.bytes_needed(1000, "lora", False, 1, 1, each=2.0) == 4e3  # bfloat16, on CUDA


def test_rates_of_adapters_cannot_go_on_with_an_optimizer_and_the_plan_says_so() -> None:
    with pytest.raises(UserError, match=r"keep_optimizer: lora adapters start anew .*train.keep_optimizer=fal"):
        expand(compose(["recipe=online_dpo", "trainer=lora"]))
    composed = compose(["recipe=online_dpo", "trainer=lora", "train.keep_optimizer=false"])
    steps = {step.name: step for step in expand(composed)}
    assert "optimizer" not in steps["train[2]"].inputs and not steps["train[2]"].settings.keep_optimizer


def test_rows_say_what_a_training_sees(tmp_path: Path) -> None:
    """The built-in world: 1750 rows of each kind, one pair a prompt at most; nothing has run."""
    composed = compose(["recipe=iterative_dpo", f"workspace={tmp_path}", "trainer.sft.warmup_steps=0.1"])
    planned = plan.look_up_all(tmp_path, expand(composed))
    rows = {row[0]: row[1:] for row in trainings.rows(tmp_path, planned)}
    assert rows["sft"] == ["all", "0.003", "cosine, 10% up", "32", "3.02", "~1750", "~165", "?"]
    assert rows["train[1]"] == ["all", "0.0001", "constant, 10 up", "32", "1.01", "~1750", "~55", "?"]
    assert rows["train[2]"][4:7] == ["1", "~2750", "~86"]


def test_what_has_run_is_counted(tmp_path: Path) -> None:
    """10 groups of 400 tokens in batches of 4: 3 steps, each of a full batch, which see 12 groups, 1.2 passes."""
    done = store.Artifact("tokenize", "k", tmp_path, {"counts": {"sft": 10, "sft_tokens": 4000}})
    step = settings_of("recipe=sft", "trainer.sft.batch_size=4", "trainer.sft.epochs=1")["sft"]
    made = Planned(Step("tokens", "tokenize", 0, {}, TOKENIZE.Settings(), None, 0), "k", done)
    planned = [made, Planned(Step(**{**vars(step), "inputs": {"groups": (Ref("tokens", "sft"),)}}), None, None)]
    assert trainings.rows(tmp_path, planned)[0][5:] == ["1.2", "10", "3", "4,800"]
    assert trainings.notes(tmp_path, planned) == []
    large = settings_of("recipe=sft", "trainer.sft.batch_size=128", "trainer.sft.epochs=1")["sft"]
    planned = [made, Planned(Step(**{**vars(large), "inputs": {"groups": (Ref("tokens", "sft"),)}}), None, None)]
    assert trainings.rows(tmp_path, planned)[0][5:] == ["12.8", "10", "1", "51,200"]
    assert trainings.notes(tmp_path, planned) == [
        "sft: a batch of 128 is more than its 10 groups, every step sees them again (12.8 passes in all); lower "
        "trainer.sft.batch_size"]




def test_a_plan_reads_well_at_80_columns(tmp_path: Path) -> None:
    words = ["plan", "recipe=iterative_dpo", f"workspace={tmp_path}"]
    code = f"from flows import screen; screen.console.width = 80; from flows.cli import main; main({words!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    lines = done.stdout.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("training "))
    assert lines[start].split() == trainings.COLUMNS
    assert all(len(line) <= 80 for line in lines[start:start + 5])
