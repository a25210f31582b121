"""Runs whose steps are jobs of a real Slurm with two nodes: the same artifacts, and who outlives whom."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from flows.doctor import doctor
from pipeline import runs
from pipeline.launchers import slurm
from tests.flows import launched, slurm_cluster

LIVE = ("PENDING", "RUNNING", "COMPLETING")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory):
    with slurm_cluster.cluster(tmp_path_factory.mktemp("slurm")) as environment:
        yield environment


@pytest.fixture
def submitted(cluster) -> Callable[[], int]:
    """The number of jobs that were submitted in this test."""
    before = len(slurm_cluster.jobs(cluster))
    return lambda: len(slurm_cluster.jobs(cluster)) - before


def log(workspace: Path, step: str) -> str:
    return runs.log_path(workspace, "shown", step).read_text()


def test_the_artifacts_are_those_of_this_machine(two_steps, drive_cold, cluster, submitted):
    workspace = two_steps()
    assert drive_cold(workspace).wait(60) == 0
    here = launched.payload(workspace)
    workspace.rename(workspace.with_name("here"))
    workspace = two_steps()
    launched.through(workspace, "slurm", poll_seconds=0.5, data={"cpus": 2, "minutes": 5, "memory_gb": 0.5})
    driver = drive_cold(workspace, **cluster)
    assert driver.communicate(timeout=60)[0] and driver.returncode == 0
    assert launched.payload(workspace) == here and submitted() == 2
    assert "submitted as Slurm's job" in log(workspace, "scores")


def test_the_same_command_finds_the_job_of_a_driver_that_died(held, drive_cold, cluster, submitted):
    """The first time it still runs; the second time it has finished while nobody was there."""
    workspace, wait = held
    launched.through(workspace, "slurm", poll_seconds=0.5)
    for found in (lambda: launched.working(wait), lambda: "nothing is submitted" in log(workspace, "scores")):
        driver = drive_cold(workspace, **cluster)
        launched.until(found)
        driver.send_signal(signal.SIGKILL)
        driver.communicate()
    wait.unlink()
    launched.until(lambda: not slurm_cluster.jobs(cluster, *LIVE))
    driver = drive_cold(workspace, **cluster)
    assert driver.communicate(timeout=60)[0] and driver.returncode == 0
    assert submitted() == 2
    assert log(workspace, "scores").count("of an earlier run works at it, or has; nothing is submitted") == 2


@pytest.mark.long
def test_a_stopped_run_leaves_no_job(held, drive_cold, cluster):
    workspace, wait = held
    launched.through(workspace, "slurm", poll_seconds=0.5)
    driver = drive_cold(workspace, **cluster)
    launched.until(lambda: launched.working(wait))
    driver.send_signal(signal.SIGINT)
    driver.communicate(timeout=60)
    assert slurm_cluster.jobs(cluster, *LIVE) == [] and launched.processes(workspace) == []


@pytest.mark.long
def test_a_job_that_cannot_start_yet_is_waited_for_and_taken_back(two_steps, drive_cold, cluster):
    """It asks for a day that has not come: the screen says that it is pending, and a stop cancels it."""
    workspace = two_steps()
    launched.through(workspace, "slurm", poll_seconds=0.5, flags=["--begin=now+1day"])
    driver = drive_cold(workspace, **cluster)
    launched.until(lambda: slurm_cluster.jobs(cluster, "PENDING"))
    driver.send_signal(signal.SIGTERM)
    driver.communicate(timeout=60)
    assert slurm_cluster.jobs(cluster, *LIVE) == []


@pytest.mark.long
@pytest.mark.parametrize("end, said", [
    ("scancel", "was cancelled; go on"),
    ("worker", "scores failed: it was killed, most often because memory ran out"),
])
def test_what_happened_to_a_job_is_one_line_and_the_same_command_goes_on(held, drive_cold, cluster, end, said):
    workspace, wait = held
    launched.through(workspace, "slurm", poll_seconds=0.5)
    driver = drive_cold(workspace, **cluster)
    launched.until(lambda: launched.working(wait))
    if end == "scancel":
        slurm_cluster.asked(cluster, "scancel", *slurm_cluster.jobs(cluster, "RUNNING"))
    else:
        inner = launched.processes(workspace, "pipeline.worker")
        [p for p in inner if "launchers.node" not in " ".join(p.cmdline())][-1].kill()
    printed = driver.communicate(timeout=60)[0]
    assert driver.returncode == 1 and said in " ".join(printed.split()) and "Traceback" not in printed
    wait.unlink()
    assert drive_cold(workspace, **cluster).wait(60) == 0


@pytest.mark.long
def test_a_job_out_of_time_is_told_and_goes_on_when_it_may_be_submitted_again(held, drive_cold, cluster, submitted):
    """Slurm counts whole minutes."""
    workspace, wait = held
    launched.through(workspace, "slurm", poll_seconds=0.5, data={"minutes": 1})
    printed = drive_cold(workspace, **cluster).communicate(timeout=200)[0]
    assert "ran out of time after 1 minutes; more: launcher.data.minutes" in " ".join(printed.split())
    launched.through(workspace, "slurm", poll_seconds=0.5, data={"minutes": 1}, again=1)
    driver = drive_cold(workspace, **cluster)
    launched.until(lambda: "submitted again, it goes on from there" in log(workspace, "scores"), 200)
    wait.unlink()
    assert driver.communicate(timeout=60)[0] and driver.returncode == 0
    assert submitted() == 4


@pytest.mark.long
def test_a_lost_node_is_told(held, drive_cold, cluster):
    """Its daemon and the step's processes end at once, as when the machine does."""
    workspace, wait = held
    launched.through(workspace, "slurm", poll_seconds=0.5, requeue=False, flags=["--nodelist=two"])
    driver = drive_cold(workspace, **cluster)
    launched.until(lambda: launched.working(wait))
    subprocess.run(["scontrol", "update", "NodeName=two", "State=DOWN", "Reason=test"], check=True,
                   env={**os.environ, **cluster})
    printed = " ".join(driver.communicate(timeout=100)[0].split())
    subprocess.run(["scontrol", "update", "NodeName=two", "State=RESUME"], env={**os.environ, **cluster})
    assert driver.returncode == 1 and "lost its node (two); go on" in printed


def test_what_is_asked_for(tmp_path):
    order = slurm.Order(tmp_path / "step.json", Path("/runs/100%/train[1].log"), 1.0, 0.0, {}, "r", "train[1]", "train",
                        nodes=2, devices=8)
    asked = slurm.Asked(cpus=32, memory_gb=1.5, minutes=90.0, partition="big", flags=["--constraint=h100"])
    words = slurm.arguments(order, slurm.Settings(train=asked, flags=["--account=lab"], requeue=False), "name")
    assert words == [
        "sbatch", "--parsable", "--job-name=name", "--output=/runs/100%%/train[1].log", "--open-mode=append",
        "--export=ALL", "--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=32", "--gpus-per-node=8", "--mem=1536M",
        "--partition=big", "--time=0:5400", "--no-requeue", "--account=lab", "--constraint=h100"]
    assert not any("gpus" in word for word in slurm.arguments(order, slurm.Settings(train=slurm.Asked(gpus=0)), "n"))


def test_what_is_missing_is_told_at_plan(cluster, monkeypatch, tmp_path):
    monkeypatch.setenv("SLURM_CONF", cluster["SLURM_CONF"])
    assert slurm.check(slurm.Settings(), tmp_path) == []
    wrong = slurm.Settings(train=slurm.Asked(partition="gpu"))
    assert slurm.check(wrong, tmp_path) == ["train.partition: no partition 'gpu', expected one of main"]
    monkeypatch.setenv("PATH", str(tmp_path))
    assert slurm.check(wrong, tmp_path) == ["module: sbatch is not found here; run where Slurm's commands are (a login "
                                            "node), or launcher=local"]


def test_the_doctor_asks_both_nodes(cluster, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("SLURM_CONF", cluster["SLURM_CONF"])
    assert doctor(["launcher=slurm", f"workspace={tmp_path}"], cluster=True, nodes=2) == 0
    assert "2 of 2 nodes" in capsys.readouterr().out


@pytest.mark.long
def test_a_training_over_two_nodes_is_that_of_two_processes(cluster, small_world, prefect, command, tmp_path):
    """torchrun on both nodes of one job meets where the job says: the weights are those of two processes here."""
    two, nodes = (launched.small_run(command, small_world, tmp_path / name, {**prefect, **cluster},
                                     "hardware.training.strategy=ddp", *more)
                  for name, more in {"two": ["hardware.training.processes=2"],
                                     "nodes": ["hardware.training.nodes=2", "launcher=slurm"]}.items())
    assert nodes == two
