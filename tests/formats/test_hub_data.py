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
CARD = b"""---
configs:
- config_name: main
  data_files: [{split: train, path: main/train.jsonl}, {split: dev, path: main/dev.jsonl}]
- config_name: other
  data_files: [{split: train, path: other.jsonl}]
---
"""
CONFIGURED = {"README.md": CARD, "main/train.jsonl": rows("m", 4), "main/dev.jsonl": rows("d", 2),
              "other.jsonl": rows("o", 3)}


def configured(path: str, part: str | None) -> tuple[int, dict[str, str], bytes]:
    """org/set with two configurations."""
    return answer(path, part, CONFIGURED)


def gated(path: str, part: str | None) -> tuple[int, dict[str, str], bytes]:
    """org/set is listed for everybody and given to those who have a token only."""
    if path.startswith(PLACE):
        return 401, {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access to dataset org/set is restricted."}, b""
    return answer(path, part)


def answer(path: str, part: str | None, files: dict[str, bytes] = FILES) -> tuple[int, dict[str, str], bytes]:
    """org/set has these files; nothing else is there. part: the Range that is asked for."""
    if path.startswith("/api/datasets/org/set"):
        within = path.partition(f"/tree/{COMMIT}/")[2]
        places = {name.partition("/")[0] for name in files if "/" in name} if not within else set()
        tree = [{"type": "directory", "path": place, "oid": "0" * 40, "size": 0} for place in sorted(places)]
        tree += [{"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                 for name, data in files.items() if not within or name.startswith(f"{within}/")]
        facts = {"id": "org/set", "sha": COMMIT, "siblings": [{"rfilename": name} for name in files], "tags": [],
                 "private": False}
        return 200, {"Content-Type": "application/json"}, json.dumps(tree if "/tree/" in path else facts).encode()
    data = files.get(path.removeprefix(f"{PLACE}/{COMMIT}/"))
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


def printed(code: str, endpoint: str, folder: Path) -> list[str]:
    """What the code prints in a process of its own: huggingface_hub reads its variables when it is imported."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    place = {"HF_ENDPOINT": endpoint, "HF_HOME": str(folder), "HF_HUB_DISABLE_XET": "1", "PYTHONPATH": str(ROOT),
             "no_proxy": "127.0.0.1"}
    done = subprocess.run([sys.executable, "-c", code], env={**kept, **place}, capture_output=True, text=True,
                          timeout=100, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_name_is_pinned_and_its_rows_are_read_split_by_split(endpoint: str, tmp_path: Path):
    """The split `test` is for evaluation."""
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
    assert printed(code, endpoint, tmp_path) == [
        f"data.root=hf:org/set@{COMMIT}",
        f'data.sources=[{{path:"hf:org/set@{COMMIT}",split:"test"}},{{path:"{tmp_path}/b"}}]',
        f"25 5 ['hf:org/set@{COMMIT}']", f"5 5 ['hf:org/set@{COMMIT}']", f"4 0 ['hf:org/set@{COMMIT}']",
        "data.root: org/none: no folder here and no data set on the hub has this name, or it is private; check the "
        "spelling, or set HF_TOKEN (or hf auth login) for a private one",
        "data.root: 'hf:set', expected hf:org/name or hf:org/name@revision"]


READ = f"""
from pathlib import Path
from pipeline.errors import UserError
from pipeline.formats import files
for given in GIVEN:
    try:
        made = files.read(Path("hf:org/set@{COMMIT}"), files.Settings(**given))
        print(made.facts["rows"], sorted(g.messages[0].content for _, g in made.groups())[:2])
    except UserError as error:
        print(error)
"""


def test_a_configuration_and_a_split_of_it(tmp_path: Path):
    """Without one the hub's own words say which there are."""
    given = [{"config": "main"}, {"config": "main", "split": "dev"}, {"config": "other"}, {}, {"config": "none"}]
    with serving(lambda path, headers: configured(path, headers.get("Range"))) as url:
        found = printed(READ.replace("GIVEN", repr(given)), url, tmp_path)
    assert found[:3] == ["6 ['d 0', 'd 1']", "2 ['d 0', 'd 1']", "3 ['o 0', 'o 1']"]
    told = [[word for word in ("main", "other", "data.config") if word in line] for line in found[3:]]
    assert told == [["main", "other", "data.config"]] * 2, found[3:]


def test_a_gated_set_is_one_line_that_names_the_token(tmp_path: Path):
    with serving(lambda path, headers: gated(path, headers.get("Range"))) as url:
        (told,) = printed(READ.replace("GIVEN", "[{}]"), url, tmp_path)
    assert told == (f"data.root: hf:org/set@{COMMIT}: the hub gives it only to those who accepted its terms: accept "
                    "them on its page, then set HF_TOKEN (or hf auth login)")


def test_reading_goes_on_behind_a_row(endpoint: str, tmp_path: Path):
    code = f"""
from pipeline.errors import Problems
from pipeline.formats.reader import Source, rows
source = Source("hf:org/set@{COMMIT}")
whole = [row.where for row in rows(source, Problems(), Problems())]
for number in (0, 18, 19, 20, 24):
    print(len(whole), [row.where for row in rows(source, Problems(), Problems(), whole[number])] == whole[number + 1:])
"""
    assert printed(code, endpoint, tmp_path) == ["25 True"] * 5
