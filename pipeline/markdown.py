"""Tables in Markdown."""

from collections.abc import Iterable, Mapping, Sequence

LEFT, RIGHT = "---", "---:"


def table(columns: Mapping[str, str], rows: Iterable[Sequence[object]]) -> str:
    """`columns`: header -> LEFT or RIGHT; one cell of each row per column. "" where there are no rows."""
    body = ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    head = ["| " + " | ".join(line) + " |" for line in (columns.keys(), columns.values())]
    return "\n".join([*head, *body]) if body else ""
