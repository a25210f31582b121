"""What the user can put right, and how it is worded."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path


class UserError(Exception):
    """Something the user can put right. Carries one message per problem; printed without a traceback, exit code 2."""

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = list(problems)

    @classmethod
    def of(cls, problems: Sequence[str], most: int, number: int | None = None) -> UserError:
        """Of many problems the first `most`, as `first` says it."""
        return cls(*first(problems, most, number))


def first(items: Sequence[str], most: int, number: int | None = None) -> list[str]:
    """The first `most` items, then how many more there are of all `number` (None: all are in `items`)."""
    left = (len(items) if number is None else number) - most
    return [*items[:most], *([f"... and {left} more"] if left > 0 else [])]


class Problems:
    """Messages for the user: how many there are, and the first `most` of them."""

    def __init__(self, most: int = 20) -> None:
        self.number, self.shown, self.most = 0, list[str](), most

    def __len__(self) -> int:
        return self.number

    def add(self, *texts: str) -> None:
        for text in texts:
            self.number += 1
            if len(self.shown) < self.most:
                self.shown.append(text)

    def stop(self) -> None:
        """Raise UserError where there is one."""
        if self.number:
            raise UserError.of(self.shown, self.most, self.number)


def command(workspace: Path | str, *words: str) -> str:
    """`align WORDS` on a line of its own, as it can be typed where the user is: it names a workspace that is not the
    usual one.
    """
    place = Path(workspace).expanduser().resolve()
    elsewhere = [] if place == Path("workspace").resolve() else [f"workspace={place}"]
    return "\n    " + shlex.join(["align", *(word for word in words if not word.startswith("workspace=")), *elsewhere])


def one_line(error: BaseException, most: int = 300) -> str:
    """The first line of another library's message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:most]


def nearest(name: str, known: Iterable[str]) -> str:
    """' (did you mean a, b?)' for the closest known names, or the list of all when none is close."""
    names = sorted(known)
    if close := difflib.get_close_matches(name, names, n=3, cutoff=0.6):
        return f" (did you mean {' or '.join(close)}?)"
    return f" (known: {', '.join(names)})" if names else ""
