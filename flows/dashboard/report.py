"""`align report NAME [--html]`: a finished run's report in the terminal, or as one page to keep or send."""

from pathlib import Path

from flows import screen
from flows.inspection import load_run
from pipeline import runs
from pipeline.errors import UserError, command


def report(workspace: str, name: str | None, html: bool) -> int:
    """Print report.md, or write report.html and say where. Exit code as of `align`."""
    place = Path(workspace).expanduser().resolve()
    if name is None:
        raise UserError("run: missing, say of which run: align report run=NAME")
    load_run(place, name)
    if html:
        from flows.dashboard.export import export

        written = export(place, name)
        screen.say(f"{written} ({screen.size(written.stat().st_size)})")
        return 0
    text = runs.folder(place, name) / "report.md"
    if not text.exists():
        raise UserError(f"run: {name} has no report yet, it is written when the run is done; "
                        f"what there is so far:{command(place, 'report', name, '--html')}")
    screen.say(text.read_text())
    return 0
