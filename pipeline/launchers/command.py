"""Steps run behind a prefix: `ssh node2`, `kubectl exec -i POD --`, `env X=1`.

The prefix must pass on standard input, which carries the environment and whose end is the driver's end.
"""

import re
import shlex
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path

from pipeline import supervisor
from pipeline.config import setting
from pipeline.launchers import distant, lease, node
from pipeline.launchers.contract import Launcher, Order

_PLACE = re.compile(r"\{([a-z]+)\}")
_COMMAND, _WORDS = "{command}", "{words}"
_NAMES = ("command", "words", "run", "step", "kind")


@dataclass(frozen=True)
class Settings:
    """The prefix, word by word; no shell of ours reads it.

    {command} in a word is the step's command as one text, quoted for a shell: [ssh, node2, "{command}"],
    [sh, -c, "cd /data && exec {command}"]. {words} as a word of its own is the same word by word, for what calls no
    shell: [docker, exec, -i, box, "{words}"]. With neither the words come last. {run}, {step} and {kind} (train,
    sample, model, data) stand for the step's.
    """

    prefix: list[str] = field(default_factory=list)  # such as [ssh, node2]
    python: str | None = None  # the interpreter there; null: the path of this one
    lost_seconds: float = setting(120.0, low=1.0)  # without a sign of the driver after which a step ends itself

    def check(self) -> list[tuple[str, str]]:
        if not self.prefix:
            return [("prefix", "empty, expected a list of words such as [ssh, node2]")]
        unknown = [f"{{{name}}}" for word in self.prefix for name in _PLACE.findall(word) if name not in _NAMES]
        mixed = [word for word in self.prefix if _WORDS in word and word != _WORDS]
        return [("prefix", f"{name} stands for nothing, expected some of {', '.join(f'{{{n}}}' for n in _NAMES)}")
                for name in unknown] + [
            ("prefix", f"{word!r}: {_WORDS} is a word of its own; within a text it is {_COMMAND}") for word in mixed]


def check(settings: Settings, workspace: Path) -> list[str]:
    first, placed = settings.prefix[0], any(_COMMAND in word or word == _WORDS for word in settings.prefix)
    problems = [] if shutil.which(first) else [f"prefix: no program {first!r} is found here"]
    words = [settings.python or sys.executable, *supervisor.imports().values(), str(workspace)]
    if not placed and (odd := [word for word in words if shlex.quote(word) != word]):
        problems.append(f"prefix: {odd[0]!r} is in the command and means something to a shell; say where the command "
                        f"goes: [..., \"{_COMMAND}\"] quoted for a shell (ssh), [..., \"{_WORDS}\"] for none")
    return problems


def arguments(prefix: list[str], command: list[str], **names: str) -> list[str]:
    """The prefix with the step's command in its place."""
    if not any(_COMMAND in word or word == _WORDS for word in prefix):
        prefix = [*prefix, _WORDS]
    known = {**names, "command": shlex.join(command), "words": _WORDS}
    return [made for word in prefix
            for made in (command if word == _WORDS else [_PLACE.sub(lambda match: known[match[1]], word)])]


def start(order: Order, settings: Settings) -> distant.Distant:
    held = lease.take(order.work, order.grace, settings.lost_seconds)
    command = node.command_line(order, held.token, settings.python, listen=True)
    words = arguments(settings.prefix, command, run=order.run, step=order.step, kind=order.kind)
    plain = shlex.join(word for word in settings.prefix if _COMMAND not in word and word != _WORDS)
    return distant.Distant(order, held, words, f"`{plain}`", f"{plain} true")


LAUNCHER = Launcher(Settings, start, check=check)
