"""Settings of the language model itself. No heavy import: planning reads this module."""

from dataclasses import dataclass

from pipeline.config import setting

PRECISIONS = ("bfloat16", "float32")
DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True)
class AdapterSettings:
    """Low-rank adapters (Hu et al. 2022): W + alpha / r * B A, where only A and B are trained."""

    # none: all weights learn; qlora: over a 4-bit base, needs bitsandbytes
    kind: str = setting("none", choices=("none", "lora", "qlora"))
    r: int = setting(16, low=1)  # rank of the update
    alpha: int = setting(16, low=1)  # the adapter's output is multiplied by alpha / r; equal to r in Zephyr's recipes
    dropout: float = setting(0.0, low=0.0, below=1.0)  # of the adapter's input
    target_modules: tuple[str, ...] = ("all-linear",)  # names of linear layers, or "all-linear": all but the head

    @property
    def on(self) -> bool:
        return self.kind != "none"


@dataclass(frozen=True)
class ModelRuntime:
    """How this machine runs a language model, with or without training it. Never part of an artifact's key."""

    device: str = setting("auto", choices=DEVICES)  # auto = cuda where there is one
    threads: int | None = setting(None, low=1)  # CPU threads; null = torch's own choice
    tokens_per_batch: int = setting(2048, low=1)  # unique tokens of one pass; 2048 fits a CPU's caches
    logits_per_chunk: int = setting(2**27, low=1)  # tokens x vocabulary held at once by the LM head
    attention: str = setting("sdpa", choices=("eager", "sdpa", "flash_attention_2"))  # eager: best for short CPU rows
    gradient_checkpointing: bool = False  # less memory, a third more time
    share_prefix: bool = True  # every prompt once per group, where the model's family allows it


THIS_MACHINE = ModelRuntime()  # as it comes
