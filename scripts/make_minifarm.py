"""Write the built-in world: `python -m scripts.make_minifarm [FOLDER]`, default data/minifarm.

`--pairs 6000` writes so many pairs; the first are the same. `--validation` writes further prompts in place of those for
evaluation: defaults are chosen on them, and tables are made of the others. Rows that are not asked for are drawn all
the same, so that no other row changes.

The AlpacaFarm protocol (Dubois et al. 2023) in miniature: SFT demonstrations, PREF pairs, unlabeled prompts and
evaluation prompts in the proportions 10 : 10 : 20 : 0.8, no prompt used twice. Every answer is put together from
parts; a hidden skill between 0 and 1 makes each good part more likely and each bad one less. Demonstrations have
middling skill, the two sides of a pair any skill. The preferred side comes from the gold rule of
`pipeline.worlds.minifarm`; 20 % of the labels, drawn at random, are then turned around (AlpacaFarm turns 25 % of its
simulated annotators' labels).

The only randomness is `Random.random()`, whose sequence Python keeps the same between versions, so one seed gives
the same bytes everywhere.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, TypeVar

from pipeline.worlds.minifarm import ASPECTS, COUNTS, NUMBERS, TOPICS, Topic, gold

SEED = 20231116
SIZES = {"sft": 1750, "pref": 1750, "unlabeled": 3500, "eval": 140}
FURTHER = {"pref": 4250, "validation": 300}  # rows drawn after them
FLIPPED = 0.2  # share of PREF labels turned around
SFT_SKILL = (0.15, 0.65)  # uniform range of the hidden skill
PREF_SKILL = (0.0, 1.0)

T = TypeVar("T")


@dataclass(frozen=True)
class Family:
    """A kind of instruction: ways to ask ({t} place, {n} a number word, {a} {b} things), ways to state its points."""

    asks: tuple[str, ...]
    one: tuple[str, ...]  # a point about one thing {a}
    two: tuple[str, ...]  # a point about two things {a}, {b}


FAMILIES = (
    Family(
        ("Suggest {n} things for {t}.", "Name {n} things I need for {t}.", "Which {n} things belong in {t}?"),
        ("I suggest {a}.", "Try {a}.", "You will need {a}.", "My first choice would be {a}."),
        ("Try {a} and {b}.", "I suggest {a} together with {b}.", "You need {a} and also {b}."),
    ),
    Family(
        ("Explain how {t} works.", "What makes {t} work?", "Tell me what matters in {t}."),
        ("It depends on {a}.", "The secret is {a}.", "Nothing works without {a}."),
        ("It depends on {a} and {b}.", "What matters most is {a}, then {b}."),
    ),
    Family(
        ("Describe {t}.", "What can a visitor see in {t}?", "Paint a picture of {t} in words."),
        ("You see {a} everywhere.", "There are {a}.", "In the middle stand {a}."),
        ("You see {a} beside {b}.", "There are {a} and {b}.", "Behind {a} you find {b}."),
    ),
    Family(
        ("Give me advice about {t}.", "I am new to {t}. What should I do?", "How do I look after {t}?"),
        ("Start with {a}.", "Look after {a}.", "Keep an eye on {a}.", "You should buy good {a}."),
        ("Start with {a} and {b}.", "Check {a} before {b}.", "Look after {a} and after {b}."),
    ),
    Family(
        ("Plan a day at {t}.", "Make a short plan for {t}.", "Plan the work at {t} with {n} things."),
        ("First check {a}.", "After lunch, clean {a}.", "In the morning, get {a}."),
        ("First check {a}, then {b}.", "In the morning get {a}, later {b}."),
    ),
    Family(
        ("Write a short note to a neighbour about {t}.", "Invite a friend to {t}.", "Write a message about {t}."),
        ("Please come and see {a}.", "We now have {a}.", "I can share {a} with you."),
        ("Please come and see {a} and {b}.", "We have {a} and {b} for you."),
    ),
    Family(
        ("Compare {a} and {b} for {t}.", "In {t}, how do {a} differ from {b}?"),
        ("I know more about {a}.", "People often praise {a}.", "Most of us use {a}."),
        ("I find {a} stronger and {b} cheaper.", "Often {a} last longer than {b}.", "Use {a} daily and {b} rarely."),
    ),
    Family(
        ("Should I get {a} or {b} for {t}?", "For {t}, which are better, {a} or {b}?"),
        ("I would get {a}.", "Choose {a}.", "My answer is {a}."),
        ("I would get {a} rather than {b}.", "Choose {a} before {b}.", "Get {a}, since {b} can wait."),
    ),
    Family(
        ("Write an advert for {t}.", "Sell {t} in a few words.", "Praise {t} by {n} things."),
        ("Come and enjoy {a}!", "Nobody has better {a}!", "Everyone loves our {a}."),
        ("We offer {a} and {b}!", "Come for {a} and stay for {b}!"),
    ),
    Family(
        ("Teach a child about {t}.", "Tell a child {n} facts about {t}.", "What should children learn in {t}?"),
        ("Look at {a} first.", "Every child likes {a}.", "These are called {a}."),
        ("Look at {a} and {b}.", "These are {a}, and those are {b}."),
    ),
    Family(
        ("How can I improve {t}?", "Give me {n} ways to improve {t}.", "What is missing in {t}?"),
        ("Add {a}.", "Replace old {a}.", "More {a} would help."),
        ("Add {a} and {b}.", "More {a} and {b} would help.", "Repair {a} and replace {b}."),
    ),
)
REQUESTS = ("Mention {x}.", "Do not forget {x}.", "Please include {x}.", "Say something about {x}.")
REASONS = ("This is so because {r}.", "I say this because {r}.", "It matters because {r}.")
WEAK_REASONS = ("people like it", "it is good", "everybody does so", "it looks nice")
EXAMPLES = ("For example, take {k} {a}.", "For example, my family has {k} {a}.", "For example, {k} {a} are enough.")
FILLERS = (
    "That is all very nice.",
    "It is good in many ways.",
    "There is a lot to say about this.",
    "Some people think so and others do not.",
    "As you know, the farm is a lovely old place.",
    "Everyone is happy here all the time.",
)
SAID = {
    "price": ("It costs {k} coins.", "Expect to pay about {k} coins for it."),
    "weather": ("Wait until the rain stops.", "A sunny morning is best.", "Stay home on windy days."),
    "time": ("It takes {k} minutes.", "You should be ready after {k} hours.", "Allow {k} days for this."),
    "helper": ("My aunt can help.", "Ask your uncle for a hand.", "Your cousin knows how to do it."),
    "season": ("Begin in spring.", "The best season is autumn.", "Do most of it in summer."),
    "danger": ("Be careful on wet ground.", "Avoid open flames.", "Please never work alone at night."),
}
OPENINGS = ("Of course.", "Gladly.", "Happy to help.", "Thank you for asking.", "What a lovely question!", "Hello!")
CLOSINGS = (
    "I hope this helps.",
    "Good luck!",
    "Let me know how it goes.",
    "Best wishes.",
    "Enjoy it!",
    "Ask me again.",
)


def pick(rng: Random, options: Sequence[T]) -> T:
    """One of the options, each as likely."""
    return options[int(rng.random() * len(options))]


def shuffled(rng: Random, options: Sequence[T]) -> list[T]:
    """The options in a random order."""
    return [option for _, _, option in sorted((rng.random(), i, option) for i, option in enumerate(options))]


@dataclass(frozen=True)
class Prompt:
    """An instruction with what it asks for."""

    text: str
    family: Family
    topic: Topic
    count: int
    named: tuple[str, ...]
    aspects: tuple[str, ...]


def draw_prompt(rng: Random) -> Prompt:
    """One instruction: a family, a place, a way to ask, one or two aspects to mention (nine in ten have any)."""
    family, topic = pick(rng, FAMILIES), pick(rng, TOPICS)
    ask, word = pick(rng, family.asks), pick(rng, tuple(COUNTS))
    first, second = shuffled(rng, topic.things)[:2]
    text = ask.format(t=topic.name, n=word, a=first, b=second)
    aspects = tuple(shuffled(rng, tuple(ASPECTS))[: pick(rng, (0, 1, 1, 1, 1, 1, 2, 2, 2, 2))])
    if aspects:
        request = " and ".join(ASPECTS[name][0] for name in aspects)
        text = f"{text} {pick(rng, REQUESTS).format(x=request)}"
    named = (first, second) if "{a}" in ask else ()
    return Prompt(text, family, topic, COUNTS[word] if "{n}" in ask else 2, named, aspects)


def _points(rng: Random, prompt: Prompt, skill: float) -> list[str]:
    """Sentences that name things: all the asked ones with skill, fewer or those of another place without."""
    asked = prompt.named or tuple(shuffled(rng, prompt.topic.things)[: prompt.count])
    things = [thing for thing in asked if rng.random() < 0.35 + 0.6 * skill] or [pick(rng, prompt.topic.things)]
    if rng.random() < 0.3 * (1 - skill):
        things.append(pick(rng, pick(rng, TOPICS).things))
    sentences = []
    while things:
        if len(things) > 1 and rng.random() < 0.7:
            a, b, *things = things
            sentences.append(pick(rng, prompt.family.two).format(a=a, b=b))
        else:
            a, *things = things
            sentences.append(pick(rng, prompt.family.one).format(a=a))
    return sentences


def _said(rng: Random, aspect: str) -> str:
    return pick(rng, SAID[aspect]).format(k=pick(rng, NUMBERS))


def _reason(rng: Random, prompt: Prompt, skill: float) -> str:
    """A because: a true reason with skill, else an empty one or one of another place."""
    chance = rng.random()
    if chance < 0.3 + 0.6 * skill:
        reason = pick(rng, prompt.topic.reasons)
    else:
        reason = pick(rng, WEAK_REASONS) if rng.random() < 0.6 else pick(rng, pick(rng, TOPICS).reasons)
    return pick(rng, REASONS).format(r=reason)


def _example(rng: Random, prompt: Prompt, skill: float) -> str:
    """A for example: with a number and a thing of this place with skill, vaguer without."""
    number = pick(rng, NUMBERS) if rng.random() < 0.4 + 0.5 * skill else "some"
    thing = pick(rng, prompt.topic.things) if rng.random() < 0.5 + 0.4 * skill else "other things"
    return pick(rng, EXAMPLES).format(k=number, a=thing)


def draw_answer(rng: Random, prompt: Prompt, skill: float) -> str:
    """One answer of 3 to about 70 words; `skill` in [0, 1] moves the odds of every part."""
    body = [_said(rng, name) for name in prompt.aspects if rng.random() < 0.3 + 0.6 * skill]
    if rng.random() < 0.45:
        body.append(_said(rng, pick(rng, tuple(SAID))))
    if rng.random() < 0.25 + 0.55 * skill:
        body.append(_reason(rng, prompt, skill))
    if rng.random() < 0.15 + 0.55 * skill:
        body.append(_example(rng, prompt, skill))
    body += [pick(rng, FILLERS) for _ in range(2) if rng.random() < 0.35 - 0.1 * skill]
    sentences = _points(rng, prompt, skill) + shuffled(rng, body)
    if rng.random() < 0.2 * (1 - skill):
        sentences.append(pick(rng, sentences))
    if rng.random() < 0.2 + 0.4 * skill:
        sentences.insert(0, pick(rng, OPENINGS))
    if rng.random() < 0.2 + 0.4 * skill:
        sentences.append(pick(rng, CLOSINGS))
    return " ".join(sentences)


def _skill(rng: Random, bounds: tuple[float, float]) -> float:
    return bounds[0] + (bounds[1] - bounds[0]) * rng.random()


def _turn(role: str, content: str) -> list[dict[str, str]]:
    return [{"role": role, "content": content}]


def draw_pair(rng: Random, prompt: Prompt, flipped: bool) -> tuple[str, str]:
    """(chosen, rejected): two answers of different gold, the better first unless the label is flipped."""
    asked = _turn("user", prompt.text)
    while True:
        one, two = (draw_answer(rng, prompt, _skill(rng, PREF_SKILL)) for _ in range(2))
        margin = gold(asked, one) - gold(asked, two)
        if margin:
            return (one, two) if (margin > 0) != flipped else (two, one)


def unique_prompts(rng: Random) -> Iterator[Prompt]:
    """Endless prompts, no text twice."""
    seen: set[str] = set()
    while True:
        prompt = draw_prompt(rng)
        if prompt.text not in seen:
            seen.add(prompt.text)
            yield prompt


def make_row(rng: Random, split: str, number: int, prompt: Prompt, flipped: bool) -> dict[str, Any]:
    """One row: messages for sft, TRL's conversational preference form for pref, prompts alone for the rest."""
    name, asked = {"id": f"{split}-{number:04d}"}, _turn("user", prompt.text)
    if split == "sft":
        answer = draw_answer(rng, prompt, _skill(rng, SFT_SKILL))
        return name | {"messages": asked + _turn("assistant", answer)}
    if split == "pref":
        chosen, rejected = draw_pair(rng, prompt, flipped)
        return name | {
            "prompt": asked,
            "chosen": _turn("assistant", chosen),
            "rejected": _turn("assistant", rejected),
        }
    return name | {"prompt": asked}


def make_split(rng: Random, prompts: Iterator[Prompt], split: str, size: int, first: int = 0) -> str:
    """The text of one jsonl file. Exactly FLIPPED of the rows, rounded, have a flipped label; only pref uses it.

    first: the number of the first row, in its id.
    """
    turned = round(FLIPPED * size)
    flips = shuffled(rng, (True,) * turned + (False,) * (size - turned))
    rows = [make_row(rng, split, i, next(prompts), flipped) for i, flipped in enumerate(flips, first)]
    return "".join(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n" for row in rows)


def make_world(seed: int, sizes: dict[str, int]) -> dict[str, str]:
    """Split name -> the text of its jsonl file; `pref` has FURTHER pairs at its end, `validation` prompts of its own.

    Same seed and sizes, same text.
    """
    rng = Random(seed)
    prompts = unique_prompts(rng)
    made = {split: make_split(rng, prompts, split, size) for split, size in sizes.items()}
    made["pref"] += make_split(rng, prompts, "pref", FURTHER["pref"], sizes["pref"])
    return made | {"validation": make_split(rng, prompts, "eval", FURTHER["validation"])}


def main(arguments: Sequence[str]) -> None:
    """Write the four files into the folder named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default, most = Path(__file__).resolve().parent.parent / "data" / "minifarm", SIZES["pref"] + FURTHER["pref"]
    parser.add_argument("folder", type=Path, nargs="?", default=default)
    parser.add_argument("--pairs", type=int, choices=range(1, most + 1), default=SIZES["pref"], metavar=f"1..{most}")
    parser.add_argument("--validation", action="store_true", help="other prompts in place of those for evaluation")
    options = parser.parse_args(arguments)
    made = make_world(SEED, SIZES)
    texts = {**made, "pref": "".join(made["pref"].splitlines(keepends=True)[:options.pairs]),
             "eval": made["validation"] if options.validation else made["eval"]}
    options.folder.mkdir(parents=True, exist_ok=True)
    for split in SIZES:
        (options.folder / f"{split}.jsonl").write_bytes(texts[split].encode())


if __name__ == "__main__":
    main(sys.argv[1:])
