"""`notify=`: where messages about a run go, and how one is sent: desktop, command, webhook, e-mail, Prefect.

Secrets (a webhook's address, tokens, passwords) are named by the environment variable that holds them: they stand in no
file of the run and in no message.
"""

import json
import os
import shutil
import subprocess
import urllib.parse
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline import web
from pipeline.config import setting
from pipeline.errors import command

EVENTS = ("finished", "failed", "stuck", "gate", "falling")


@dataclass(frozen=True)
class Webhook:
    """An address that takes a JSON body."""

    shape: str = setting("json", choices=("json", "slack", "matrix"))  # of the body: whose words it is in
    url_from: str = "ALIGNLOOP_WEBHOOK_URL"  # the variable with the address; matrix: .../rooms/ROOM/send/m.room.message
    token_from: str | None = None  # the variable with a bearer token, which matrix needs; null: none is sent
    timeout: float = setting(10.0, above=0.0)  # seconds until an attempt is given up

    def check(self) -> list[tuple[str, str]]:
        named = {"url_from": self.url_from, "token_from": self.token_from}
        problems = [(key, _missing(name)) for key, name in named.items() if name and not os.environ.get(name)]
        unnamed = self.shape == "matrix" and self.token_from is None
        return problems + ([("token_from", "matrix needs a token; name the variable that holds it")] if unnamed else [])


@dataclass(frozen=True)
class Email:
    """A letter by SMTP."""

    to: str = ""  # addresses, with commas between them
    sender: str = ""  # empty: the first of `to`
    host: str = "localhost"  # the SMTP server
    port: int = setting(587, low=1, high=65535)  # of that server
    security: str = setting("starttls", choices=("starttls", "tls", "none"))  # of the connection
    user: str = ""  # empty: no login
    password_from: str = "ALIGNLOOP_SMTP_PASSWORD"  # the variable with the password
    timeout: float = setting(20.0, above=0.0)  # seconds until an attempt is given up

    def check(self) -> list[tuple[str, str]]:
        problems = [] if self.to.strip(", ") else [("to", "not set, expected addresses with commas between them")]
        if self.user and not os.environ.get(self.password_from):
            problems.append(("password_from", _missing(self.password_from)))
        return problems


@dataclass(frozen=True)
class Notify:
    """Who is told of a run, and of what. It changes no result."""

    desktop: bool = False  # a note on this machine's screen, by notify-send
    # For the shell: the text comes on its standard input, ALIGNLOOP_EVENT and ALIGNLOOP_RUN are set.
    command: str | None = None
    webhook: Webhook | None = None  # null: none
    email: Email | None = None  # null: none
    # Events alignloop.run.finished, .failed ... for automations, to PREFECT_API_URL or the workspace's `align server`.
    prefect: bool = False
    events: str = ",".join(EVENTS)  # of which: finished, failed, stuck, gate (closed), falling (gold)
    stuck_minutes: float = setting(60.0, above=0.0)  # without any progress until a run counts as stuck
    samples: int = setting(0, low=0)  # answers of the last iteration quoted when it has finished; 0: none

    def check(self) -> list[tuple[str, str]]:
        unknown = [name for name in self.wanted if name not in EVENTS]
        problems = [("events", f"no event {name!r}, expected some of {','.join(EVENTS)}") for name in unknown]
        if self.command == "":
            problems.append(("command", "not set, expected one for the shell, which reads the text from its standard "
                                        "input"))
        if self.desktop and shutil.which("notify-send") is None:
            problems.append(("desktop", "notify-send is not installed here"))
        return problems

    @property
    def on(self) -> bool:
        return bool(self.desktop or self.command or self.webhook or self.email or self.prefect)

    @property
    def wanted(self) -> tuple[str, ...]:
        return tuple(filter(None, (name.strip() for name in self.events.split(","))))


@dataclass(frozen=True)
class Message:
    """One event in words. It holds no text of the data unless Notify.samples asks for it."""

    event: str
    run: str
    title: str
    text: str
    workspace: str = ""  # the folder


def ways(settings: Notify) -> dict[str, Callable[[Message], None]]:
    """Name -> what sends a message that way. It raises OSError (or smtplib's errors, which are) where it cannot."""
    found: dict[str, Callable[[Message], None]] = {}
    if settings.desktop:
        found["desktop"] = lambda message: _run(["notify-send", "--", message.title, message.text], message)
    if settings.command:
        words = ["/bin/sh", "-c", settings.command]
        found["command"] = lambda message: _run(words, message)
    if (webhook := settings.webhook) is not None:
        found["webhook"] = lambda message: _post(webhook, message)
    if (email := settings.email) is not None:
        found["email"] = lambda message: _mail(email, message)
    if settings.prefect:
        found["prefect"] = _emit
    return found


def body(shape: str, message: Message) -> Mapping[str, str]:
    """What a webhook is sent: Slack's and Mattermost's {text}, Matrix's m.room.message, or every field of it."""
    plain = f"{message.title}\n{message.text}"
    if shape == "slack":
        escaped = plain.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        return {"text": escaped}
    if shape == "matrix":
        return {"msgtype": "m.text", "body": plain}
    return {"event": message.event, "run": message.run, "title": message.title, "text": message.text}


def _post(webhook: Webhook, message: Message) -> None:
    url, method = os.environ[webhook.url_from], "POST"
    if webhook.shape == "matrix":  # every message under an id of its own, which a second attempt repeats
        url, method = f"{url.rstrip('/')}/{urllib.parse.quote(f'{message.title}-{os.getpid()}', safe='')}", "PUT"
    content = json.dumps(body(webhook.shape, message)).encode()
    token = os.environ[webhook.token_from] if webhook.token_from else ""
    status, _ = web.fetch(url, webhook.timeout, token, content, method)
    if not 200 <= status < 300:
        raise OSError(f"it answered {status}")


def _mail(settings: Email, message: Message) -> None:
    import smtplib  # here: every plan imports this module for its settings
    from email.message import EmailMessage

    letter, to = EmailMessage(), [address.strip() for address in settings.to.split(",") if address.strip()]
    letter["From"], letter["To"], letter["Subject"] = settings.sender or to[0], ", ".join(to), message.title
    letter.set_content(message.text)
    connect = smtplib.SMTP_SSL if settings.security == "tls" else smtplib.SMTP
    with connect(settings.host, settings.port, timeout=settings.timeout) as server:
        if settings.security == "starttls":
            server.starttls()
        if settings.user:
            server.login(settings.user, os.environ[settings.password_from])
        server.send_message(letter)


def _emit(message: Message) -> None:
    """To Prefect's API, which an automation is triggered by. It wants neither Prefect's package nor its worker here."""
    url = prefect_url(Path(message.workspace))
    if url is None:
        raise OSError("no Prefect server: align server up, or PREFECT_API_URL")
    event = {"id": str(uuid.uuid4()), "occurred": datetime.now(UTC).isoformat(),
             "event": f"alignloop.run.{message.event}", "payload": vars(message),
             "resource": {"prefect.resource.id": f"alignloop.run.{message.run}", "prefect.resource.name": message.run}}
    status, _ = web.fetch(f"{url}/events", 10.0, os.environ.get("PREFECT_API_KEY", ""), json.dumps([event]).encode())
    if not 200 <= status < 300:
        raise OSError(f"it answered {status}")


def prefect_url(workspace: Path) -> str | None:
    """The API that this workspace's runs report to; None where no server is known or up."""
    from flows.prefect_side import running_url  # here: every plan imports this module for its settings

    return os.environ.get("PREFECT_API_URL") or running_url(workspace)


def unheard(config: Mapping[str, Any]) -> list[str]:
    """Whether events go to a Prefect that is not there: what a setting cannot know by itself."""
    if not (config.get("notify") or {}).get("prefect") or prefect_url(Path(config["workspace"]).expanduser().resolve()):
        return []
    return [f"notify.prefect: no Prefect server is up; start one:{command(Path(config['workspace']), 'server', 'up')}\n"
            "or export PREFECT_API_URL=..."]


def _run(words: list[str], message: Message) -> None:
    environment = {**os.environ, "ALIGNLOOP_EVENT": message.event, "ALIGNLOOP_RUN": message.run}
    try:
        done = subprocess.run(words, input=f"{message.title}\n{message.text}\n", text=True, env=environment, timeout=60)
    except subprocess.TimeoutExpired:
        raise OSError("it has not ended after 60 s") from None
    if done.returncode:
        raise OSError(f"it ended with exit code {done.returncode}")


def _missing(name: str) -> str:
    return f"the environment has no {name}: export {name}=..., or name another variable"
