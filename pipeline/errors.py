"""What the user can put right, and how it is worded."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user can put right. Carries one message per problem; printed without a traceback, exit code 2."""

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = list(problems)


class Problems:
    """Messages for the user: how many there are, and the first `shown` of them in full."""

    def __init__(self, shown: int = 20, more: str = "and {} more problems in these files") -> None:
        self.number, self.shown, self._most, self._more = 0, list[str](), shown, more

    def __len__(self) -> int:
        return self.number

    def add(self, *texts: str) -> None:
        for text in texts:
            self.number += 1
            if len(self.shown) < self._most:
                self.shown.append(text)

    def stop(self) -> None:
        """Raise UserError where there is one."""
        if self.number:
            more = self.number - len(self.shown)
            raise UserError(*self.shown, *([self._more.format(more)] if more else []))


def nearest(name: str, known: Iterable[str]) -> str:
    """' (did you mean a, b?)' for the closest known names, or the list of all when none is close."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
    if close:
        return f" (did you mean {' or '.join(close)}?)"
    return f" (known: {', '.join(names)})" if names else ""
