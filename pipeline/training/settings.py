"""Settings shared by every stage that trains. No heavy import: planning reads this module.

`TrainerSettings` is what can change the result and is hashed into the artifact's key; `TrainRuntime` is how the same
result is computed on this machine and is not.
"""

import math
from dataclasses import dataclass, field

from pipeline.config import setting
from pipeline.lm.settings import PRECISIONS, AdapterSettings, ModelRuntime

STRATEGIES = ("none", "ddp", "fsdp2")


@dataclass(frozen=True)
class TrainerSettings:
    """One training run. `batch_size` is global: accumulation follows from the machine, not the other way round."""

    lr: float = setting(1e-4, above=0.0)  # the peak, after the warm-up
    batch_size: int = setting(64, low=1)  # global, in groups per optimizer step
    epochs: float | None = setting(1.0, above=0.0)  # passes over the data; null: until max_steps
    max_steps: int | None = setting(None, low=1)  # with epochs: whichever comes first
    schedule: str = setting("constant", choices=("constant", "linear", "cosine"))  # after the warm-up
    schedule_steps: int | None = setting(None, low=1)  # length of the decay where it spans several stages
    warmup_steps: int | float = setting(0, low=0)  # of a linear rise from 0 to lr; below 1: a share of all steps
    min_lr_ratio: float = setting(0.0, low=0.0, high=1.0)  # of lr, where a decaying schedule ends
    beta1: float = setting(0.9, low=0.0, below=1.0)  # of AdamW
    beta2: float = setting(0.95, low=0.0, below=1.0)  # of AdamW; 0.95: Xu et al. 2023
    eps: float = setting(1e-8, above=0.0)  # of AdamW
    weight_decay: float = setting(0.0, low=0.0)  # of AdamW, decoupled
    grad_clip: float | None = setting(1.0, above=0.0)  # global norm; null: off
    precision: str = setting("bfloat16", choices=PRECISIONS)  # of matrix products; masters are float32
    save_dtype: str = setting("float32", choices=PRECISIONS)  # of the weights in the artifact
    adapter: AdapterSettings = field(default_factory=AdapterSettings)  # what is trained instead of all weights

    def check(self) -> list[tuple[str, str]]:
        if self.warmup_steps >= 1 and not isinstance(self.warmup_steps, int):
            return [("warmup_steps", f"{self.warmup_steps:g}, expected a whole number, or a share below 1")]
        if self.epochs is None and self.max_steps is None:
            return [("epochs", "null together with max_steps null never ends, set one of the two")]
        return []

    def steps(self, groups: int) -> int:
        """As `total_steps`."""
        return total_steps(self, groups)


@dataclass(frozen=True)
class TrainRuntime(ModelRuntime):
    """How this machine trains: the pass over the model, and what only training has."""

    checkpoint_every_steps: int | None = setting(None, low=1)  # null: by time alone
    checkpoint_every_seconds: float | None = setting(300.0, above=0.0)  # null: by steps alone
    keep_checkpoints: int = setting(2, low=1)  # the newest ones stay
    log_every: int = setting(10, low=1)  # optimizer steps between two lines of metrics.jsonl
    compile: bool = False  # torch.compile the layers: a minute more at the start
    peak_tflops: float | None = setting(None, above=0.0)  # of one device, for FLOP utilisation; null: known or measured
    strategy: str = setting("none", choices=STRATEGIES)  # of several processes: whole copies (ddp) or sharded weights
    processes: int = setting(1, low=1)  # on this node: one per device
    nodes: int = setting(1, low=1)  # that train together
    rendezvous: str | None = None  # host:port of one of several nodes, the same on each; job: the launcher says

    @property
    def world_size(self) -> int:
        """Processes on all nodes."""
        return self.processes * self.nodes

    @property
    def torchrun(self) -> list[str]:
        """Arguments that start this node's processes; empty where one process is enough."""
        if self.world_size == 1:
            return []
        if self.nodes == 1:
            return ["--standalone", f"--nproc-per-node={self.processes}"]
        return [f"--nnodes={self.nodes}", f"--nproc-per-node={self.processes}", "--rdzv-backend=c10d",
                f"--rdzv-endpoint={self.rendezvous}", "--rdzv-id=alignloop"]

    def check(self) -> list[tuple[str, str]]:
        problems = []
        if self.world_size > 1 and self.strategy == "none":
            problems.append(("strategy", f"none with {self.world_size} processes, expected ddp or fsdp2"))
        if self.nodes > 1 and self.rendezvous is None:
            problems.append(("rendezvous", f"null with {self.nodes} nodes, expected host:port of one of them"))
        return problems


def processes(settings: object, runtime: TrainRuntime) -> int:
    """Devices of a stage that trains: one for each process on this node."""
    return runtime.processes


def total_steps(settings: TrainerSettings, groups: int) -> int:
    """Optimizer steps for `groups` groups. Every step is a full global batch: the last one reaches into the next
    pass over the data rather than being small and noisy.
    """
    limits = []
    if settings.epochs is not None:
        limits.append(max(1, math.ceil(settings.epochs * groups / settings.batch_size)))
    if settings.max_steps is not None:
        limits.append(settings.max_steps)
    return min(limits)
