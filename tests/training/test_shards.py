"""Checkpoints of several processes: each writes and reads its own rows, beside training, and all or nothing counts.

The processes here are threads, with a barrier for torch's; tests/stages/test_distribution.py has real ones.
"""

from __future__ import annotations

import errno
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.tensor import DTensor

from pipeline.errors import UserError
from pipeline.training import checkpoint, distribute, optim, shards
from pipeline.training.checkpoint import Loaded, Writing
from pipeline.training.gradients import World
from pipeline.training.settings import TrainerSettings
from tests.training.test_checkpoint import stepped

TENSORS = {"wide": torch.arange(70.0).reshape(7, 10), "short": torch.arange(2.0), "number": torch.tensor(0.5)}


def written(folder, size: int) -> list:
    """The files that processes of `size` write of TENSORS."""
    paths = [folder / shards.file_of("x.safetensors", rank, size) for rank in range(size)]
    for rank, path in enumerate(paths):
        save_file(shards.staged(TENSORS, World(rank, size)), path)
    return paths


def test_rows_are_dealt_out_as_fsdp2_does():
    for length in range(1, 12):
        for size in range(1, 6):
            chunks = [len(c) for c in torch.arange(length).chunk(size)]
            dealt = [shards.rows(length, rank, size) for rank in range(size)]
            assert [stop - start for start, stop in dealt] == chunks + [0] * (size - len(chunks))


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_the_rows_of_all_files_are_the_whole(tmp_path, size):
    """Of 7 rows in 3 files: 3, 3 and 1. A number is the first file's."""
    paths = written(tmp_path, size)
    found = shards.Saved.of(paths).load({})
    assert found.keys() == TENSORS.keys() and all(torch.equal(found[name], TENSORS[name]) for name in TENSORS)
    if size == 3:
        assert [len(load_file(path)["wide"]) for path in paths] == [3, 3, 1]
        assert ["number" in load_file(path) for path in paths] == [True, False, False]


def test_only_the_rows_asked_for_are_read(tmp_path):
    """Rows 2 to 4 of 7 in 3 files lie in the first two; nothing of the third is touched."""
    saved = shards.Saved.of(written(tmp_path, 3))
    asked: list[Any] = []

    class Spy:
        def __init__(self, file: Any) -> None:
            self.file = file

        def get_slice(self, name: str) -> Any:
            part = self.file.get_slice(name)
            return type("Part", (), {"get_shape": lambda _: part.get_shape(),
                                     "__getitem__": lambda _, rows: asked.append(rows) or part[rows]})()

    spied = shards.Saved({name: [Spy(file) for file in files] for name, files in saved.places.items()})
    assert torch.equal(spied._read("wide", (2, 5)), TENSORS["wide"][2:5])
    assert asked == [slice(2, 3), slice(0, 2)]


@pytest.fixture
def sharded(tiny):
    """A model under FSDP2 in this one process, and its optimizer."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    model = tiny.llama(seed=1)
    distribute.shard(model, init_device_mesh("cpu", (1,)), MixedPrecisionPolicy())
    yield model, optim.adamw(model, TrainerSettings())
    torch.distributed.destroy_process_group()


def same_moments(sharded, model, optimizer) -> None:
    live, (other, own) = optim.trained(model), sharded
    for name, p in optim.trained(other).items():
        for moment in ("exp_avg", "exp_avg_sq"):
            found = own.state[p][moment]
            assert isinstance(found, DTensor) and torch.equal(found.to_local(), optimizer.state[live[name]][moment])


def test_sharded_weights_get_their_rows(tiny, sharded, tmp_path):
    """Weights and both moments of a model under FSDP2, from the files of two that had them whole."""
    model, optimizer = stepped(tiny)
    both_save(tmp_path, model, optimizer, Loaded(3, 9, {"shift": torch.tensor(0.5)}))
    assert checkpoint.load(tmp_path / "step-00000003", *sharded) == Loaded(3, 9, {"shift": torch.tensor(0.5)})
    same_moments(sharded, model, optimizer)
    live = optim.trained(model)
    assert all(torch.equal(p.to_local(), live[name]) for name, p in optim.trained(sharded[0]).items())


def test_so_do_moments_of_an_earlier_step(tiny, sharded, tmp_path):
    """And those of another model are told by their shapes."""
    model, optimizer = stepped(tiny)
    tensors = optim.state_tensors(model, optimizer)
    optim.save_folder(tmp_path, tensors, 9)
    assert optim.load_folder(tmp_path, *sharded) == 9
    same_moments(sharded, model, optimizer)
    name = next(iter(tensors))
    optim.save_folder(tmp_path, {**tensors, name: tensors[name][:-1].clone()}, 9)
    with pytest.raises(UserError, match=f"no state of the shape .* for {name.partition('.')[2]}"):
        optim.load_folder(tmp_path, *sharded)


def both_save(folder, model, optimizer, at: Loaded, keep: int = 2, writing=(None, None)) -> None:
    """`save` in two threads that stand for processes with whole copies."""
    barrier = threading.Barrier(2, timeout=60)

    def one(rank: int) -> None:
        world: Any = SimpleNamespace(rank=rank, size=2, first=rank == 0, settle=lambda: None, wait=barrier.wait)
        checkpoint.save(folder, model, optimizer, at, keep, world, writing[rank])

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)


def test_each_writes_half_and_any_number_goes_on(tiny, tmp_path):
    model, optimizer = stepped(tiny)
    both_save(tmp_path, model, optimizer, Loaded(3, 9, {"shift": torch.tensor(0.5)}))
    made = tmp_path / "step-00000003"
    names = [f"{name}.0000{rank}-of-00002.safetensors" for name in ("extra", "model", "optimizer") for rank in (0, 1)]
    assert sorted(path.name for path in made.iterdir()) == sorted([*names, "manifest.json"])
    for name, tensors in (("model", checkpoint.weights(model)), ("optimizer", optim.state_tensors(model, optimizer))):
        bytes_of = sum(tensor.nbytes for tensor in tensors.values())
        for rank in (0, 1):
            assert (made / f"{name}.0000{rank}-of-00002.safetensors").stat().st_size < 0.52 * bytes_of + 8000
    assert checkpoint.newest(tmp_path) == made
    other = tiny.llama(seed=1)
    own = optim.adamw(other, TrainerSettings())
    assert checkpoint.load(made, other, own).updates == 9
    for (name, p), q in zip(optim.trained(model).items(), optim.trained(other).values(), strict=True):
        assert torch.equal(p, q), name
        assert torch.equal(optimizer.state[p]["exp_avg_sq"], own.state[q]["exp_avg_sq"])


def test_one_that_not_all_have_written_does_not_count(tiny, tmp_path, monkeypatch):
    """`save` has come back and the second one's thread still writes, as at a kill: the older checkpoint is the newest.
    The next try clears away what was left of it.
    """
    model, optimizer = stepped(tiny)
    both_save(tmp_path, model, optimizer, Loaded(1, 1, {}))
    go, real = threading.Event(), save_file

    def slow(tensors, path) -> None:
        assert "00001-of" not in path.name or go.wait(60)
        real(tensors, path)

    monkeypatch.setattr(checkpoint, "save_file", slow)
    writing = (Writing(), Writing())
    both_save(tmp_path, model, optimizer, Loaded(2, 2, {}), writing=writing)
    begun = {name: tensor.clone() for name, tensor in checkpoint.weights(model).items()}
    with torch.no_grad():
        next(iter(model.parameters())).zero_()  # training goes on; what is written was copied
    left = tmp_path / ".step-00000002.tmp"
    while not (left / "written-0").exists():
        time.sleep(0.01)
    assert not (left / "manifest.json").exists() and checkpoint.newest(tmp_path) == tmp_path / "step-00000001"
    assert not any(one.due(0.0) for one in writing), "one at a time"
    go.set()
    for one in writing:
        one.end()
    assert checkpoint.newest(tmp_path) == tmp_path / "step-00000002" and not left.exists()
    kept = shards.Saved.of(sorted((tmp_path / "step-00000002").glob("model.*"))).load({})
    assert all(torch.equal(kept[name], begun[name]) for name in begun)


def test_what_a_kill_left_is_cleared_away(tiny, tmp_path):
    """A folder of before, with a word of the second process that it has written: the new ones' own counts."""
    left = tmp_path / ".step-00000002.tmp"
    left.mkdir()
    checkpoint.write_sealed(left / "written-1", {"model.00001-of-00002.safetensors": "0"})
    both_save(tmp_path, *stepped(tiny), Loaded(2, 2, {}))
    assert checkpoint.newest(tmp_path) == tmp_path / "step-00000002" and not left.exists()


def test_what_the_thread_meets_is_raised_where_training_goes_on():
    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    writing = Writing()
    writing.start(full)
    with pytest.raises(OSError, match="No space left"):
        writing.end()
    with pytest.raises(OSError, match="No space left"):
        writing.check()


def test_checkpoints_take_a_twentieth_of_the_time():
    """One that holds training up for 20 s comes every 400 s, not every 300."""
    now = time.monotonic()
    assert Writing(since=now - 301).due(300) and not Writing(since=now - 299).due(300)
    assert not Writing(since=now - 390, pause=20.0).due(300) and Writing(since=now - 401, pause=20.0).due(300)
    assert not Writing(since=now - 1000).due(None)


def test_files_of_two_and_the_file_of_one_have_other_names():
    assert shards.file_of("model.safetensors", 0, 1) == "model.safetensors"
    assert shards.file_of("model.safetensors", 1, 16) == "model.00001-of-00016.safetensors"


def test_an_error_in_training_lets_the_thread_end(tmp_path):
    """A checkpoint of a good step, begun before a loss that is not finite: it is there to go on from."""
    writing = Writing()

    def slowly() -> None:
        time.sleep(0.05)
        (tmp_path / "done").touch()

    with pytest.raises(ValueError, match="not finite"), writing.ended():
        writing.start(slowly)
        raise ValueError("not finite")
    assert (tmp_path / "done").exists()
