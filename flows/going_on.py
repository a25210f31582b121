"""What a run that did not come to its end says of how to go on."""

from pathlib import Path

from pipeline import runs
from pipeline.errors import command


def after_a_failure(workspace: Path, name: str, log: str) -> str:
    """How to go on with a run that has failed. log: which one tells more, "" for that of the step that failed."""
    logs = command(workspace, "logs", name, *([log] if log else []))
    return f"what was done before is kept; the whole log:{logs}\ngo on with:{command(workspace, 'run', f'run={name}')}"


def after_a_mistake(workspace: Path, name: str) -> str:
    """How to go on where a step has found the user's input wrong: the same command alone would find the same."""
    run = runs.load(workspace, name)
    words = [word for word in ([] if run is None else run.overrides) if word.partition("=")[0] != "run"]
    logs = command(workspace, "logs", name)
    return (f"what was done before is kept; the whole log:{logs}\n"
            f"once a file, a server or hardware.* is put right, go on with:{command(workspace, 'run', f'run={name}')}\n"
            "with another setting it is another run, which takes what is done from the store; change or add it here:"
            f"{command(workspace, 'run', *words, f'run={name}-2')}")
