"""Published families, small, behind vLLM: the cells of its column in docs/models.md.

A server for each architecture; families of one architecture share it, with their weights swapped.
"""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

import pytest

from pipeline.engines.engine import Request, model_facts
from pipeline.engines.transformers import engine as oracle
from pipeline.engines.vllm import engine, service
from tests.lm import families
from tests.lm.families import FAMILIES, VLLM

pytestmark = [pytest.mark.slow, pytest.mark.long]
PROMPTS = [tuple(range(20 + i, 26 + 9 * i)) for i in range(4)]  # the longest reaches behind every window


def architecture(name: str) -> str:
    family = FAMILIES[name]
    return f"{family.config} {dict(family.values)} {family.sizes}"


SHARED = [list(names) for _, names in groupby(sorted(FAMILIES, key=architecture), architecture)]


@pytest.mark.parametrize("names", SHARED, ids=" ".join)
def test_vllm_samples_what_transformers_does(names: list[str], tmp_path: Path, monkeypatch, record_property):
    """Greedy tokens by value, and log-probs of a probe; the next family's weights go into the same server."""
    made = {name: families.make(name, tmp_path / name, seed) for seed, name in enumerate(names)}
    settings = engine.Settings(max_sequences=16)
    served = service.start(made[names[0]], tmp_path / "vllm.log", settings)
    try:
        served.wait_ready(300)
        for variable, value in served.environment.items():
            monkeypatch.setenv(variable, value)
        for name, model in made.items():
            stops = model_facts(model).stop_ids
            asked = [Request(prompt, 1, 0.0, 1.0, 0, 16, stops, 0) for prompt in PROMPTS]
            with engine.open_engine(model, settings, tmp_path / "vllm.log") as opened:
                found = list(opened.sample(asked))
            with oracle.open_engine(model, oracle.Settings(device="cpu"), tmp_path / "no.log") as ours:
                assert found == list(ours.sample(asked))
            assert opened.facts["logprob_gap"] < 1e-3
            record_property(VLLM, name)
    finally:
        served.stop()
