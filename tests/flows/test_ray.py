"""Runs whose steps are tasks on a real Ray cluster of two nodes: the same artifacts, and who outlives whom."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline import supervisor
from pipeline.launchers import ray
from tests.flows import launched

pytestmark = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed")
CLUSTER = """
import sys
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
cluster.add_node(num_cpus=2, resources={"second": 1})
print(cluster.address, flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of its head."""
    log = tmp_path_factory.mktemp("ray") / "log"
    care = supervisor.command_line([sys.executable, "-c", CLUSTER], log=None, grace=5, stdin=True)
    with log.open("w") as errors:
        process = subprocess.Popen(care, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
                                   env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0"})
    assert process.stdout is not None
    while ":" not in (line := process.stdout.readline()):
        assert line, log.read_text()
    yield line.strip()
    process.terminate()
    process.communicate(timeout=60)


def test_the_artifacts_are_those_of_this_machine(two_steps, drive_cold, cluster):
    """The second node alone has what the steps ask for."""
    workspace = two_steps()
    assert drive_cold(workspace).wait(60) == 0
    here = launched.payload(workspace)
    workspace.rename(workspace.with_name("here"))
    workspace = two_steps()
    launched.through(workspace, "ray", address=cluster, data={"cpus": 2, "resources": {"second": 1}})
    driver = drive_cold(workspace)
    assert driver.communicate(timeout=120)[0] and driver.returncode == 0
    assert launched.payload(workspace) == here


@pytest.mark.long
def test_after_the_drivers_death_the_step_ends_and_the_same_command_goes_on(held, drive_cold, cluster):
    workspace, wait = held
    launched.through(workspace, "ray", address=cluster, lost_seconds=60.0)
    launched.orphan(workspace, wait, drive_cold(workspace), 30)
    assert drive_cold(workspace).wait(60) == 0
    assert launched.started(workspace) == ["data", "scores", "scores"]


@pytest.mark.long
@pytest.mark.parametrize("number, left", [(signal.SIGINT, 0), (signal.SIGTERM, 0)])
def test_a_stopped_run_leaves_nothing(held, drive_cold, cluster, number, left):
    workspace, wait = held
    launched.through(workspace, "ray", address=cluster)
    driver = drive_cold(workspace)
    launched.until(lambda: launched.working(wait))
    driver.send_signal(number)
    driver.communicate(timeout=60)
    assert len(launched.processes(workspace)) == left


@pytest.mark.long
@pytest.mark.parametrize("victim, said", [
    ("pipeline.worker", "scores failed: it was killed, most often because memory ran out"),
    ("pipeline.launchers.node", "scores failed: the task on Ray ended with exit code"),
])
def test_a_kill_on_the_node_is_one_line_and_the_same_command_goes_on(held, drive_cold, cluster, victim, said):
    workspace, wait = held
    launched.through(workspace, "ray", address=cluster)
    driver = drive_cold(workspace)
    launched.until(lambda: launched.working(wait))
    inner = [p for p in launched.processes(workspace, f"-m {victim} ")
             if "supervisor" not in " ".join(p.cmdline()) and "ray_host" not in " ".join(p.cmdline())]
    inner[-1].kill()
    printed = driver.communicate(timeout=60)[0]
    assert driver.returncode == 1 and said in " ".join(printed.split()) and "Traceback" not in printed
    wait.unlink()
    assert drive_cold(workspace).wait(60) == 0


@pytest.mark.long
def test_what_the_cluster_does_not_have_is_told(two_steps, drive_cold, cluster):
    workspace = two_steps()
    launched.through(workspace, "ray", address=cluster, data={"gpus": 1})
    printed = " ".join(drive_cold(workspace).communicate(timeout=60)[0].split())
    assert "the cluster has 0 GPU, the step asks for 1 x 1 (launcher.train, sample, model, data)" in printed


@pytest.mark.long
def test_a_training_over_two_nodes_is_that_of_two_processes(cluster, small_world, prefect, command, tmp_path):
    """A task on each node, torchrun in both: the weights are those of two processes here."""
    two, nodes = (launched.small_run(command, small_world, tmp_path / name, prefect, "hardware.training.strategy=ddp",
                                     *more)
                  for name, more in {"two": ["hardware.training.processes=2"],
                                     "nodes": ["hardware.training.nodes=2", "launcher=ray",
                                               f"launcher.address={cluster}"]}.items())
    assert nodes == two


def test_what_a_node_sets_aside(tmp_path):
    order = ray.Order(tmp_path / "step.json", Path("log"), 1.0, 0.0, {}, kind="train", nodes=2, devices=8)
    settings = ray.Settings("auto", train=ray.Asked(cpus=32, memory_gb=1.5, resources={"h100": 1.0}))
    assert ray.bundle(order, settings) == {"CPU": 32.0, "GPU": 8.0, "memory": 1.5 * 2**30, "h100": 1.0}
    assert ray.bundle(order, ray.Settings("auto", train=ray.Asked(gpus=0))) == {"CPU": 1.0}


def test_a_wrong_address_is_told_at_plan(tmp_path, monkeypatch):
    assert ray.Settings("ray://node1:10001").check() == [
        ("address", "ray://node1:10001, expected the head's host:port, or auto where this machine belongs to the "
                    "cluster")]
    (told,) = ray.check(ray.Settings("127.0.0.1:9"), tmp_path)
    assert told.startswith("address: nothing answers at 127.0.0.1:9 (")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert ray.check(ray.Settings("auto"), tmp_path) == [
        "module: ray is not installed here: pip install 'alignloop[ray]', or launcher=local"]
