"""`align compare`: arms of runs with the settings in which they differ, rates over seeds, and every paired test.

The command line, the page and the exports show one `Comparison`; reading it is all that differs.
"""

import itertools
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows import comparison_tables, screen, sweep_record
from flows.inspection import FREE, SEEDS, compared, load_run
from flows.rewarded import count_of
from pipeline import arms, files, runs, statistics, store
from pipeline.arms import Judged, Rate
from pipeline.config import flat
from pipeline.errors import UserError, command

# Name -> the stage whose count it is, and the count; the win rate is of the outcomes themselves.
NUMBERS = {"length_controlled": ("evaluate", "length_controlled_win_rate"),
           "learned": ("evaluate", "win_rate by the score that is optimised"), "length": ("evaluate", "length_mean"),
           "truncated": ("evaluate", "truncated_share"), "kl": ("diagnose", "kl")}
_HIDDEN = ("run", "workspace", *SEEDS, "hardware", "tracking", "notify")  # never a setting that tells two arms apart
_ALL_PAIRS = 8  # arms, of more each is tested against the first only
_MOST = 6  # settings shown of two arms that were typed alike

Row = dict[str, Any]
Manifest = Callable[[str, str], Mapping[str, Any] | None]  # (stage, key) -> the artifact's manifest
Folder = Callable[[str, str], Path]  # (stage, key) -> the artifact's folder


@dataclass(frozen=True)
class Arm:
    """Runs that differ in nothing but their seeds."""

    name: str  # A, B, ...
    settings: dict[str, str]  # those in which it differs from another arm
    runs: list[str]
    judged: dict[int, list[Judged]]  # by iteration


@dataclass(frozen=True)
class Difference:
    """One arm and iteration less another; `found` is a text where they cannot be compared."""

    ours: tuple[str, int]
    theirs: tuple[str, int]
    found: Rate | str


@dataclass(frozen=True)
class Comparison:
    """All that is shown."""

    arms: list[Arm]
    rates: dict[tuple[str, int], Rate]
    differences: list[Difference]
    score: str  # that decided, "" where nothing was judged


def compare(words: list[str], to: str | None = None) -> int:
    """Print the comparison of the runs named (or of sweep=NAME); to: write it as .csv, .md or .tex as well.

    Raises UserError for a run that is not there or was not judged, and for two that are the same.
    """
    typed = dict(word.split("=", 1) for word in words if "=" in word)
    if unknown := [key for key in typed if key not in ("workspace", "sweep")]:
        raise UserError(*(f"{key}: unknown here, expected runs, sweep=NAME or workspace=FOLDER" for key in unknown))
    place = Path(typed.get("workspace", "workspace")).expanduser().resolve()
    named = [word for word in words if "=" not in word]
    names = list(dict.fromkeys(named + sweep_runs(place, typed.get("sweep"))))
    if not names:
        raise UserError("RUN: missing, say which runs: align compare RUN RUN ... or sweep=NAME")
    found = of_runs(place, names)
    if wrong := [text for name, text in unjudged(place, names, found).items() if name in named or not found.rates]:
        raise UserError(*wrong)
    if to is not None:
        written = comparison_tables.written(found, Path(to).suffix)
        files.write_atomic(Path(to).expanduser(), written)
    comparison_tables.show(found)
    for text in unjudged(place, names, found).values():
        screen.say(f"not in it: {text.removeprefix('compare: ')}")
    if to is not None:
        screen.say(f"written to {to}")
    return 0


def sweep_runs(place: Path, name: str | None) -> list[str]:
    """The runs of a sweep that have begun."""
    if name is None:
        return []
    listed = sweep_record.load(place, name).arms
    return [arm.run for arm in listed if (runs.folder(place, arm.run) / "run.json").is_file()]


def of_runs(place: Path, names: Sequence[str]) -> Comparison:
    """Read from the store. Raises UserError for a run that is not there, and for two that differ in nothing."""
    def manifest(kind: str, key: str) -> Mapping[str, Any] | None:
        artifact = store.find(place, kind, key)
        return None if artifact is None else artifact.manifest

    records = [vars(load_run(place, name, "compare")) for name in names]
    return made(records, manifest, lambda kind, key: store.artifact_path(place, kind, key))


def unjudged(place: Path, names: Sequence[str], found: Comparison) -> dict[str, str]:
    """Why a run is not in the comparison, by its name."""
    judged = {one.run for arm in found.arms for several in arm.judged.values() for one in several}
    states = {name: runs.outcome(place, load_run(place, name)) for name in names if name not in judged}
    return {name: f"compare: {name} has no evaluation yet, it is {state}; finish it with:"
            f"{command(place, 'run', f'run={name}')}" for name, state in states.items()}


def made(records: Sequence[Row], manifest: Manifest, folder: Folder) -> Comparison:
    """The comparison of these run.json. Raises UserError for two that differ in nothing."""
    groups: dict[str, list[Row]] = {}
    for record in records:
        groups.setdefault(files.canonical(compared(record["config"], (*FREE, *SEEDS))), []).append(record)
    differing = settings([same[0] for same in groups.values()])
    found, problems = [], list[str]()
    for i, same in enumerate(groups.values()):
        seeds = seed_names([record["config"] for record in same])
        judged: dict[int, list[Judged]] = {}
        for record, seed in zip(same, seeds, strict=True):
            for one in _judged(record, seed, manifest, folder):
                judged.setdefault(one.iteration, []).append(one)
        if any(len({one.seed for one in several}) < len(several) for several in judged.values()):
            problems.append(f"compare: {', '.join(r['name'] for r in same)} differ in nothing, not even the seed; name "
                            "one of each")
        found.append(Arm(_letters(i), differing[i], [r["name"] for r in same], dict(sorted(judged.items()))))
    if problems:
        raise UserError(*problems)
    rates = {(arm.name, i): arms.rate(judged) for arm in found for i, judged in arm.judged.items()}
    scores = {one.judge[0] for arm in found for judged in arm.judged.values() for one in judged}
    return Comparison(found, rates, _differences(found), ", ".join(sorted(scores)))


def _differences(found: Sequence[Arm]) -> list[Difference]:
    """Each iteration less the one before in the same arm, and any two arms in the last iteration that both have; of
    many arms each and the first.
    """
    asked = [((arm.name, b), (arm.name, a)) for arm in found for a, b in itertools.pairwise(arm.judged)]
    couples = list(itertools.combinations(found, 2))
    for one, two in couples if len(found) <= _ALL_PAIRS else couples[:len(found) - 1]:
        if common := one.judged.keys() & two.judged.keys():
            asked.append(((two.name, max(common)), (one.name, max(common))))
        elif one.judged and two.judged:  # best-of-N, say, has no iterations
            asked.append(((two.name, max(two.judged)), (one.name, max(one.judged))))
    by_name = {arm.name: arm.judged for arm in found}
    several = [arms.difference(by_name[a][i], by_name[b][j]) for (a, i), (b, j) in asked]
    adjusted = iter(arms.holm([one for one in several if isinstance(one, Rate)]))
    return [Difference(a, b, next(adjusted) if isinstance(one, Rate) else one)
            for (a, b), one in zip(asked, several, strict=True)]


def _judged(record: Row, seed: str, manifest: Manifest, folder: Folder) -> list[Judged]:
    """Every evaluation of the run that is done; of a benchmark's two the one of the first turns."""
    asked = [step for step in record["steps"] if step["name"].partition("[")[0] in ("evaluate", "diagnose")
             and step.get("key") and step["state"] in ("done", "cached")]
    done = {(step["stage"], step["iteration"]): (step["key"], facts) for step in asked
            if (facts := manifest(step["stage"], step["key"])) is not None}
    found = []
    for step in asked:
        _, facts = done.get((step["stage"], step["iteration"]), ("", None))
        if step["stage"] != "evaluate" or facts is None:
            continue
        rows = files.parsed_lines((folder("evaluate", step["key"]) / "outcomes.jsonl").read_bytes(), id=str,
                                  outcome=(int, float))
        by_prompt: dict[str, list[float]] = {}
        for row in rows:
            by_prompt.setdefault(row["id"], []).append(row["outcome"])
        numbers, origins = dict[str, float](), dict[str, str]()
        for name, (kind, field) in {**NUMBERS, "learned": ("evaluate", count_of(record["config"]))}.items():
            key, of = done.get((kind, step["iteration"]), ("", {"counts": {}}))
            if field in of["counts"]:
                numbers[name], origins[name] = float(of["counts"][field]), f"{kind}/{key}"
        decided = str(files.parsed((folder("evaluate", step["key"]) / "evaluation.json").read_bytes())["score"])
        outcomes = {name: statistics.mean(values) for name, values in by_prompt.items()}
        judge = (decided, " ".join(facts["inputs"]["baseline"]))
        found.append(Judged(record["name"], seed, step["iteration"], step["key"], numbers, origins, outcomes, judge))
    return found


def seed_names(configs: Sequence[Row]) -> list[str]:
    """How each run's seed is called: by `seed`, or, where that is one for several, by those of `seeds` that differ."""
    if len({config["seed"] for config in configs}) == len(configs):
        return [str(config["seed"]) for config in configs]
    each = [config.get("seeds") or {} for config in configs]
    names = [key for key in (each[0] if each else ()) if len({one.get(key) for one in each}) > 1]
    return [f"{config['seed']}" + "".join(f" {key} {one[key]}" for key in names)
            for config, one in zip(configs, each, strict=True)]


def settings(records: Sequence[Row]) -> list[dict[str, str]]:
    """For each record the settings in which it differs from another: those typed, else those of the configuration."""
    typed = [dict(word.partition("=")[::2] for word in record["overrides"]) for record in records]
    keys = [key for key in dict.fromkeys(key for words in typed for key in words) if key.split(".")[0] not in _HIDDEN]
    every = [{key: words.get(key) or _value(record["config"], key) for key in keys}
             for words, record in zip(typed, records, strict=True)]
    keys = [key for key in keys if len({one[key] for one in every}) > 1]
    if len({tuple(one[key] for key in keys) for one in every}) < len(every):
        plain = [flat(compared(record["config"], (*FREE, *SEEDS))) for record in records]
        known = sorted({key for one in plain for key in one if not key.startswith(("stage.", "recipe."))})
        more = [key for key in known if len({files.canonical(one.get(key)) for one in plain}) > 1]
        every = [{**one, **{key: str(of.get(key, "-")) for key in more}} for one, of in zip(every, plain, strict=True)]
        keys += [key for key in more if key not in keys][:_MOST]
    return [{key: one[key] for key in keys} for one in every]


def _value(config: Row, key: str) -> str:
    """What a key that was not typed is: the option of a group, or the value."""
    choice = (config.get("choices") or {}).get(key)
    node: Any = config
    for name in key.split("."):
        node = node.get(name) if isinstance(node, dict) else None
    if choice is None and isinstance(node, dict):
        choice = str(node.get("module") or (node.get("scorer") or {}).get("module") or "-").rpartition(".")[2]
    return str(choice or ("-" if node is None else node))


def _letters(i: int) -> str:
    """A ... Z, AA ..."""
    return (_letters(i // 26 - 1) if i > 25 else "") + string.ascii_uppercase[i % 26]
