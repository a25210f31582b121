"""Several runs side by side: their numbers, what differs, what `align compare` says of them, a test of any two arms."""

from typing import Any

from flows import comparison, comparison_tables, device_hours
from flows.comparison import Arm, Comparison
from flows.dashboard import curves, facts
from flows.dashboard.facts import Row
from flows.dashboard.files import Files, NotHere
from pipeline import arms, statistics
from pipeline.errors import UserError

MOST = 60  # runs
_DAMAGED = (KeyError, TypeError, AttributeError, ValueError, OSError)  # of a record or an artifact


def compare(files: Files, names: list[str]) -> Row:
    """The iteration rows of several runs, grouped into experiments, with the settings in which these differ."""
    records = [files.run(name) for name in dict.fromkeys(names[:MOST])]
    found, first = [], dict[str, Row]()
    for record in records:
        steps, mark = facts.steps_of(files, record), facts.experiment(record["config"])
        first.setdefault(mark, record)
        numbers = {str(r["iteration"]): _numbers(steps, r) for r in facts.iterations(steps, record["config"])}
        found.append({"name": record["name"], **facts.about(record), "state": facts.live_state(files, record),
                      "experiment": mark, "numbers": numbers,
                      "hours": _hours(files, record)})
    try:
        differ = dict(zip(first, comparison.settings(list(first.values())), strict=True))
    except _DAMAGED:
        differ = {}
    for run in found:
        run["settings"] = differ.get(run["experiment"], {})
    columns = facts.columns(records[0]["config"] if records else {})
    return {"runs": found, "columns": [vars(c) for c in columns], **_judged(files, records)}


def test(files: Files, names: list[str], ours: str, theirs: str) -> Row:
    """The paired test of arm `ours` less arm `theirs`, in the last iteration that both have; else `why` there is none.

    NotHere for a letter that is no arm's.
    """
    made = _made(files, [files.run(name) for name in dict.fromkeys(names[:MOST])])
    known = {} if isinstance(made, str) else {arm.name: arm for arm in made.arms}
    if not {ours, theirs} <= known.keys():
        raise NotHere(f"no arm {ours} or {theirs} among these runs")
    one, other = known[ours], known[theirs]
    common = one.judged.keys() & other.judged.keys()
    last = {arm.name: max(common) if common else max(arm.judged, default=0) for arm in (one, other)}
    asked = {"ours": ours, "theirs": theirs, "iterations": [last[ours], last[theirs]]}
    if not (one.judged and other.judged):
        return asked | {"why": "one of them was not judged yet"}
    found = arms.difference(one.judged[last[ours]], other.judged[last[theirs]])
    return asked | ({"why": found} if isinstance(found, str) else {**vars(found), "level": arms.CONFIDENCE})


def _judged(files: Files, records: list[Row]) -> Row:
    """What `align compare` prints of these runs, and a line of the leaderboard for each arm."""
    made = _made(files, records)
    if isinstance(made, str):
        return {"tables": [vars(comparison_tables.Table(made, [], []))] if made else [], "leaders": [], "score": ""}
    leaders = [_leader(files, made, arm) for arm in made.arms if arm.judged]
    return {"tables": [vars(table) for table in comparison_tables.tables(made)], "score": made.score,
            "leaders": sorted(leaders, key=lambda row: -row["win_rate"]["value"])}


def _made(files: Files, records: list[Row]) -> Comparison | str:
    """The comparison, or why there is none. It draws no sample twice while no step of these runs ends."""
    keys = tuple((record["name"], tuple(str(step.get("key")) for step in record["steps"])) for record in records)

    def made() -> Comparison | str:
        try:
            return comparison.made(records, files.manifest, files.artifact)
        except UserError as error:
            return "; ".join(error.problems)
        except _DAMAGED:
            return ""

    found: Comparison | str = files.remember(("compared", tuple(name for name, _ in keys)), keys, made)
    return found


def _leader(files: Files, made: Comparison, arm: Arm) -> Row:
    last = max(arm.judged)
    rate, judged = made.rates[arm.name, last], arm.judged[last]
    names = dict.fromkeys(name for one in judged for name in one.numbers)
    means = {n: statistics.mean([one.numbers[n] for one in judged if n in one.numbers]) for n in names}
    trained = [tokens for one in judged if (tokens := curves.tokens_trained(files, one.run)) is not None]
    return {"arm": arm.name, "runs": arm.runs, "iteration": last, "numbers": means, "settings": arm.settings,
            "win_rate": {"value": rate.mean, "low": rate.low, "high": rate.high, "sd": rate.sd,
                         "seeds": len(rate.seeds), "prompts": rate.prompts, "level": arms.CONFIDENCE},
            "tokens": statistics.mean(trained) if trained else None}


def _hours(files: Files, record: Row) -> dict[str, float]:
    made = [facts for s in record["steps"] if (facts := files.manifest(s["stage"], s.get("key"))) is not None]
    return {kind: round(value, 4) for kind, value in device_hours.hours(made).items()}


def _numbers(steps: list[Row], row: Row) -> dict[str, Any]:
    """Every number of an iteration: the table's columns first, then each step's counts as "step.field"."""
    found = dict(row["cells"])
    for step in steps:
        if step["iteration"] == row["iteration"]:
            found |= {f"{step['base']}.{field}": {"value": value, "step": step["name"], "field": field}
                      for field, value in step["counts"].items()}
    return found
