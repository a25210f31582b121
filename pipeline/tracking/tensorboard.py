"""The TensorBoard side of the tracking mirror: event files, a folder per step. The one file that imports tensorboard.

Its own writer needs neither torch nor TensorFlow. Look at them with `tensorboard --logdir <run>/tensorboard`.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline import store

_ENVELOPE = ("step", "time", "at")


@dataclass(frozen=True)
class TensorBoard:
    """Where the event files go."""

    folder: str | None = None  # null: tensorboard/ in the run's folder


@dataclass
class Mirror:
    """A writer per step stays open until the end."""

    folder: Path
    writers: dict[str, Any] = field(default_factory=dict)
    sent: int = 0

    def number(self, line: dict[str, Any]) -> None:
        """One line of metrics.jsonl: a scalar per number, at its step and time."""
        values = {k: v for k, v in line.items() if k not in _ENVELOPE and isinstance(v, (int, float))}
        self._write(line["step"], values, int(line["at"]), float(line["time"]))

    def finished(self, step: str, artifact: store.Artifact) -> None:
        """The counts of a step's artifact, at step 0."""
        counts = {f"count/{name}": value for name, value in artifact.manifest["counts"].items()
                  if isinstance(value, (int, float))}
        self._write(step, counts, 0, float(artifact.manifest["created"]))

    def failed(self, step: str, code: int) -> None:
        """Nothing: there is no scalar for it."""

    def quiet(self, since: float) -> None:
        """Nothing."""

    def close(self) -> None:
        """Write out and close every file."""
        for writer in self.writers.values():
            writer.close()
        self.writers = {}

    def said(self) -> str:
        """What was done, in a line."""
        return f"TensorBoard: {self.sent} lines in {self.folder}"

    def _write(self, step: str, values: dict[str, float], at: int, time: float) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        if not values:
            return
        if step not in self.writers:
            self.writers[step] = EventFileWriter(str(self.folder / step))
        scalars = [Summary.Value(tag=tag, simple_value=float(value)) for tag, value in values.items()]
        self.writers[step].add_event(Event(wall_time=time, step=at, summary=Summary(value=scalars)))
        self.writers[step].flush()
        self.sent += 1
