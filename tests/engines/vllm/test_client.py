"""Which models a running server takes: those of its architecture, in whatever words their config.json says it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from pipeline.engines.vllm.client import _same_architecture
from pipeline.errors import UserError
from pipeline.lm import folders


def test_a_published_folder_and_what_is_trained_from_it_are_one_architecture(make_model, tmp_path: Path):
    """Published in the keys of before transformers 5 and without defaults, written in full: neither is another model. A
    rotary base that differs is one.
    """
    source = make_model(tmp_path / "source")
    config = json.loads((source / "config.json").read_text())
    del config["rope_parameters"], config["attention_bias"]
    (source / "config.json").write_text(json.dumps({**config, "rope_theta": 5e4}))
    folders.save_folder(folders.load_policy(source, torch.device("cpu")), source, tmp_path / "trained", "bfloat16")
    assert json.loads((tmp_path / "trained" / "config.json").read_text()).keys() != config.keys()
    _same_architecture(source, tmp_path / "trained", "http://server")
    with pytest.raises(UserError, match=r"runs another architecture .*rope_theta"):
        _same_architecture(make_model(tmp_path / "other"), tmp_path / "trained", "http://server")
