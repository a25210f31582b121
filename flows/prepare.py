"""From what the user typed to a run that can start: compose, expand, check, compare with the run's record."""

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from flows import launching, models, policies, relative, settings, trainings, weekly
from flows.compose import Composed, compose, is_later
from flows.inspection import FREE, compared
from flows.notify import unheard
from flows.renamed import translated
from flows.tied import tied_layers
from pipeline import plan, runs
from pipeline.config import build, flat, load_part, part_problems, problems_of
from pipeline.errors import UserError, command, first, nearest
from pipeline.plan import Step
from pipeline.rewards.contract import Scorer
from pipeline.selection.contract import LISTS, Rule

# Keys of theirs came later; what they do is in the recipe.
_ADDED = ("sft", "start", "reference", "model", "train", "seeds", "replay")


@dataclass(frozen=True)
class CheckedRun:
    """A run that can start: its record (not yet saved), its steps, and remarks for the user."""

    run: runs.Run
    workspace: Path
    steps: list[Step]
    notes: list[str]


def prepare(overrides: list[str], step_overrides: dict[str, list[str]] | None = None) -> CheckedRun:
    """Raises UserError with every problem that can be known before the first second of work.

    A run that is only named goes on with the configuration it was started with, even where the defaults have changed.
    """
    typed, said = weekly.expanded(models.pinned([absolute(o) for o in overrides]))
    changed = {step: [absolute(o) for o in words] for step, words in (step_overrides or {}).items()}
    record = _named(typed)
    try:
        made = _composed(typed, changed, record)
        return replace(made, notes=[*said, *made.notes])
    except UserError:
        if changed or record is None or _new(typed) or _outdated(record):
            raise
        return _as_recorded(record)


def _composed(typed: list[str], step_overrides: dict[str, list[str]], named: runs.Run | None) -> CheckedRun:
    words = {o.partition("=")[0] for o in typed}
    overrides = [o for o in named.overrides if o.partition("=")[0] not in words] + typed if named else typed
    composed = compose(overrides)
    if composed.problems:
        expand(composed)
    workspace = Path(composed.config["workspace"])
    name = composed.config["run"] or f"{composed.choices['recipe']}-{composed.choices.get('data', 'minifarm')}"
    record = named or _loaded(workspace, name)
    config = {**composed.config, "run": name}
    notes = composed.notes if record is None else composed.notes + _same_settings(
        record, config, composed.origins, workspace, overrides, given=named is None or _new(typed))
    changes = {**(record.step_overrides if record else {}), **step_overrides}
    own = {step: compose([o for o in overrides if not _outdone(o, extra)] + extra) for step, extra in changes.items()}
    steps = expand(composed, own)
    known = [step.name for step in steps]
    if unknown := [step for step in step_overrides if step not in known]:
        raise UserError(*(f"{step}: the run has no such step{nearest(step, known)}" for step in unknown))
    run = runs.Run(
        name=name, config=_as_written(config), overrides=overrides, step_overrides=changes,
        steps=_step_records(steps, record), outcome=runs.RUNNING, created=record.created if record else time.time(),
        step_configs={step: _as_written({key: other.config[key] for key in ("recipe", "stage", "seed", "seeds")})
                      for step, other in own.items()})
    return CheckedRun(run, workspace, steps, notes + list(map(composed.in_users_words, _by_iteration(steps))))


def _outdone(word: str, changes: list[str]) -> bool:
    """Whether `objective.later.2.alpha=1` of the run is replaced by a step's own `objective.alpha=2`."""
    before, later, after = word.partition("=")[0].partition(".later.")
    return bool(later) and f"{before}.{after.partition('.')[2]}" in {change.partition("=")[0] for change in changes}


def _by_iteration(steps: list[Step]) -> list[str]:
    """What each iteration gets, where a setting of a step differs between them."""
    found: dict[str, dict[int, Any]] = {}
    for step in (step for step in steps if step.iteration and step.stage != "select_prompts"):
        for key, value in flat(asdict(step.settings)).items():
            where = f"stage.{step.stage}.settings.{key}: {step.name.partition('[')[0]}"
            found.setdefault(where, {})[step.iteration] = value
    return [f"{where} gets " + ", ".join(f"{value!r} from iteration {i}" for i, value in values.items()
                                        if i - 1 not in values or values[i - 1] != value)
            for where, values in found.items()
            if len(set(map(repr, values.values()))) > 1 and any(i != value for i, value in values.items())]


def _outdated(record: runs.Run) -> list[str]:
    """Why this code cannot run what run.json has; empty where it can."""
    try:
        return plan.check(Path(record.config["workspace"]), plan.expand(record.config, record.step_configs))
    except UserError as error:
        return error.problems
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        return [f"its configuration in run.json is damaged ({error!r})"]


def _as_recorded(record: runs.Run) -> CheckedRun:
    """The run as run.json has it."""
    workspace, steps = Path(record.config["workspace"]), plan.steps_of(record)
    note = f"the defaults have changed since {record.name!r} was started; it goes on with its own settings"
    run = replace(record, steps=_step_records(steps, record), outcome=runs.RUNNING)
    return CheckedRun(run, workspace, steps, [note])


def _named(typed: list[str]) -> runs.Run | None:
    """The run that `run=NAME` without a recipe means: it goes on with what it was started with."""
    given = dict(o.partition("=")[::2] for o in typed)
    if "recipe" in given or "run" not in given:
        return None
    workspace = models.workspace(typed)
    record = _loaded(workspace, given["run"])
    if record is None:
        known = runs.names(workspace)
        raise UserError(f"run: no run named {given['run']!r} in {workspace}{nearest(given['run'], known)};"
                        " a new one needs recipe=NAME")
    return replace(record, config={**record.config, "workspace": str(workspace)})  # it may have been moved


def _loaded(workspace: Path, name: str) -> runs.Run | None:
    """The run's record, its overrides in the keys of today."""
    record = runs.load(workspace, name)
    if record is None:
        return None
    own = {step: list(map(translated, words)) for step, words in record.step_overrides.items()}
    return replace(record, overrides=list(map(translated, record.overrides)), step_overrides=own)


def _started_with(record: runs.Run) -> list[str]:
    """The words that start such a run, but for its name and place."""
    return [word for word in record.overrides if word.partition("=")[0] not in ("run", "workspace")]


def _new(typed: list[str]) -> bool:
    """Whether more was typed than which run is meant."""
    return any(o.partition("=")[0] not in ("run", "workspace") for o in typed)


def _as_written(node: Any) -> Any:
    """Keys as text, as a file has them: `later: {2: ...}` of a yaml and objective.later.2=... are then one."""
    if isinstance(node, list):
        return [_as_written(value) for value in node]
    if not isinstance(node, dict):
        return node
    written: dict[str, Any] = {}
    for key, value in node.items():
        written = plan.merged(written, {str(key): _as_written(value)})
    return written


def _step_records(steps: list[Step], record: runs.Run | None) -> list[dict[str, Any]]:
    """What run.json says of each step: what it said before, and what the plan says now."""
    old = {s["name"]: s for s in record.steps} if record else {}
    return [{"key": None, "state": "waiting", **old.get(s.name, {}), "name": s.name, "stage": s.stage,
             "iteration": s.iteration, "inputs": [str(r) for refs in s.inputs.values() for r in refs]} for s in steps]


def expand(composed: Composed, own: dict[str, Composed] | None = None) -> list[Step]:
    """The steps, checked; problems in the words of what the user typed. own: the changed steps' configurations."""
    own = own or {}
    typed = [*composed.problems, *(problem for other in own.values() for problem in other.problems)]
    iterations = composed.config["iterations"]
    countable = isinstance(iterations, int) and iterations >= 1
    readable = {"recipe": {}, **composed.config, "iterations": iterations if countable else 2}
    steps, problems = plan.try_expand(readable, {step: other.config for step, other in own.items()})
    problems += _contradictions(readable)
    problems += plan.check(Path(composed.config["workspace"]), steps)
    given = {"": composed.given, **{step: other.given for step, other in own.items()}}
    problems += trainings.problems(readable, steps, given) + launching.problems(readable, composed.given)
    if typed or problems:
        raise UserError(*dict.fromkeys([*typed, *map(composed.in_users_words, problems)]))
    return steps


def _contradictions(config: dict[str, Any]) -> list[str]:
    """Settings that are fine alone and impossible together, reported before the hours they would cost."""
    problems = []
    score, scores = config["evaluation"]["score"], ["reward", *(config["evaluation"]["scoring"].get("also") or {})]
    if score not in scores:
        problems.append(f"evaluation.score: nothing gives a score named {score!r}{nearest(str(score), scores)}")
    arch = config["model"].get("arch")
    room = arch.get("max_position") if arch and not config["model"].get("path") else None
    sampling = _sampling(config)
    if sampling is not None and isinstance(room, int) and sampling.longest >= room:
        problems.append(f"sampling.max_tokens: {sampling.longest} leaves no room for a prompt in a context of {room} "
                        "tokens (model.arch.max_position)")
    return [*problems, *_gate_without_a_judge(config), *_too_few_samples(config), *_unread(config),
            *tied_layers(config), *unheard(config), *(relative.problems(config) if _nodes(config, "evaluate") else [])]


def _nodes(config: dict[str, Any], stage: str) -> list[dict[str, Any]]:
    """The recipe's steps of one stage, without those that are switched off."""
    blocks = (block for block in config["recipe"].values() if isinstance(block, dict))
    return [node for block in blocks for node in block.values()
            if isinstance(node, dict) and node.get("stage") == stage and node.get("when", True)]


def _unread(config: dict[str, Any]) -> list[str]:
    """What was set and would change nothing, because nothing that runs looks at it."""
    problems, reward = [], config["reward"]
    scorers = [reward["scorer"], *(reward["also"] or {}).values()]
    known = not any(part_problems(scorer, "reward", Scorer) for scorer in scorers)
    if reward.get("path") is not None and known and not any("path" in scorer for scorer in scorers):
        name = reward["scorer"]["module"].rpartition(".")[2]
        folders = [f"reward.scorer.{key}" for key in ("policy", "reference") if key in reward["scorer"]]
        problems.append(f"reward.path: not read by reward={name}; set {' or '.join([*folders, 'reward=model'])}")
    if config["stage"]["weigh_prompts"]["active"] and not _nodes(config, "weigh_prompts"):
        problems.append("train.weigh_prompts: true, but the steps of this run weigh no prompts, expected false; "
                        "recipe=pco and iterative_dpo do, with objectives that bring no steps (docs/objectives.md)")
    return problems


def _gate_without_a_judge(config: dict[str, Any]) -> list[str]:
    """A gate that asks whether judge and learned reward part, where they are one score."""
    fall, learned = config["gate"]["win_rate_fall"], config["stage"]["score"]["settings"]["name"]
    other_judge = config["evaluation"]["judgments"] or config["evaluation"]["score"] != learned
    if not _nodes(config, "gate") or fall is None or other_judge:
        return []
    return [f"gate.win_rate_fall: {fall!r} stops where the judge's win rate falls while the learned reward rises, but "
            f"the judge (evaluation.score) is the learned reward, {learned!r}; name another judge (data.judge.score), "
            "or gate on length alone: gate.win_rate_fall=null"]


def _sampling(config: dict[str, Any]) -> Any:
    """The generate stage's settings, built; None where they are wrong, which the steps tell."""
    given, schema = plan.at_iteration(config["stage"]["generate"]["settings"], 1), plan.load_stage("generate").Settings
    return None if problems_of(schema, given) else build(schema, given)


def _too_few_samples(config: dict[str, Any]) -> list[str]:
    """A selection that could use no prompt at all, whatever is sampled."""
    sampling, problems = _sampling(config), list[str]()
    for node in _nodes(config, "build_groups"):  # EGPO's two select with other settings
        spec = plan.merged({"selection": config["selection"]}, node.get("settings") or {})["selection"]
        if sampling is None or part_problems(spec, "selection", Rule):
            continue
        part = load_part(spec, "selection", Rule)
        needed, given = part.of(part.plugin.samples), sampling.samples
        if given < needed:
            problems.append(f"selection: {part.name} needs {needed} samples per prompt with these settings, "
                            f"sampling gives {given} (sampling.n x sampling.temperatures)")
        elif part.of(part.plugin.gives) == LISTS:
            problems += _too_many_negatives(config["negatives"], given - 1)
    return problems


def _too_many_negatives(negatives: dict[str, Any], candidates: int) -> list[str]:
    """More draws, or more pools to draw from in turn, than there are candidates beside the preferred one."""
    return [f"negatives.{key}: {negatives[key]!r} with {candidates} candidates (sampling.n x sampling.temperatures, "
            f"less the preferred one), expected at most {candidates}"
            for key in ("m", "steps")
            if key in negatives and isinstance(negatives[key], int) and negatives[key] > candidates]


def absolute(override: str) -> str:
    """Paths as they are seen from anywhere: a run may go on from another folder."""
    key, _, value = override.partition("=")
    if key in policies.ROLES:
        return f"{key}={models.of_role(override, value)}"
    elsewhere = value in ("", "null") or value.startswith("builtin:") or models.on_hub(key, value)
    return override if elsewhere or key not in settings.PATHS else f"{key}={Path(value).expanduser().resolve()}"


def _same_settings(record: runs.Run, config: dict[str, Any], wired: dict[str, str], workspace: Path,
                   words: list[str], given: bool) -> list[str]:
    """A note of the settings that an upgrade added or took away. Raises UserError where others differ."""
    old, new = (flat(compared(each, FREE)) for each in (settings.renewed(record.config, wired), config))
    differing = sorted(k for k in old.keys() | new.keys() if old.get(k) != new.get(k)
                       and (k in old or k.partition(".")[0] not in _ADDED))
    outer = [k for k in differing if not k.startswith("stage.")] or differing
    one_sided = all((k in old) != (k in new) and not is_later(k) for k in differing)
    if not outer or (one_sided and set(_started_with(record)) == set(_started_with(replace(record, overrides=words)))):
        return [f"{k}: {f'new in this version, {new[k]!r}' if k in new else f'was {old[k]!r}, is no longer there'}; "
                f"{record.name!r} goes on" for k in outer]
    if outdated := _outdated(record):
        raise UserError("\n".join([
            f"run: {record.name!r} in {workspace} was made by another version, and this one cannot go on with it:",
            *(f"    {line}" for line in first(outdated, 5)),
            "  way out: start it under a new name; artifacts that are still what this version makes come from the "
            "store:" + command(workspace, "run", *_started_with(record), f"run={record.name}-2")]))
    lines = [f"{k}: {old.get(k, 'absent')!r} in the run, {new.get(k, 'absent')!r} now" for k in outer]
    why = f"the name {record.name!r} is in use with other settings" if given else (
        f"the defaults have changed since {record.name!r} was started")
    old_settings = f", go on with the old ones:{command(workspace, 'run', f'run={record.name}')}\n" if given else ", "
    raise UserError("\n".join([
        f"run: {why} in {workspace}:", *(f"    {line}" for line in first(lines, 20)),
        f"  ways out: give another name (run=NAME; what is unchanged comes from the store){old_settings}"
        f"  or change one step only (align stage STEP run={record.name} key=value)"]))

