"""Preference training with any objective, terms beside it, and negatives drawn at every step where the recipe has them.

Inputs: `model` to start from, `groups` to train on (one or more tables), side tables of these, each only where the
objective asks for it: `reference` (log-probs under the reference), `previous` (under the policy this iteration began
with), `scored` (scores of groups that carry none), `weights` (factors on the groups' weights), `replay` (which of the
groups, with further factors); `reference_model` (held in memory: token-level objectives and KTO's KL point),
`optimizer` (state of an earlier train_preference to go on from).
Output: `model/`, `optimizer/` with keep_optimizer, and `ema/model/` with ema.
"""

from dataclasses import dataclass, field
from typing import Any

from pipeline.config import load_part, part_problems, setting
from pipeline.negatives.contract import Draw
from pipeline.objectives import contract
from pipeline.objectives.contract import Auxiliary, Needs, Objective
from pipeline.selection.contract import LISTS, PAIRS
from pipeline.stage import Context, Cost, Kinds, Stage, told
from pipeline.training.settings import TrainerSettings, TrainRuntime, processes

_WHY = {
    "reference": "log-probs of every completion under the reference",
    "previous": "log-probs of every completion under the policy the iteration began with",
    "reference_model": "the reference model itself, held in memory",
}

_RATIONALE = ("auxiliary.rationale_gamma trains on them; give pairs a `rationale` (data=jsonl, docs/data.md), or set "
              "auxiliary.rationale_gamma=0")


@dataclass(frozen=True)
class Settings:
    objective: dict[str, Any]  # the loss: a part such as {module: pipeline.objectives.dpo}
    auxiliary: dict[str, Any] | None = None  # terms beside it; no block = none
    negatives: dict[str, Any] | None = None  # module null (or no block) = train on the groups as they are
    score: str = "reward"  # which score objectives that need scores see
    trainer: TrainerSettings = field(default_factory=TrainerSettings)  # one training run
    keep_optimizer: bool = False  # write its state too, for an iteration that goes on with it
    ema: float | None = setting(None, low=0.0, below=1.0, added=True)
    """Decay of averaged weights, kept as a second model; null: none."""

    weights: tuple[float, ...] = setting((), low=0.0)
    """A factor on the weights of each table's groups, in recipe order; empty: 1."""

    @property
    def drawn(self) -> dict[str, Any] | None:
        """The negatives part, None where nothing is drawn."""
        return self.negatives if self.negatives and self.negatives.get("module") is not None else None

    def check(self) -> list[tuple[str, str]]:
        problems = part_problems(self.objective, "objective", Objective)
        if self.drawn is not None:
            problems += part_problems(self.drawn, "negatives", Draw)
        if self.auxiliary is not None:
            problems += part_problems(self.auxiliary, "auxiliary", Auxiliary)
        return problems or _between_parts(self)


def _between_parts(settings: Settings) -> list[tuple[str, str]]:
    """What is wrong between parts that are right on their own."""
    needs, name = needs_of(settings), settings.objective["module"].rpartition(".")[2]
    problems = []
    if settings.drawn is not None:
        m = load_part(settings.drawn, "negatives", Draw).settings.m
        if not needs.compares:
            way = "; set negatives=none, and selection=best_worst for pairs instead of lists" if needs.labels else ""
            problems.append(("negatives", f"objective {name} takes single completions, expected negatives=none{way}"))
        elif not needs.lists and m != 1:
            problems.append(("negatives.m", f"{m} with objective {name}, which takes pairs, expected 1"))
    if needs.previous and _length_alpha(settings) < 1.0:
        problems.append(("auxiliary.length_alpha", f"{name} compares with the policy before, whose log-probs are known "
                         "as sums only and cannot be weighted by token; expected 1"))
    own = contract.needs_of(load_part(settings.objective, "objective", Objective))
    if (own.token_logps or own.reference_tokens) and _length_alpha(settings) < 1.0:
        problems.append(("auxiliary.length_alpha", f"{name} sums the log-probs of tokens itself, which this would not "
                         "weigh; expected 1"))
    if needs.score is not None and settings.score != needs.score:
        problems.append(("score", f"{settings.score!r}, but objective {name} with these settings reads "
                         f"{needs.score!r}, which its selection stores (docs/selection.md)"))
    if settings.trainer.adapter.on and settings.trainer.adapter.dropout > 0.0:
        problems.append(("trainer.adapter.dropout", "noise in the policy alone biases every comparison with the "
                         "reference, and would follow how batches are cut; expected 0"))
    if settings.trainer.adapter.on and settings.keep_optimizer:
        problems.append(("keep_optimizer", f"{settings.trainer.adapter.kind} adapters start anew in every iteration "
                         "and cannot go on with an optimizer; set train.keep_optimizer=false, or trainer=full"))
    if needs.batch and needs.tokens:
        problems.append(("objective", f"{name} compares the groups of a whole batch, for which token-level log-probs "
                         "are not held; set auxiliary.length_alpha=1 or choose another objective"))
    return problems


def _length_alpha(settings: Settings) -> float:
    """1, which changes nothing, where there are no terms beside the objective."""
    return 1.0 if settings.auxiliary is None else float(settings.auxiliary.get("length_alpha", 1.0))


def needs_of(settings: Settings) -> Needs:
    """What the objective, the terms beside it and the draw of negatives need together."""
    beside = None if settings.auxiliary is None else load_part(settings.auxiliary, "auxiliary", Auxiliary)
    found = contract.needs_of(load_part(settings.objective, "objective", Objective), beside)
    if settings.drawn is None:
        return found
    drawn = load_part(settings.drawn, "negatives", Draw)
    return found | Needs(reference=drawn.of(drawn.plugin.needs_reference))


def required(settings: Settings) -> dict[str, str]:
    """The optional inputs these settings cannot do without, and what they give."""
    needs = needs_of(settings)
    asked = {"reference": needs.reference, "previous": needs.previous, "reference_model": needs.live_reference}
    return {name: _WHY[name] for name, needed in asked.items() if needed}


def wanted(settings: Settings) -> set[str]:
    """The optional inputs these settings have a use for."""
    scored = {"scored"} if needs_of(settings).scores else set()
    return {"optimizer", "weights", "replay", *scored, *required(settings)}


def wants(settings: Settings) -> dict[str, str]:
    """Pairs, where the objective compares and takes nothing else; no lists; rationales, where a term acts on them."""
    needs, name = needs_of(settings), settings.objective["module"].rpartition(".")[2]
    way = (f"objective {name} learns from pairs; give pairs (chosen, rejected), or set an objective for labels: "
           "objective=kto, bco or binary_cringe")
    pairs = {"pairs": way} if needs.compares and not needs.singles else {}
    two = {"two": f"objective {name} learns from pairs; set data.format.lists=best_worst for the best and the worst of "
                  "each, negatives=uniform (or mc, hardest, easiest) to draw one, or an objective for lists"}
    pairs |= two if needs.pairs and not needs.lists and settings.drawn is None else {}
    return pairs | ({"rationales": _RATIONALE} if needs.rationale else {})


def misfit(settings: Settings, given: Kinds) -> str | None:
    """Why such groups cannot be trained on, None where they can."""
    needs, name = needs_of(settings), settings.objective["module"].rpartition(".")[2]
    makes, made = given.layouts, " and ".join(sorted(given.layouts))
    if needs.scores and given.scores and "data" not in makes and settings.score not in given.scores:
        return (f"objective {name} reads the score {settings.score!r}, which the groups do not have (scores there: "
                f"{', '.join(sorted(given.scores))}); set train.score, or a selection that stores it")
    if needs.rationale and makes and "data" not in makes:
        return (f"auxiliary.rationale_gamma needs rationales, but the selection makes {made} without one; set "
                "auxiliary.rationale_gamma=0, or a recipe that trains on the data set's preferences (recipe=pco)")
    if needs.layout and makes - {needs.layout}:
        return (f"objective {name} needs a special group layout ({needs.layout}: see the docstring of "
                f"{settings.objective['module']}), but the recipe gives it {made}; set a selection that builds them "
                "and a recipe that trains on nothing else, or another objective")
    if special := makes - {PAIRS, LISTS, "data", needs.layout, *needs.takes}:
        way = "drawn_pair" if special == {"drawn"} else "best_worst or best_rest"
        return (f"objective {name} takes pairs or lists, but the selection makes {' and '.join(sorted(special))}, "
                f"which is for other objectives; set selection={way}")
    if needs.layout and settings.drawn is not None:
        return f"objective {name} takes its groups whole, expected negatives=none"
    if LISTS in makes and needs.labels and not needs.compares and settings.drawn is None:
        return (f"objective {name} takes single completions and pairs, but the selection makes lists, in which several "
                "unwanted answers stand against one; set selection=best_worst and negatives=none, or an objective for "
                "lists")
    if LISTS in makes and needs.pairs and not needs.lists and settings.drawn is None:
        return (f"objective {name} takes pairs, but the selection makes lists of more than two; "
                "set selection=best_worst, negatives=uniform (or mc, hardest, easiest), or an objective for lists")
    return None


def run(context: Context) -> None:
    from pipeline.training import run

    settings = context.settings
    run.train(context, run.Parts.load(settings.objective, settings.auxiliary, settings.drawn),
              score=settings.score, keep=settings.keep_optimizer, weights=settings.weights, ema=settings.ema)


def cost(settings: Settings) -> Cost:
    return Cost(weights=(3 if settings.keep_optimizer else 1) + (settings.ema is not None), checkpoints=True)


STAGE = Stage(
    Settings, run, version=4,
    inputs={"model": "one", "groups": "many", "reference": "optional", "previous": "optional", "scored": "optional",
            "weights": "optional", "replay": "optional", "reference_model": "optional", "optimizer": "optional"},
    seeded=True, runtime=TrainRuntime, distributed=True, devices=processes, required=required, wanted=wanted,
    misfit=misfit, wants=wants, cost=cost,
    says=told("{steps:,.0f} steps", "{groups:,.0f} groups"))
