"""Plain vLLM for scripts/bench_generation.py: a process that holds one `LLM` and generates on request.

    python scripts/generation_plain.py JOB.json

One line in ("seeded 100": the first 100 prompts, seeds as the stage's), one line out: "rate TOKENS TOKENS/S".
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pipeline import tables
from pipeline.stage import derive_seed


def main(job: Path) -> int:
    from vllm import LLM, SamplingParams, TokensPrompt

    spec = json.loads(job.read_text())
    groups, temperature = list(tables.read(Path(spec["prompts"]))), spec["temperature"]
    llm = LLM(spec["model"], dtype=spec["dtype"], max_model_len=spec["context"], enforce_eager=True, max_num_seqs=256,
              enable_chunked_prefill=False, max_num_batched_tokens=4096, generation_config="vllm")
    for line in sys.stdin:
        kind, _, first = line.strip().partition(" ")
        chosen = groups[: int(first) if first else None]
        parameters = [SamplingParams(
            n=spec["n"], temperature=temperature, max_tokens=spec["tokens"],
            seed=derive_seed(spec["seed"], "generate", 0, g.id, temperature) >> 1 if kind == "seeded" else None,
        ) for g in chosen]
        began = time.monotonic()
        outputs = llm.generate([TokensPrompt(prompt_token_ids=list(g.prompt_ids)) for g in chosen], parameters,
                               use_tqdm=False)
        seconds = time.monotonic() - began
        tokens = sum(len(o.token_ids) for answer in outputs for o in answer.outputs)
        print("rate", tokens, tokens / seconds, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
