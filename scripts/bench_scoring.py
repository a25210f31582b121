"""Measure what sharing prompts saves when a reward model scores: the score stage's own pass, with and without it.

    python scripts/bench_scoring.py                 14M-parameter Llama, 16 prompts of 125 tokens, N=4, 62 tokens each
    python scripts/bench_scoring.py --completions 8 --prompt 500

Both sides score the same groups in turn in one process on one thread; processor seconds of each round, medians, ratio,
and the largest difference between the two sides' scores.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("groups", 16), ("completions", 4), ("prompt", 125), ("completion", 62), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--attention", choices=("eager", "sdpa"), default="eager", help="of rows; as hardware=cpu")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--tokens-per-batch", type=int, default=2048, help="as hardware=cpu")
    options = parser.parse_args()

    import numpy as np
    import torch

    from pipeline.lm import scores
    from pipeline.lm.examples import Example

    torch.set_num_threads(1)
    sides = {"prompts shared": model(options, True), "a row per completion": model(options, False)}
    rng = np.random.default_rng(0)

    def ids(length: int) -> Any:
        return rng.integers(3, 8192, length).astype(np.int32)

    examples = [Example(f"g{i}", ids(options.prompt), tuple(map(ids, [options.completion] * options.completions)))
                for i in range(options.groups)]
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    found: dict[str, Any] = {}
    for _ in range(1 + options.rounds):
        for name, net in sides.items():
            began = time.process_time()
            found[name] = np.array(scores.completion_scores(net, examples, options.tokens_per_batch, options.precision))
            seconds[name].append(time.process_time() - began)
    shared, rows = (statistics.median(values[1:]) for values in seconds.values())  # the first round warms up
    apart = np.abs(np.subtract(*found.values())).max() / np.abs(found["prompts shared"]).max()
    print(f"{options.groups} prompts of {options.prompt} tokens, {options.completions} completions of "
          f"{options.completion}, {options.precision}, {options.attention} attention of rows, one thread, "
          f"{options.tokens_per_batch} tokens a pass, median of {options.rounds} alternating rounds")
    print(f"prompts shared        {shared:.2f} s of processor time\na row per completion  {rows:.2f} s\n"
          f"ratio                 {rows / shared:.2f}x\nlargest difference    {apart:.1e} of the largest score")
    return 0


def model(options: argparse.Namespace, share: bool) -> Any:
    """A random reward model as the stage holds it, on the CPU."""
    import torch
    import transformers

    from pipeline.lm import scores

    torch.manual_seed(0)
    net = transformers.LlamaForSequenceClassification(transformers.LlamaConfig(
        vocab_size=8192, hidden_size=384, intermediate_size=1024, num_hidden_layers=6, num_attention_heads=6,
        max_position_embeddings=4096, num_labels=1, pad_token_id=0, attn_implementation=options.attention)).eval()
    scores.float32_head(net)
    scores.prepare(net, share)
    return net


if __name__ == "__main__":
    sys.exit(main())
