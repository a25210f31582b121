"""What a run says of its model and data before it is planned: which commit of the hub is meant, which place."""

import json
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from flows import policies
from pipeline import hub

DATA, SOURCES = ("data.root", "data.new", "reward.bench.root"), "data.sources"


def on_hub(key: str, value: str) -> bool:
    """Whether the word names a model or a data set of the hub, not a path."""
    return (key in hub.MODELS and hub.named(value) is not None) or (key in DATA and value.startswith(hub.DATA))


def workspace(typed: list[str]) -> Path:
    """The folder that the words say."""
    given = dict(word.partition("=")[::2] for word in typed)
    return Path(given.get("workspace", "workspace")).expanduser().resolve()


def pinned(typed: list[str]) -> list[str]:
    """Models and data of the hub with the commit they mean in this workspace: a run goes on with the one it began with.
    Paths in data.sources as they are seen from anywhere.

    Raises UserError where the hub has no such model, wants a token, or cannot be reached.
    """
    return [_pinned(word, workspace(typed)) for word in typed]


def _pinned(word: str, place: Path) -> str:
    key, _, value = word.partition("=")
    if key == SOURCES:
        return f"{key}={_sources(word, value, place)}"
    if not on_hub(key, value):
        return word
    return f"{key}={hub.pinned_data(value, place, key) if key in DATA else hub.pinned(value, place, key)}"


def of_role(word: str, value: str) -> str:
    """What start= or reference= says, with its folders, those of single iterations too, as seen from anywhere."""
    def place(name: Any) -> Any:
        folder = isinstance(name, str) and name not in policies.MODELS and ("/" in name or Path(name).is_dir())
        return str(Path(name).expanduser().resolve()) if folder else name

    if not value.startswith("{"):
        return str(place(value))
    try:
        given = OverridesParser.create().parse_override(word).value()
    except HydraException:  # composing tells
        return value
    if not isinstance(given, dict):
        return value
    made = {iteration: place(name) for iteration, name in given.items()}
    return value if made == given else written(made)


def _sources(word: str, value: str, place: Path) -> str:
    """What is no list of places stays as it is: composing tells."""
    try:
        given = OverridesParser.create().parse_override(word).value()
    except HydraException:
        return value
    listed: list[Any] = given if isinstance(given, list) else [None]
    if not all(isinstance(one, dict) and isinstance(one.get("path"), str) for one in listed):
        return value
    return written([{**one, "path": _place(one["path"], place)} for one in listed])


def _place(path: str, place: Path) -> str:
    if path.startswith(hub.DATA):
        return hub.pinned_data(path, place, SOURCES)
    return str(Path(path).expanduser().resolve())


def written(value: Any) -> str:
    """A value as Hydra's grammar writes it."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{written(one)}" for key, one in value.items()) + "}"
    return "[" + ",".join(map(written, value)) + "]" if isinstance(value, list) else json.dumps(value)
