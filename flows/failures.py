"""How a step can end badly, and what its exit code means."""

from pathlib import Path

from pipeline.errors import command

STOPPED = (130, 143)  # exit codes of a stage that somebody stopped
_MEANING = {
    124: "it ran longer than hardware.timeout_minutes (or hardware.stages) allows",
    137: "it was killed, most often because memory ran out: lower hardware.training.tokens_per_batch",
    143: "it was stopped",
    130: "it was interrupted",
}


def meaning(code: int) -> str:
    """Of a stage's exit code, in words."""
    return _MEANING.get(code, f"its process ended with exit code {code}")


class StepFailed(Exception):
    """A stage's process ended badly. Carries its exit code and the last lines it printed."""

    def __init__(self, step: str, code: int, lines: list[str], why: str = "") -> None:
        self.code = code
        why = why or (lines[-1].strip() if code == 1 and lines else meaning(code))  # the stage's own last words
        super().__init__("\n".join([f"{step} failed: {why}", *(f"    {line}" for line in lines)]))


class InputDamaged(Exception):
    """A stage read files whose bytes are not those the store promises. Nothing was made of them."""

    def __init__(self, step: str, workspace: Path, run: str, files: list[str]) -> None:
        super().__init__("\n".join([
            f"{step}: what it reads was damaged on the disk; nothing was made of it",
            *(f"    {line}" for line in files),
            f"it was set aside; the same command makes it again:{command(workspace, 'run', f'run={run}')}"]))
