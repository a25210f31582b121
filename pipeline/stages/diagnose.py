"""What an iteration did to its policy, beside its win rate. Writes diagnostics.json:

    answers, baseline   what the two sides' answers to the evaluation prompts look like: scores, lengths, repetition
    kl                  the policy's log-ratio to the reference on its own first answer to each prompt
    held_out_pairs      best against worst of the baseline's answers, which no policy was trained on: log-probs of both
    trained_pairs       the same of a part of the groups this iteration trained on
    token_curve         log-probs token by token around the first differing token of these pairs
    negatives           what the draw of negatives reports on the trained groups (MC-PO: the kernel's entropy)
    signal              where this iteration's prompts and samples went, by reason
    reward_model        how often the learned reward orders this iteration's answers as the judge does
    watch               what the policy still can of questions with known answers (stage watch); only where it is asked

A section is null where the iteration has no such thing.
"""

import hashlib
import heapq
import itertools
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from pipeline import statistics
from pipeline.config import load_part, part_problems, setting
from pipeline.errors import UserError
from pipeline.evaluation import comparison, diversity, logprobs, signal
from pipeline.evaluation.logprobs import PairLogps
from pipeline.lm.settings import PRECISIONS
from pipeline.negatives.contract import Draw
from pipeline.records import Group
from pipeline.stage import Context, Stage, told
from pipeline.training.settings import TrainRuntime, processes

Logps = list[list[list[float]]]  # by group, completion, token


@dataclass(frozen=True)
class Settings:
    """What is looked at."""

    score: str  # the score that judges
    learned: str = "reward"  # the score the loop optimises
    pairs: int = setting(64, low=1)  # most held-out pairs, and most trained groups, that are looked at
    window: int = setting(8, low=1)  # tokens on each side of the first differing one
    precision: str = setting("bfloat16", choices=PRECISIONS)  # as in training
    negatives: dict[str, Any] | None = None  # how training draws negatives; module null: it draws none

    @property
    def drawn(self) -> dict[str, Any] | None:
        """The negatives part, None where nothing is drawn."""
        return self.negatives if self.negatives and self.negatives.get("module") is not None else None

    def check(self) -> list[tuple[str, str]]:
        return part_problems(self.drawn, "negatives", Draw) if self.drawn is not None else []


def run(context: Context) -> None:
    from pipeline import columns
    from pipeline.training import frozen

    settings: Settings = context.settings
    answers = list(columns.scored(context, "answers", "answer_scores"))
    baseline = list(columns.scored(context, "baseline", "baseline_scores"))
    held_out = [pair for group in baseline if (pair := best_and_worst(group, settings.score))][: settings.pairs]
    replay = context.inputs.get("replay", ())
    tables_of = columns.sources(context, "trained") if context.inputs.get("trained") else []
    trained = chosen_by_hash(itertools.chain.from_iterable(columns.replayed(one, replay) for one in tables_of),
                             settings.pairs)
    first = [replace(g, completions=g.completions[:1]) for g in answers if g.completions]  # one says enough for the KL
    wanted = [held_out, trained, first]
    world, policy, reference = frozen.token_logps(context, wanted)
    if not world.first:
        return
    held_pairs, trained_pairs = (joined(wanted[i], policy[i], reference[i]) for i in (0, 1))
    result: dict[str, Any] = {
        "schema": 1, "score": settings.score, "learned": settings.learned,
        "answers": look(answers), "baseline": look(baseline),
        "kl": kl(policy[2], reference[2]),
        "held_out_pairs": asdict(logprobs.summarise(held_pairs)) if held_pairs else None,
        "trained_pairs": asdict(logprobs.summarise(trained_pairs)) if trained_pairs else None,
        "token_curve": {name: {"by_offset": logprobs.around_first_difference(pairs, settings.window),
                               "by_place": logprobs.by_place(pairs)} if pairs else None
                        for name, pairs in (("held_out_pairs", held_pairs), ("trained_pairs", trained_pairs))},
        "negatives": negatives(trained, policy[1], reference[1], settings),
        "signal": _signal(context),
        "reward_model": _reward_model(answers, settings), **_watched(context)}
    (context.out / "diagnostics.json").write_text(json.dumps(result, indent=2, allow_nan=False) + "\n")
    numbers = flat(result)
    context.report.count(**numbers)
    context.report.metric(0, **numbers)


def best_and_worst(group: Group, score: str) -> Group | None:
    """The group with its highest- and lowest-scored answer alone; None where no two answers differ in score."""
    known = [c for c in group.completions if c.token_ids and math.isfinite(c.scores[score])]
    ordered = sorted(known, key=lambda c: (-c.scores[score], c.sample))
    if len(ordered) < 2 or ordered[0].scores[score] == ordered[-1].scores[score]:
        return None
    return replace(group, completions=(ordered[0], ordered[-1]))


def chosen_by_hash(groups: Iterable[Group], most: int) -> list[Group]:
    """Up to `most` groups of two or more completions, the same ones whatever their order or number of others."""
    several = (group for group in groups if len(group.completions) > 1)
    return heapq.nsmallest(most, several, key=lambda g: hashlib.sha256(f"{g.dataset}/{g.id}".encode()).digest())


def joined(groups: Sequence[Group], ours: Logps, reference: Logps) -> list[PairLogps]:
    """Completion 0 against completion 1 of every group."""
    return [PairLogps(g.completions[0].token_ids, g.completions[1].token_ids, a[0], a[1], b[0], b[1])
            for g, a, b in zip(groups, ours, reference, strict=True)]


def look(groups: Sequence[Group]) -> dict[str, Any]:
    """What the answers of one side look like. Raises UserError where there are none."""
    every = [completion for group in groups for completion in group.completions]
    if not every:
        raise UserError("diagnose: there is no answer to look at; raise evaluation.sampling.max_tokens or the context")
    repeated = diversity.repeats([(g.prompt_ids, c.token_ids) for g in groups for c in g.completions], 3)
    return {
        "prompts": len(groups), "answers": len(every), **asdict(comparison.side(every)),
        "scores": {name: _score(groups, name) for name in sorted(set.intersection(*(set(c.scores) for c in every)))},
        **{f"distinct_{n}": diversity.distinct([c.token_ids for c in every], n) for n in (1, 2, 3)},
        "repeat_3gram": repeated.either, "repeat_3gram_in_prompt": repeated.in_prompt,
        "repeat_3gram_in_answer": repeated.in_answer,
        "duplicate_share": diversity.duplicate_share([[c.token_ids for c in g.completions] for g in groups])}


def _score(groups: Sequence[Group], name: str) -> dict[str, float | None]:
    by_prompt = [[c.scores[name] for c in g.completions if math.isfinite(c.scores[name])] for g in groups]
    values = [v for one in by_prompt for v in one]
    if not values:
        return {"mean": None, "sd": None, "best_of_n": None}
    middle, sd = statistics.spread(values)
    return {"mean": middle, "sd": sd, "best_of_n": statistics.mean([max(one) for one in by_prompt if one])}


def kl(ours: Logps, reference: Logps) -> dict[str, float]:
    """Mean over answers of log pi - log ref, nats, with its standard error over prompts; and per token.

    An unbiased estimate of KL(policy || reference) for answers drawn at temperature 1; at a lower temperature it is
    the same log-ratio on the answers the policy gives there.
    """
    ratios = [[sum(a) - sum(b) for a, b in zip(x, y, strict=True)] for x, y in zip(ours, reference, strict=True)]
    every = [value for one in ratios for value in one]
    tokens = sum(len(tokens) for one in ours for tokens in one)
    return {"per_answer": statistics.mean(every),
            "standard_error": statistics.standard_error([statistics.mean(one) for one in ratios]),
            "per_token": sum(every) / tokens}


def negatives(groups: Sequence[Group], ours: Logps, reference: Logps, settings: Settings) -> dict[str, float] | None:
    """Mean over groups of what the draw of negatives reports; None where training draws none."""
    if settings.drawn is None or not groups:
        return None
    import torch

    part = load_part(settings.drawn, "negatives", Draw)
    width = max(len(g.completions) for g in groups)

    def table(logps: Logps) -> torch.Tensor:
        rows = [[sum(tokens) for tokens in one] + [0.0] * (width - len(one)) for one in logps]
        return torch.tensor(rows, dtype=torch.float32)

    present = torch.tensor([[k < len(g.completions) for k in range(width)] for g in groups])
    uniforms = torch.full(present.shape, 0.5)
    _, _, metrics = part.plugin.draw(table(ours), table(reference), present, uniforms, part.settings)
    candidates = statistics.mean([len(g.completions) - 1 for g in groups])
    return {"candidates": candidates, **{name: float(values.float().mean()) for name, values in metrics.items()}}


def _signal(context: Context) -> dict[str, int] | None:
    from pipeline import columns, tables

    groups = context.optional("groups")
    if context.optional("samples") is None or groups is None:
        return None
    kept = {group.id for group in tables.read(groups)}
    return signal.account(columns.scored(context, "samples", "sample_scores"), kept, context.settings.learned)


def _reward_model(answers: Sequence[Group], settings: Settings) -> dict[str, Any] | None:
    names = set.intersection(*(set(c.scores) for g in answers for c in g.completions))
    if settings.learned == settings.score or not {settings.learned, settings.score} <= names:
        return None
    found = signal.ordering_accuracy(answers, settings.learned, settings.score)
    return {"checked": settings.learned, "judge": settings.score, **asdict(found)}


def _watched(context: Context) -> dict[str, Any]:
    """watch.json without its rows."""
    folder = context.optional("watch")
    if folder is None:
        return {}
    return {"watch": {k: v for k, v in json.loads((folder / "watch.json").read_text()).items() if k != "rows"}}


def flat(result: dict[str, Any]) -> dict[str, float]:
    """The numbers for the manifest and the curves."""
    answers, baseline = result["answers"], result["baseline"]
    numbers = {**{f"{name}_mean": v["mean"] for name, v in answers["scores"].items() if v["mean"] is not None},
               "kl": result["kl"]["per_answer"], "kl_per_token": result["kl"]["per_token"],
               "length_mean": answers["tokens"], "length_drift": answers["tokens"] / max(1e-9, baseline["tokens"]) - 1,
               **{k: answers[k] for k in ("truncated", "distinct_1", "distinct_2", "distinct_3", "repeat_3gram",
                                          "duplicate_share") if answers[k] is not None}}
    for name in ("held_out_pairs", "trained_pairs"):
        numbers |= {f"{name}_{k}": v for k, v in (result[name] or {}).items() if k != "pairs"}
    numbers |= {f"negatives_{k}": v for k, v in (result["negatives"] or {}).items()}
    if result["reward_model"] and result["reward_model"]["accuracy"] is not None:
        numbers["reward_model_accuracy"] = result["reward_model"]["accuracy"]
    numbers |= {f"watch_{k}": result["watch"][k] for k in ("accuracy", "gain") if "watch" in result}
    return numbers


STAGE = Stage(
    Settings, run, version=3,
    inputs={"model": "one", "reference": "one", "answers": "one", "answer_scores": "optional", "baseline": "one",
            "baseline_scores": "optional", "trained": "optional", "samples": "optional", "sample_scores": "optional",
            "groups": "optional", "watch": "optional", "replay": "optional"},
    seeded=False, runtime=TrainRuntime, distributed=True, devices=processes,
    says=told("KL {kl:.2f} nats an answer", "length {length_mean:.1f} ({length_drift:+.0%})",
              "reward model right {reward_model_accuracy:.1%}"))
