"""A data set of the hub, from a server of our own that speaks as much of the hub's API as `datasets` asks for."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub_server import serving

ROOT = Path(__file__).parents[2]
COMMIT, PLACE = "a" * 40, "/datasets/org/set/resolve"


def rows(name: str, number: int) -> bytes:
    return b"".join(json.dumps({"prompt": f"{name} {i}", "chosen": "a", "rejected": "b"}).encode() + b"\n"
                    for i in range(number))


FILES = {"data/train.jsonl": rows("train", 20), "data/test.jsonl": rows("test", 5)}


def answer(path: str, part: str | None) -> tuple[int, dict[str, str], bytes]:
    """org/set has two files; nothing else is there. part: the Range that is asked for."""
    if path.startswith("/api/datasets/org/set"):
        tree = [{"type": "directory", "path": "data", "oid": "0" * 40, "size": 0}] if not path.endswith("/data") else []
        tree += [{"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                 for name, data in FILES.items()]
        facts = {"id": "org/set", "sha": COMMIT, "siblings": [{"rfilename": name} for name in FILES], "tags": [],
                 "private": False}
        return 200, {"Content-Type": "application/json"}, json.dumps(tree if "/tree/" in path else facts).encode()
    data = FILES.get(path.removeprefix(f"{PLACE}/{COMMIT}/"))
    if data is None:
        return 404, {"X-Error-Code": "EntryNotFound" if path.startswith(PLACE) else "RepoNotFound"}, b""
    headers = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
    if part is None:
        return 200, headers, data
    first, _, last = part.removeprefix("bytes=").partition("-")
    end = min(int(last or len(data)), len(data) - 1)
    return 206, {**headers, "Content-Range": f"bytes {first}-{end}/{len(data)}"}, data[int(first):end + 1]


@pytest.fixture
def endpoint() -> Iterator[str]:
    with serving(lambda path, headers: answer(path, headers.get("Range"))) as url:
        yield url


def test_a_name_is_pinned_and_its_rows_are_read_split_by_split(endpoint: str, tmp_path: Path):
    """In a process of its own: huggingface_hub reads its variables when it is imported. `test` is for evaluation."""
    code = f"""
from pathlib import Path
from flows import models
from pipeline.errors import UserError
from pipeline.formats import files
(word,) = models.pinned(["data.root=hf:org/set"])
print(word)
(word,) = models.pinned(["data.sources=[{{path:hf:org/set,split:test}},{{path:b}}]"])
print(word)
root = Path("hf:org/set@{COMMIT}")
for settings in (files.Settings(), files.Settings(split="test"), files.Settings(
        sources=({{"path": str(root), "split": "train", "limit": 3}},))):
    made = files.read(root, settings)
    print(made.facts["rows"], made.counts["eval"], files.names(root, settings))
for wrong in ("hf:org/none", "hf:set"):
    try:
        models.pinned([f"data.root={{wrong}}"])
    except UserError as error:
        print(error)
"""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    place = {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path), "HF_HUB_DISABLE_XET": "1", "PYTHONPATH": str(ROOT),
             "no_proxy": "127.0.0.1"}
    done = subprocess.run([sys.executable, "-c", code], env={**kept, **place}, capture_output=True, text=True,
                          timeout=100, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        f"data.root=hf:org/set@{COMMIT}",
        f'data.sources=[{{path:"hf:org/set@{COMMIT}",split:"test"}},{{path:"{tmp_path}/b"}}]',
        f"25 5 ['hf:org/set@{COMMIT}']", f"5 5 ['hf:org/set@{COMMIT}']", f"4 0 ['hf:org/set@{COMMIT}']",
        "data.root: org/none: no folder here and no data set on the hub has this name, or it is private; check the "
        "spelling, or set HF_TOKEN (or hf auth login) for a private one",
        "data.root: 'hf:set', expected hf:org/name or hf:org/name@revision"]
