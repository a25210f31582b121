"""What launchers are asked for and what is told at plan; runs behind a prefix: the same artifacts, every way to end."""

from __future__ import annotations

import signal

import pytest

from flows import launching, place
from flows.compose import compose
from flows.prepare import prepare
from pipeline.errors import UserError
from tests.flows import launched


def test_the_artifacts_are_those_of_this_machine(two_steps, drive_cold):
    """Through a shell that reads a text, in a workspace that needs quotes; the key of a judge goes along."""
    workspace = two_steps()
    assert drive_cold(workspace).wait(60) == 0
    here = launched.payload(workspace)
    moved = workspace.rename(workspace.with_name("here"))
    assert len(here) > 3 and moved.exists()
    workspace = two_steps()
    launched.through(workspace, "command", prefix=["sh", "-c", "exec env -u ALIGNLOOP_X {command}"])
    driver = drive_cold(workspace)
    assert driver.communicate(timeout=60)[0] and driver.returncode == 0
    assert launched.payload(workspace) == here


def test_after_the_drivers_death_the_step_ends_and_the_same_command_goes_on(held, drive_cold):
    workspace, wait = held
    launched.through(workspace, "command", prefix=["env", "X=1"], lost_seconds=60.0)
    launched.orphan(workspace, wait, drive_cold(workspace), 10)
    assert drive_cold(workspace).wait(60) == 0
    assert launched.started(workspace) == ["data", "scores", "scores"]


def test_a_stopped_run_leaves_nothing(held, drive_cold):
    workspace, wait = held
    launched.through(workspace, "command", prefix=["sh", "-c", "{command}; exit $?"])
    driver = drive_cold(workspace)
    launched.until(lambda: launched.working(wait))
    driver.send_signal(signal.SIGINT)
    driver.communicate(timeout=30)
    assert launched.processes(workspace) == []


@pytest.mark.long
@pytest.mark.parametrize("victim, said", [
    ("pipeline.worker", "scores failed: it was killed, most often because memory ran out"),
    ("launchers.node", "scores failed: `env X=1` ended with exit code 137 while the step ran on"),
])
def test_a_kill_on_the_node_is_one_line_and_the_same_command_goes_on(held, drive_cold, victim, said):
    workspace, wait = held
    launched.through(workspace, "command", prefix=["env", "X=1"])
    driver = drive_cold(workspace)
    launched.until(lambda: launched.working(wait))
    inner = [p for p in launched.processes(workspace, victim) if "supervisor" not in " ".join(p.cmdline())]
    inner[-1].kill()
    printed = driver.communicate(timeout=60)[0]
    assert driver.returncode == 1 and said in " ".join(printed.split()) and "Traceback" not in printed
    wait.unlink()
    assert drive_cold(workspace).wait(60) == 0


@pytest.mark.parametrize("prefix, said", [
    (["false"], "`false` ended with exit code 1 before the step began; try by hand: false true"),
    (["sh", "-c", "exec {command} </dev/null"], "nothing came through standard input; let the launcher's prefix pass"),
])
def test_a_prefix_that_does_not_work_is_told(two_steps, drive_cold, prefix, said):
    workspace = two_steps()
    launched.through(workspace, "command", prefix=prefix)
    driver = drive_cold(workspace)
    assert said in " ".join(driver.communicate(timeout=60)[0].split()) and driver.returncode == 1


ENV = ["launcher=command", 'launcher.prefix=[env,"X=1"]']


def test_the_kind_of_a_stage(tmp_path):
    """A score by a rule is computed anywhere."""
    kinds = {}
    for more in ([], ["reward=rule"]):
        for step in prepare(["recipe=iterative_dpo", f"workspace={tmp_path}", *more]).steps:
            kinds.setdefault(step.stage, set()).add(place.kind_of(step.plugin, step.settings, step.runtime))
    assert {name: kinds[name] for name in ("sft", "train_preference", "generate", "reference_logprobs", "import_data",
                                           "tokenize", "score")} == {
        "sft": {"train"}, "train_preference": {"train"}, "generate": {"sample"}, "reference_logprobs": {"train"},
        "import_data": {"data"}, "tokenize": {"data"}, "score": {"train", "data"}}


def test_no_launcher_changes_a_key(tmp_path):
    words = ["recipe=pco", f"workspace={tmp_path}"]
    here, there = (prepare([*words, *more]).steps for more in ([], ENV))
    assert here == there


@pytest.mark.parametrize("words, problem", [
    ([*ENV, "hardware.warm_workers=true"],
     "hardware.warm_workers: true, but with launcher=command every step's process starts anew on its node; leave it "
     "out, or launcher=local"),
    ([*ENV, "hardware.training.nodes=2", "hardware.training.strategy=ddp", "hardware.training.rendezvous=a:1"],
     "hardware.training.nodes: 2, but launcher=command starts a step on one node; launcher=slurm and launcher=ray "
     "start it on several"),
    (["hardware.training.rendezvous=job"],
     "hardware.training.rendezvous: job, but launcher=local does not say where nodes meet, expected host:port of one "
     "of them"),
    (["launcher=command", "launcher.prefix=[no-such-program]"],
     "launcher.prefix: no program 'no-such-program' is found here"),
    (["launcher=slurm", "launcher.train.cpus=many"],
     "launcher.train.cpus: expected a whole number, got 'many'"),
    (["launcher=slurm", "launcher.train.cpus=0"], "launcher.train.cpus: 0 is out of range, expected 1 <= x"),
    (["launcher=slurm", "launcher.flags=[fast]"],
     "launcher.flags: 'fast', expected words for sbatch, such as \"--account=lab\""),
    (["launcher=ray"],
     "launcher.address: not set, expected the head's host:port, or auto where this machine belongs to the cluster"),
    (["launcher=slurp"], "launcher: no launcher named 'slurp' (did you mean slurm?)"),
])
def test_what_cannot_work_is_told_at_plan(words, problem, tmp_path):
    with pytest.raises(UserError) as error:
        prepare(["recipe=sft", f"workspace={tmp_path}", *words])
    assert error.value.problems == [problem]


def test_nodes_of_a_job_meet_where_it_says(tmp_path):
    words = ["recipe=sft", f"workspace={tmp_path}", "hardware.training.nodes=2", "hardware.training.strategy=ddp"]
    composed = compose([*words, "launcher=slurm"])
    assert composed.config["hardware"]["training"]["rendezvous"] == "job"
    assert "hardware.training.rendezvous=job: on the first of the nodes that each step gets" in composed.notes
    assert compose(words).config["hardware"]["training"]["rendezvous"] is None


@pytest.mark.parametrize("words, devices", [
    (["hardware=cpu"], {}),
    (["hardware=cuda", "hardware.devices=8"], {"train": 8, "sample": 8, "model": 1, "data": 0}),
    (["hardware=cuda", "hardware.devices=8", 'engine.arguments=[--tensor-parallel-size,"2"]'],
     {"train": 8, "sample": 8, "model": 1, "data": 0}),
    (["hardware=cuda", "hardware.devices=8", "engine=vllm_ray"], {"train": 8, "sample": 0, "model": 1, "data": 0}),
])
def test_the_devices_that_a_kind_of_stage_uses(words, devices, tmp_path):
    config = compose(["recipe=pco", f"workspace={tmp_path}", *words]).config
    assert launching.of(config).devices == devices


def test_a_judges_key_goes_along(tmp_path):
    words = ["recipe=pco", "reward=served", "reward.scorer.key=MY_KEY", f"workspace={tmp_path}"]
    there = launching.of(compose(words).config)
    around = {"MY_KEY": "1", "HOME": "2", "HF_TOKEN": "3", "HF_HOME": "4"}
    order = place.order(there, prepare(words[:1] + words[3:]).steps[0], tmp_path / "w" / "step.json",
                        tmp_path / "log", 1.0, 0.0, around, "r")
    assert order.sent == {"MY_KEY": "1", "HF_TOKEN": "3"}


@pytest.mark.long
def test_a_run_of_the_built_in_world_gives_the_same_bytes(small_world, prefect, command, tmp_path):
    """Every step cold and behind a shell, against warm ones here."""
    here, there = (launched.small_run(command, small_world, tmp_path / name, prefect, *more)
                   for name, more in {"here": [], "there": [
                       "launcher=command", "launcher.prefix=[sh,-c,'exec {command}']"]}.items())
    assert there == here and len(here) > 10
