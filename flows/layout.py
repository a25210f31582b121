"""A table as lines of text that fit a terminal: whole words, what matters first, rows stacked where it is narrow."""

import re
import textwrap
from collections.abc import Sequence

from rich.cells import cell_len

_GAP, _INDENT = 2, 4  # characters between columns; before what stands below a row
_STACKED_BELOW = 100  # a terminal narrower than this has no room for a column of sentences
_FOLDED = 40  # characters of the narrowest column of sentences
_NUMBER = re.compile(r"[~+-]?\d[\d,.]*( ?(%|s|min|h|d|B|kB|MB|GB|TB|M|points))?( ago| ?[(±/].*)?|\?|")

Row = Sequence[str]


def lines(columns: Row, rows: Sequence[Row], width: int | None, spare: Sequence[str] = ()) -> list[str]:
    """The header and every row as lines of at most `width` cells (None: as long as they get; one line a row). A column
    with nothing in it is none.

    Where there is no room, columns named in `spare` are left out, the first of them first, and a last line names them.
    What is still too wide is folded between words: the last column beside the others, or below 100 cells every column
    without room on lines below its row. A word wider than the terminal stays whole.
    """
    widths, left_out = _widths(columns, rows), list[str]()
    shown = [i for i in range(len(columns)) if not rows or any(row[i] for row in rows)]
    for name in sorted(spare, key=lambda name: name == columns[-1]):  # the last column is folded first
        if not _fits(rows, shown, widths, width, folding=name == columns[-1]):
            left_out += [columns[i] for i in shown if columns[i] == name]
            shown = [i for i in shown if columns[i] != name]
    note = [f"(no room for {', '.join(left_out)}; with | cat every column is shown)"] if left_out else []
    if _fits(rows, shown, widths, width, folding=False):
        return _beside(columns, rows, shown, widths, None) + note
    if _fits(rows, shown, widths, width, folding=True):
        *others, last = shown
        room = (width or 0) - _total([widths[i] for i in others]) - _GAP
        return _beside(columns, rows, shown, {**widths, last: room}, last) + note
    return _stacked(columns, rows, shown, widths, width or 0) + note


def _fits(rows: Sequence[Row], shown: Sequence[int], widths: dict[int, int], width: int | None, folding: bool) -> bool:
    """Whether the columns have room beside each other, the last one folded if `folding` and there is room for that."""
    needed = [widths[i] for i in shown]
    if folding and width is not None and width >= _STACKED_BELOW and not _numeric(rows, shown[-1]):
        needed[-1] = min(needed[-1], _FOLDED)
    return width is None or _total(needed) <= width


def wrapped(text: str, width: int | None, indent: str = "", below: str = "") -> list[str]:
    """Paragraphs folded between words, later lines behind `below`. A line that begins with blanks stays as it is: a
    command to copy, a path, another program's line."""
    if width is None:
        return [indent + line for line in text.split("\n")]
    found = list[str]()
    for line in text.split("\n"):
        whole = line.startswith(" ") or not line
        found += [indent + line] if whole else textwrap.wrap(
            line, max(width, 20), initial_indent=indent, subsequent_indent=below, break_long_words=False,
            break_on_hyphens=False)
    return found


def _widths(columns: Row, rows: Sequence[Row]) -> dict[int, int]:
    return {i: max(map(cell_len, cells)) for i, cells in enumerate(zip(columns, *rows, strict=True))}


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + _GAP * (len(widths) - 1)


def _numeric(rows: Sequence[Row], column: int) -> bool:
    return column > 0 and all(_NUMBER.fullmatch(row[column]) for row in rows)


def _beside(columns: Row, rows: Sequence[Row], shown: Sequence[int], widths: dict[int, int],
            folded: int | None) -> list[str]:
    """One line a row; the cell of the column `folded` takes further ones."""
    numeric = {i for i in shown if _numeric(rows, i)}
    found = list[str]()
    for row in (columns, *rows):
        cells = {i: wrapped(row[i], widths[i]) if i == folded else [row[i]] for i in shown}
        for k in range(max(map(len, cells.values()))):
            texts = [(cells[i][k] if k < len(cells[i]) else "", widths[i], i in numeric) for i in shown]
            found.append((" " * _GAP).join(_padded(*text) for text in texts).rstrip())
    return found


def _padded(text: str, width: int, right: bool) -> str:
    blanks = " " * (width - cell_len(text))
    return blanks + text if right else text + blanks


def _stacked(columns: Row, rows: Sequence[Row], shown: Sequence[int], widths: dict[int, int], width: int) -> list[str]:
    """Every row on a line of the columns that have room there; below it the others: numbers in one paragraph, each with
    its name; texts in one of their own each."""
    number = max(1, sum(_total([widths[i] for i in shown[:k]]) <= width for k in range(1, len(shown))))
    beside, below = shown[:number], shown[number:]
    indent = " " * _INDENT
    head, *bodies = _beside(columns, rows, beside, widths, None)
    found = [head] + ([indent + columns[below[0]]] if len(below) == 1 else [])
    numeric = [i for i in below if _numeric(rows, i)] if len(below) > 1 else []
    for row, body in zip(rows, bodies, strict=True):
        found.append(body)
        texts = [", ".join(f"{columns[i]} {row[i]}" for i in numeric if row[i])]
        texts += [row[i] if len(below) == 1 else f"{columns[i]}: {row[i]}"
                  for i in below if i not in numeric and row[i]]
        for text in filter(None, texts):
            found += wrapped(text, width, indent, indent)
    return found
