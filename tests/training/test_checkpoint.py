"""A checkpoint is complete or passed over."""

from __future__ import annotations

import json
import os
import signal

import pytest
import torch

from pipeline.training import checkpoint, optim
from pipeline.training.checkpoint import Loaded
from pipeline.training.settings import TrainerSettings


def stepped(tiny):
    model = tiny.llama()
    optimizer = optim.adamw(model, TrainerSettings())
    sum(p.sum() for p in model.parameters()).backward()
    optimizer.step()
    return model, optimizer


def test_keeps_the_newest(tiny, tmp_path):
    model, optimizer = stepped(tiny)
    for step in (1, 2, 3):
        checkpoint.save(tmp_path, model, optimizer, Loaded(step, 7 + step, {"shift": torch.tensor(0.5)}), keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000002", "step-00000003"]
    at = checkpoint.load(tmp_path / "step-00000003", *stepped(tiny))
    assert (at.step, at.updates, at.extra) == (3, 10, {"shift": torch.tensor(0.5)})


def test_damaged_or_half_written_is_passed_over(tiny, tmp_path):
    model, optimizer = stepped(tiny)
    for step in (1, 2, 3):
        checkpoint.save(tmp_path, model, optimizer, Loaded(step, step, {}), keep=3)
    (tmp_path / "step-00000003" / "manifest.json").unlink()
    weights = tmp_path / "step-00000002" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    newest = checkpoint.newest(tmp_path)
    assert newest is not None and newest.name == "step-00000001"
    assert checkpoint.newest(tmp_path / "nothing") is None


@pytest.mark.parametrize("old, new", [
    ('"step": 2', '"step": 3'), ('"updates": 9', '"updates": 8'), ("sha256", "shb256")])
def test_one_that_says_another_step_than_it_was_made_at_is_passed_over(old, new, tiny, tmp_path):
    """A flipped bit of its manifest: training would leave a batch out, and no file of the result would tell."""
    model, optimizer = stepped(tiny)
    for step in (1, 2):
        checkpoint.save(tmp_path, model, optimizer, Loaded(step, 7 + step, {}), keep=2)
    manifest = tmp_path / "step-00000002" / "manifest.json"
    assert old in manifest.read_text() and checkpoint.newest(tmp_path) == manifest.parent
    manifest.write_text(manifest.read_text().replace(old, new))
    assert checkpoint.newest(tmp_path) == tmp_path / "step-00000001"


def test_one_of_older_code_is_gone_on_from(tiny, tmp_path):
    """Its manifest has no hash of its own."""
    model, optimizer = stepped(tiny)
    made = checkpoint.save(tmp_path, model, optimizer, Loaded(2, 9, {}), keep=2) / "manifest.json"
    known = json.loads(made.read_text())
    made.write_text(json.dumps({key: known[key] for key in ("step", "updates", "sha256")}))
    assert checkpoint.newest(tmp_path) == made.parent
    assert checkpoint.load(made.parent, *stepped(tiny)).step == 2


def test_a_signal_waits_for_the_step_and_is_not_lost():
    """The first SIGTERM is told of; the second, and one that came with the last step, do what they did before."""
    class Ended(Exception):
        pass

    def end(*_: object) -> None:
        raise Ended

    before = signal.signal(signal.SIGTERM, end)
    try:
        with pytest.raises(Ended), checkpoint.told_to_stop() as told:
            os.kill(os.getpid(), signal.SIGTERM)
            assert told == [signal.SIGTERM]
            os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Ended), checkpoint.told_to_stop() as told:
            os.kill(os.getpid(), signal.SIGTERM)
            assert told == [signal.SIGTERM]
        with checkpoint.told_to_stop():
            pass
        assert signal.getsignal(signal.SIGTERM) is end
    finally:
        signal.signal(signal.SIGTERM, before)
