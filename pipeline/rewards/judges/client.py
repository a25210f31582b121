"""One call of an OpenAI-compatible endpoint, and what its answer means.

The key comes from an environment variable and goes into the request's header only: a message of the server that repeats
it is shown without it.
"""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from pipeline import web
from pipeline.errors import UserError
from pipeline.files import parsed
from pipeline.rewards.judges.kept import Reply

_AGAIN = (408, 409, 425, 429)  # and all from 500 on
_BYTES_PER_TOKEN = 3  # about, of a server that does not count
_ANEW = "run it as another run=NAME: what is done comes from the store"  # a run goes on with its own settings
_SHOWN = 200  # characters of a server's own message


@dataclass(frozen=True)
class Endpoint:
    """Whom to ask."""

    base_url: str  # up to /v1
    key: str | None  # the environment variable that holds it; None: none is sent
    model: str
    path: str = "chat/completions"
    read: Callable[[dict[str, Any]], Reply] | None = None  # of an answer that is no chat completion


class Again(Exception):
    """The call failed in a way that may pass.

    lost: it was sent, and nobody knows what became of it. after: seconds the server asks to wait, if it does.
    """

    def __init__(self, why: str, lost: bool = False, after: float | None = None) -> None:
        super().__init__(why)
        self.lost, self.after = lost, after


class Refused(Exception):
    """The server will never answer this request: too long for its context, its content not allowed."""


def problems(endpoint: Endpoint) -> list[tuple[str, str]]:
    """What is wrong with where to ask, as far as it shows without asking."""
    found = []
    address = urlsplit(endpoint.base_url)
    if address.scheme not in ("http", "https") or not address.hostname:
        found.append(("base_url", f"{endpoint.base_url!r}, expected an address such as http://localhost:8000/v1"))
    elif endpoint.key and endpoint.key not in os.environ and address.hostname not in web.THIS_MACHINE:
        found.append(("key", f"the environment variable {endpoint.key} is not set; put the key of {address.hostname} "
                      "into it, name another variable, or give null where none is needed"))
    return found


def ask(endpoint: Endpoint, messages: Any, sampling: Mapping[str, Any], seconds: float) -> Reply:
    """One request. Raises Again, Refused, and UserError where no request of this kind will ever be answered."""
    url, key = f"{endpoint.base_url.rstrip('/')}/{endpoint.path}", os.environ.get(endpoint.key or "", "")
    body = {"model": endpoint.model, "messages": messages, **{k: v for k, v in sampling.items() if v is not None}}
    try:
        status, headers, text = web.exchange(url, seconds, key, json.dumps(body).encode())
    except TimeoutError:
        raise Again(f"no answer within {seconds:g} s", lost=True) from None
    except OSError as error:
        raise Again(f"{endpoint.base_url} cannot be reached ({_hidden(str(error), key)})") from None
    if status == 200:
        return _reply(endpoint, body, text)
    said = _hidden(_message(text), key)
    if status in _AGAIN or status >= 500:
        raise Again(f"{status}: {said}", after=_seconds(headers.get("Retry-After")))
    raise _final(endpoint, status, said)


def _final(endpoint: Endpoint, status: int, said: str) -> Exception:
    """What a status that no retry changes means."""
    if status in (401, 403):
        held = (f"the key in the environment variable {endpoint.key}" if endpoint.key and endpoint.key in os.environ
                else f"requests without a key, and the environment variable {endpoint.key} is not set")
        return UserError(f"judge: {endpoint.base_url} refuses {held} ({status}: {said})")
    if status == 404:
        return UserError(f"judge: {endpoint.base_url} has no model {endpoint.model!r}, or is no OpenAI-compatible "
                         f"address (404: {said}); check base_url, which mostly ends with /v1, and the model's name, "
                         f"and {_ANEW}")
    if status in (400, 413, 422):
        return Refused(f"{status}: {said}")
    return UserError(f"judge: {endpoint.base_url} answered {status}: {said}")


def _reply(endpoint: Endpoint, body: Mapping[str, Any], text: bytes) -> Reply:
    try:
        answer = parsed(text)
        if endpoint.read is not None:
            return endpoint.read(answer)
        choice, usage = answer["choices"][0], answer.get("usage") or {}
        message = choice["message"]
        said = message.get("content") or ""
        counted = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        start = text[:_SHOWN].decode(errors="replace").strip().split("\n")[0]
        kind = "HTML" if start.lower().startswith(("<!doctype", "<html")) else "something else"
        raise UserError(f"judge: {endpoint.base_url} answered {kind} where JSON of /{endpoint.path} was expected "
                        f"({start[:60]!r}); give the address of an OpenAI-compatible server, of a chat one with its "
                        f"/v1, and {_ANEW}") from None
    finish = "refusal" if message.get("refusal") else str(choice.get("finish_reason") or "")
    sizes = [tokens(str(body["messages"])), tokens(str(said))]
    known = [int(n) if isinstance(n, (int, float)) else size for n, size in zip(counted, sizes, strict=True)]
    return Reply(str(said), finish, *known)


def tokens(text: str) -> int:
    """About how many tokens a text has, from above for most languages."""
    return len(text.encode()) // _BYTES_PER_TOKEN + 1


def _message(text: bytes) -> str:
    """The server's own words: OpenAI's form, vLLM's older one, else the start of the body."""
    try:
        found = parsed(text)
        error = found.get("error", found)
        said = str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, KeyError, TypeError, AttributeError):
        said = text.decode(errors="replace")
    return " ".join(said.split())[:_SHOWN]


def _hidden(text: str, key: str) -> str:
    return text.replace(key, "(the key)") if key else text


def _seconds(value: str | None) -> float | None:
    """Of a Retry-After header; one that gives a date is not read."""
    try:
        return max(0.0, float(value)) if value else None
    except ValueError:
        return None
