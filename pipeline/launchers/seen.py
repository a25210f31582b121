"""What a node sees of the folder that `align doctor --cluster` asks about: `python -m pipeline.launchers.seen SPEC`.

The asking side holds the folder's lock, has written a file there, and once every node has reported puts another file in
the place of `turn`. Each node holds a lock of its own meanwhile.
"""

import importlib.metadata
import json
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

from pipeline import __version__, files

LOCK, CONTENT, TURN = "asking.lock", "content", "turn"
_PATIENCE = 90.0  # seconds: NFS shows another client's rename after at most 60


def main(spec: Path) -> int:
    folder, me = spec.parent, f"{socket.gethostname()}-{os.getpid()}"
    with files.locked(folder / f"{me}.lock", me):
        before = (folder / TURN).read_text()
        told: dict[str, Any] = {
            "host": socket.gethostname(), "hash": files.file_hash(folder / CONTENT), "seen": None, "offset": None,
            "locked": files.is_locked(folder / LOCK), "alignloop": __version__,
            "torch": importlib.metadata.version("torch"), "python": sys.version.split()[0]}
        asked = time.time()
        files.write_atomic(folder / f"{me}.json", json.dumps(told))
        while (turn := (folder / TURN).read_text()) == before and time.time() - asked < _PATIENCE:
            time.sleep(0.05)
        if turn != before:
            now, (heard, answered) = time.time(), json.loads(turn)[me]  # of this clock, and of the other side's
            told |= {"seen": now - asked - (answered - heard), "offset": (asked - heard + now - answered) / 2}
        files.write_atomic(folder / f"{me}.json", json.dumps({**told, "ended": True}))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
