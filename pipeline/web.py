"""One HTTP request, answered whole: how this project asks the servers it starts and those it is given."""

import http.client
import urllib.error
import urllib.request
from email.message import Message
from urllib.parse import urlsplit

THIS_MACHINE = ("localhost", "127.0.0.1", "::1")


def fetch(url: str, seconds: float, key: str = "", body: bytes | None = None,
          method: str | None = None) -> tuple[int, bytes]:
    """(status, body) of one GET, or a JSON POST (or `method`) where there is a `body`, whatever the status.

    Servers on this machine are never asked through a proxy; for others the environment's proxies hold. `key`: the
    bearer token. Raises OSError where nobody answers within `seconds`, or not in HTTP.
    """
    status, _, text = exchange(url, seconds, key, body, method)
    return status, text


def exchange(url: str, seconds: float, key: str = "", body: bytes | None = None,
             method: str | None = None) -> tuple[int, Message, bytes]:
    """As `fetch`, with the headers of the answer."""
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
    try:
        direct = [urllib.request.ProxyHandler({})] if urlsplit(url).hostname in THIS_MACHINE else []
        request = urllib.request.Request(url, body, headers, method=method)
        with urllib.request.build_opener(*direct).open(request, timeout=seconds) as response:
            return response.status, response.headers, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read()
    except (http.client.HTTPException, ValueError) as error:  # ValueError: the address is none
        raise OSError(f"{type(error).__name__}: {error}") from None
