"""What a run says of its model before it is planned: which commit of the hub is meant, and what it will be used for."""

from pathlib import Path

from pipeline import hub

KEYS = ("model.path", "model.base")


def on_hub(key: str, value: str) -> bool:
    """Whether the word names a model of the hub, not a path."""
    return key in KEYS and hub.named(value) is not None


def workspace(typed: list[str]) -> Path:
    """The folder that the words say."""
    given = dict(word.partition("=")[::2] for word in typed)
    return Path(given.get("workspace", "workspace")).expanduser().resolve()


def pinned(typed: list[str]) -> list[str]:
    """Models of the hub with the commit they mean in this workspace: a run goes on with the one it began with.

    Raises UserError where the hub has no such model, wants a token, or cannot be reached.
    """
    words = [word.partition("=")[::2] for word in typed]
    return [f"{key}={hub.pinned(value, workspace(typed))}" if on_hub(key, value) else word
            for word, (key, value) in zip(typed, words, strict=True)]
