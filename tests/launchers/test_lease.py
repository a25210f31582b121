"""Who may work in a step's folder: one order holds, the older ones end."""

from __future__ import annotations

import json
import os
import subprocess
import time
from dataclasses import replace

import pytest

from pipeline.launchers import lease, node
from pipeline.launchers.contract import Order


@pytest.fixture
def begin(tmp_path):
    """begin(token, listen=...) -> the node's side of an order whose step sleeps for a minute, once it has begun."""
    (tmp_path / "sleeper.py").write_text("import time\ntime.sleep(60)\n")
    order = Order(tmp_path / "step.json", tmp_path / "log", 1.0, 0.0, {}, module="sleeper")
    started = []

    def call(token: str, wait: bool = True) -> subprocess.Popen[bytes]:
        words = node.command_line(order, token, None)
        words[1] += f":{tmp_path}"
        started.append(subprocess.Popen(words))
        deadline = time.monotonic() + 30
        while wait and not lease.begun(tmp_path, token):
            assert time.monotonic() < deadline and started[-1].poll() is None
            time.sleep(0.05)
        return started[-1]

    yield call
    for process in started:
        process.kill()
        process.wait()


def test_a_new_order_waits_until_the_old_one_has_ended(tmp_path, begin):
    old = lease.take(tmp_path, 1.0, lost=30.0)
    process = begin(old.token)
    new = lease.take(tmp_path, 1.0, lost=30.0)
    assert lease.ended(tmp_path, old.token) == 143
    assert process.wait(5) == 143 and lease.read(tmp_path) == new and new.token != old.token


def test_an_order_that_no_longer_holds_does_not_begin(tmp_path, begin):
    """A job that waited in a queue while another one was started. It leaves that one's word alone."""
    old = lease.take(tmp_path, 1.0, lost=0.0)
    lease.write(tmp_path, replace(old, token="newer"))
    lease.end(tmp_path, "newer", 0)
    assert begin(old.token, wait=False).wait(30) == 143
    assert lease.ended(tmp_path, "newer") == 0


def test_a_job_that_is_started_anew_goes_on(tmp_path, begin):
    """Slurm ends it, to make room, and starts it again: it is the same order."""
    held = lease.take(tmp_path, 1.0, lost=0.0)
    process = begin(held.token)
    process.terminate()
    assert process.wait(10) == 143 and lease.ended(tmp_path, held.token) == 143
    again = begin(held.token)
    time.sleep(1)
    assert again.poll() is None and lease.ended(tmp_path, held.token) is None


def test_without_beats_it_ends_and_with_them_it_goes_on(tmp_path, begin):
    held = lease.take(tmp_path, 1.0, lost=1.5)
    process, began = begin(held.token), time.monotonic()
    while time.monotonic() - began < 3:
        held = replace(held, beat=held.beat + 1)
        lease.write(tmp_path, held)
        time.sleep(0.3)
    assert process.poll() is None
    assert process.wait(10) == 143 and lease.ended(tmp_path, held.token) == 143


def test_one_that_was_killed_on_this_host_is_not_waited_for(tmp_path, begin):
    held = lease.take(tmp_path, 1.0, lost=600.0)
    process = begin(held.token)
    process.kill()
    process.wait()
    began = time.monotonic()
    lease.take(tmp_path, 1.0, lost=600.0)
    assert time.monotonic() - began < 5


def test_one_on_another_host_is_waited_for_as_long_as_it_may_live(tmp_path):
    held = lease.take(tmp_path, 0.5, lost=1.0)
    (tmp_path / "node.json").write_text(json.dumps(
        {"token": held.token, "host": "elsewhere", "pid": os.getpid(), "code": None}))
    began = time.monotonic()
    lease.take(tmp_path, 0.5, lost=1.0)
    assert 1.4 < time.monotonic() - began < 10


@pytest.mark.parametrize("code, told", [(0, None), (1, 143)])
def test_a_node_that_fails_ends_the_others(tmp_path, code, told):
    held = lease.take(tmp_path, 1.0, lost=0.0)
    lease.end(tmp_path, held.token, code)
    assert lease.obeying(tmp_path, held.token)() == told


def test_where_the_folder_has_gone_the_step_ends(tmp_path):
    assert lease.obeying(tmp_path, "any")() == 143
