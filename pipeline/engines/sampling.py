"""How samples are drawn: groups of samples with one temperature, cut and length each, and the requests for them.

Every sample has a seed of its own, from (run seed, iteration, prompt id, temperature, sample) and no more.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pipeline.config import setting
from pipeline.engines.engine import Request
from pipeline.records import Group
from pipeline.stage import derive_seed


@dataclass(frozen=True)
class GroupSettings:
    """Samples drawn alike. What is null is as in the setting of the same name beside the groups."""

    temperature: float = setting(low=0.0)  # 0: greedy
    n: int | None = setting(None, low=1)
    top_p: float | None = setting(None, above=0.0, high=1.0)
    top_k: int | None = setting(None, low=0)
    max_tokens: int | None = setting(None, low=1)
    stop_ids: tuple[int, ...] = setting((), low=0)  # beside the model's own: tokens that end a completion as they do
    beams: int = setting(1, low=1, added=True)  # above 1: beam search, at temperature 0
    # tokens of an n-gram that must not occur again, in prompt and completion (Xu et al. 2023: 3); 0: any may
    no_repeat_ngram: int = setting(0, low=0, added=True)

    def check(self) -> list[tuple[str, str]]:
        if (self.beams > 1 or self.no_repeat_ngram) and self.temperature != 0.0:
            return [("temperature", f"{self.temperature:g}, expected 0: beams and no_repeat_ngram search, nothing is "
                     "drawn")]
        return []


@dataclass(frozen=True)
class Draw:
    """`n` samples of every prompt, drawn alike."""

    temperature: float  # 0: greedy
    n: int
    top_p: float  # in (0, 1]
    top_k: int  # 0: off
    max_tokens: int
    stop_ids: tuple[int, ...]  # beside the model's own
    beams: int = 1  # above 1: beam search
    no_repeat_ngram: int = 0  # 0: off


def draws(groups: Iterable[GroupSettings], **beside: Any) -> tuple[Draw, ...]:
    """The groups with every null filled in by the setting of the same name `beside` them."""
    return tuple(Draw(**{name: beside[name] if value is None else value for name, value in vars(group).items()})
                 for group in groups)


def requests_for(group: Group, drawn: tuple[Draw, ...], stop_ids: tuple[int, ...], run_seed: int,
                 logprobs: bool) -> list[Request]:
    """One request per draw. `stop_ids` are the model's own.

    Of draws at one temperature the first has the seed it would have alone, the others one of their own each.
    """
    requests, before = [], list[float]()
    for draw in drawn:
        again = (before.count(draw.temperature),) if draw.temperature in before else ()
        before.append(draw.temperature)
        seed = derive_seed(run_seed, "generate", group.iteration, group.id, draw.temperature, *again)
        requests.append(Request(prompt_ids=group.prompt_ids, n=draw.n, temperature=draw.temperature, top_p=draw.top_p,
                                top_k=draw.top_k, max_tokens=draw.max_tokens,
                                stop_ids=(*stop_ids, *(i for i in draw.stop_ids if i not in stop_ids)),
                                logprobs=logprobs, seed=seed >> 1, beams=draw.beams,
                                no_repeat_ngram=draw.no_repeat_ngram))
    return requests
