"""Score by asking a language model: any server that speaks OpenAI's chat protocol (vLLM, llama.cpp, a hosted one).

What is asked, and so what a score is, says the template (pipeline.rewards.judges.prompts):

    rubric      one answer at a time; the score is the number the judge gives
    pairwise    two answers; asked in both orders, and where these disagree it is a tie. The scheme says which pairs:
                `all`, the mean win rate against all N samples, the sample itself (1/2) included, N (N - 1) calls;
                `baseline`, the outcome against the first sample (1/2 for itself), 2 (N - 1) calls; `champion`,
                iterative ranking (N - 1 comparisons), where the winner so far stays unless both orders are for the
                challenger: 1 for the winner, 0 for the others, at most 2 (N - 1) calls
    listwise    all answers at once, in an order drawn by the prompt's id and in the reverse; win rates as in `all`, of
                pairs that the two rankings put in the same order; 2 calls

A completion all of whose comparisons lack a verdict scores NaN; the rows of `judged/` say why.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Any

from pipeline.config import setting
from pipeline.errors import UserError
from pipeline.lm.settings import ModelRuntime
from pipeline.records import LENGTH, Group, target_of
from pipeline.rewards.contract import Desk, Limits, ScoreGroups, Scorer
from pipeline.rewards.judges import client, prompts
from pipeline.rewards.judges.asking import Answer, Asker, Program
from pipeline.rewards.judges.prompts import LISTWISE, PAIRWISE, Template
from pipeline.stage import derive_seed

ALL, BASELINE, CHAMPION = "all", "baseline", "champion"
DISAGREE = "the two orders disagree"
NO_REFERENCE = "the prompt has no reference answer"
_SHOWN = 100  # characters of a reply


@dataclass(frozen=True)
class Settings:
    """Whom to ask, and what."""

    model: str = ""
    """The name under which the server knows the judge."""

    base_url: str = "http://localhost:8000/v1"
    """The server's address, up to /v1."""

    key: str | None = "ALIGNLOOP_JUDGE_KEY"
    """The environment variable that holds the server's key; null: none is sent."""

    template: str = "pair"
    """pair, pair_reference, arena_hard, alpaca_eval, rubric, rubric_reference, list, or a file of your own."""

    scheme: str = setting(ALL, choices=(ALL, BASELINE, CHAMPION))
    """Of pairwise templates: which comparisons are made."""

    sampling: dict[str, Any] = field(default_factory=lambda: {"temperature": 0.0, "max_tokens": 1024})
    """What goes into the request beside model and messages, by the server's names; null leaves a name out."""

    def check(self) -> list[tuple[str, str]]:
        try:
            prompts.load(self.template)
        except UserError as error:
            return [("template", problem) for problem in error.problems]
        return [] if self.model else [("model", "'', expected the name under which the server knows the judge")]


def endpoint(settings: Settings) -> client.Endpoint:
    return client.Endpoint(settings.base_url, settings.key, settings.model)


def check(settings: Settings, limits: Limits) -> list[tuple[str, str]]:
    """A key that is not there, a budget in money without a price."""
    found = client.problems(endpoint(settings))
    if limits.budget.money is not None and settings.model not in limits.prices:
        found.append(("model", f"hardware.judge.budget.money needs the price of {settings.model}: "
                      f"'hardware.judge.prices={{{settings.model}: [OF 1M PROMPT TOKENS, OF 1M REPLY TOKENS]}}'"))
    return found


def scorer(settings: Settings, *, model: Path | None = None, runtime: ModelRuntime | None = None,
           desk: Desk) -> ScoreGroups:
    """See Scorer. Raises UserError where the server cannot be asked, or the budget is used up."""
    template = prompts.load(settings.template)
    asker = Asker(endpoint(settings), settings.sampling, desk)

    def score(groups: Sequence[Group]) -> list[list[float]]:
        results = asker.run([_program(template, settings.scheme, group) for group in groups])
        for _, rows in results:
            desk.rows.extend(rows)
        return [scores for scores, _ in results]

    return score


Rows = list[dict[str, Any]]
Judged = tuple[list[float], Rows]


@dataclass(frozen=True)
class Found:
    """A verdict, or why there is none, with the start of what was said instead."""

    value: Any = None
    why: str = ""
    said: str = ""

    @property
    def row(self) -> dict[str, str]:
        why = "" if self.value is not None else self.why
        return {"why": why, **({"reply": self.said} if self.said else {})}


def _program(template: Template, scheme: str, group: Group) -> Program[Judged]:
    """What is asked about a group."""
    number = len(group.completions)
    if template.asks == PAIRWISE:
        return {ALL: _all, BASELINE: _baseline, CHAMPION: _champion}[scheme](template, group, number)
    return (_listwise if template.asks == LISTWISE else _rubric)(template, group, number)


def _rubric(template: Template, group: Group, number: int) -> Program[Judged]:
    found = yield from _verdicts(template, group, [[k] for k in range(number)])
    rows = [{"id": group.id, "k": k, "verdict": one.value, **one.row} for k, one in enumerate(found)]
    return [math.nan if one.value is None else one.value for one in found], rows


def _listwise(template: Template, group: Group, number: int) -> Program[Judged]:
    if number < 2:
        return [0.5] * number, []
    order = _shuffled(group, number)
    found = yield from _verdicts(template, group, [order, order[::-1]])
    missing = next((one for one in found if one.value is None), None)
    if missing is not None:
        return [math.nan] * number, [{"id": group.id, "places": None, **missing.row}]
    places = [dict(zip(shown, one.value, strict=True)) for shown, one in zip((order, order[::-1]), found, strict=True)]

    def better(i: int, j: int) -> float:
        signs = {_sign(place[j] - place[i]) for place in places}
        return 0.5 if len(signs) > 1 else 0.5 + 0.5 * signs.pop()

    row = {"id": group.id, "places": [[place[k] for k in range(number)] for place in places], "why": ""}
    return [sum(better(i, j) for j in range(number)) / number for i in range(number)], [row]


def _all(template: Template, group: Group, number: int) -> Program[Judged]:
    pairs = [(i, j) for i in range(number) for j in range(i)]
    outcomes, rows = yield from _compared(template, group, pairs)
    against: list[list[float]] = [[0.5] for _ in range(number)]
    for (i, j), outcome in zip(pairs, outcomes, strict=True):
        if outcome is not None:
            against[i].append(outcome)
            against[j].append(1.0 - outcome)
    return [math.nan if number > 1 and len(known) == 1 else fmean(known) for known in against], rows


def _baseline(template: Template, group: Group, number: int) -> Program[Judged]:
    outcomes, rows = yield from _compared(template, group, [(i, 0) for i in range(1, number)])
    return [*[0.5][:number], *(math.nan if outcome is None else outcome for outcome in outcomes)], rows


def _champion(template: Template, group: Group, number: int) -> Program[Judged]:
    order, rows = _shuffled(group, number), Rows()
    winner = order[0] if order else -1
    for challenger in order[1:]:
        (outcome,), (row,) = yield from _compared(template, group, [(challenger, winner)], lazy=True)
        rows.append(row)
        winner = challenger if outcome == 1.0 else winner
    if rows and all(row["outcome"] is None for row in rows):
        return [math.nan] * number, rows
    return [float(k == winner) for k in range(number)], rows


def _compared(template: Template, group: Group, pairs: Sequence[tuple[int, int]],
              lazy: bool = False) -> Program[tuple[list[float | None], Rows]]:
    """1, 1/2 or 0 as the first of each pair is better, as good or worse, both orders having been asked; None where one
    has no verdict. Equal texts are a tie, without a question. lazy: the second order is asked only where the first is
    for the first.
    """
    texts = [completion.text for completion in group.completions]
    one_way = dict.fromkeys(pairs, Found(0.5))
    other_way = dict(one_way)
    differ = [(i, j) for i, j in pairs if texts[i] != texts[j]]
    found = yield from _verdicts(template, group, [[i, j] for i, j in differ])
    one_way.update(zip(differ, found, strict=True))
    again = [pair for pair in differ if not lazy or (one_way[pair].value or 0.0) > 0.5]
    found = yield from _verdicts(template, group, [[j, i] for i, j in again])
    other_way.update(zip(again, found, strict=True))
    outcomes = [_outcome(one_way[pair], other_way[pair], asked=not lazy or pair in again) for pair in pairs]
    rows = [{"id": group.id, "first": i, "second": j, "outcome": one.value, **one.row, "agree": one.why != DISAGREE}
            for (i, j), one in zip(pairs, outcomes, strict=True)]
    return [one.value for one in outcomes], rows


def _outcome(one: Found, other: Found, asked: bool) -> Found:
    """Of P(the first is better) in one order, and P(what then stands first is better) in the other, if it was asked."""
    if one.value is None or other.value is None:
        return one if one.value is None else other
    signs = {_sign(one.value - 0.5), *([_sign(0.5 - other.value)] if asked else [])}
    return Found(0.5, DISAGREE) if len(signs) > 1 else Found(0.5 + 0.5 * signs.pop())


def _verdicts(template: Template, group: Group, shown: Sequence[Sequence[int]]) -> Program[list[Found]]:
    """The verdict on each list of completions, in the order in which they are shown."""
    texts = [completion.text for completion in group.completions]
    target = target_of(group) if template.wants_reference else None
    if template.wants_reference and (target is None or not target.answer):
        return [Found(why=NO_REFERENCE)] * len(shown)
    if not shown:
        return []
    reference = target.answer if target is not None else ""
    answers = yield [prompts.messages(template, group, [texts[k] for k in order], reference) for order in shown]
    return [_verdict(template, answer, len(order)) for answer, order in zip(answers, shown, strict=True)]


def _verdict(template: Template, answer: Answer, number: int) -> Found:
    if isinstance(answer, str):
        return Found(why=answer)
    value = prompts.verdict(template, answer.text, number)
    if value is not None:
        return Found(value)
    said = answer.text.strip()[:_SHOWN]
    if answer.finish == LENGTH:
        return Found(None, "the reply was cut before its verdict: raise sampling.max_tokens", said)
    refused = answer.finish in ("refusal", "content_filter")
    return Found(None, "the judge refuses to answer" if refused else "the reply has no verdict", said)


def _shuffled(group: Group, number: int) -> list[int]:
    """An order of the completions that does not hang on theirs: where a tie keeps the first, that would favour it."""
    return Random(derive_seed(0, "judge", group.id)).sample(range(number), number)


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)


def files(settings: Settings) -> list[Path]:
    """The template: another question gives other scores."""
    return [prompts.path_of(settings.template)]


SCORER = Scorer(Settings, scorer, files=files, desk=True, check=check,
                relative=lambda settings: prompts.load(settings.template).asks != prompts.RUBRIC)
