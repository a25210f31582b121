"""Preference pairs and continuations from data sets of other kinds (Pal et al. 2024, App. D; Xu et al. 2023, 3.1).

    metamath    a worked solution against the same one with the result of one intermediate calculation wrong
    arc         the right choice against each wrong one
    hellaswag   the right ending against each wrong one
    swap        an answer against the same one with two of its words exchanged
    repetition  of running text: some sentences, and those that go on

A builder is a function (row, random numbers) -> rows of a file that data=files reads, or why the row gives none.
"""

import gzip
import json
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.stage import derive_seed
from pipeline.statistics import normalised_edit_distance

Row = dict[str, Any]
Made = tuple[list[Row], str]  # the rows, and "" or why there are none

STORY_END = "<|endoftext|>"
_NOTE = re.compile(r"<<[^>]*>>")  # GSM8K's calculator annotations
_NUMBER = r"-?\d+(?:,\d{3})*(?:\.\d+)?"
_RESULT = re.compile(rf"=\s*\$?({_NUMBER})")
_FINAL = re.compile(r"####|The answer is:")
_SENTENCE = re.compile(r"""(?<=[.!?])\s+|(?<=[.!?]["'])\s+""")
_PROMPTS, _ANSWERS = ("prompt", "question", "query", "instruction"), ("chosen", "answer", "response", "output")


def metamath(row: Row, rng: random.Random) -> Made:
    """GSM8K and MetaMath: the answer behind "####" and every later use of the number stay as they are."""
    prompt, answer = _text(row, _PROMPTS), _NOTE.sub("", _text(row, _ANSWERS))
    end = _FINAL.search(answer)
    final = None if end is None else re.search(_NUMBER, answer[end.end():])
    found = list(_RESULT.finditer(answer, 0, len(answer) if end is None else end.start()))
    last = next((i for i in reversed(range(len(found))) if final and found[i][1] == final[0]), None)
    steps = [one for i, one in enumerate(found) if i != last]
    if not steps:
        return [], "no intermediate result"
    start, stop = rng.choice(steps).span(1)
    return [pair(prompt, answer, answer[:start] + wrong(answer[start:stop], rng) + answer[stop:])], ""


def wrong(number: str, rng: random.Random) -> str:
    """Another number written alike: up to 9 units of its last digit away, or a tenth of it; no new sign."""
    digits, decimals = number.replace(",", ""), len(number.partition(".")[2])
    value = int(digits.replace(".", ""))
    most = max(9, abs(value) // 10)
    low = max(-most, -value) if value >= 0 else -most
    moved = Decimal(value + rng.choice([d for d in range(low, most + 1) if d])).scaleb(-decimals)
    return f"{moved:,.{decimals}f}" if "," in number else f"{moved:.{decimals}f}"


def arc(row: Row, rng: random.Random) -> Made:
    return _chosen_of(_text(row, _PROMPTS), row["choices"], int(row["gold"]))


def hellaswag(row: Row, rng: random.Random) -> Made:
    return _chosen_of(_text(row, ("ctx",)), row["endings"], int(row["label"]))


def swap(row: Row, rng: random.Random) -> Made:
    """The words change places, the white space stays."""
    parts = re.split(r"(\s+)", _text(row, _ANSWERS).strip())
    places = range(0, len(parts), 2)
    i = rng.choice(places)
    others = [j for j in places if parts[j] != parts[i]]
    if not others:
        return [], "no two different words"
    j = rng.choice(others)
    moved = [*parts]
    moved[i], moved[j] = parts[j], parts[i]
    return [pair(_text(row, _PROMPTS), "".join(parts), "".join(moved))], ""


def repetition(row: Row, rng: random.Random, words: int = 30) -> Made:
    """Sentences of at least `words` words together, and as many that go on; the next piece begins behind those."""
    pieces, held = list[str](), list[str]()
    for sentence in filter(None, _SENTENCE.split(" ".join(row["text"].split()))):
        held.append(sentence)
        if sum(len(one.split()) for one in held) >= words:
            pieces.append(" ".join(held))
            held = []
    made = [{"question": before, "answer": after} for before, after in zip(pieces[::2], pieces[1::2], strict=False)]
    return made, "" if made else "too short"


BUILDERS: dict[str, Callable[[Row, random.Random], Made]] = {
    "metamath": metamath, "arc": arc, "hellaswag": hellaswag, "swap": swap, "repetition": repetition}


def pair(prompt: str, chosen: str, rejected: str) -> Row:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def build(name: str, paths: Sequence[Path], seed: int) -> tuple[list[Row], Counter[str]]:
    """Every row that builder `name` makes of the files, and what it read and left out, by reason.

    Ids are "12" or, of several from one row, "12#0", "12#1" ... (what stands before "#" is one prompt). Random numbers
    come from (seed, name, row). Raises UserError with the rows that are not as the builder takes them.
    """
    made, tally, problems = list[Row](), Counter[str](), list[str]()
    for number, (where, row) in enumerate(one for path in paths for one in _rows(path, problems)):
        tally["rows"] += 1
        try:
            found, why = BUILDERS[name](row, random.Random(derive_seed(seed, "build", name, number)))
        except (KeyError, IndexError, TypeError, ValueError) as error:
            problems.append(f"{where}: {name} takes no such row ({type(error).__name__}: {error}); it has the keys "
                            f"{', '.join(map(str, row))}")
            continue
        tally[f"left out: {why}"] += bool(why)
        made += [{"id": f"{number}#{k}" if len(found) > 1 else str(number), **one} for k, one in enumerate(found)]
    if problems:
        raise UserError.of(problems, 5)
    return made, tally


def distance(rows: Sequence[Row]) -> float | None:
    """Mean normalised edit distance of the pairs, in words; None where the rows are no pairs."""
    found = [normalised_edit_distance(*(row[side].split() for side in ("chosen", "rejected")))
             for row in rows if "chosen" in row]
    return sum(found) / len(found) if found else None


def _chosen_of(prompt: str, choices: Sequence[str], right: int) -> Made:
    return [pair(prompt, choices[right], other) for i, other in enumerate(choices)
            if i != right and other.strip() != choices[right].strip()], ""


def _text(row: Row, keys: Sequence[str]) -> str:
    found = next((row[key] for key in keys if key in row), None)
    if not isinstance(found, str) or not found.strip():
        raise ValueError(f"expected a text under {' or '.join(keys)}")
    return found


def _rows(path: Path, problems: list[str]) -> Iterator[tuple[str, Row]]:
    """Rows of a JSON Lines file, or of a .txt file {"text"}: of each story, where lines STORY_END divide them."""
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
            text = file.read()
    except (OSError, UnicodeDecodeError) as error:
        problems.append(f"{path}: cannot be read ({error}), expected a file of JSON Lines or text")
        return
    if path.suffix == ".txt":
        texts = enumerate(text.split(STORY_END), 1)
        yield from ((f"{path}: text {n}", {"text": one}) for n, one in texts if one.strip())
        return
    for number, line in enumerate(text.split("\n"), 1):
        try:
            row = json.loads(line) if line.strip() else None
        except ValueError as error:
            problems.append(f"{path}:{number}: not valid JSON: {error}")
            continue
        if isinstance(row, dict):
            yield f"{path}:{number}", row
