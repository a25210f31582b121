"""A step on the node that was found for it: `python -P -m pipeline.launchers.node SPEC TOKEN ...`.

It runs the step under a supervisor, writes into the work folder that it works and how it ended, and ends the step when
the order no longer holds (pipeline/launchers/lease.py) or its connection breaks. With --listen the first line of its
standard input is the environment, as JSON: so no key is on a command line or in a file; the end of that input is the
end of whoever started it.
"""

import argparse
import json
import os
import select
import sys
import time
from pathlib import Path

from pipeline import supervisor
from pipeline.launchers import lease
from pipeline.launchers.contract import Order
from pipeline.worker import HOSTS

_FIRST_SECONDS = 60.0  # that the first node may take to begin after the others


def command_line(order: Order, token: str, python: str | None, *, listen: bool = False, node: str = "0") -> list[str]:
    """The words that run the step on a node. node: its number among the order's, or "$NAME" of a variable there."""
    return ["env", *(f"{name}={value}" for name, value in supervisor.imports().items()), python or sys.executable,
            "-P", "-m", "pipeline.launchers.node", str(order.spec), token, "--grace", str(order.grace), "--timeout",
            str(order.timeout), "--node", node, "--module", order.module, *(["--listen"] if listen else [])]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m pipeline.launchers.node", description=__doc__)
    parser.add_argument("spec", type=Path)
    parser.add_argument("token")
    parser.add_argument("--grace", type=float, default=20)
    parser.add_argument("--timeout", type=float, default=0)
    parser.add_argument("--node", type=os.path.expandvars, default="0", help="its number, or $NAME of a variable")
    parser.add_argument("--module", default="pipeline.worker")
    parser.add_argument("--listen", action="store_true", help="read the environment, and the end, from standard input")
    options = parser.parse_args()
    work, first = options.spec.parent, options.node == "0"
    if options.listen:
        with open(0, "rb", buffering=0, closefd=False) as stdin:  # unbuffered: what follows is looked for
            line = stdin.readline()
        if not line:
            print("nothing came through standard input; let the launcher's prefix pass it on, as kubectl exec -i does",
                  file=sys.stderr)
            return 2
        os.environ.update(json.loads(line))
    os.environ[HOSTS] = str(int(first))
    told = lease.obeying(work, options.token, _hung_up if options.listen else lambda: False)
    if not lease.holds(work, options.token):  # before it writes anything: another order's word may stand there
        print("this order no longer holds", file=sys.stderr)
        return 143
    if first:
        lease.begin(work, options.token)
    until = time.monotonic() + _FIRST_SECONDS
    while lease.ended(work, options.token) is not None and time.monotonic() < until:  # a job that is started anew
        time.sleep(0.1)
    if (code := told()) is None:
        code = supervisor.supervise([sys.executable, "-P", "-m", options.module, str(options.spec)],
                                    grace=options.grace, timeout=options.timeout, told=told)
    if first or (code and told() is None):  # not into a folder that others have gone on with
        lease.end(work, options.token, code)
    return code


def _hung_up() -> bool:
    """Whether standard input has ended."""
    return bool(select.select([0], [], [], 0)[0]) and not os.read(0, 2**12)


if __name__ == "__main__":
    sys.exit(main())
