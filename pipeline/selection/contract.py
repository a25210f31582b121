"""What a selection rule declares: scored samples of a prompt -> preference groups."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from pipeline.records import Group, Message

PAIRS, LISTS = "pairs", "lists"  # 1 + 1 and 1 + M completions, M >= 1, the preferred one first
Selected = tuple[list[Group], str]  # see Rule.select


@dataclass(frozen=True)
class Rule:
    """What a module in pipeline/selection declares as RULE. Constants may be functions of the settings instead.

    A rule meets two samples or more, as filters.clean let them through: not empty, finite scores, by default no two
    alike.
    """

    Settings: type

    select: Callable[..., Selected]
    """(group, settings, seed) -> the groups this prompt gives, with ids of their own (candidates.numbered), and "", or
    none and why. Random numbers come from (seed, group id) only: candidates.generator. With `survey` its result follows
    as `found`, with `beside` the group of the other model as `other`.
    """

    gives: str | Callable[[Any], str] = PAIRS
    """PAIRS, LISTS, or the name of a make-up of its own: its first two completions are a pair, the preferred first."""

    samples: int | Callable[[Any], int] = 2
    """Fewest samples of a prompt it can use."""

    seeded: bool | Callable[[Any], bool] = False
    """Whether the seed changes what it makes."""

    reads: tuple[str, ...] | Callable[[Any], tuple[str, ...]] = lambda settings: (settings.score,)
    """The scores it reads: filters clean and correct these."""

    asks: tuple[str, ...] | Callable[[Any], tuple[str, ...]] = ()
    """Further scores it cannot do without."""

    stores: tuple[str, ...] = ()
    """The scores it writes onto its groups. A soft label is "win_rate": P(chosen is better) on the chosen completion,
    1 - P on the rejected one, which the objectives spce (labels=probability) and sppo (labels=soft) read.
    """

    ranks: str | Callable[[Any], str] = lambda settings: settings.score
    """The score its groups are ordered by. Ties and margins are judged by it."""

    rewrites: bool = False
    """Its groups have other texts than the samples, and no ids: the stage tokenises them."""

    prompts: Callable[[Group, Any], tuple[tuple[Message, ...] | None, ...]] | None = None
    """(group it made, settings) -> messages of each completion, None where they are the group's: the stage tokenises
    them into Completion.prompt_ids.
    """

    decodes: bool | Callable[[Any], bool] = False
    """Its groups have completions with ids and no text: the stage writes the text."""

    draws: bool = False
    """Samples stand in its groups as draws from a model: filters.duplicates does not apply."""

    beside: bool | Callable[[Any], bool] = False
    """It also takes samples of another model for the same prompt (the stage's input `beside`)."""

    survey: Callable[[Iterable[Group], Any, int], Any] | None = None
    """(groups, settings, seed) -> what must be known of the whole table first, from one pass over it."""
