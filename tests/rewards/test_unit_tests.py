"""Generated code against its tests, shut in: what passes, what it cannot reach, and what a system without it says."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from pipeline.errors import UserError
from pipeline.records import Completion, Group, Message, Target, as_json
from pipeline.rewards import jail, unit_tests
from pipeline.rewards.contract import Desk, Limits

TARGET = Target(tests=("assert add(1, 2) == 3", "assert add(0, 0) == offset"), setup="offset = 0")
pytestmark = pytest.mark.skipif(bool(unit_tests.check(unit_tests.Settings(), Limits())),
                                reason="this system does not let code be shut in")


def scored(*answers: str, target: Target | None = TARGET, **settings: object) -> list[float]:
    known = as_json(target) if target else ""
    group = Group("p", (Message("user", "add"),), tuple(map(Completion, answers)), target=known)
    (found,) = unit_tests.scorer(unit_tests.Settings(**settings), desk=Desk())([group])
    return list(found)


def test_code_passes_or_not() -> None:
    """Right, wrong on one of two, no code, a block among words (the last one counts), an end before the tests."""
    answers = ("def add(a, b): return a + b", "def add(a, b): return 3", "I cannot.",
               "Try\n```python\nadd = 1\n```\nor\n```python\ndef add(a, b):\n    return a + b\n```\nDone.",
               "import os\nos._exit(0)")
    assert scored(*answers) == [1.0, 0.0, 0.0, 1.0, 0.0]
    assert scored(*answers[:3], score="share") == [1.0, 0.5, 0.0]
    assert all(map(math.isnan, scored("x", target=None)))


def reached(code: str) -> bool:
    """Whether code that is shut in runs to its end."""
    return unit_tests.passed(unit_tests.Settings(seconds=2), Target(tests=("True",)), code) == [True]


@pytest.mark.parametrize("code", [
    "import socket; socket.create_connection(('1.1.1.1', 53))", "import socket; socket.create_connection(('::1', 9))",
    "open('/usr/mine', 'w')", "open('/etc/passwd')", "import os; os.kill(1, 0) or os.listdir('/proc/1')",
    "open('/box/large', 'w').write('x' * 2**26)", "x = bytearray(2**31)", "import os; os.setuid(0)",
    "import ctypes; assert ctypes.CDLL(None).unshare(0x20000) == 0"])
def test_it_cannot_reach(code: str) -> None:
    assert not reached(code)


def test_it_can_write_in_its_box_and_see_nothing_of_this_machine() -> None:
    assert reached("open('note', 'w').write('x')\nassert open('/box/note').read() == 'x'")
    here = Path(__file__).resolve()
    assert reached(f"import os\nassert not os.path.exists({str(here)!r})\nassert 'HOME' not in os.environ or "
                   "os.environ['HOME'] == '/box'")


def running() -> set[int]:
    """The processes of code that is shut in."""
    return {process.pid for process in psutil.process_iter(["cmdline"])
            if (process.info["cmdline"] or [])[1:5] == ["-I", "-S", "-B", "-c"]}


@pytest.mark.parametrize("code", ["while True: pass", "import time; time.sleep(3600)",
                                  "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass"])
def test_what_does_not_end_is_ended_with_all_it_started(code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unit_tests, "_START_SECONDS", 1.0)
    before, began = running(), time.monotonic()
    assert not reached(code)
    while left := running() - before:
        assert time.monotonic() - began < 15.0, left
        time.sleep(0.1)


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("setpriv") is None or not Path("/usr/bin/python3").exists(),
                    reason="needs root, setpriv and a python3 that every user can read")
def test_another_user_than_root_is_shut_in_as_well(tmp_path: Path) -> None:
    script = tmp_path / "jail.py"
    script.write_text(Path(jail.__file__).read_text())
    for folder in (script, *script.parents):
        if folder.is_relative_to("/tmp") and folder != Path("/tmp"):
            folder.chmod(0o755)
    work = ('{"token": "t", "setup": "", "code": "import os; who = os.getuid()", "tests": ["assert who == 1000"], '
            '"cpu_seconds": 2, "memory_mb": 512, "box_mb": 8}')
    done = subprocess.run(["setpriv", "--reuid=1234", "--regid=1234", "--clear-groups", "/usr/bin/python3", "-I", "-S",
                           str(script)], input=work, capture_output=True, text=True)
    assert done.stdout == '{"token": "t", "passed": [true], "error": ""}\n', done.stderr


def test_a_system_that_cannot_is_refused_at_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that may make no namespaces (unshare fails) exits with 77 before any of the code."""
    broken = tmp_path / "jail.py"
    source = Path(jail.__file__).read_text()
    broken.write_text(source.replace('_call("unshare", ', '_call("unshare", -1 | '))
    monkeypatch.setattr(jail, "__file__", str(broken))
    with pytest.raises(UserError, match=r"does not let code be shut in \(unshare: Invalid argument\), so none is run"):
        scored("raise SystemExit")
    ((key, problem),) = unit_tests.check(unit_tests.Settings(), Limits())
    assert key == "module"
    assert "it takes Linux with namespaces" in problem
    assert sys.platform == "linux"
