"""Recipe -> ordered steps, each with its typed settings, its inputs and, once those exist, its key in the store.

A recipe names its steps: `once` before the loop, `each` for every iteration (or `from: 2` on). An input is a reference
`step/part`: `sft/model`, `pairs[i]/groups`, `tokens/pref`; [i] is this iteration, [i-1] the one before, [*] every one
so far; `train[i-1]/model | sft/model` is the first of them that exists. A step marked `when: needed` is left out if
no step that runs takes anything from it. Nothing here imports torch: planning must answer in about a second.
"""

from dataclasses import dataclass, replace
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Any

from pipeline import errors, outside, store, wiring
from pipeline.config import build, problems_of, settled
from pipeline.errors import UserError, command
from pipeline.runs import Run
from pipeline.stage import Kinds, Stage, keyed, seed_of
from pipeline.stage import load as load_stage
from pipeline.wiring import Ref

_HASHED_AT_PLAN = 2**30  # bytes: about a second; a model of 16 GB is hashed when its step runs
PREFERENCES = "pref"  # the part with the data set's own preferences
_STEP_KEYS = {"stage", "inputs", "settings", "runtime", "when", "from"}


@dataclass(frozen=True)
class Step:
    """One stage with everything it will be given."""

    name: str  # "sft", "train[2]"
    stage: str  # kind: the module in pipeline/stages
    iteration: int  # 0 before the loop
    inputs: dict[str, tuple[Ref, ...]]
    settings: Any  # the stage's Settings: hashed
    runtime: Any  # the stage's Runtime: not hashed
    seed: int

    @property
    def plugin(self) -> Stage:
        return load_stage(self.stage)


def expand(config: dict[str, Any], overrides: dict[str, dict[str, Any]] | None = None) -> list[Step]:
    """Every step of the recipe for `config["iterations"]` iterations, in running order.

    `overrides` gives single steps a configuration of their own (`align stage`). Raises UserError with every problem
    of every step: unknown stage, reference to nothing, bad setting, unmet input.
    """
    steps, problems = try_expand(config, overrides or {})
    if problems:
        raise UserError(*problems)
    return steps


def steps_of(run: Run) -> list[Step]:
    """The run's steps, from the configuration that run.json holds: nothing is composed, no input is read.

    Raises UserError where an older version wrote run.json without what this needs.
    """
    kinds = {"recipe": dict, "stage": dict, "iterations": int, "seed": int}
    missing = [key for key, kind in kinds.items() if not isinstance(run.config.get(key), kind)]
    missing += [f"the settings of {step}" for step in run.step_overrides if step not in run.step_configs]
    if missing:
        raise UserError(f"run: run.json of {run.name!r} was written by an older version and lacks {', '.join(missing)};"
                        f" write it anew and go on with:"
                        f"{command(run.config['workspace'], 'run', f'run={run.name}')}")
    try:
        return expand(run.config, run.step_configs)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"run: the configuration in run.json of {run.name!r} is damaged ({error!r}); write it anew and "
                        f"go on with:{command(run.config['workspace'], 'run', *run.overrides)}") from None


def try_expand(config: dict[str, Any], overrides: dict[str, dict[str, Any]]) -> tuple[list[Step], list[str]]:
    """As `expand`: the steps that could be built, and the problems of the others."""
    recipe, problems = config["recipe"], list[str]()
    steps, if_needed, failed = dict[str, Step](), set[str](), set[str]()
    rounds = [("once", 0)] + [("each", i) for i in range(1, config["iterations"] + 1)]
    for block, iteration in rounds:
        for name, node in (recipe.get(block) or {}).items():
            if iteration < node.get("from", 0):
                continue
            full = f"{name}[{iteration}]" if iteration else name
            own = overrides.get(full, config)
            node = own["recipe"][block][name]
            try:
                step = _step(full, node, iteration, own, steps, failed, f"recipe.{block}.{name}")
                if step is not None:
                    steps[full] = step
                    if_needed |= {full} if node.get("when") == "needed" else set()
            except UserError as error:
                failed.add(full)  # what builds on it is not a problem of its own
                problems += [p for p in error.problems if p not in problems]
    return _accepting(_without_unused(list(steps.values()), if_needed)), problems + misfits(steps)


def misfits(steps: dict[str, Step]) -> list[str]:
    """Steps whose settings cannot take the kind of groups the steps before them make, as messages.

    A stage that makes or passes on groups says which in `kinds(settings, kinds of its inputs)`; one that minds says
    what is wrong in `misfit(settings, kinds of its groups)`.
    """
    kinds: dict[str, Kinds] = {}
    problems: list[str] = []
    for step in steps.values():
        read = [ref.step for name in ("groups", "scores") for ref in step.inputs.get(name, ())]
        given = reduce(or_, map(kinds.__getitem__, read), Kinds())
        kinds[step.name] = step.plugin.kinds(step.settings, given)
        wrong = step.plugin.misfit(step.settings, given)
        if wrong is not None and f"stage.{step.stage}: {wrong}" not in problems:
            problems.append(f"stage.{step.stage}: {wrong}")
    return problems


def _accepting(steps: list[Step]) -> list[Step]:
    """Tell the step that accepts the model whether a reward model will be trained on it: not every family has one."""
    trained = any(step.stage == "train_reward" and step.settings.base is None for step in steps)
    return [replace(step, runtime=replace(step.runtime, reward=trained))
            if step.stage == "init_model" and "policy" not in step.inputs else step for step in steps]


def _without_unused(steps: list[Step], if_needed: set[str]) -> list[Step]:
    kept: list[Step] = []
    used: set[str] = set()
    for step in reversed(steps):
        if step.name not in if_needed or step.name in used:
            kept.append(step)
            used |= {ref.step for refs in step.inputs.values() for ref in refs}
    return kept[::-1]


def _step(
    full: str, node: Any, iteration: int, config: dict[str, Any], earlier: dict[str, Step], failed: set[str], where: str
) -> Step | None:
    if unknown := [k for k in node if k not in _STEP_KEYS]:
        raise UserError(*(f"{where}.{k}: unknown key{errors.nearest(k, _STEP_KEYS)}" for k in unknown))
    if not node.get("when", True):
        return None
    kind = node["stage"]
    if kind not in config["stage"]:
        raise UserError(f"{where}.stage: no stage {kind!r}{errors.nearest(kind, config['stage'])}")
    stage, values = load_stage(kind), config["stage"][kind]
    settings = at_iteration(merged(values.get("settings") or {}, node.get("settings") or {}), iteration)
    runtime = at_iteration(merged(values.get("runtime") or {}, node.get("runtime") or {}), iteration)
    problems = problems_of(stage.Settings, settings, f"stage.{kind}.settings")
    problems += problems_of(stage.runtime, runtime, f"stage.{kind}.runtime")
    known = {*earlier, *failed}
    inputs = wiring.inputs(node.get("inputs") or {}, stage.inputs, iteration, config["recipe"], known, where, problems)
    if problems or any(ref.step in failed for refs in inputs.values() for ref in refs):
        raise UserError(*problems)
    made = build(stage.Settings, settings)
    given = node.get("inputs") or {}
    if unmet := {name: why for name, why in stage.required(made).items() if name not in given}:
        raise UserError(*(f"{where}.inputs.{name}: these settings need it ({why}), but the recipe does not give it"
                          for name, why in unmet.items()))
    if stage.wanted is not None:  # optional inputs these settings have no use for would only make keys differ
        wanted = stage.wanted(made)
        inputs = {n: refs for n, refs in inputs.items() if stage.inputs[n] != "optional" or n in wanted}
    return Step(full, kind, iteration, inputs, made, build(stage.runtime, runtime), seed_of(config, stage, iteration))


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`base` with `changes` laid over it, mapping by mapping."""
    out = dict(base)
    for key, value in changes.items():
        nested = isinstance(value, dict) and isinstance(out.get(key), dict)
        out[key] = merged(out[key], value) if nested else value
    return out


def at_iteration(node: Any, iteration: int) -> Any:
    """Settings in one iteration: `later: {2: {alpha: 0.01}}` holds from iteration 2 on; "$iteration" is its number."""
    if node == "$iteration":
        return iteration
    if isinstance(node, (list, tuple)):
        return [at_iteration(v, iteration) for v in node]
    if not isinstance(node, dict):
        return node
    later = node.get("later") or {}
    plain = {k: v for k, v in node.items() if k != "later"}
    for start in sorted(later, key=int):
        if int(start) <= iteration:
            plain = merged(plain, later[start])
    return {k: at_iteration(v, iteration) for k, v in plain.items()}


# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Planned:
    """A step and what the store knows of it. `key` is None while an input does not exist yet."""

    step: Step
    key: str | None
    artifact: store.Artifact | None

    @property
    def cached(self) -> bool:
        return self.artifact is not None


def look_up(workspace: Path, step: Step, done: dict[str, store.Artifact], planning: bool = False) -> Planned:
    """The step's key and, if it is there, its artifact. `done` holds the artifacts of the steps before it.

    planning: leave the key open where it takes the hash of large files that nobody has hashed yet.
    """
    refs = [ref for group in step.inputs.values() for ref in group]
    if any(ref.step not in done for ref in refs):
        return Planned(step, None, None)
    if planning and store.unread(workspace, step.plugin.files(step.settings, step.runtime)) > _HASHED_AT_PLAN:
        return Planned(step, None, None)
    key = step_key(workspace, step, done)
    return Planned(step, key, store.find(workspace, step.stage, key))


def look_up_all(workspace: Path, steps: list[Step]) -> list[Planned]:
    """What is cached and what must run, in order."""
    done: dict[str, store.Artifact] = {}
    planned = []
    for step in steps:
        item = look_up(workspace, step, done, planning=True)
        planned.append(item)
        if item.artifact is not None:
            done[step.name] = item.artifact
    return planned


def step_key(workspace: Path, step: Step, done: dict[str, store.Artifact]) -> str:
    return store.fingerprint(step.stage, **key_parts(workspace, step, done))


def key_parts(workspace: Path, step: Step, done: dict[str, store.Artifact]) -> dict[str, Any]:
    """What the key is made of: also kept in the manifest, so that `align explain` can compare field by field."""
    stage = step.plugin
    inputs = {n: [_digest(step, n, r, done) for r in refs] for n, refs in step.inputs.items()}
    if files := stage.files(step.settings, step.runtime):
        hashes = store.cached_hashes(workspace, files)
        inputs["files"] = [f"{path.name}:{digest}" for path, digest in hashes.items()]
    if names := stage.sources(step.settings, step.runtime):
        inputs["sources"] = names
    return {"version": stage.version, "settings": _without_paths(keyed(step.settings), files),
            "inputs": inputs, "seed": step.seed if settled(stage.seeded, step.settings) else None}


def _digest(step: Step, name: str, ref: Ref, done: dict[str, store.Artifact]) -> str:
    """Of the part an input names. Raises UserError where the step before wrote no such part."""
    artifact = done[ref.step]
    try:
        return artifact.digest(ref.part)
    except KeyError:
        parts = {name.partition("/")[0] for name in artifact.manifest["files"] if "/" in name}
        raise UserError(f"recipe: step {step.name} takes {ref} as its input {name!r}, but {ref.step} wrote no "
                        f"{ref.part!r}{errors.nearest(ref.part, parts)}") from None


def _without_paths(node: Any, files: list[Path]) -> Any:
    """Settings with the paths of hashed files left out: their content is in the key, where they lie is not."""
    if isinstance(node, dict):
        return {key: _without_paths(value, files) for key, value in node.items()}
    if isinstance(node, (list, tuple)):
        return [_without_paths(value, files) for value in node]
    if isinstance(node, str) and "/" in node and files:
        place = Path(node).expanduser().resolve()
        return "(its files)" if any(place in (f.resolve(), *f.resolve().parents) for f in files) else node
    return node


def check(workspace: Path, steps: list[Step]) -> list[str]:
    """Everything that can be known to be wrong before the first second of work: paths, files, folders.

    What is in the store already needs no check: a large data set is not read again by every plan.
    """
    problems: list[str] = []
    done: dict[str, store.Artifact] = {}
    asked = [want for step in steps if any(ref.part == PREFERENCES for refs in step.inputs.values() for ref in refs)
             for want in step.plugin.wants(step.settings).items()]
    wanted = {what: "; ".join(dict.fromkeys(way for of, way in asked if of == what)) for what, _ in asked}
    for step in steps:
        try:
            item = look_up(workspace, step, done, planning=True)
            found = list[str]()
            if item.artifact is not None:
                done[step.name] = item.artifact
            else:
                found, _ = outside.checked(workspace, step)
            if not found and wanted and (not step.inputs or step.stage in outside.IMPORTS):
                found = outside.lacking(workspace, step, wanted)
        except UserError as error:
            found = error.problems
        except OSError:  # a file it wants to hash is not there; its own check says it better
            found = step.plugin.check(step.settings, step.runtime)
        problems += [problem for problem in found if problem not in problems]
    return problems
