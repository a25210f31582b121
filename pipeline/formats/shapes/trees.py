"""OpenAssistant's trees (Koepf et al. 2023): {"message_tree_id", "prompt": {"text", "role", "replies": [...]}}.

Every question of a tree with two ranked replies or more is a ranked list, its prompt the path to it. A question whose
best reply leads no further along the path of best replies ends a demonstration: the path itself.
"""

from collections.abc import Iterator
from typing import Any

from pipeline.formats import turns
from pipeline.formats.contract import Example, Left, Shape
from pipeline.formats.shapes import ranked
from pipeline.records import Message


def read(data: dict[str, Any], settings: Any) -> list[Example | Left]:
    made = list(_lists([], data["prompt"], settings))
    if path := _best_path(data["prompt"]):
        made.append(Example(path[:-1], [path[-1]]))
    if not made:
        raise Left("a tree without an answer")
    return made


def _lists(before: list[Message], node: Any, settings: Any) -> Iterator[Example | Left]:
    path = [*before, _message(node)]
    replies = node.get("replies") or []
    with_rank = [one for one in replies if one.get("rank") is not None]
    if path[-1].role == "user" and len(with_rank) > 1:
        given = [{"text": turns.text(one, "text"), "rank": one["rank"]} for one in with_rank]
        try:
            yield ranked.ordered(path, given, settings, "replies")
        except Left as reason:
            yield reason
    for one in replies:
        yield from _lists(path, one, settings)


def _best_path(node: Any) -> list[Message]:
    """The conversation of best replies, up to its last answer."""
    path = []
    while node is not None:
        path.append(_message(node))
        replies = node.get("replies") or []
        node = min(replies, key=lambda one: one["rank"] if one.get("rank") is not None else len(replies), default=None)
    return path[:len(path) - (path[-1].role != "assistant")] if len(path) > 1 else []


def _message(node: Any) -> Message:
    if not isinstance(node, dict):
        raise ValueError(f"prompt: {type(node).__name__}, expected a message {{text, role, replies}}")
    role = {"prompter": "user", "assistant": "assistant"}.get(str(node.get("role")))
    if role is None:
        raise ValueError(f"prompt: role {node.get('role')!r}, expected prompter or assistant")
    return Message(role, turns.text(node, "text"))


SHAPE = Shape("trees of ranked replies", (("message_tree_id", "prompt"),), read)
