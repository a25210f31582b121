"""`align chat`: a conversation with a run's model, or any model folder, in the terminal or through a pipe."""

import importlib
import sys
from typing import Any

from flows import screen
from flows.run_models import choose, find
from pipeline.errors import UserError
from pipeline.records import Message

TALK = "pipeline.engines.transformers.talk"  # imported by name: it brings torch
_HELP = "/reset starts a new conversation, /quit ends (or end of input); Ctrl-C stops an answer"


def chat(
    workspace: str, name: str, step: str | None, iteration: int | None, max_tokens: int, temperature: float, seed: int
) -> int:
    """Answer what is typed, turn by turn; without a terminal every line of standard input is a turn."""
    problems_of_sampling(max_tokens, temperature)
    model = choose(find(workspace, name), step, iteration)
    screen.errors.print(f"loading {model.label}: {model.folder}", markup=False)
    talker = importlib.import_module(TALK).opened(model.folder, model.dtype)
    if sys.stdin.isatty():
        import readline  # noqa: F401 (it gives input() its history and its keys)

        screen.errors.print(_HELP, markup=False)
    sys.stdin.reconfigure(errors="replace")  # type: ignore[union-attr]
    messages: list[Message] = []
    while (line := _line()) is not None:
        if line == "/quit":
            break
        if line == "/reset":
            messages = []
            screen.errors.print("a new conversation", markup=False)
        elif line.startswith("/") and line[1:].isalpha():
            screen.errors.print(f"{line}: no such command; {_HELP}", markup=False)
        elif line:
            asked = [*messages, Message("user", line)]
            answer = _answer(talker, asked, max_tokens, temperature, seed + len(messages))
            messages = messages if answer is None else [*asked, Message("assistant", answer)]
    return 0


def problems_of_sampling(max_tokens: int, temperature: float) -> None:
    """Raises UserError for numbers that nothing can be sampled with."""
    problems = []
    if max_tokens < 1:
        problems.append(f"--max-tokens: {max_tokens}, expected at least 1")
    if not 0 <= temperature < float("inf"):
        problems.append(f"--temperature: {temperature:g}, expected 0 (greedy) or more")
    if problems:
        raise UserError(*problems)


def _line() -> str | None:
    """What was typed, None at the end of it."""
    try:
        line = input("> ") if sys.stdin.isatty() else sys.stdin.readline()
    except EOFError:
        return None
    return line.strip() if line or sys.stdin.isatty() else None


def _answer(talker: Any, messages: list[Message], max_tokens: int, temperature: float, seed: int) -> str | None:
    """Print the answer as it comes. None where there is none, which the user has been told why."""
    pieces: list[str] = []
    try:
        request = talker.request("the conversation", messages, max_tokens, temperature, seed)
    except UserError as error:
        screen.problems([f"{problem}; /reset starts a new conversation" for problem in error.problems])
        return None
    try:
        for piece in talker.stream(request):
            print(screen.harmless(piece), end="", flush=True)
            pieces.append(piece)
    except KeyboardInterrupt:
        print(" (stopped)", end="")
    print(flush=True)
    if len(pieces) == request.max_tokens:
        screen.errors.print(f"(cut at {request.max_tokens} tokens; --max-tokens gives more, where the model has room)",
                            markup=False)
    return "".join(pieces)
