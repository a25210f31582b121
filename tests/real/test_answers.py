"""A pretrained model keeps what it knows through a few steps of training at the shipped values (docs/models.md).

The model is the preset's, from ALIGNLOOP_MODELS or fetched by scripts/get_smollm2.py; the demonstrations are those of
Anthropic HH, in ALIGNLOOP_TEST_DATA. Without either the test is skipped.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.real.answers import MAX_TOKENS, QUESTIONS, answered

ROOT = Path(__file__).parent.parent.parent
DATA = os.environ.get("ALIGNLOOP_TEST_DATA")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that holds SmolLM2-135M-Instruct."""
    folder = Path(os.environ.get("ALIGNLOOP_MODELS") or tmp_path_factory.mktemp("models"))
    fetched = subprocess.run([sys.executable, ROOT / "scripts/get_smollm2.py"], capture_output=True, text=True,
                             env={**os.environ, "ALIGNLOOP_MODELS": str(folder)})
    if fetched.returncode:
        pytest.skip(f"SmolLM2 cannot be fetched: {fetched.stdout}{fetched.stderr}")
    return folder


def test_an_answer_is_judged_by_its_words():
    questions = [json.loads(line)["prompt"] for line in QUESTIONS.read_text().splitlines()]
    said = ["Paris.", "In Romeville", "The capital of Japan is Tokyo."] + ["I do not know"] * 17
    rows = [{"prompt": [{"role": "user", "content": question}], "answers": [{"model": "sft", "text": text}]}
            for question, text in zip(questions, said, strict=True)]
    assert answered(rows) == {"sft": [True, False, True] + [False] * 17}


@pytest.mark.long
@pytest.mark.skipif(DATA is None, reason="ALIGNLOOP_TEST_DATA is not set")
def test_ten_steps_of_sft_by_adapters_keep_the_answers(models: Path, tmp_path: Path):
    """One pass over the data of README's run at the values of trainer=lora, in small batches: more steps."""
    def align(*words: str) -> str:
        done = subprocess.run([sys.executable, "-m", "flows.cli", *words], capture_output=True, text=True, cwd=tmp_path,
                              env={**os.environ, "PYTHONPATH": str(ROOT), "ALIGNLOOP_MODELS": str(models)})
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    align("run", "recipe=sft", "run=kept", "model=smollm2", "data=hh", f"data.root={DATA}/hh-rlhf", "trainer=lora",
          "precision=float32", "trainer.sft.batch_size=8", "data.format.limits.sft=200", "model.max_prompt_tokens=128",
          "model.max_completion_tokens=128")
    found = answered(json.loads(align("sample", "kept", "--prompts", str(QUESTIONS), "--max-tokens", str(MAX_TOKENS),
                                      "--json")))
    start, sft = sum(found["start"]), sum(found["sft"])
    assert start >= 12, "the start model itself knows too little: a wrong template or tokenizer"
    assert sft >= start - 1
