"""How a stage in several processes ends: what torchrun says of it becomes an exit code that has a meaning."""

from __future__ import annotations

import signal

import pytest
from torch.distributed import run as torchrun
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from pipeline import files, worker


@pytest.mark.parametrize(("exit_codes", "found", "code"), [
    ((1, -15), False, 1),  # one failed, torchrun ended the other
    ((-9, -15), False, 137),  # one was killed: mostly for its memory
    ((-15, 74), False, 74),  # one found the disk full
    ((1, 1), True, 2),  # one has written what is wrong with the user's input
])
def test_of_processes_that_fail(exit_codes, found, code, monkeypatch, tmp_path):
    failures = {rank: ProcessFailure(rank, rank, one, "") for rank, one in enumerate(exit_codes)}

    def failing(arguments):
        if found:
            (tmp_path / worker.PROBLEMS).write_text("[]")
        raise ChildFailedError("stage", failures)

    assert 74 in files.EXIT.values()
    monkeypatch.setattr(torchrun, "main", failing)
    assert worker._launch([], "step.json", tmp_path) == code


@pytest.mark.parametrize("told", [signal.SIGTERM, signal.SIGINT])
def test_of_one_that_is_stopped(told, monkeypatch, tmp_path):
    """torchrun raises where it was told to end; that is no failure of the stage, and no traceback in its log."""
    def stopped(arguments):
        raise SignalException("stopped", told)

    monkeypatch.setattr(torchrun, "main", stopped)
    assert worker._launch([], "step.json", tmp_path) == 128 + told


def test_nodes_that_a_launcher_found_meet_where_it_says(monkeypatch):
    """One of them hosts the meeting by its number: an address need not tell a machine that it is its own."""
    spec = {"stage": "sft", "runtime": {"nodes": 2, "strategy": "ddp", "rendezvous": "job"}}
    monkeypatch.setenv(worker.RENDEZVOUS, "node1:29400")
    monkeypatch.setenv(worker.HOSTS, "1")
    assert worker._torchrun(spec) == [
        "--rdzv-endpoint=node1:29400", "--rdzv-conf=is_host=1,read_timeout=300", "--nnodes=2", "--nproc-per-node=1",
        "--rdzv-backend=c10d", "--rdzv-id=alignloop"]
    alone = {"stage": "sft", "runtime": {"processes": 2, "strategy": "ddp"}}
    assert worker._torchrun(alone) == ["--standalone", "--nproc-per-node=2"]
