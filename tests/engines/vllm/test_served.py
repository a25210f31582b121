"""A family that vLLM does not serve is told in one line, before a server starts."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from pipeline.engines.vllm import served, service
from pipeline.errors import UserError

pytest.importorskip("vllm")


def test_what_vllm_lists_is_known_without_asking(tiny_model: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(subprocess, "run", None)
    served.refuse_unserved(tiny_model)
    assert {"LlamaForCausalLM", "Olmo2ForCausalLM", "SmolLM3ForCausalLM"} <= served._known_classes()
    assert "CodeGenForCausalLM" not in served._known_classes()


def test_a_family_that_is_not_served_ends_in_one_line(tiny_model: Path, tmp_path: Path):
    """CodeGen's attention in transformers takes no other implementation, so vLLM cannot run it by that either."""
    folder = shutil.copytree(tiny_model, tmp_path / "codegen")
    (folder / "config.json").write_text(json.dumps({
        "model_type": "codegen", "architectures": ["CodeGenForCausalLM"], "vocab_size": 320, "n_positions": 256,
        "n_ctx": 256, "n_embd": 32, "n_layer": 1, "n_head": 4, "rotary_dim": 4, "bos_token_id": 1, "eos_token_id": 2}))
    with pytest.raises(UserError, match=r"does not serve CodeGenForCausalLM .*; take engine=transformers"):
        service.start(folder, tmp_path / "log", service.Settings())
    assert not (tmp_path / "log").exists()
