"""A run as one file: the same page with its data, style and scripts inside. It is self-contained and works offline.

The modules become one script: each a function of its own, its imports taken from those before it. Only the forms of
import and export that the page uses are known; another one is an error here, not in a reader's browser.
"""

import base64
import graphlib
import hashlib
import re
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from flows.dashboard.app import STATIC, dump, routes
from flows.dashboard.files import Files, NotHere
from pipeline import files, runs
from pipeline.errors import UserError

ROWS = 50  # of each table: a file to send, not a copy of the workspace
_IMPORT = re.compile(r'^import \{ ([\w, ]+) \} from "\./([\w-]+\.js)";$', re.MULTILINE)
_EXPORT = re.compile(r"^export (?:async )?(?:function|const) (\w+)", re.MULTILINE)
_LIBRARY = "vendor/echarts.common.min.js"
_FONT = "vendor/inter.woff2"


def export(workspace: Path, name: str) -> Path:
    """Write `report.html` into the run's folder and return where. UserError if the page may not read the run."""
    try:
        page = to_html(Files(workspace), name)
    except NotHere as error:
        raise UserError(f"run: {name!r} cannot be exported: {error}") from None
    target = runs.folder(workspace, name) / "report.html"
    files.write_atomic(target, page)
    return target


def to_html(files: Files, name: str) -> str:
    """The page of one run. NotHere if there is no such run."""
    carried = {"about": {"run": name, "time": time.strftime("%Y-%m-%d %H:%M")}, "answers": answers(files, name)}
    scripts = [inert((STATIC / _LIBRARY).read_text()), inert(bundle())]
    style = _style()
    policy = (f"default-src 'none'; script-src {' '.join(_hash(s) for s in scripts)}; style-src {_hash(style)}; "
              "font-src data:; img-src data:; base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'; "
              "trusted-types default")
    return "".join(['<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n',
                    f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n',
                    '<meta name="viewport" content="width=device-width, initial-scale=1">\n',
                    '<meta name="color-scheme" content="light dark">\n<meta name="referrer" content="no-referrer">\n',
                    f"<title>{name} · alignloop</title>\n<style>{style}</style>\n</head>\n<body>\n",
                    '<a class="skip" href="#main">Skip to the content</a>\n<header id="top"></header>\n',
                    '<main id="main" tabindex="-1"></main>\n',
                    f'<script type="application/json" id="carried">{inert_json(dump(carried))}</script>\n',
                    *(f"<script>{script}</script>\n" for script in scripts), "</body>\n</html>\n"])


def answers(files: Files, name: str) -> dict[str, Any]:
    """Address -> what the server would answer, for everything the page of one run asks."""
    ask, base = routes(files), f"runs/{name}"
    found = {base: ask["runs/{name}"](name)}
    for part in ("metrics", "iterations", "data"):
        found[f"{base}/{part}"] = ask[f"runs/{{name}}/{part}"](name)
    browsable = ask["runs/{name}/tables"](name)["tables"]
    kept = [table for table in browsable if table["purpose"] or table["stage"] == "build_groups"]
    found[f"{base}/tables"] = {"run": name, "tables": kept}
    for table in kept:
        rows = ask["runs/{name}/samples"](name, table["step"], table["part"], start=0, count=ROWS)
        found[f"{base}/samples?step={table['step']}&part={table['part']}"] = rows
    for step in found[base]["steps"]:
        query = urlencode({"step": step["name"]})
        found[f"{base}/lineage?{query}"] = ask["runs/{name}/lineage"](name, step["name"])
    return found


def bundle() -> str:
    """Every module of the page as one script, dependencies first."""
    sources = {path.name: path.read_text() for path in sorted(STATIC.glob("*.js"))}
    needs = {name: [needed for _, needed in _IMPORT.findall(source)] for name, source in sources.items()}
    order = graphlib.TopologicalSorter(needs).static_order()  # a ValueError where modules import each other
    return '"use strict";\nconst modules = {};\n' + "\n".join(_wrapped(m, sources[m]) for m in order)


def _wrapped(name: str, source: str) -> str:
    names = _EXPORT.findall(source)
    body = _IMPORT.sub(lambda m: f'const {{ {m[1]} }} = modules["{m[2]}"];', source)
    body = re.sub(r"^export ", "", body, flags=re.MULTILINE)
    left = re.search(r"^(?:import|export)\b.*", body, re.MULTILINE)
    if left or len(names) != len(re.findall(r"^export\b", source, re.MULTILINE)):
        raise ValueError(f"{name}: an import or export this bundler does not know: {left[0] if left else names}")
    return f'modules["{name}"] = (() => {{\n{body}\nreturn {{ {", ".join(names)} }};\n}})();'


def _style() -> str:
    style = "\n".join((STATIC / f"{name}.css").read_text() for name in ("base", "parts", "views", "compare"))
    font = base64.b64encode((STATIC / _FONT).read_bytes()).decode()
    return style.replace(f'url("{_FONT}")', f'url("data:font/woff2;base64,{font}")')


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def inert(script: str) -> str:
    """A script that cannot end its own element early."""
    return re.sub(r"</(script)", r"<\\/\1", script, flags=re.IGNORECASE).replace("<!--", r"\x3C!--")


def inert_json(text: str) -> str:
    """JSON in which nothing looks like markup, whatever a model wrote."""
    return text.replace("<", r"\u003c").replace(">", r"\u003e").replace("&", r"\u0026")
