"""The dashboard as an application: a static page, and the workspace as JSON. What it writes is in written.py alone."""

import gzip
import hashlib
import inspect
import json
import math
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from fastapi import Body, Depends, FastAPI, Query, Request, Response
from fastapi.responses import StreamingResponse

from flows.dashboard import (
    compared,
    curves,
    dataset,
    labelling,
    lineage,
    ordering,
    overview,
    samples,
    shared,
    timeline,
    written,
)
from flows.dashboard.files import Files, NotHere
from flows.dashboard.guard import Guard
from flows.dashboard.ordering import Wish

STATIC = Path(__file__).parent / "static"
READING = Path(__file__).parents[2] / "docs" / "reading-a-run.md"  # not there where the package came without its docs
_TYPES = {".html": "text/html; charset=utf-8", ".css": "text/css; charset=utf-8",
          ".js": "text/javascript; charset=utf-8", ".woff2": "font/woff2", ".svg": "image/svg+xml"}
_SMALL = 1000  # bytes, not worth compressing
_BOTH = ["GET", "HEAD"]
Names = Annotated[list[str], Query()]


@dataclass(frozen=True)
class Page:
    """What is answered: a file of the page, read once, or what a route says now."""

    body: bytes
    kind: str
    packed: bytes | None = None  # None: compressed when it is sent; the same object where compressing gains nothing

    @cached_property
    def mark(self) -> str:
        return hashlib.blake2b(self.body, digest_size=12).hexdigest()


def make_app(workspace: Path, token: str | None = None) -> FastAPI:
    """The application over one workspace. With a token every request needs it; without, only loopback is answered."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    mine = secrets.token_urlsafe(24)  # the page asks for it, and sends it with what it writes
    app.add_middleware(Guard, token=token, page=mine)
    files, pages = Files(workspace), _pages()

    @app.exception_handler(NotHere)
    async def missing(_: Request, error: NotHere) -> Response:
        return Response(json.dumps({"error": str(error)}), 404, media_type="application/json")

    @app.exception_handler(written.Refused)
    async def refused(_: Request, error: written.Refused) -> Response:
        return Response(json.dumps({"error": str(error)}), 400, media_type="application/json")

    for path, make in {**routes(files), "page": lambda: {"token": mine}}.items():
        app.add_api_route(f"/api/{path}", _json(make), methods=_BOTH)
    for path, keep in {**written.WRITES, "runs/{name}/verdict": labelling.keep,
                       "runs/{name}/label": labelling.finish}.items():
        app.add_api_route(f"/api/{path}", _kept(files, keep), methods=["POST"])

    @app.get("/api/runs/{name}/export.jsonl")
    def selection(name: str, step: str, wish: Annotated[Wish, Depends()], part: str = "groups") -> Response:
        found = ordering.lines(files, name, step, part, wish)
        saved = f'attachment; filename="{name}-{step.replace("[", "-").replace("]", "")}.jsonl"'
        return StreamingResponse(found, media_type="application/x-ndjson", headers={"Content-Disposition": saved})

    @app.api_route("/{path:path}", methods=_BOTH)
    def page(path: str, request: Request) -> Response:
        found = pages.get(path or "index.html")
        if found is None:
            return Response("not found\n", 404, media_type="text/plain")
        return _answer(request, found)

    return app


def routes(files: Files) -> dict[str, Callable[..., Any]]:
    """Path below /api -> what answers it. The export calls the same functions."""

    def log(name: str, step: str, lines: int = 200) -> Any:
        return {"lines": overview.log_tail(files, name, step, min(lines, 1000))}

    def page(name: str, step: str, part: str = "groups", start: int = 0, count: int = 20, q: str = "",
             answers: bool = False, pieces: bool = False, by: str = "", score: str = "", rising: bool = False,
             only: str = "", low: float | None = None, high: float | None = None) -> Any:
        start, count = max(0, start), max(1, count)
        if by or only:
            wish = Wish(by, score, rising, only, low, high)
            return ordering.page(files, name, step, part, start, count, pieces, wish)
        if q:
            return samples.search(files, name, step, part, start, count, q[:200], answers, pieces)
        return samples.page(files, name, step, part, start, count, pieces)

    def compare(run: Names) -> Any:
        return compared.compare(files, run)

    def test(run: Names, ours: str, theirs: str) -> Any:
        return compared.test(files, run, ours, theirs)

    def graph(run: Names) -> Any:
        return shared.shared(files, run)

    def prompt(name: str, id: str, run: Annotated[list[str] | None, Query()] = None) -> Any:
        return samples.same_prompt(files, name, id, run or [])

    def reading() -> Any:
        return {"text": READING.read_text() if READING.is_file() else None}

    def listed(first: int = 0) -> Any:
        return overview.all_runs(files, first)

    return {"runs": listed, "reading": reading, "compare": compare, "compare/test": test,
            "shared": graph,
            "runs/{name}": lambda name: overview.one_run(files, name), "runs/{name}/log": log,
            "runs/{name}/metrics": lambda name: curves.metrics(files, name),
            "runs/{name}/iterations": lambda name: curves.iterations(files, name),
            "runs/{name}/data": lambda name: dataset.look(files, name),
            "runs/{name}/tables": lambda name: samples.tables_of(files, name), "runs/{name}/samples": page,
            "runs/{name}/timeline": lambda name: timeline.timeline(files, name),
            "runs/{name}/label": lambda name, step="": labelling.pairs(files, name, step),
            "runs/{name}/label/result": lambda name, step="": labelling.result(files, name, step),
            "runs/{name}/prompt": prompt, "runs/{name}/lineage": lambda name, step: lineage.lineage(files, name, step)}


def _json(make: Callable[..., Any]) -> Callable[..., Response]:
    """`make` as an endpoint with the same parameters. Its JSON gets a mark: an unchanged answer is not sent twice."""
    given = [p.replace(annotation=str if p.annotation is inspect.Parameter.empty else p.annotation)
             for p in inspect.signature(make, eval_str=True).parameters.values()]

    def endpoint(request: Request, **arguments: Any) -> Response:
        return _answer(request, Page(dump(make(**arguments)).encode(), "application/json"))

    asked = inspect.Parameter("request", inspect.Parameter.KEYWORD_ONLY, annotation=Request)
    endpoint.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [asked, *(p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in given)])
    endpoint.__annotations__ = {}
    return endpoint


def _kept(files: Files, keep: Callable[[Files, str, dict[str, Any]], Any]) -> Callable[..., Response]:
    def endpoint(name: str, body: Annotated[dict[str, Any], Body()]) -> Response:
        return Response(dump(keep(files, name, body)), media_type="application/json")

    return endpoint


def _answer(request: Request, page: Page) -> Response:
    body, headers = page.body, {"ETag": f'"{page.mark}"', "Cache-Control": "no-cache", "Vary": "Accept-Encoding"}
    if page.mark in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    if page.packed is not body and len(body) > _SMALL and "gzip" in request.headers.get("accept-encoding", ""):
        body = gzip.compress(body, 5) if page.packed is None else page.packed
        headers["Content-Encoding"] = "gzip"
    return Response(body, media_type=page.kind, headers=headers)


def dump(data: Any) -> str:
    """JSON a browser can read: a number that is not finite becomes null."""
    try:
        return json.dumps(data, allow_nan=False, separators=(",", ":"))
    except ValueError:
        return json.dumps(_finite(data), allow_nan=False, separators=(",", ":"))


def _finite(node: Any) -> Any:
    if isinstance(node, dict):
        return {k: _finite(v) for k, v in node.items()}
    if isinstance(node, (list, tuple)):
        return [_finite(v) for v in node]
    return None if isinstance(node, float) and not math.isfinite(node) else node


def _pages() -> dict[str, Page]:
    found = {}
    for path in sorted(p for p in STATIC.rglob("*") if p.suffix in _TYPES):
        body = path.read_bytes()
        if path.name == "index.html":  # every module is asked for at once, not one after the other
            names = sorted(module.name for module in STATIC.glob("*.js"))
            preload = "\n".join(f'<link rel="modulepreload" href="{name}">' for name in names)
            body = body.replace(b"<!-- modules -->", preload.encode())
        packed = body if path.suffix == ".woff2" else gzip.compress(body)
        found[path.relative_to(STATIC).as_posix()] = Page(body, _TYPES[path.suffix], packed)
    return found
