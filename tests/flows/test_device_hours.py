"""GPU-hours and process-hours, from what the steps say of themselves."""

from __future__ import annotations

import pytest

from flows import device_hours, machine

TRAINING = {"device": "auto", "processes": 4, "nodes": 2}


@pytest.mark.parametrize("runtime, cpu, gpu", [
    ({}, ("process", 1), ("process", 1)),  # a stage that converts tables
    (TRAINING, ("process", 8), ("GPU", 8)),
    ({**TRAINING, "device": "cpu"}, ("process", 8), ("process", 8)),
    ({"models": TRAINING, "answers": "judge"}, ("process", 8), ("GPU", 8)),  # a score
    ({"engine": {"replicas": 2, "arguments": ["--tensor-parallel-size", "2"]}}, ("process", 2), ("GPU", 4)),
    ({"engine": {"replicas": 3, "arguments": [], "gpus_per_replica": 2}}, ("process", 3), ("GPU", 6)),
    ({"engine": {"replicas": 1, "arguments": [], "url": "http://elsewhere"}}, ("process", 1), ("process", 1))])
def test_what_a_step_holds(runtime, cpu, gpu, monkeypatch):
    """Whether this machine has CUDA is said by the test: the counting alone is tested, on no GPU."""
    for cuda, wanted in ((False, cpu), (True, gpu)):
        monkeypatch.setattr(machine, "cuda", lambda cuda=cuda: cuda)
        assert device_hours.held(runtime) == wanted


def test_hours_are_times_devices():
    made = [{"process_seconds": 1800, "devices": ["GPU", 4]}, {"process_seconds": 3600, "devices": ["process", 1]},
            {"process_seconds": 3600}, {"process_seconds": 900, "devices": ["GPU", 8]}]
    assert device_hours.hours(made) == {"GPU": 4.0, "process": 2.0}
    assert device_hours.hours([]) == {}
