"""Score by a Python function, named by its dotted path: `package.module.function`.

    def function(messages: list[dict[str, str]], text: str) -> float

gets the conversation (each turn with "role" and "content") and the completion, and returns a number, higher is
better. It lies on the Python path, or in the folder the command is given in, and gives the same answer every time.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config import imported
from pipeline.errors import UserError
from pipeline.lm.settings import THIS_MACHINE, ModelRuntime
from pipeline.records import Group
from pipeline.rewards.contract import ScoreGroups, Scorer

Rule = Callable[[list[dict[str, str]], str], float]


@dataclass(frozen=True)
class Settings:
    """Which function."""

    function: str
    """Dotted path, such as pipeline.rewards.rule.fresh_trigrams."""

    def check(self) -> list[tuple[str, str]]:
        return function_problems(self.function)


def function_problems(path: str) -> list[tuple[str, str]]:
    """What is wrong with the setting `function`, for a Settings.check()."""
    try:
        resolve(path)
    except UserError as error:
        return [("function", problem) for problem in error.problems]
    return []


def files(settings: Any) -> list[Path]:
    """The source file of `settings.function`: an edited one gives new scores, so it must give a new key."""
    source = inspect.getsourcefile(inspect.unwrap(resolve(settings.function)))
    return [Path(source)] if source else []


def scorer(settings: Settings, *, model: Path | None = None, runtime: ModelRuntime = THIS_MACHINE) -> ScoreGroups:
    """See Scorer. Only the settings matter. Raises UserError for a result that is not a number."""
    function: Any = resolve(settings.function)

    def score(group: Group, text: str) -> float:
        result = function(turns(group), text)
        if not isinstance(result, (int, float)):
            raise UserError(f"reward rule {settings.function}: returned {result!r} for {group.id!r}, expected a number")
        return float(result)

    return lambda groups: [[score(group, c.text) for c in group.completions] for group in groups]


def turns(group: Group) -> list[dict[str, str]]:
    """The conversation as plain data, the function's own to change."""
    return [{"role": m.role, "content": m.content} for m in group.messages]


def resolve(path: str) -> Rule:
    """The function at a dotted path. Raises UserError where there is none, saying which part of the path fails."""
    module_name, _, name = path.rpartition(".")
    if not module_name:
        raise UserError(f"{path!r} is no dotted path, expected package.module.function")
    try:
        module = imported(module_name)
    except ImportError as error:
        problem = (f"cannot import {module_name!r} ({error}); it must be on the Python path, or in the folder the "
                   "command is given in")
        raise UserError(problem) from None
    function = getattr(module, name, None)
    if not inspect.isroutine(function):
        raise UserError(f"{module_name} has no function {name!r}")
    return function  # type: ignore[return-value]


def fresh_trigrams(messages: Sequence[dict[str, str]], text: str) -> float:
    """Share of the word 3-grams of a text that did not occur earlier in it, in [0, 1]; 1 for fewer than three words.

    A rule to start from, and a useful one: repetition is how small language models fail first.
    """
    words = text.split()
    trigrams = list(zip(words, words[1:], words[2:], strict=False))
    return len(set(trigrams)) / len(trigrams) if trigrams else 1.0


SCORER = Scorer(Settings, scorer, files=files)
