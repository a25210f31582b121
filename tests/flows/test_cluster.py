"""`align doctor --cluster`: a node's report, what is wrong with it, and the real check behind a prefix."""

from __future__ import annotations

import importlib.metadata
import sys

import pytest

from flows import cluster
from flows.doctor import doctor
from pipeline import __version__
from pipeline.errors import UserError

GOOD = {"host": "node1", "alignloop": __version__, "torch": importlib.metadata.version("torch"), "held": True,
        "python": sys.version.split()[0], "hash": "abc", "locked": True, "seen": 0.3, "offset": -0.2}


def test_a_prefix_on_this_machine_sees_everything(tmp_path, capsys):
    assert doctor(["launcher=command", 'launcher.prefix=[env,"X=1"]', f"workspace={tmp_path}"], cluster=True) == 0
    printed = capsys.readouterr().out
    assert "1 of 1 nodes" in printed and "every node can run steps" in printed and __version__ in printed
    assert list(tmp_path.iterdir()) == []


def test_a_node_that_does_not_answer_is_told(tmp_path, capsys):
    assert doctor(["launcher=command", "launcher.prefix=[sh,-c,'exit 3']", f"workspace={tmp_path}"], cluster=True) == 1
    assert "1 nodes do not answer: `sh -c 'exit 3'` ended with exit code 3" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("change, told", [
    ({}, []),
    ({"torch": "1.0"}, ["torch 1.0, here"]),
    ({"hash": "other"}, ["another content there"]),
    ({"locked": False}, ["a lock held on one side does not exclude the other"]),
    ({"held": False}, ["a lock held on one side does not exclude the other"]),
    ({"seen": None, "offset": None}, ["is not seen there; the workspace is another folder"]),
    ({"offset": 3.2}, ["its clock is +3.2 s off"]),
])
def test_what_is_wrong_with_a_report(change, told):
    found = cluster.wrong({**GOOD, **change}, "abc")
    assert len(found) == len(told) and all(text in one for text, one in zip(told, found, strict=True))


@pytest.mark.parametrize("words, problem", [
    ([], "launcher: local has no other nodes; say which: align doctor --cluster launcher=slurm"),
    (["launcher=command"], "launcher.prefix: empty, expected a list of words such as [ssh, node2]"),
])
def test_what_cannot_be_asked(words, problem, tmp_path):
    with pytest.raises(UserError) as error:
        doctor([*words, f"workspace={tmp_path}"], cluster=True)
    assert error.value.problems == [problem]
