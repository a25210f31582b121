"""What a judge is shown, and what its reply means.

A template is a text file: lines `name: value` (asks, range, verdict), then the turns, each behind a line `[system]` or
`[user]`. In the turns stand

    {conversation}  {reference}                    of every kind
    {answer}                                       asks: rubric      one answer, a number
    {answer_a}  {answer_b}                         asks: pairwise    two answers, which is better
    {answers}  {number}                            asks: listwise    all answers, numbered from 1, in order

The verdict is the last [[...]] of the reply: [[7.5]]; [[A]], [[B]], [[C]] for a tie, or [[A>>B]] [[A>B]] [[A=B]]
[[B>A]] [[B>>A]]; [[2 > 1 = 3]]. `verdict: REGEX` finds it elsewhere, as its first bracket.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import UserError, nearest
from pipeline.records import Group

FOLDER = Path(__file__).parent / "templates"
RUBRIC, PAIRWISE, LISTWISE = "rubric", "pairwise", "listwise"
REFERENCE = "{reference}"
_NEEDS = {RUBRIC: ("{answer}",), PAIRWISE: ("{answer_a}", "{answer_b}"), LISTWISE: ("{answers}",)}
_HEADER, _TURN = re.compile(r"^(asks|range|verdict):\s*(.+)$"), re.compile(r"^\[(system|user)\]$")
_PLACE = re.compile(r"\{(conversation|reference|answer|answer_a|answer_b|answers|number)\}")
_VERDICT = r"\[\[\s*([^\[\]]+?)\s*\]\]"
_PAIR = {"A>>B": 1.0, "A>B": 1.0, "A": 1.0, "A=B": 0.5, "B=A": 0.5, "C": 0.5, "TIE": 0.5, "B>A": 0.0, "B>>A": 0.0,
         "B": 0.0, "A<B": 0.0, "A<<B": 0.0}


@dataclass(frozen=True)
class Template:
    """A question to a judge."""

    asks: str  # rubric, pairwise or listwise
    turns: tuple[tuple[str, str], ...]  # (role, text with its places)
    low: float = 1.0  # of a rubric's number
    high: float = 10.0
    verdict: str = _VERDICT

    @property
    def wants_reference(self) -> bool:
        return any(REFERENCE in text for _, text in self.turns)


def path_of(name: str) -> Path:
    """The file of one of our templates by name, else of a user's by path. Raises UserError where there is neither."""
    known = [path.stem for path in FOLDER.glob("*.txt")]
    path = FOLDER / f"{name}.txt" if name in known else Path(name).expanduser()
    if not path.is_file():
        raise UserError(f"no template {name!r}{nearest(name, known)}, nor a file of that path")
    return path


def load(name: str) -> Template:
    """Raises UserError for a file that is no template, with what it lacks."""
    path = path_of(name)
    header: dict[str, str] = {}
    turns: list[tuple[str, list[str]]] = []
    for line in path.read_text().split("\n"):
        if found := _TURN.match(line):
            turns.append((found[1], []))
        elif turns:
            turns[-1][1].append(line)
        elif found := _HEADER.match(line):
            header[found[1]] = found[2].strip()
    asks = header.get("asks", "")
    if asks not in _NEEDS:
        raise UserError(f"{path}: asks: {asks or 'missing'}, expected a line asks: {', '.join(_NEEDS)}")
    texts = tuple((role, "\n".join(lines).strip()) for role, lines in turns)
    shown = "".join(text for _, text in texts)
    if lacking := [place for place in ("{conversation}", *_NEEDS[asks]) if place not in shown]:
        raise UserError(f"{path}: {' and '.join(lacking)} stand in no turn, which begins with a line [system], [user]")
    try:
        low, high = (float(word) for word in header.get("range", "1 10").split())
        verdict = header.get("verdict", _VERDICT)
        if re.compile(verdict).groups < 1 or low >= high:
            raise ValueError
    except (ValueError, re.error):
        raise UserError(f"{path}: expected range: LOW HIGH, and verdict: a regular expression with a bracket") from None
    return Template(asks, texts, low, high, verdict)


def messages(template: Template, group: Group, answers: Sequence[str], reference: str = "") -> list[dict[str, str]]:
    """The request about these answers, in this order, to the group's prompt."""
    named = dict(zip(("answer_a", "answer_b"), answers, strict=False)) if template.asks == PAIRWISE else {}
    values = {"conversation": conversation(group), "reference": reference, "answer": answers[0],
              "number": str(len(answers)), **named,
              "answers": "\n\n".join(f"[Answer {i}]\n{text}\n[End of answer {i}]" for i, text in enumerate(answers, 1))}
    return [{"role": role, "content": _PLACE.sub(lambda found: values[found[1]], text)}
            for role, text in template.turns]


def conversation(group: Group) -> str:
    """The prompt: a single turn as it is, else each turn behind its role."""
    if len(group.messages) == 1:
        return group.messages[0].content
    return "\n\n".join(f"{message.role}: {message.content}" for message in group.messages)


def verdict(template: Template, reply: str, number: int) -> float | list[int] | None:
    """What the reply says: a number in range; P(the first is better); the place of each answer, 0 the best, equal where
    tied. None where it says nothing of the kind. number: of answers that were shown.
    """
    found = re.findall(template.verdict, reply)
    if not found:
        return None
    said = found[-1] if isinstance(found[-1], str) else found[-1][0]
    if template.asks == PAIRWISE:
        return _PAIR.get(re.sub(r"\s", "", said).upper())
    if template.asks == LISTWISE:
        return _places(said, number)
    try:
        value = float(said.partition("/")[0])
    except ValueError:
        return None
    return value if template.low <= value <= template.high else None


def _places(said: str, number: int) -> list[int] | None:
    """ "2 > 1 = 3" -> [1, 0, 1]: each of 1 .. number once."""
    ranks = [[int(n) for n in re.findall(r"\d+", part)] for part in said.split(">")]
    if sorted(n for rank in ranks for n in rank) != list(range(1, number + 1)):
        return None
    place = {n: i for i, rank in enumerate(ranks) for n in rank}
    return [place[n] for n in range(1, number + 1)]
