"""Published families, small, behind vLLM: the cells of its column in docs/models.md. A server for each family."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.engines.engine import Request, model_facts
from pipeline.engines.transformers import engine as oracle
from pipeline.engines.vllm import engine
from pipeline.errors import UserError
from tests.lm import families
from tests.lm.families import FAMILIES, VLLM

pytestmark = [pytest.mark.slow, pytest.mark.long]
PROMPTS = [tuple(range(20 + i, 26 + 9 * i)) for i in range(4)]  # the longest reaches behind every window


@pytest.mark.parametrize("name", FAMILIES)
def test_vllm_samples_what_transformers_does(name: str, tmp_path: Path, monkeypatch, record_property):
    """Greedy tokens by value, and log-probs of a probe. No two families share a server: their stop ids differ."""
    record_property(VLLM, name)
    monkeypatch.delenv("ALIGNLOOP_ENGINE_URL", raising=False)
    model = families.make(name, tmp_path / name)
    asked = [Request(prompt, 1, 0.0, 1.0, 0, 16, model_facts(model).stop_ids, 0) for prompt in PROMPTS]
    served = engine.open_engine(model, engine.Settings(max_sequences=16), tmp_path / "vllm.log")
    if VLLM in FAMILIES[name].cannot:
        with pytest.raises(UserError, match="nats per token"), served as opened:
            list(opened.sample(asked))
        return
    with served as opened:
        found = list(opened.sample(asked))
    with oracle.open_engine(model, oracle.Settings(device="cpu"), tmp_path / "no.log") as ours:
        assert found == list(ours.sample(asked))
    assert opened.facts["logprob_gap"] < 1e-3
