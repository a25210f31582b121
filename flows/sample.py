"""`align sample`: what the start model, the SFT model and every iteration answer to the same prompts."""

import importlib
import json
import sys
import textwrap
from dataclasses import asdict
from pathlib import Path
from typing import Any

from flows import screen
from flows.chat import TALK, problems_of_sampling
from flows.run_models import find
from pipeline.errors import Problems, UserError
from pipeline.records import ROLES, Message

_WIDTH = 80  # columns of the text
_CHANGE_PROMPTS = ("system", "tools", "chat_template_kwargs")  # keys of a row, in training data
Conversation = tuple[str, tuple[Message, ...]]  # its name in messages, its turns


def sample(
    workspace: str, name: str, prompts: str | None, max_tokens: int, temperature: float, seed: int, as_json: bool
) -> int:
    """Print the answers of every model that the run has so far, prompt by prompt."""
    problems_of_sampling(max_tokens, temperature)
    if prompts is None:
        raise UserError("--prompts: missing, expected a file with a prompt a line, .jsonl, or - (standard input)")
    conversations, models = read(prompts), find(workspace, name)
    talk, made = importlib.import_module(TALK), []
    for model in models:
        screen.errors.print(f"{model.label} answers: {model.folder}", markup=False)
        made.append(talk.answers(model.folder, model.dtype, conversations, max_tokens, temperature, seed))
    rows = [{"prompt": [{"role": message.role, "content": message.content} for message in messages],
             "answers": [{"model": model.label, **asdict(reply)} for model, reply in zip(models, replies, strict=True)]}
            for (_, messages), replies in zip(conversations, zip(*made, strict=True), strict=True)]
    print(json.dumps(rows, indent=1) if as_json else "\n\n".join(_text(i, row) for i, row in enumerate(rows, 1)))
    return 0


def read(file: str) -> list[Conversation]:
    """Prompts of a file: a line each, or rows with `prompt` (a text or messages) or `messages` of a .jsonl file.

    Raises UserError naming every row that is none.
    """
    try:
        content = sys.stdin.buffer.read() if file == "-" else Path(file).expanduser().read_bytes()
        lines = content.decode().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--prompts: {file} cannot be read: {error}") from None
    problems, found = Problems(), list[Conversation]()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row: Any = json.loads(line) if file.endswith(".jsonl") else {"prompt": line.strip()}
            found.append((f"{file}:{number}", _messages(row)))
        except (ValueError, TypeError, KeyError) as error:
            problems.add(f"{file}:{number}: {error or 'not a prompt'}; expected an object with prompt (a text or a "
                         "list of messages) or messages")
    problems.stop()
    if not found:
        raise UserError(f"--prompts: {file} has no prompt, expected one a line")
    return found


def _messages(row: Any) -> tuple[Message, ...]:
    """The turns of a row up to the user's last. Raises ValueError, TypeError or KeyError for what is no row."""
    given = row["prompt"] if "prompt" in row else row["messages"]
    turns = [{"role": "user", "content": given}] if isinstance(given, str) else list(given)
    while turns and turns[-1]["role"] == "assistant":
        turns.pop()
    unread = [key for key in _CHANGE_PROMPTS if row.get(key)]
    unread += [key for turn in turns for key, value in turn.items() if key not in ("role", "content") and value]
    if unread:
        raise ValueError(f"{', '.join(unread)} would change the prompt and is not read here")
    messages = tuple(Message(turn["role"], turn["content"]) for turn in turns)
    if not messages or any(m.role not in ROLES or not isinstance(m.content, str) for m in messages):
        raise ValueError(f"{given!r:.80} is no conversation")
    return messages


def _text(number: int, row: dict[str, Any]) -> str:
    """One prompt and its answers at 80 columns, the models' names in front."""
    asked = row["prompt"][-1]["content"]
    earlier = f" (after {len(row['prompt']) - 1} turns)" if len(row["prompt"]) > 1 else ""
    width = max(len(answer["model"]) for answer in row["answers"]) + 2
    lines = [_wrapped(f"{number}. {asked}{earlier}", "", "   ")]
    for answer in row["answers"]:
        text = answer["text"].strip() + (" [cut]" if answer["finish_reason"] == "length" else "")
        lines.append(_wrapped(text, f"   {answer['model']:<{width}}", " " * (3 + width)))
    return "\n".join(lines)


def _wrapped(text: str, first: str, rest: str) -> str:
    made: list[str] = []
    for line in screen.harmless(text).split("\n"):
        made += textwrap.wrap(line, _WIDTH, initial_indent=rest if made else first, subsequent_indent=rest,
                              break_on_hyphens=False) or [first.rstrip() if not made else ""]
    return "\n".join(made)
