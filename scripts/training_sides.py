"""One side of scripts/bench_training.py: a process that holds one trainer and makes steps when told to.

    python scripts/training_sides.py SPEC.json

Reads a number of steps per line from its input and answers each line with one line of JSON: seconds, processor seconds,
losses and unpadded tokens of every step, and the process's peak memory. A side that waits uses no processor, so sides
that take turns are measured under the same conditions; a process each, so that each has a peak memory of its own.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

LR, BETA2, BETA = 5e-4, 0.95, 0.1  # of both sides: learning rate, AdamW's second beta, DPO's beta


@dataclass
class Gate:
    """Holds a trainer before every step until it is told to go on."""

    left: int = 0
    started: tuple[float, float] = (0.0, 0.0)
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)  # of all threads
    losses: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)

    def enter(self) -> None:
        while self.left == 0:
            self.say({"seconds": self.seconds, "cpu_seconds": self.cpu_seconds, "losses": self.losses,
                      "tokens": self.tokens, "peak_gb": peak_gb()})
            self.seconds, self.cpu_seconds, self.losses, self.tokens = [], [], [], []
            line = sys.stdin.readline()
            if not line:
                os._exit(0)  # the bench is done with this side
            self.left = int(line)
        self.left -= 1
        self.started = time.perf_counter(), time.process_time()

    def leave(self, loss: float, tokens: int) -> None:
        self.seconds.append(time.perf_counter() - self.started[0])
        self.cpu_seconds.append(time.process_time() - self.started[1])
        self.losses.append(loss)
        self.tokens.append(tokens)

    @staticmethod
    def say(values: dict[str, Any]) -> None:
        sys.__stdout__.write(json.dumps(values) + "\n")
        sys.__stdout__.flush()


def peak_gb() -> float:
    """Most memory this process ever had, GB; on a GPU the most of the device's."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    from pipeline.stage import peak_memory

    return peak_memory() / 2**30


def ours(spec: dict[str, Any], gate: Gate) -> None:
    """The training core as the stages run it: `fit` with its own task, order, optimizer and metrics."""
    import torch

    from pipeline.columns import Source
    from pipeline.config import load_part
    from pipeline.lm import examples as data
    from pipeline.lm import folders, prefix
    from pipeline.negatives.contract import Draw
    from pipeline.objectives.contract import Objective
    from pipeline.stage import Reporter
    from pipeline.training import policy
    from pipeline.training.loop import Job, fit
    from pipeline.training.settings import TrainerSettings, TrainRuntime

    table = spec.get("table")
    examples = (read_examples(Path(spec["data"])) if table is None else
                data.load([Source(Path(table), "")], Path(spec["work"]) / "arrays"))
    runtime = TrainRuntime(tokens_per_batch=spec["tokens_per_batch"], checkpoint_every_seconds=None, log_every=1,
                           attention="eager", peak_tflops=1.0)
    device = folders.prepare_machine(runtime)
    model = folders.load_policy(Path(spec["model"]), device, runtime)
    prefix.prepare(model, spec["share_prefix"])
    if spec["reference"]:
        examples = with_reference(model, examples, spec["precision"])
    negatives = None if spec["negatives"] is None else load_part(spec["negatives"], "negatives", Draw)
    task = policy.PolicyTask(load_part(spec["objective"], "objective", Objective), negatives, 0,
                             runtime.tokens_per_batch, runtime.logits_per_chunk)

    class Gated:
        """The task, held at the gate before each step."""

        def __getattr__(self, name: str) -> Any:
            return getattr(task, name)

        def prepare(self, model: Any, batch: Any, step: int) -> Any:
            gate.enter()
            self.tokens = sum(len(e.prompt) * len(e.completions) + e.completion_tokens for e in batch)
            return task.prepare(model, batch, step)

    class Reports(Reporter):
        def metric(self, at: int, **values: float) -> None:
            gate.leave(values["loss"], gated.tokens)

    gated = Gated()
    settings = TrainerSettings(lr=LR, beta2=BETA2, batch_size=spec["batch"], epochs=None, max_steps=10**6,
                               precision=spec["precision"])
    torch.manual_seed(0)
    fit(model, examples, gated, Job(settings, runtime, spec["seed"], Path(spec["work"]) / "none", Reports()))


def read_examples(path: Path) -> list[Any]:
    import numpy as np

    from pipeline.lm.examples import Example

    def ids(values: list[int]) -> Any:
        return np.asarray(values, np.int32)

    return [Example(row["id"], ids(row["prompt"]), tuple(ids(c) for c in row["completions"]))
            for row in map(json.loads, path.read_text().splitlines())]


def with_reference(model: Any, examples: list[Any], precision: str) -> list[Any]:
    """The examples with log-probs of the model as it is now."""
    import dataclasses

    import torch

    from pipeline.lm import forward
    from pipeline.lm.forward import autocast, device_of

    made = []
    with torch.no_grad(), autocast(device_of(model), precision):
        for start in range(0, len(examples), 8):
            some = examples[start:start + 8]
            logps = forward.group_logps(model, forward.collate(some, device_of(model)), 2**27).tolist()
            made += [dataclasses.replace(e, ref_logps=tuple(row[: len(e.completions)]))
                     for e, row in zip(some, logps, strict=True)]
    return made


def loading(spec: dict[str, Any], gate: Gate) -> None:
    """Open a table as the training stages do and read groups of it in random order."""
    import numpy as np

    from pipeline.columns import Source
    from pipeline.lm import examples as data

    before = peak_gb()
    started = time.perf_counter()
    examples = data.load([Source(Path(spec["table"]), "")], Path(spec["work"]) / "arrays")
    opened = time.perf_counter() - started
    wanted = np.random.default_rng(0).integers(0, len(examples), 10_000)
    started = time.perf_counter()
    tokens = sum(examples[int(i)].completion_tokens for i in wanted)
    gate.say({"seconds": opened, "seconds_per_group": (time.perf_counter() - started) / len(wanted), "tokens": tokens,
              "above_gb": peak_gb() - before})


def trl_side(spec: dict[str, Any], gate: Gate) -> None:
    """TRL's own trainer on the same texts in the same order, at its fastest here: no gradient checkpointing."""
    import torch
    import transformers
    import trl
    from datasets import Dataset

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    rows = [json.loads(line) for line in Path(spec["data"]).read_text().splitlines()]
    tokenizer = transformers.AutoTokenizer.from_pretrained(spec["model"])
    model = transformers.AutoModelForCausalLM.from_pretrained(spec["model"], dtype=torch.float32)
    names = ("chosen", "rejected") if spec["kind"] == "trl_dpo" else ("completion",)

    def text(ids: list[int]) -> str:
        return "".join(f" w{i}" for i in ids if i != tokenizer.eos_token_id)

    data = Dataset.from_list([
        {"prompt": text(r["prompt"]), **{n: text(c) for n, c in zip(names, r["completions"], strict=False)}}
        for r in rows])
    trainer_class, config_class = ((trl.DPOTrainer, trl.DPOConfig) if spec["kind"] == "trl_dpo" else
                                   (trl.SFTTrainer, trl.SFTConfig))
    own = ({"precompute_ref_log_probs": True, "beta": BETA, "max_length": None} if spec["kind"] == "trl_dpo" else
           {"packing": spec["packing"], "max_length": 1024})
    config = config_class(
        output_dir=spec["work"], per_device_train_batch_size=spec["batch"], max_steps=10**6,
        bf16=spec["precision"] == "bfloat16", gradient_checkpointing=False, learning_rate=LR, adam_beta2=BETA2,
        lr_scheduler_type="constant", warmup_steps=0, weight_decay=0.0, max_grad_norm=1.0, report_to="none",
        save_strategy="no", logging_strategy="no", disable_tqdm=True, use_cpu=not torch.cuda.is_available(),
        train_sampling_strategy="sequential", **own)

    class Seen(trainer_class):  # type: ignore[valid-type, misc]
        def compute_loss(self, model: Any, inputs: Any, *args: Any, **more: Any) -> Any:
            found = super().compute_loss(model, inputs, *args, **more)
            self.loss_seen = float(found[0] if isinstance(found, tuple) else found)
            mask = inputs.get("attention_mask")
            self.tokens_seen = int(inputs["input_ids"].numel() if mask is None else mask.sum())
            return found

    class Gates(transformers.TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            gate.enter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            gate.leave(trainer.loss_seen, trainer.tokens_seen)

    trainer = Seen(model=model, args=config, train_dataset=data, processing_class=tokenizer, callbacks=[Gates()])
    trainer.train()


def main() -> None:
    spec = json.loads(Path(sys.argv[1]).read_text())
    sys.stdout = sys.stderr  # what a trainer prints is not part of the answers
    {"ours": ours, "loading": loading, "trl_dpo": trl_side, "trl_sft": trl_side}[spec["kind"]](spec, Gate())


if __name__ == "__main__":
    main()
