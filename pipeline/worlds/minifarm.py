"""The hidden gold rule of the built-in world `minifarm`, and the words the world is made of.

The world is the AlpacaFarm protocol (Dubois et al. 2023) in miniature: instructions about a small farm, each with
many acceptable answers, and a judge that no part of the loop sees. Only the labels of the PREF split (the rule plus
annotator noise) and the evaluation come from it. `scripts/make_minifarm.py` writes the data from the same words, so
the rule knows what every prompt asks for. Pure standard library.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.errors import UserError

# A place | six things found there (plural, each named once in the world) | three true reasons about it.
_TOPICS = """
a tomato bed | seedlings, wooden stakes, red tomatoes, basil plants, straw mats, watering cans |
    the roots stay warm; the fruit ripens early; the stems need support
a hen house | brown hens, nest boxes, fresh eggs, roosting bars, grain bowls, door latches |
    foxes come at night; hens sleep high up; dry birds stay healthy
an apple orchard | apple trees, pruning saws, sweet apples, picking ladders, fruit crates, tree nets |
    light must reach every branch; old wood gives little fruit; frost can spoil the blossom
a bee hive | honey jars, worker bees, wax frames, white veils, smoke pots, clover flowers |
    bees need calm hands; nectar flows in warm air; smoke keeps the bees quiet
a bread oven | rye loaves, flour sacks, oak logs, iron trays, dough bowls, linen cloths |
    hot stones hold the heat; slow dough tastes better; steam makes a good crust
a market stall | painted signs, paper bags, scales, folding tables, canvas roofs, regular customers |
    clear signs bring people in; shade keeps greens fresh; honest weights build trust
a duck pond | white ducks, water lilies, reeds, flat stones, little fish, duck huts |
    ducks love still water; reeds clean the pond; fish eat the flies
a goat shed | young goats, hay racks, milk pails, salt blocks, goat bells, strong fences |
    goats climb over low walls; hay must stay off the floor; goats get lonely alone
a soup kitchen | big pots, onions, lentils, soup spoons, warm rolls, clay bowls |
    hot food cheers everybody up; beans feed many guests; slow cooking gives more taste
a herb garden | mint leaves, sage bushes, thyme pots, herb knives, gravel paths, drying racks |
    herbs like poor soil; cut herbs grow back fast; strong smells keep pests away
a cheese cellar | cheese wheels, oak shelves, cheese cloths, salt tubs, curd forks, round moulds |
    cool air ripens cheese slowly; salt draws out the water; wheels must be turned
a pumpkin field | orange pumpkins, vines, compost heaps, scarecrows, wheelbarrows, garden hoes |
    vines need a lot of room; rich soil feeds big fruit; crows steal the seeds
"""

NUMBERS = ("two", "three", "four", "five", "six", "eight", "nine", "ten", "twelve", "twenty", "thirty")
COUNTS = {"two": 2, "three": 3, "four": 4}
OPENERS = ("of course", "gladly", "happy to help", "thank you for asking", "what a lovely question", "hello")
CLOSERS = ("i hope this helps", "good luck", "let me know how it goes", "best wishes", "enjoy it", "ask me again")

# What a prompt may ask an answer to mention: the request as it stands in the prompt, and the words that meet it.
ASPECTS = {"price": ("the price", ("coin", "coins")),
           "weather": ("the weather", ("rain", "sunny", "windy", "storm", "fog", "snow")),
           "time": ("how long it takes", ("minutes", "hours", "days", "weeks")),
           "helper": ("who can help", ("aunt", "uncle", "cousin", "grandmother", "brother", "teacher")),
           "season": ("the season", ("spring", "summer", "autumn", "winter")),
           "danger": ("one danger", ("careful", "avoid", "never", "beware"))}

BEST_WORDS = (18, 40)  # answers of this many words lose nothing for their length
WEIGHTS = {
    "cover": 2.5,
    "asked": 3.0,
    "reason": 1.25,
    "example": 0.75,
    "courtesy": 0.5,
    "fresh": 0.5,
    "focus": 0.5,
    "length": 1.0,
}  # sum 10: a perfect answer scores 10.0


@dataclass(frozen=True)
class Topic:
    """A place of the world: its name with article, six things (plural nouns) and three true reasons."""

    name: str
    things: tuple[str, ...]
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Task:
    """What a prompt asks for: its topic, how many things, which things by name, which aspects."""

    topic: Topic
    count: int
    named: tuple[str, ...]
    aspects: tuple[str, ...]


def _read_topics(table: str) -> tuple[Topic, ...]:
    rows = (row.split("|") for row in table.replace("|\n", "|").strip().splitlines())
    split = ((n.strip(), t.split(","), r.split(";")) for n, t, r in rows)
    return tuple(Topic(n, tuple(x.strip() for x in t), tuple(x.strip() for x in r)) for n, t, r in split)


TOPICS = _read_topics(_TOPICS)
_ALL_THINGS = tuple(thing for topic in TOPICS for thing in topic.things)


def words_of(text: str) -> list[str]:
    """Lower-case words of a text; digits count as words, punctuation does not."""
    return re.findall(r"[a-z0-9']+", text.lower())


def sentences_of(text: str) -> list[str]:
    """Sentences of a text, split after . ! ? and stripped."""
    return [part.strip() for part in re.split(r"(?<=[.!?])\s+", text.strip()) if part.strip()]


def _mentions(padded: str, phrase: str) -> bool:
    """Whether `padded` (words joined by single blanks, a blank at each end) contains the phrase as whole words."""
    return f" {phrase} " in padded


def _pad(text: str) -> str:
    return f" {' '.join(words_of(text))} "


def read_task(messages: Sequence[Mapping[str, str]]) -> Task:
    """What the last user turn asks for. Raises UserError where it is not a minifarm prompt."""
    asked = next((m["content"] for m in reversed(messages) if m["role"] == "user"), "")
    padded = _pad(asked)
    topic = next((t for t in TOPICS if _mentions(padded, t.name)), None)
    if topic is None:
        raise UserError(f"pipeline.worlds.minifarm.gold: the prompt {asked[:80]!r} names no place of the minifarm "
                        "world; this rule scores data=minifarm only, choose another scorer for other data")
    named = tuple(thing for thing in topic.things if _mentions(padded, thing))
    count = next((number for word, number in COUNTS.items() if _mentions(padded, word)), 2)
    aspects = tuple(name for name, (request, _) in ASPECTS.items() if _mentions(padded, request))
    return Task(topic, count, named, aspects)


def _cover(task: Task, padded: str) -> float:
    """Share of the asked things that are mentioned; each foreign thing takes a quarter off."""
    own = [thing for thing in task.topic.things if _mentions(padded, thing)]
    foreign = sum(_mentions(padded, thing) for thing in _ALL_THINGS if thing not in task.topic.things)
    named = task.named
    share = sum(thing in own for thing in named) / len(named) if named else min(1.0, len(own) / task.count)
    return max(0.0, share - 0.25 * foreign)


def _asked(task: Task, padded: str) -> float:
    """Share of the asked aspects that are met; 1 where the prompt asks for none."""
    if not task.aspects:
        return 1.0
    return sum(any(_mentions(padded, word) for word in ASPECTS[name][1]) for name in task.aspects) / len(task.aspects)


def _reason(task: Task, padded: str) -> float:
    """1 for a because with a true reason of this place, 0.3 for any other because."""
    if not _mentions(padded, "because"):
        return 0.0
    return 1.0 if any(_mentions(padded, f"because {reason}") for reason in task.topic.reasons) else 0.3


def _example(task: Task, sentences: list[str]) -> float:
    """0.3 for an example, 0.3 more with a number in its sentence, 0.4 more with a thing of this place."""
    best = 0.0
    for padded in map(_pad, sentences):
        if _mentions(padded, "for example"):
            number = any(_mentions(padded, word) for word in NUMBERS)
            thing = any(_mentions(padded, word) for word in task.topic.things)
            best = max(best, 0.3 + 0.3 * number + 0.4 * thing)
    return best


def _courtesy(padded: str) -> float:
    """Half for a friendly opening, half for a friendly close."""
    opened = any(padded.startswith(f" {phrase} ") for phrase in OPENERS)
    closed = any(padded.endswith(f" {phrase} ") for phrase in CLOSERS)
    return 0.5 * opened + 0.5 * closed


def _fresh(text: str, words: list[str]) -> float:
    """1 without repeated 3-grams, falling to 0 at one third repeated; half of it where the last sentence is cut."""
    grams = Counter(zip(words, words[1:], words[2:], strict=False))
    repeated = sum(n - 1 for n in grams.values()) / max(1, sum(grams.values()))
    return max(0.0, 1.0 - 3.0 * repeated) * (1.0 if text.rstrip().endswith((".", "!", "?")) else 0.5)


def _focus(task: Task, sentences: list[str]) -> float:
    """Share of the sentences that say something asked: a thing or reason of this place, an asked aspect, courtesy."""
    useful = [*task.topic.things, *task.topic.reasons, *OPENERS, *CLOSERS]
    useful += [word for name in task.aspects for word in ASPECTS[name][1]]
    hits = sum(any(_mentions(padded, phrase) for phrase in useful) for padded in map(_pad, sentences))
    return hits / len(sentences)


def _length(count: int) -> float:
    """1 inside the best window, count / 18 below it, minus 1 for every 16 words above it down to -3."""
    low, high = BEST_WORDS
    return count / low if count < low else max(-3.0, 1.0 - max(0, count - high) / 16)


def qualities(messages: Sequence[Mapping[str, str]], text: str) -> dict[str, float]:
    """The graded qualities of an answer, each in [0, 1], `length` in [-3, 1]; all 0 for an answer without words.

    messages: the prompt as role/content turns; the last user turn is the instruction. text: the answer alone.
    Raises UserError where the prompt is not one of this world.
    """
    task, words, sentences = read_task(messages), words_of(text), sentences_of(text)
    if not words:
        return dict.fromkeys(WEIGHTS, 0.0)
    padded = _pad(text)
    return {"cover": _cover(task, padded), "asked": _asked(task, padded), "reason": _reason(task, padded),
            "example": _example(task, sentences), "courtesy": _courtesy(padded), "fresh": _fresh(text, words),
            "focus": _focus(task, sentences), "length": _length(len(words))}


def gold(messages: Sequence[Mapping[str, str]], text: str) -> float:
    """The hidden score of an answer: the weighted sum of its qualities, at most 10, at least -3.

    messages: the prompt as role/content turns; text: the answer alone. Raises UserError where the prompt is not one
    of this world.
    """
    found = qualities(messages, text)
    return round(sum(weight * found[name] for name, weight in WEIGHTS.items()), 6)
