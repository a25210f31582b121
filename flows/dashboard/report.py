"""`align report NAME [--html] [--timeline]`: a run's report in the terminal, as one page, or where its time went."""

import itertools
from pathlib import Path

from flows import layout, screen
from flows.inspection import load_run
from pipeline import runs
from pipeline.errors import UserError, command


def report(workspace: str, name: str | None, html: bool, timeline: bool) -> int:
    """Print report.md or the timeline, or write report.html and say where. Exit code as of `align`."""
    place = Path(workspace).expanduser().resolve()
    if name is None:
        raise UserError("run: missing, say of which run: align report run=NAME")
    load_run(place, name)
    if timeline:
        from flows.timeline import show

        return show(place, name)
    if html:
        from flows.dashboard.export import export

        written = export(place, name)
        screen.say(f"{written} ({screen.size(written.stat().st_size)})")
        return 0
    text = runs.folder(place, name) / "report.md"
    if not text.exists():
        raise UserError(f"run: {name} has no report yet, it is written when the run is done; "
                        f"what there is so far:{command(place, 'report', name, '--html')}")
    width = screen.width()
    screen.say(text.read_text() if width is None else fitted(text.read_text(), width))
    return 0


def fitted(text: str, width: int) -> str:
    """Markdown for a terminal that wide: its tables laid out, its paragraphs folded between words."""
    found = list[str]()
    for is_table, block in itertools.groupby(text.splitlines(), lambda line: line.startswith("|")):
        lines = list(block)
        head, *rows = [[cell.strip().strip("`") for cell in line.split("|")[1:-1]] for line in lines]
        if not is_table:
            found += layout.wrapped("\n".join(lines), width)
        elif all(len(row) == len(head) for row in rows):
            found += layout.lines(head, rows[1:], width, spare=("artifact",))
        else:  # a bar within a cell
            found += lines
    return "\n".join(found)
