"""Seeded changes of bytes, of JSON, and of command lines."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

ODD: tuple[Any, ...] = (
    None, True, -1, 0, 1e308, -0.5, 2**63, float("nan"), float("inf"), "", " ", "\u0000", "\ud800", "\u202e", "a\nb",
    "é" * 3, "x" * 5000, [], [[]], {}, {"a": None}, [None], ["x", 3], {"role": "user"}, "../..", "${oops}", "%s%n")
BYTES = (b"", b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"{", b"]", b'"', b"\\u00", b"\n\n", b"\r", b"1e999", b"NaN",
         b"[" * 3000, b"\xc3", b"\xed\xa0\x80", b"null", b"{}", b"," * 10)


def of_bytes(content: bytes, rng: random.Random) -> bytes:
    """Some bytes flipped, cut out, doubled, or something odd put in; several of it at times."""
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        at, end = sorted((rng.randrange(len(content) + 1), rng.randrange(len(content) + 1)))
        end = min(end, at + rng.choice((1, 8, 100, 10**6)))
        what = rng.randrange(5)
        if what == 0 and content:
            changed = bytearray(content)
            changed[at % len(changed)] ^= 1 << rng.randrange(8)
            content = bytes(changed)
        elif what == 1:
            content = content[:at] + content[end:]
        elif what == 2:
            content = content[:at] + rng.choice(BYTES) + content[at:]
        elif what == 3:
            content = content[:end] + content[at:]
        else:
            content = content[:at]
    return content


def of_data(data: Any, rng: random.Random) -> Any:
    """JSON data with something odd in a place or two: another value, a key gone, doubled, or of another name."""
    data = copy.deepcopy(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        node = data
        while isinstance(node, (dict, list)) and node:
            key = rng.choice(list(node)) if isinstance(node, dict) else rng.randrange(len(node))
            if isinstance(node[key], (dict, list)) and node[key] and rng.random() < 0.7:
                node = node[key]
                continue
            if rng.random() < 0.6:
                node[key] = copy.deepcopy(rng.choice(ODD))
            elif isinstance(node, dict):
                value = node.pop(key)
                if rng.random() < 0.5:
                    node[str(key) + rng.choice("xs_ ")] = value
            else:
                node.insert(key, copy.deepcopy(node[key]))
            break
    return data


def of_json(content: bytes, rng: random.Random, lines: bool = False) -> bytes:
    """A JSON file, or one of JSON lines, changed as data or as bytes."""
    if rng.random() < 0.4:
        return of_bytes(content, rng)
    if not lines:
        return json.dumps(of_data(json.loads(content), rng)).encode()
    rows = content.splitlines()
    for _ in range(rng.choice((1, 1, 3))):
        at = rng.randrange(len(rows))
        try:
            rows[at] = json.dumps(of_data(json.loads(rows[at]), rng)).encode()
        except ValueError:
            rows[at] = b""
    return b"\n".join(rows) + b"\n"


def of_words(words: list[str], rng: random.Random) -> list[str]:
    """A command line with words changed, lost, doubled, or with other values behind their keys."""
    found = list(words)
    for _ in range(rng.choice((1, 1, 2, 3))):
        at = rng.randrange(len(found)) if found else 0
        key = found[at].partition("=")[0] if found else "x"
        odd = rng.choice(("", "null", "[]", "{}", "{a: 1}", "[1,2", "'", '"', "1e999", "nan", "-1", "0", "true", "${x}",
                          "${oc.env:HOME}", "é", "a b", "a=b", "\\", "~", "+", "*", "@", "x" * 500, "???", "1,2"))
        change = rng.randrange(6)
        if change == 0 and found:
            found[at] = f"{key}={odd}"
        elif change == 1 and found:
            del found[at]
        elif change == 2:
            found.insert(at, rng.choice((f"{key}.{odd}={odd}", f"+{key}={odd}", f"~{key}", f"--{odd}", odd)))
        elif change == 3 and found:
            found.append(found[at])
        elif change == 4 and found:
            place = rng.randrange(len(found[at]) + 1)
            found[at] = found[at][:place] + odd[:20] + found[at][place:]
        elif found:
            found[at] = found[at][: rng.randrange(len(found[at]) + 1)]
    return [word.replace("\0", "") for word in found]
