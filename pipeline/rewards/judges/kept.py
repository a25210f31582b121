"""Answers of judges on disk: what was answered once is not asked again, whoever is killed and when.

    <folder>/answers/<first two digits>/<key>.json    a reply, by model, prompt and sampling
    <folder>/spent/<run>.jsonl                        a line for each call a run has paid for

A file for each reply: several runs may read and write them at once, on any file system.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline import files


@dataclass(frozen=True)
class Reply:
    """What a judge said."""

    text: str
    finish: str  # the server's finish_reason: "stop", "length", "content_filter" ...
    prompt_tokens: int = 0
    reply_tokens: int = 0


@dataclass(frozen=True)
class Spent:
    """What a run has used up of a budget."""

    calls: int = 0
    tokens: int = 0
    money: float = 0.0

    def __add__(self, other: "Spent") -> "Spent":
        return Spent(self.calls + other.calls, self.tokens + other.tokens, self.money + other.money)


def key_of(model: str, messages: Any, sampling: Mapping[str, Any]) -> str:
    """Name of the answer to a request."""
    asked = {"model": model, "messages": messages, "sampling": dict(sampling)}
    return hashlib.sha256(files.canonical(asked).encode()).hexdigest()


def find(folder: Path, key: str) -> Reply | None:
    """The answer kept under `key`; None where there is none, or one that is not as it was written."""
    try:
        return Reply(**(files.read_sealed(_path(folder, key)) or {}))
    except TypeError:
        return None


def keep(folder: Path, key: str, reply: Reply) -> None:
    files.write_sealed(_path(folder, key), asdict(reply), durable=False)


def pay(folder: Path, run: str, model: str, reply: Reply | None) -> None:
    """Write down a call. None: it was given up, and what it cost is not known."""
    path = _spent(folder, run)
    path.parent.mkdir(parents=True, exist_ok=True)
    tokens = {} if reply is None else {"prompt_tokens": reply.prompt_tokens, "reply_tokens": reply.reply_tokens}
    files.append_line(path, json.dumps({"model": model, **tokens}))


def spent(folder: Path, run: str, prices: Mapping[str, tuple[float, ...]]) -> Spent:
    """What the run's calls have come to, at these prices."""
    path = _spent(folder, run)
    lines = files.parsed_lines(path.read_bytes(), model=str) if path.exists() else []
    return sum((cost(line["model"], line.get("prompt_tokens", 0), line.get("reply_tokens", 0), prices)
                for line in lines), Spent())


def cost(model: str, prompt_tokens: int, reply_tokens: int, prices: Mapping[str, tuple[float, ...]]) -> Spent:
    """Of one call. A model without a price costs nothing."""
    of_prompt, of_reply = prices.get(model, (0.0, 0.0))
    return Spent(1, prompt_tokens + reply_tokens, (prompt_tokens * of_prompt + reply_tokens * of_reply) / 1e6)


def _path(folder: Path, key: str) -> Path:
    return folder / "answers" / key[:2] / f"{key}.json"


def _spent(folder: Path, run: str) -> Path:
    return folder / "spent" / f"{run or 'run'}.jsonl"
