"""Prompts with all their completions: pages, search, the chosen one, the same prompt elsewhere, token by token."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from flows.dashboard import facts, tables, written
from flows.dashboard.facts import Row
from flows.dashboard.files import STEP, Files, NotHere, signature
from flows.dashboard.tables import Table
from pipeline import runs
from pipeline.columns import LOGP

MOST_ROWS = 50  # of one page
_SEARCH_SECONDS = 0.15
_MOST_PLACES = 24  # where the same prompt is shown side by side
_RANKED = ("build_groups", "merge", "reference_logprobs")  # merge: of runs made by earlier versions
_SIDE = {"score": "scores", "reference_logprobs": "logps"}  # stages that make numbers of groups -> where they are
_GROUP_ORDER = {"score": 0, "build_groups": 1, "generate": 2}
_LONGEST_CHARACTER = 4  # bytes
Piece = tuple[str, bool]


def tables_of(files: Files, name: str) -> Row:
    """Every table of the run that can be browsed, the one to open first at the front."""
    found = []
    steps = facts.steps_of(files, files.run(name))
    serves = facts.purposes(steps)
    for step in steps:
        for part in runs.TABLES if step["key"] else ():
            try:
                table, _ = _shown(files, steps, step, part)
            except NotHere:
                continue
            found.append({"step": step["name"], "stage": step["stage"], "part": part, "iteration": step["iteration"],
                          "rows": table.rows, "state": step["state"], "purpose": sorted(serves.get(step["name"], ()))})
    found.sort(key=lambda t: (_GROUP_ORDER.get(t["stage"], 3), "train" not in t["purpose"], -t["iteration"]))
    return {"run": name, "tables": found}


def page(files: Files, name: str, step: str, part: str, start: int, count: int, pieces: bool) -> Row:
    """Rows [start, start + count) of a table, each completion with its scores and its mark."""
    found, table, side = find(files, name, step, part)
    count = min(count, MOST_ROWS)
    content = tables.rows(table, start, count)
    places = range(start, start + len(content))
    return shown(files, name, found, table, side, list(zip(places, content, strict=True)), pieces) | {"start": start}


def search(files: Files, name: str, step: str, part: str, start: int, count: int, text: str, answers: bool,
           pieces: bool) -> Row:
    """The next rows that contain the text. `next` says where to go on; it is `rows` at the end of the table."""
    found, table, side = find(files, name, step, part)
    hits, after = tables.search(table, text, start, min(count, MOST_ROWS), answers, _SEARCH_SECONDS)
    content = tables.at(table, hits)
    return shown(files, name, found, table, side, sorted(content.items()), pieces) | {"start": start, "next": after}


def same_prompt(files: Files, name: str, prompt: str, others: list[str]) -> Row:
    """The prompt with this id wherever it was answered: in the run's own iterations, then in the other runs."""
    places: list[Row] = []
    seen: set[tuple[str, str]] = set()
    for run in dict.fromkeys([name, *others]):
        steps = facts.steps_of(files, files.run(run))
        scored = {ref.partition("/")[0] for s in steps if s["stage"] == "score" for ref in s["inputs"]}
        for step in steps:
            answered = step["stage"] == "score" or (step["stage"] == "generate" and step["name"] not in scored)
            if not answered or not step["key"] or (step["stage"], step["key"]) in seen:
                continue
            try:
                table, side = _shown(files, steps, step, "groups")
            except NotHere:
                continue
            at = tables.find_ids(files, table, [prompt]).get(prompt)
            if at is not None and len(places) < _MOST_PLACES:
                seen.add((step["stage"], step["key"]))
                row = shown(files, run, step, table, side, list(tables.at(table, [at]).items()), False)["groups"][0]
                places.append({"run": run, "step": step["name"], "iteration": step["iteration"], "group": row})
    return {"run": name, "id": prompt, "places": places}


def numbers_of(files: Files, step: Row) -> Table | None:
    """The side table a step made, None where it made none (earlier versions made whole tables)."""
    if step["stage"] not in _SIDE:
        return None
    try:
        return tables.open_table(files, files.table(step["stage"], step["key"], _SIDE[step["stage"]]))
    except NotHere:
        return None


def _shown(files: Files, steps: list[Row], step: Row, part: str) -> tuple[Table, Table | None]:
    """The table a step shows, and the numbers beside it: its own, or those of the groups it made numbers of."""
    side = numbers_of(files, step) if part == "groups" else None
    found = [(s["stage"], s["key"], p) for s, p in runs.groups_of(steps, step["name"]) if s["key"]] if side else []
    if not found:
        return tables.open_table(files, files.table(step["stage"], step["key"], part)), None
    return tables.joined([tables.open_table(files, files.table(*place)) for place in found]), side


def find(files: Files, name: str, step: str, part: str) -> tuple[Row, Table, Table | None]:
    """The step, the table it shows, and the numbers beside it. NotHere where there is none."""
    if not STEP.match(step):
        raise NotHere(f"{step!r} is no step's name")
    steps = facts.steps_of(files, files.run(name))
    found = next((s for s in steps if s["name"] == step and s["key"]), None)
    if found is None:
        raise NotHere(f"run {name} has no finished step {step}")
    return found, *_shown(files, steps, found, part)


def shown(files: Files, name: str, step: Row, table: Table, side: Table | None, content: list[tuple[int, Row]],
          pieces: bool) -> Row:
    """Rows of the table, each completion with its scores and its mark, and what somebody noted of the prompt."""
    noted = written.sample_notes(files, name, step["name"])
    ids = [row["id"] for _, row in content]
    used, beside = _used(files, name, step, ids), {} if side is None else tables.numbers(files, side, ids)
    decode = decoder(files, name, step) if pieces else None
    ranked = step["stage"] in _RANKED or table.folder.name == "pref"  # there the preferred one stands first
    groups = []
    for index, row in content:
        completions = [_completion(c, beside.get((row["id"], k), {}), decode)
                       for k, c in enumerate(row["completions"] or [])]
        for position, completion in enumerate(completions):
            if ranked:
                completion["mark"] = "rejected" if position else "chosen"
            elif completion["sample"] in used.get(row["id"], {}):
                completion["mark"] = used[row["id"]][completion["sample"]]
        groups.append({"index": index, "id": row["id"], "messages": row["messages"], "completions": completions,
                       "dataset": row["dataset"], "iteration": row["iteration"], "label": row["label"],
                       "weight": row["weight"], "noted": noted.get(row["id"]),
                       "prompt_pieces": decode(row["prompt_ids"]) if decode and row["prompt_ids"] else None})
    return {"run": name, "step": step["name"], "rows": table.rows, "groups": groups}


def _completion(row: Row, numbers: dict[str, float], decode: Any) -> Row:
    ids = row["token_ids"] or []
    scores = {name: value for name, value in numbers.items() if name != LOGP and value is not None}
    return {"text": row["text"], "tokens": len(ids), "finish": row["finish_reason"],
            "scores": {**(row["scores"] or {}), **scores}, "ref_logp": numbers.get(LOGP, row["ref_logp"]),
            "sample": row["sample"], "temperature": row["temperature"],
            "pieces": decode(ids) if decode and ids else None}


def _used(files: Files, name: str, step: Row, ids: list[str]) -> dict[str, dict[int, str]]:
    """Prompt -> sample -> "chosen" or "rejected": what the run's groups made of this step's samples."""
    for other in facts.steps_of(files, files.run(name)):
        reads = {ref.partition("/")[0] for ref in other["inputs"]}
        if other["stage"] != "build_groups" or step["name"] not in reads or not other["key"]:
            continue
        try:
            table = tables.open_table(files, files.table(other["stage"], other["key"], "groups"))
        except NotHere:
            continue
        places = tables.find_ids(files, table, ids)
        groups = tables.at(table, sorted(places.values()), ["id", "completions.list.element.sample"])
        return {row["id"]: {c["sample"]: "rejected" if i else "chosen" for i, c in enumerate(row["completions"])}
                for row in groups.values()}
    return {}


def decoder(files: Files, name: str, step: Row) -> Callable[[list[int]], list[Piece]]:
    """Token ids -> (text, whether it is a special token), by the tokenizer of the model nearest upstream.

    NotHere where no step upstream of this one has a model with a tokenizer.
    """
    path = _tokenizer(files, name, step)
    tokenizer = files.remember(("tokenizer", path), signature(path), lambda: Tokenizer.from_file(str(path)))
    special = {i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}

    def decode(ids: list[int]) -> list[Piece]:
        found: list[Piece] = []
        waiting: list[int] = []  # bytes of one character may be spread over several tokens
        for token in ids:
            if token in special:
                found += [(tokenizer.decode(waiting), False)] if waiting else []
                found.append((tokenizer.id_to_token(token), True))
                waiting = []
                continue
            waiting.append(token)
            text = tokenizer.decode(waiting, skip_special_tokens=False)
            if "\ufffd" not in text or len(waiting) > _LONGEST_CHARACTER:
                found.append((text, False))
                waiting = []
        return found + ([(tokenizer.decode(waiting), False)] if waiting else [])

    return decode


def _tokenizer(files: Files, name: str, step: Row) -> Path:
    for found in facts.upstream(facts.steps_of(files, files.run(name)), step["name"]):
        if found["key"]:
            path = files.artifact(found["stage"], found["key"], "model", "tokenizer.json")
            if signature(path) is not None:
                return path
    raise NotHere(f"no model upstream of {step['name']} has a tokenizer.json")
