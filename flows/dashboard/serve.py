"""`align dashboard`: start the page over a workspace and say where it is."""

import secrets
import socket
import threading
from urllib.parse import urlencode

import uvicorn

from flows import screen
from flows.dashboard import PORT
from flows.dashboard.app import make_app
from flows.dashboard.files import Files, NotHere
from flows.dashboard.guard import LOOPBACK
from flows.dashboard.labelling import pairs
from flows.dashboard.tables import warm_up
from flows.inspection import folder_of, load_run
from pipeline.errors import UserError

_TRIED = 20  # ports, where none is asked for


def label(workspace: str, name: str, step: str | None, host: str, port: int | None) -> int:
    """Serve the page with the run's pairs to judge. UserError for a run, or a step of it, that has none."""
    try:
        pairs(Files(folder_of(workspace)), load_run(folder_of(workspace), name, "RUN").name, step or "")
    except NotHere as error:
        raise UserError(f"label: {error}") from None
    return dashboard(workspace, host, port, f"#/label/{name}" + (f"?{urlencode({'step': step})}" if step else ""))


def dashboard(workspace: str, host: str, port: int | None, view: str = "") -> int:
    """Serve until interrupted. Bound to anything but loopback, the address holds a random token. view: to open with."""
    place = folder_of(workspace)
    token = None if host in LOOPBACK else secrets.token_urlsafe(24)
    found = _listen(host, port)
    number = found.getsockname()[1]
    shown = socket.gethostname() if host in ("0.0.0.0", "::") else host
    shown = f"[{shown}]" if ":" in shown else shown
    screen.say(f"dashboard of {place}\n\n    http://{shown}:{number}/{f'?token={token}' if token else ''}{view}\n")
    if token is None:
        screen.say(f"from another machine: ssh -L {number}:localhost:{number} {socket.gethostname()}")
    threading.Thread(target=warm_up, daemon=True).start()
    config = uvicorn.Config(make_app(place, token), log_level="warning", server_header=False, access_log=False)
    try:
        uvicorn.Server(config).run(sockets=[found])
    except KeyboardInterrupt:  # uvicorn raises it again after a clean end
        pass
    return 0


def _listen(host: str, port: int | None) -> socket.socket:
    """A listening socket on the port, or on the first free one from PORT on where none was asked for."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    problem = OSError()
    for number in [port] if port is not None else range(PORT, PORT + _TRIED):
        made = socket.socket(family, socket.SOCK_STREAM)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            made.bind((host, number))
        except OSError as error:
            made.close()
            problem = error
            continue
        return made
    raise UserError(f"port: {host}:{port if port is not None else PORT} cannot be opened ({problem.strerror}); "
                    "give another --port")
