"""Steps and schedules, by hand."""

from __future__ import annotations

import pytest

from pipeline.config import problems_of
from pipeline.training.loop import lr_factor
from pipeline.training.settings import TrainerSettings, TrainRuntime, total_steps


def test_steps():
    """10 groups, batch 4: 2.5 batches a pass, so 3 steps of one pass and 5 of two."""
    assert total_steps(TrainerSettings(batch_size=4), 10) == 3
    assert total_steps(TrainerSettings(batch_size=4, epochs=2.0), 10) == 5
    assert total_steps(TrainerSettings(batch_size=4, epochs=2.0, max_steps=4), 10) == 4
    assert total_steps(TrainerSettings(batch_size=4, epochs=None, max_steps=40), 10) == 40
    assert problems_of(TrainerSettings, {"epochs": None}, "trainer")[0].startswith("trainer.epochs: null together")


@pytest.mark.parametrize("schedule, expected", [
    ("constant", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]),
    ("linear", [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]),
    ("cosine", [0.5, 1.0, 1.0, 0.5 + 0.5 * 2**-0.5, 0.5, 0.5 - 0.5 * 2**-0.5]),
])
def test_schedules(schedule, expected):
    """2 steps of warm-up, then a decay over the 4 that are left of 6."""
    settings = TrainerSettings(schedule=schedule, warmup_steps=2)
    assert [lr_factor(settings, s, 6) for s in range(6)] == pytest.approx(expected)


def test_a_warm_up_below_1_is_a_share_of_all_steps():
    """A quarter of 8 steps is as 2 steps, a tenth of 8 is rounded up to 1; 2.5 steps are none."""
    def factors(warmup):
        return [lr_factor(TrainerSettings(schedule="linear", warmup_steps=warmup), s, 8) for s in range(8)]

    assert factors(0.25) == factors(2) != factors(3) and factors(0.1) == factors(1)
    (problem,) = problems_of(TrainerSettings, {"warmup_steps": 2.5}, "trainer")
    assert problem == "trainer.warmup_steps: 2.5, expected a whole number, or a share below 1"


def test_decay_ends_at_the_minimum():
    settings = TrainerSettings(schedule="linear", min_lr_ratio=0.1)
    assert lr_factor(settings, 10, 10) == pytest.approx(0.1) and lr_factor(settings, 99, 10) == pytest.approx(0.1)


def test_several_processes_need_a_strategy_and_a_place_to_meet():
    def keys(**values):
        return [p.split(":")[0] for p in problems_of(TrainRuntime, values, "runtime")]

    assert keys(processes=2) == ["runtime.strategy"]
    assert keys(nodes=2, strategy="ddp") == ["runtime.rendezvous"]
    assert keys(processes=2, strategy="fsdp2") == [] == keys(nodes=2, strategy="ddp", rendezvous="host:1")
    (problem,) = problems_of(TrainRuntime, {"strategy": "deepspeed"}, "runtime")
    assert problem == "runtime.strategy: 'deepspeed' is not allowed, expected one of none, ddp, fsdp2"


def test_arguments_of_torchrun():
    assert TrainRuntime().torchrun == []
    assert TrainRuntime(processes=4, strategy="ddp").torchrun == ["--standalone", "--nproc-per-node=4"]
    assert TrainRuntime(nodes=2, processes=8, strategy="fsdp2", rendezvous="a:29400").torchrun == [
        "--nnodes=2", "--nproc-per-node=8", "--rdzv-backend=c10d", "--rdzv-endpoint=a:29400", "--rdzv-id=alignloop"]
