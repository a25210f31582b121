"""Who may ask, and what the browser may do with the answer: method, Host, token, and the strict headers of every page.

A page on another site can make a visitor's browser send requests here, also under a name of its own that points to
127.0.0.1 (DNS rebinding): so on loopback only loopback names are answered. Anywhere else every request needs the token.
What writes is a POST with the page's own token, which only a page of this address can read, and with its Origin.
"""

import hmac
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from fastapi import Request
from fastapi.responses import PlainTextResponse, RedirectResponse

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

COOKIE = "alignloop_token"
PAGE = "x-alignloop-page"  # the header with the page's token
LARGEST = 1_000_000  # bytes of a POST
LOOPBACK = ("127.0.0.1", "localhost", "::1")
# trusted-types: a string never becomes markup or the address of a script; dom.js allows the chart library's file only.
POLICY = ("default-src 'none'; script-src 'self'; style-src 'self'; font-src 'self'; img-src 'self' data:; connect-src "
          "'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; "
          "trusted-types default")
HEADERS = {"Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY",
           "Referrer-Policy": "no-referrer", "Cross-Origin-Opener-Policy": "same-origin",
           "Cross-Origin-Resource-Policy": "same-origin",
           "Permissions-Policy": "camera=(), geolocation=(), microphone=()"}
_RAW = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]


class Guard:
    """ASGI middleware. `token` None: loopback only, no token. `page`: the token of what writes."""

    def __init__(self, app: ASGIApp, token: str | None, page: str) -> None:
        self.app, self.token, self.page = app, token, page

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *_RAW]
            await send(message)

        await (self._refusal(scope) or self.app)(scope, receive, with_headers)

    def _refusal(self, scope: Scope) -> ASGIApp | None:
        """The answer to a request that may not pass; None for one that may."""
        if scope["method"] not in ("GET", "HEAD", "POST"):
            return PlainTextResponse("GET, HEAD and the page's own POST only\n", 405, {"Allow": "GET, HEAD, POST"})
        request = Request(scope)
        if scope["method"] == "POST" and (wrong := self._foreign(request)):
            return PlainTextResponse(f"{wrong}\n", 403)
        if self.token is None:
            known = host_name(request.headers.get("host", "")) in LOOPBACK
            return None if known else PlainTextResponse("this page answers to localhost only\n", 421)
        if same(request.query_params.get("token", ""), self.token):
            return self._welcome()
        if same(request.cookies.get(COOKIE, ""), self.token):
            return None
        return PlainTextResponse("open the address `align dashboard` printed, with its ?token=...\n", 401)

    def _foreign(self, request: Request) -> str:
        """Why a POST is not the page's own, "" where it is. A page elsewhere can send one, but not with all this."""
        if request.headers.get("origin", "").partition("://")[2].lower() != request.headers.get("host", "").lower():
            return "a POST needs the Origin of this page"
        if not same(request.headers.get(PAGE, ""), self.page):
            return "a POST needs the page's token; load the page again"
        size = request.headers.get("content-length", "")
        return "" if size.isdigit() and int(size) <= LARGEST else f"a POST says how long it is, at most {LARGEST}"

    def _welcome(self) -> ASGIApp:
        """Keep the token in a cookie no script can read, and take it out of the address bar."""
        answer = RedirectResponse("/", 303)
        answer.set_cookie(COOKIE, self.token or "", httponly=True, samesite="strict")
        return answer


def host_name(header: str) -> str:
    """The Host header without its port: "localhost:4280" -> "localhost", "[::1]:80" -> "::1"."""
    header = header.strip().lower()
    return header[1:].partition("]")[0] if header.startswith("[") else header.partition(":")[0]


def same(given: str, token: str) -> bool:
    return hmac.compare_digest(given.encode(), token.encode())
