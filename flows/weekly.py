"""`data.new=PATH`: a run goes on with new prompts, from the model it has. The same words again resume it.

    align run run=NAME data.new=week2.jsonl     one iteration more (iterations=N: up to N), which samples from them

New preferences among the rows are trained on, too, where the run trains on given ones (new_pairs.py).

The run's record keeps what was added, in data.added: for which iterations, and the hash of every file. So what the
earlier iterations made stands, whatever becomes of the files, and a file with other content is another week's.
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from flows import models, new_pairs
from pipeline import plan, runs, store
from pipeline.config import build, problems_of, setting
from pipeline.errors import UserError, nearest
from pipeline.stage import load

NEW, ADDED, IMPORT = "data.new", "data.added", new_pairs.IMPORT
STEPS = ("new_prompts", "new_tokens", "prompts", *new_pairs.STEPS)  # of a recipe's `each`: what it changes
_NAMES = ("prompt", "instruction", "input", "system")  # of data.columns: what a prompt is made of


@dataclass(frozen=True)
class Added:
    """Prompts of the iterations `first` to `last`."""

    path: str
    first: int = setting(low=1)
    last: int = setting(low=1)
    content: tuple[str, ...] = ()  # name:hash of every file; of the hub's the path has the commit
    pairs: int | None = None  # preferences that join what the run trains on; null: only prompts are read


def expanded(typed: list[str]) -> tuple[list[str], list[str]]:
    """The words with data.new as what it adds to the run's record, and a remark. Raises UserError where there is no
    such run, or it cannot go on.
    """
    given = dict(word.partition("=")[::2] for word in typed)
    name = given.get("run") or f"{given.get('recipe')}-{given.get('data', 'minifarm')}"
    place = models.workspace(typed)
    record = runs.load(place, name) if runs.NAME.match(name) and ADDED not in given else None
    listed = [] if record is None else (record.config.get("data") or {}).get("added") or []
    known = [build(Added, one) for one in listed]
    if NEW not in given:
        return _kept(typed, given, known), []
    if record is None:
        raise UserError(f"{NEW}: adds prompts to a run, and {place} has none named {name!r}"
                        f"{nearest(name, runs.names(place))}; start it without {NEW}, then add")
    if record.outcome.startswith(runs.STOPPED_BY):
        raise UserError(f"{NEW}: {name!r} was {record.outcome}, further iterations would not run; start a new run from "
                        "its model (model.path=FOLDER, docs/data.md)")
    path = given[NEW]
    content = _content(place, path)
    if known and known[-1].path == path and known[-1].content != content and not _imported(place, record, known[-1]):
        known = known[:-1]  # nothing was made of what the file held then
    rest = [word for word in typed if word.partition("=")[0] not in (NEW, "iterations")]
    before = next((one for one in known if (one.content or one.path) == (content or path)), None)
    done = known[-1].last if known else int(own_iterations(record.config))
    if before is not None:
        return _words(rest, known, done), [f"{path} is what {_said(before)} from already; {name!r} goes on"]
    last = given.get("iterations", str(done + 1))
    if not last.isdecimal() or int(last) <= done:
        raise UserError(f"iterations: {last} with {NEW}, but {name!r} has {done} already; expected more, or leave it "
                        "out for one more")
    new = Added(path, done + 1, int(last), content)
    new = replace(new, pairs=new_pairs.counted(place, record.config, new))
    return _words(rest, [*known, new], new.last), [f"{_said(new)} from {path}"]


def own_iterations(config: dict[str, Any]) -> Any:
    """The iterations of a run before it got new prompts: all where it got none."""
    added = (config.get("data") or {}).get("added")
    if not added or problems_of(_List, {"added": added}):
        return config["iterations"]
    return added[0]["first"] - 1


def _content(place: Path, path: str) -> tuple[str, ...]:
    stage = load(IMPORT)
    try:
        hashes = store.cached_hashes(place, stage.files(stage.Settings(), stage.runtime(path)))
    except UserError as error:
        raise UserError(*(problem.replace("data.root", NEW, 1) for problem in error.problems)) from None
    return tuple(f"{file.name}:{digest}" for file, digest in hashes.items())


def _imported(place: Path, record: runs.Run, one: Added) -> bool:
    """Whether the prompts of what was added are in the store: then the files may be what they like."""
    steps = (step for step in record.steps if step["name"] == f"{STEPS[0]}[{one.first}]" and step["key"])
    return any(store.find(place, step["stage"], step["key"]) is not None for step in steps)


def _kept(typed: list[str], given: dict[str, str], known: list[Added]) -> list[str]:
    """All words of a run that has got new prompts since: they stay, and so do the iterations made of them."""
    if not known or "recipe" not in given:
        return typed
    asked = given.get("iterations", "")
    last = max(known[-1].last, int(asked) if asked.isdecimal() else 0)
    return _words([word for word in typed if word.partition("=")[0] != "iterations"], known, last)


def _words(rest: list[str], added: list[Added], last: int) -> list[str]:
    words = models.written([{**asdict(one), "content": list(one.content)} for one in added])
    return [*rest, f"{ADDED}={words}", f"iterations={last}"]


def _said(one: Added) -> str:
    return f"iteration {one.first} samples" if one.first == one.last else (
        f"iterations {one.first} to {one.last} sample")


def apply(config: dict[str, Any]) -> list[str]:
    """Write the steps of new prompts into the recipe, in place. Returns what is wrong."""
    given, recipe = (config.get("data") or {}).get("added") or [], config.get("recipe") or {}
    if not given:
        return []
    if problems := problems_of(_List, {"added": given}, "data"):
        return problems
    if "prompts" not in (recipe.get("each") or {}):
        return [f"{NEW}: the steps of this run sample from no prompts; it is for iterative recipes (recipe=pco)"]
    added, each = build(_List, {"added": given}).added, recipe["each"]
    if isinstance(config["iterations"], int) and config["iterations"] > added[-1].last:
        return [f"iterations: {config['iterations']}, but the new prompts are for those up to {added[-1].last}; give "
                f"others with {NEW}=PATH, one iteration more"]
    start, prompts = added[0].first, each["prompts"]
    taken = {name: config["data"][name] for name in ("columns", "on_bad_row") if name in config["data"]}
    if "columns" in taken:
        taken["columns"] = {key: value for key, value in taken["columns"].items() if key in _NAMES}
    later = {one.first: {"first": one.first, "last": one.last, "fewer": True} for one in added}
    joins = {one.first: new_pairs.settings(config, one.first) for one in added if one.pairs is not None}
    joins |= {one.first: {"joins": 0} for one in added if one.pairs is None and joins and one.first > min(joins)}
    recipe["each"] = {
        "new_prompts": {
            "stage": IMPORT, "from": start, "settings": {**taken, **({"later": joins} if joins else {})},
            "inputs": {"known": {one.first: _known(one.first, added) for one in added}},
            "runtime": {"later": {one.first: {"root": one.path, "content": list(one.content)} for one in added}}},
        "new_tokens": {"stage": "tokenize", "from": start, "inputs": {"data": "new_prompts[i]", "model": "init/model"}},
        **each,
        "prompts": {**prompts, "settings": plan.merged(prompts.get("settings") or {}, {"later": later}),
                    "inputs": {"prompts": {1: prompts["inputs"]["prompts"], start: "new_tokens[i]/unlabeled"}}}}
    return []


@dataclass(frozen=True)
class _List:
    added: tuple[Added, ...]


def _known(first: int, added: tuple[Added, ...]) -> list[str]:
    """The tables whose prompts the run has when iteration `first` begins."""
    pairs = [new_pairs.OWN.format(one.first) for one in added if one.pairs and one.first < first]
    return ["data/sft", "data/pref", "data/eval", *(f"prompts[{i}]/groups" for i in range(1, first)), *pairs]


def join(config: dict[str, Any]) -> None:
    """Write new preferences into the steps that train on given ones, in place, once all others are written."""
    given = (config.get("data") or {}).get("added") or []
    if given and not problems_of(_List, {"added": given}) and "new_tokens" in (config["recipe"].get("each") or {}):
        new_pairs.apply(config, list(build(_List, {"added": given}).added))


def without(recipe: Any) -> Any:
    """A recipe without what new prompts and pairs change."""
    if not isinstance(recipe, dict) or not isinstance(recipe.get("each"), dict):
        return recipe
    each = {name: new_pairs.without(node) for name, node in recipe["each"].items() if name not in STEPS}
    return {**recipe, "each": each}
