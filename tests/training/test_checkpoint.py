"""A checkpoint is complete or passed over."""

from __future__ import annotations

from pipeline.training import checkpoint, optim
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
        checkpoint.save(tmp_path, model, optimizer, step, step, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000002", "step-00000003"]
    assert checkpoint.load(tmp_path / "step-00000003", *stepped(tiny)) == (3, 3)


def test_damaged_or_half_written_is_passed_over(tiny, tmp_path):
    model, optimizer = stepped(tiny)
    for step in (1, 2, 3):
        checkpoint.save(tmp_path, model, optimizer, step, step, keep=3)
    (tmp_path / "step-00000003" / "manifest.json").unlink()
    weights = tmp_path / "step-00000002" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    newest = checkpoint.newest(tmp_path)
    assert newest is not None and newest.name == "step-00000001"
    assert checkpoint.newest(tmp_path / "nothing") is None
